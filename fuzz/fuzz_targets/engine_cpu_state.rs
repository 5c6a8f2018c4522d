//! Any bytes as a processor's saved state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_engine::CpuState;
use umbra_fuzz::{Input, alter, guest};
use umbra_state::{Record, Saved};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut record = guest::power_on(0).to_record("vcpu0");
    if input.u8() & 1 != 0 {
        record.bytes = input.rest().to_vec();
    } else {
        alter(&mut record.bytes, &mut input);
    }
    let Ok(state) = CpuState::from_record(&record) else { return };
    let again = state.to_record("vcpu0");
    let back = CpuState::from_record(&again).expect("what was saved loads");
    assert_eq!(back.differences(&state), Vec::<String>::new());
    let table = state.cpuid_table();
    for entry in table.entries() {
        let _ = table.answer(entry.leaf, entry.subleaf);
        let _ = table.answer(entry.leaf.wrapping_add(1), !entry.subleaf);
    }
    for number in 0..20 {
        let _ = (state.xsave_component(number), state.msr(number));
    }
    let Record { bytes: saved, .. } = again;
    assert!(saved.len() <= record.bytes.len() + 16, "a state does not grow when it is saved");
});
