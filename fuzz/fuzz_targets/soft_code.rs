//! Any code, in every mode and ring, under the software engine: the host's process must stay whole, guest memory is all that is
//! touched (guard pages are around it), every run ends, and the engine takes back what it saves.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Input;
use umbra_fuzz::guest::{CODE, CODE_MAX, Guest, registers, write_tables};

/// What ends the code, if it ever gets there: `out 0xf4, al; jmp $`.
const END: [u8; 4] = [0xe6, 0xf4, 0xeb, 0xfe];

thread_local! {
    /// One for all inputs: what the engine remembers of code that is no longer there must not matter.
    static GUEST: RefCell<Guest> = RefCell::new(Guest::new());
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let state = registers(&mut input);
    let external = input.u8() & 7 == 0;
    GUEST.with_borrow_mut(|guest| {
        write_tables(&guest.memory);
        guest.patch(&mut input);
        let code = input.bytes(CODE_MAX);
        guest.memory.write(CODE, &[code, &END].concat()).expect("it is memory");
        guest.run(&state, external);
    });
});
