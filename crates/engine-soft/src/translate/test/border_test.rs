//! Instructions that lie on two pages.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDI, RDX, RSI};

use super::{NOTHING, Pair, hex, translation};
use crate::exec::test::guest::{CODE, DATA, Guest, TABLES};
use crate::translate::validate::{Given, Why, seen, validate};

const FIRST: u64 = DATA + 0x4000;
const SECOND: u64 = DATA + 0x5000;
const THIRD: u64 = DATA + 0x6000;
/// Linear addresses of two pages, and of another two.
const PLACE: u64 = 0x60_0000;
const ELSEWHERE: u64 = 0x68_0000;
/// Where the instruction starts.
const START: u64 = 0xffc;

fn entry_of(linear: u64) -> u64 {
    TABLES + 0x3000 + (linear >> 12) * 8
}

/// Two guests with "add rax, 0x1000001; ret" at [`START`], whose immediate goes on in [`SECOND`], or in [`THIRD`] as 0x3000001.
fn pair() -> Pair {
    let mut pair = Pair::new(64);
    pair.both(|guest| {
        guest.bytes(FIRST + START, &hex("4881c001"));
        guest.bytes(SECOND, &hex("000001c3"));
        guest.bytes(THIRD, &hex("000003c3"));
        for place in [PLACE, ELSEWHERE] {
            guest.map(place, FIRST | 7);
            guest.map(place + 0x1000, SECOND | 7);
        }
    });
    pair
}

fn setup(guest: &mut Guest) {
    let gpr = &mut guest.cpu.gpr;
    (gpr[RAX], gpr[RCX], gpr[RBX], gpr[RDX]) = (0, 100, PLACE + START, ELSEWHERE + START);
    (gpr[RSI], gpr[RDI]) = (entry_of(PLACE + 0x1000), SECOND | 7);
}

#[test]
fn it_is_translated() {
    let mut pair = pair();
    // 1: call rbx; dec ecx; jnz 1b
    let code = hex("ffd3ffc975fa");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 100 * 0x100_0001);
    let fast = &pair.translated.cpu.fast;
    assert!(fast.interpreted < 10, "{} instructions in the interpreter", fast.interpreted);
    assert!(fast.entered < 20, "{} entries", fast.entered);
}

#[test]
fn its_flags_come_from_the_page_before_and_go_on() {
    let mut pair = pair();
    // stc; adc rax,-1, which goes on in the next page; setc dl; ret
    pair.both(|guest| {
        guest.bytes(FIRST + START - 1, &hex("f94881d0ffffff"));
        guest.bytes(SECOND, &hex("ffffff0f92c2c3"));
    });
    let setup = |guest: &mut Guest| {
        setup(guest);
        guest.cpu.gpr[RBX] = PLACE + START - 1;
        guest.cpu.gpr[RDX] = 0;
    };
    // 1: call rbx; add rax,rdx; dec ecx; jnz 1b
    assert_eq!(pair.run(setup, &hex("ffd34801d0ffc975f7")), NOTHING);
}

#[test]
fn the_next_page_is_another() {
    let mut pair = pair();
    // 1: call rbx; call rbx; xor edi,0x3000; mov [rsi],rdi; invlpg [rbx+4]; dec ecx; jnz 1b
    pair.both(|_| assert_eq!(SECOND ^ THIRD, 0x3000));
    let code = hex("ffd3ffd381f70030000048893e0f017b04ffc975eb");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 50 * 2 * (0x100_0001 + 0x300_0001));
}

#[test]
fn one_page_runs_before_different_ones() {
    let mut pair = pair();
    pair.both(|guest| guest.map(ELSEWHERE + 0x1000, THIRD | 7));
    // 1: call rbx; call rdx; call rdx; dec ecx; jnz 1b
    assert_eq!(pair.run(setup, &hex("ffd3ffd2ffd2ffc975f6")), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 100 * (0x100_0001 + 2 * 0x300_0001));
}

#[test]
fn its_bytes_change() {
    let mut pair = pair();
    pair.both(|guest| guest.map(0x70_0000, SECOND | 7));
    let setup = |guest: &mut Guest| {
        setup(guest);
        guest.cpu.gpr[RSI] = 0x70_0000;
    };
    // After the border. 1: mov [rsi+2],cl; call rbx; dec ecx; jnz 1b
    assert_eq!(pair.run(setup, &hex("884e02ffd3ffc975f7")), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], (1..=100).map(|n| n << 24 | 1).sum::<u64>());
    // Beside the instruction, which stays what it is: it goes on as a translation.
    let before = pair.translated.cpu.fast.interpreted;
    let beside = hex("884e08ffd3ffc975f7");
    assert_eq!(pair.run(setup, &beside), NOTHING);
    assert!(pair.translated.cpu.fast.interpreted - before < 150);
    // Before the border. 1: mov [rbx+3],cl; call rbx; dec ecx; jnz 1b
    assert_eq!(pair.run(setup, &hex("884b03ffd3ffc975f7")), NOTHING);
}

#[test]
fn a_device_changes_what_comes_after_the_border() {
    let mut pair = pair();
    for n in 1..30u8 {
        pair.both(|guest| guest.bytes(SECOND + 2, &[n]));
        assert_eq!(pair.run(setup, &hex("ffd3ffc975fa")), NOTHING);
        assert_eq!(pair.translated.cpu.gpr[RAX], 100 * (u64::from(n) << 24 | 1));
    }
}

#[test]
fn the_next_page_goes() {
    let mut pair = pair();
    // 1: call rbx; dec ecx; jnz 1b; mov dword ptr [rsi],0; invlpg [rbx+4]; call rbx
    let code = hex("ffd3ffc975fac706000000000f017b04ffd3");
    assert_eq!(pair.run(setup, &code), 14);
    assert_eq!(pair.translated.cpu.cr2, PLACE + 0x1000);
    assert_eq!(pair.translated.cpu.gpr[RAX], 100 * 0x100_0001);
}

#[test]
fn what_is_at_the_border_may_be_any_form() {
    // Each ends with its last byte in the next page: a branch, a call, a return, an access, what the interpreter does.
    let forms = [
        "0f8500000000",
        "e800000000",
        "c20000",
        "488b442408",
        "4889442408",
        "0f114424f0",
        "6a05",
        "0fa2",
        "e300",
        "48ffc0",
        "488d4424f8",
        "f3a4",
    ];
    for form in forms {
        let mut pair = pair();
        let bytes = hex(form);
        let start = 0x1000 - (bytes.len() as u64 - 1);
        pair.both(|guest| {
            guest.bytes(FIRST + start, &bytes[..bytes.len() - 1]);
            guest.bytes(SECOND, &bytes[bytes.len() - 1..]);
            // nop; ret
            guest.bytes(SECOND + 1, &hex("90c3"));
        });
        let setup = |guest: &mut Guest| {
            setup(guest);
            let gpr = &mut guest.cpu.gpr;
            (gpr[RBX], gpr[RSI], gpr[RDI]) = (PLACE + start, DATA + 0x1000, DATA + 0x2000);
            gpr[12] = gpr[umbra_x86::reg::gpr::RSP];
            gpr[13] = 20;
        };
        // 1: mov rsp,r12; mov ecx,3; cmp r13,7; call rbx; dec r13; jnz 1b
        let code = hex("4c89e4b9030000004983fd07ffd349ffcd75ed");
        pair.run(setup, &code);
    }
}

#[test]
fn its_record_is_read_field_by_field() {
    let mut guest = super::guest(64);
    guest.bytes(FIRST + START, &hex("4881c001"));
    guest.bytes(SECOND, &hex("000001c3"));
    guest.map(PLACE, FIRST | 7);
    guest.map(PLACE + 0x1000, SECOND | 7);
    guest.cpu.rip = PLACE + START;
    seen::take();
    let block = guest.cpu.find_block().unwrap();
    assert_eq!(guest.cpu.translate(block), Ok(true));
    let (code, given) = seen::take().pop().unwrap();
    assert!(given.border.is_some());
    assert_eq!(validate(&code, &given), Ok(()));
    // Any other address is none that may be read.
    let other = Given { border: given.border.map(|at| at + 8), ..given.clone() };
    assert_eq!(validate(&code, &other).unwrap_err().why, Why::Unchecked);
    // mov r11,[r10+8], and what would be read with another displacement, or written.
    let read = code.windows(4).position(|bytes| bytes == [0x4d, 0x8b, 0x5a, 8]).unwrap();
    for (at, byte) in [(3, 0x18), (3, 0x20), (3, 0x28), (3, 4), (1, 0x89), (1, 0x03)] {
        let mut code = code.clone();
        code[read + at] = byte;
        assert!(validate(&code, &given).is_err(), "byte {at} as {byte:#x}");
    }
}

#[test]
fn branches_if_zero() {
    let mut pair = Pair::new(64);
    // stc; 1: jrcxz 2f; lea rcx,[rcx-1]; inc rax; jmp 1b; 2: setc dl
    let code = hex("f9e309488d49ff48ffc0ebf50f92c2");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 100);
    assert_eq!(pair.translated.cpu.fast.interpreted, 1, "HLT");
    let mut pair = Pair::new(32);
    // 1: jecxz 2f; dec ecx; inc eax; jmp 1b; 2:
    assert_eq!(pair.run(setup, &hex("e3044940ebfa90")), NOTHING);
    // With the other width it is the interpreter's: the upper half counts, or not.
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| guest.cpu.gpr[RCX] = 1 << 32;
    // jecxz .+5; mov eax,1; jrcxz .+5; mov ebx,1
    assert_eq!(pair.run(setup, &hex("67e305b801000000e305bb01000000")), NOTHING);
    assert_eq!(CODE % 4096, 0);
    let (host, _) = translation(&mut super::guest(64), &hex("e302ebfe"));
    assert!(host.windows(2).any(|bytes| bytes == [0xe3, 2]));
}
