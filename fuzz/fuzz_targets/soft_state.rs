//! Any saved processor under the software engine: it is refused, or it runs without harm to the host.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use umbra_engine::CpuState;
use umbra_fuzz::guest::{CODE, Guest, registers, write_tables};
use umbra_fuzz::{Input, alter};
use umbra_state::Saved;

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::new(Guest::new());
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let good = registers(&mut input);
    let mut record = good.to_record("vcpu0");
    alter(&mut record.bytes, &mut input);
    let Ok(state) = CpuState::from_record(&record) else { return };
    // A processor that was shown another CPUID is refused at once: nothing would be seen of the rest.
    let state = CpuState { cpuid: good.cpuid, ..state };
    GUEST.with_borrow_mut(|guest| {
        write_tables(&guest.memory);
        guest.patch(&mut input);
        // A few instructions that look at much: PUSHF, FXSAVE, a far return, and whatever the input adds.
        guest.memory.write(CODE, &[0x9c, 0x0f, 0xae, 0x06, 0x50, 0xcb]).expect("it is memory");
        guest.memory.write(CODE + 6, input.bytes(64)).expect("it is memory");
        guest.run(&state, false);
    });
});
