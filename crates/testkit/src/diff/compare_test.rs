//! What is explained, and what is not.

use iced_x86::{Decoder, DecoderOptions};

use super::*;
use crate::diff::generate::with_code;
use crate::diff::state::DATA;

/// Where the page that can only be read starts; one that is not there follows.
const READ_ONLY: u64 = DATA + 0x3000;
const RBX: usize = 3;
const RDI: usize = 7;

fn decode(bytes: &[u8]) -> (Test, Instruction) {
    let test = with_code(State::empty(), bytes, Bits::SixtyFour);
    (test, Decoder::with_ip(64, bytes, test.state.rip, DecoderOptions::NONE).decode())
}

fn outcome(state: State, vector: u32, error: u32, address: u64) -> Outcome {
    Outcome { state, vector, error, address, pages: 0 }
}

fn fault(state: State, error: u32, address: u64) -> Outcome {
    outcome(state, 14, error, address)
}

#[test]
fn either_page_of_a_long_store_may_fault_first() {
    let check = |code: &[u8], host, engine| {
        let (test, i) = decode(code);
        differences(&test, &i, 0, &fault(test.state, host, DATA + 0x4000), &fault(test.state, 7, engine))
    };
    let fxsave = [0x0f, 0xae, 0x03];
    assert!(check(&fxsave, 6, READ_ONLY + 0xff0).is_empty());
    assert!(!check(&fxsave, 6, DATA + 0x4010).is_empty(), "the same page is there or not");
    assert!(!check(&fxsave, 4, READ_ONLY + 0xff0).is_empty(), "only whether the page is there");
    // MOV [RBX], RAX.
    assert!(!check(&[0x48, 0x89, 0x03], 6, READ_ONLY + 0xff0).is_empty());
}

#[test]
fn an_image_that_is_bad_may_fault_before_its_pages() {
    let xrstor = [0x0f, 0xae, 0x2b];
    let check = |code: &[u8], at: u64, change: fn(&mut Outcome)| {
        let (mut test, i) = decode(code);
        test.state.gpr[RBX] = at;
        let host = fault(test.state, 4, DATA + 0x4000);
        let mut engine = outcome(test.state, 13, 0, 0);
        change(&mut engine);
        let (there, back) = ((host, engine), (engine, host));
        [there, back].map(|(host, engine)| differences(&test, &i, 0, &host, &engine).is_empty())
    };
    let at = READ_ONLY + 0xc00;
    assert_eq!(check(&xrstor, at, |_| ()), [true; 2]);
    assert_eq!(check(&xrstor, at + 16, |_| ()), [false; 2], "that is #GP whatever is there");
    assert_eq!(check(&xrstor, 1 << 47, |_| ()), [false; 2]);
    assert_eq!(check(&xrstor, at, |o| o.error = 8), [false; 2]);
    assert_eq!(check(&xrstor, at, |o| o.vector = 12), [false; 2]);
    assert_eq!(check(&xrstor, at, |o| o.state.gpr[1] = 1), [false; 2], "registers must agree");
    // FXRSTOR.
    assert_eq!(check(&[0x0f, 0xae, 0x0b], at, |_| ()), [false; 2]);
}

#[test]
fn a_fault_of_bytes_that_a_mask_leaves_out() {
    // MASKMOVDQU XMM2, XMM1; MASKMOVQ MM2, MM1.
    for code in [&[0x66, 0x0f, 0xf7, 0xd1][..], &[0x0f, 0xf7, 0xd1]] {
        let (test, i) = decode(code);
        let is_open = |mask: u8, start: u64, address: u64| {
            let mut state = test.state;
            state.gpr[RDI] = start;
            // XMM1, or MM1 with the stack's top at 3, has the mask in byte 5.
            state.zmm[1][5] = mask;
            state.fx[3] = 3 << 3;
            state.fx[32 + 16 * 6 + 5] = mask;
            is_left_open(test.bits, &i, &fault(state, 6, address))
        };
        assert!(is_open(0, DATA, DATA));
        assert!(is_open(0x7f, DATA, DATA));
        assert!(!is_open(0x80, DATA, DATA));
        assert!(is_open(0x80, DATA - 5, DATA - 5), "the byte is in the other page");
        assert!(!is_open(0x80, DATA - 5, DATA));
        assert!(is_open(0x80, u64::MAX - 4, u64::MAX), "from the last page to the first");
    }
}

#[test]
fn who_goes_on_after_such_a_fault_may_come_back() {
    let (test, i) = decode(&[0x66, 0x0f, 0xf7, 0xd1]);
    let host = fault(test.state, 6, 0);
    let mut engine = host;
    engine.state.gpr[1] = 1;
    assert!(!differences(&test, &i, 0, &host, &engine).is_empty(), "both have faulted at the same time");
    engine.state.zmm[1][0] = 0x80;
    assert!(differences(&test, &i, 0, &host, &engine).is_empty());
    let end = outcome(test.state, 3, 0, 0);
    assert!(differences(&test, &i, 0, &host, &end).is_empty());
    assert!(!differences(&test, &i, 0, &engine, &end).is_empty(), "selected bytes fault");
}
