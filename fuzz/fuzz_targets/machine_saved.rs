//! Any bytes as a saved machine: the file, its specification, its records, and the memory, processors and devices of a
//! machine that is restored from it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::{Input, guest, repair_checksums};
use umbra_machine::{MachineSpec, SavedMachine, saved_spec};

/// Machines that are larger than this are not made, but only checked: this test shall fit into a small machine.
const MEMORY_MAX: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let repair = input.u8() & 1 != 0;
    let mut file = input.rest().to_vec();
    if repair {
        repair_checksums(&mut file);
    }
    let spec = saved_spec(file.as_slice());
    let Ok(saved) = SavedMachine::open(file.as_slice()) else { return };
    assert_eq!(spec.expect("it opens, so it has one"), saved.spec_json());
    let Ok(spec) = serde_json::from_slice::<MachineSpec>(saved.spec_json()) else { return };
    if spec.check().is_err() || spec.memory > MEMORY_MAX || spec.cpus > 2 {
        return;
    }
    let (parts, _events) = guest::parts();
    let Ok(machine) = saved.restore(spec.clone(), parts) else { return };
    let again = serde_json::to_vec(&spec).expect("it is JSON");
    let first = machine.save(&again, Vec::new()).expect("what was restored can be saved");
    let saved = SavedMachine::open(first.as_slice()).expect("what was saved opens");
    let (parts, _events) = guest::parts();
    let machine = saved.restore(spec, parts).expect("what was saved is restored");
    assert!(
        machine.save(&again, Vec::new()).expect("it can be saved again") == first,
        "one machine has one form"
    );
});
