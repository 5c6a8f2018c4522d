//! Exceptions: which, with what error code, and at which instruction.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RSP};
use umbra_x86::reg::{Cr0, Cr4, Rflags};

use super::guest::{CODE, DATA, Guest, STACK};

const WILD: u64 = 0x8000_0000_0000_0000;

#[test]
fn page_faults_are_precise() {
    let mut guest = Guest::new();
    guest.map(DATA, 0);
    guest.cpu.gpr[RBX] = DATA + 8;
    // inc eax; mov rax,[rbx]
    assert_eq!(guest.fault(&[0xff, 0xc0, 0x48, 0x8b, 0x03]), (14, 0, CODE + 2));
    assert_eq!(guest.cpu.cr2, DATA + 8);
    assert_eq!(guest.cpu.gpr[RAX], 1);
    guest.cpu.gpr[RSP] = STACK;
    // add [rbx-16], eax: a read-modify-write is a write; it crosses into the page that is missing.
    guest.cpu.gpr[RBX] = DATA + 14;
    guest.put(DATA - 2, 0x5555, 2);
    assert_eq!(guest.fault(&[0x01, 0x43, 0xf0]), (14, 2, CODE));
    assert_eq!(guest.cpu.cr2, DATA);
    assert_eq!(guest.peek(DATA - 2, 2), 0x5555, "nothing is written before the fault");
}

#[test]
fn protection() {
    let mut guest = Guest::new();
    guest.map(DATA, DATA | 5);
    guest.cpu.gpr[RBX] = DATA;
    assert_eq!(
        guest.fault(&[0x8b, 0x03, 0x89, 0x03]),
        (14, 3, CODE + 2),
        "a page that was read is still not written"
    );
    guest.cpu.gpr[RSP] = STACK;
    guest.cpu.cr0.remove(Cr0::WP);
    guest.cpu.paging_changed();
    guest.run(&[0x89, 0x03]);
    guest.cpu.cr4.insert(Cr4::SMAP);
    guest.cpu.paging_changed();
    // With SMAP all pages here are the user's, so even the stack is out of reach: take it out of the user's hands.
    for page in [STACK - 0x1000, 0x2000, 0x5000, 0x6000, 0x1000] {
        guest.map(page, page | 3);
    }
    assert_eq!(guest.fault(&[0x8b, 0x03]), (14, 1, CODE));
    guest.cpu.gpr[RSP] = STACK;
    // stac; mov eax,[rbx]; clac; mov eax,[rbx]
    assert_eq!(guest.fault(&[0x0f, 0x01, 0xcb, 0x8b, 0x03, 0x0f, 0x01, 0xca, 0x8b, 0x03]), (14, 1, CODE + 8));
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = WILD;
    assert_eq!(guest.fault(&[0x90, 0x8b, 0x03]), (13, 0, CODE + 1));
    guest.cpu.gpr[RSP] = STACK;
    // mov rbp, rbx; mov eax,[rbp]
    assert_eq!(guest.fault(&[0x48, 0x89, 0xdd, 0x8b, 0x45, 0x00]), (12, 0, CODE + 3));
    guest.cpu.gpr[RSP] = STACK;
    assert_eq!(guest.fault(&[0xff, 0xe3]), (13, 0, CODE), "jmp rbx");
    guest.cpu.gpr[RSP] = STACK;
    assert_eq!(guest.fault(&[0x53, 0xc3]), (13, 0, CODE + 1), "ret");
    guest.cpu.gpr[RSP] = STACK;
    assert_eq!(guest.fault(&[0xff, 0xd3]), (13, 0, CODE), "call rbx");
}

#[test]
fn divisions() {
    for (code, a, c) in [
        (&[0x48u8, 0xf7, 0xf1][..], 1u64, 0u64),
        (&[0x31, 0xd2, 0xf7, 0xf9], 0x8000_0000, 0),
        (&[0x48, 0x99, 0x48, 0xf7, 0xf9], 1 << 63, u64::MAX),
        (&[0x99, 0xf7, 0xf9], 0x8000_0000, 0xffff_ffff),
        (&[0xf6, 0xf1], 0x1000, 0x10),
    ] {
        let mut guest = Guest::new();
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (a, c);
        assert_eq!(guest.fault(code).0, 0, "{code:x?}");
    }
}

#[test]
fn what_is_no_instruction() {
    assert_eq!(Guest::new().fault(&[0x90, 0x0f, 0x0b]), (6, 0, CODE + 1));
    assert_eq!(Guest::new().fault(&[0xf0, 0x01, 0xc0]), (6, 0, CODE), "LOCK of a register");
    let long =
        [0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90];
    assert_eq!(Guest::new().fault(&long), (13, 0, CODE), "16 bytes");
}

#[test]
fn fetches() {
    let mut guest = Guest::new();
    guest.map(CODE + 0x1000, (CODE + 0x1000) | 7 | 1 << 63);
    // Jump to an instruction that crosses into the page that must not be executed.
    guest.put(CODE + 0xffe, 0x00b8, 2);
    let mut jump = vec![0xe9];
    jump.extend((0xffeu32 - 5).to_le_bytes());
    assert_eq!(guest.fault(&jump), (14, 0x11, CODE + 0xffe));
    assert_eq!(guest.cpu.cr2, CODE + 0x1000);
    guest.map(CODE + 0x1000, (CODE + 0x1000) | 7);
    guest.cpu.flush_page(CODE + 0x1000);
    guest.cpu.gpr[RSP] = STACK;
    guest.bytes(CODE + 0x1000, &[0x12, 0, 0, 0xf4]);
    guest.run(&jump);
    assert_eq!(guest.cpu.gpr[RAX], 0x1200);
    // The other page may become another one.
    guest.bytes(DATA, &[0x34, 0, 0, 0xf4]);
    guest.map(CODE + 0x1000, DATA | 7);
    guest.cpu.flush_page(CODE + 0x1000);
    guest.run(&jump);
    assert_eq!(guest.cpu.gpr[RAX], 0x3400);
}

#[test]
fn alignment() {
    let mut guest = Guest::new();
    guest.cpu.cr0.insert(Cr0::AM);
    guest.cpu.set_flag(Rflags::AC, true);
    guest.cpu.gpr[RBX] = DATA + 1;
    guest.cpu.paging_changed();
    guest.run(&[0x8b, 0x03]);
    guest.user();
    guest.cpu.rip = CODE;
    let mut cpu = guest.cpu;
    assert_eq!(cpu.load::<u32>(DATA + 1), Err(crate::fault::Fault::AC));
    assert!(cpu.load::<u32>(DATA + 4).is_ok());
    assert!(cpu.load::<u8>(DATA + 1).is_ok());
    assert!(cpu.load_system::<u32>(DATA + 1).is_ok());
}

#[test]
fn single_step_and_breakpoints() {
    let mut guest = Guest::new();
    guest.cpu.set_flag(Rflags::TF, true);
    assert_eq!(guest.fault(&[0xff, 0xc0, 0xff, 0xc0]), (1, 0, CODE + 2));
    assert_eq!(guest.cpu.dr6 & 0x4000, 0x4000);
    let mut guest = Guest::new();
    guest.cpu.dr[1] = DATA + 4;
    guest.cpu.dr7 = 0x400 | 1 << 2 | 0xd << 20;
    guest.cpu.gpr[RBX] = DATA;
    guest.cpu.update_context();
    // mov eax,[rbx+4] (no write); mov [rbx+6], ax; inc eax
    assert_eq!(guest.fault(&[0x8b, 0x43, 0x04, 0x66, 0x89, 0x43, 0x06, 0xff, 0xc0]), (1, 0, CODE + 7));
    assert_eq!(guest.cpu.dr6 & 0xf, 2);
}

#[test]
fn an_x87_state_that_cannot_be_stored_stays() {
    let mut guest = Guest::new();
    guest.map(DATA, 0);
    guest.cpu.gpr[RBX] = DATA + 8;
    // A control word that masks nothing, and a zero divide that is pending.
    let state = [0x40, 0x03, 0x84, 0x80];
    guest.cpu.vector.fx[..4].copy_from_slice(&state);
    // fnsave [rbx]; fnstenv [rbx]: neither waits for the exception, and both would mask it.
    for code in [[0xdd, 0x33], [0xd9, 0x33]] {
        guest.cpu.gpr[RSP] = STACK;
        assert_eq!(guest.fault(&code), (14, 2, CODE));
        assert_eq!(guest.cpu.vector.fx[..4], state);
    }
}
