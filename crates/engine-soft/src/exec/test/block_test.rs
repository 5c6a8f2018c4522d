//! Code that changes, and what blocks are found under.

use umbra_x86::reg::gpr::{RAX, RBX, RCX};

use super::guest::{CODE, DATA, Guest};

#[test]
fn a_store_into_its_own_block_is_exact() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = CODE;
    guest.cpu.gpr[RCX] = 0x2a;
    // mov byte [rbx+5], cl; mov al, 1 (becomes mov al, 0x2a)
    let code = [0x88, 0x4b, 0x04, 0xb0, 0x01];
    guest.run(&code);
    assert_eq!(guest.cpu.gpr[RAX], 0x2a);
    guest.cpu.gpr[RCX] = 0x2b;
    guest.cpu.rip = CODE;
    guest.go();
    assert_eq!(guest.cpu.gpr[RAX], 0x2b);
}

#[test]
fn a_store_into_another_block() {
    let mut guest = Guest::new();
    guest.bytes(DATA, &[0xb0, 0x01, 0xc3]);
    guest.cpu.gpr[RBX] = DATA;
    guest.cpu.gpr[RCX] = 3;
    // l: call rbx; add [rbx+1], cl; dec ecx; jnz l
    guest.run(&[0xff, 0xd3, 0x00, 0x4b, 0x01, 0xff, 0xc9, 0x75, 0xf7]);
    assert_eq!(guest.cpu.gpr[RAX] & 0xff, 1 + 3 + 2);
}

#[test]
fn data_beside_code_leaves_it_alone() {
    let mut guest = Guest::new();
    guest.cpu.gpr[RBX] = CODE + 0x800;
    guest.cpu.gpr[RCX] = 1000;
    guest.run(&[0x48, 0x01, 0x0b, 0xff, 0xc9, 0x75, 0xf9]);
    assert_eq!(guest.peek(CODE + 0x800, 8), 500_500);
    let page = guest.cpu.shared.memory.code_page(CODE).unwrap();
    assert!(page.has_code());
}

#[test]
fn writes_from_outside() {
    let mut guest = Guest::new();
    guest.run(&[0xb0, 0x01]);
    guest.bytes(CODE, &[0xb0, 0x07]);
    guest.cpu.rip = CODE;
    guest.go();
    assert_eq!(guest.cpu.gpr[RAX], 7);
}

#[test]
fn a_page_that_becomes_another() {
    let mut guest = Guest::new();
    guest.bytes(DATA, &[0xb0, 0x11, 0xf4]);
    guest.run(&[0xb0, 0x01]);
    guest.map(CODE, DATA | 7);
    guest.cpu.flush_page(CODE);
    guest.cpu.rip = CODE;
    guest.go();
    assert_eq!(guest.cpu.gpr[RAX], 0x11);
    // Both linear addresses use one block, whose RIP-relative addresses differ: lea rax, [rip].
    guest.bytes(DATA, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4]);
    for at in [CODE, DATA] {
        guest.cpu.rip = at;
        guest.go();
        assert_eq!(guest.cpu.gpr[RAX], at + 7);
    }
}

#[test]
fn modes_have_their_own_blocks() {
    let mut guest = Guest::new();
    // 64-bit: inc eax by REX prefix 0x40 and nop; 32-bit: inc eax; nop
    guest.run(&[0x40, 0x90]);
    assert_eq!(guest.cpu.gpr[RAX], 0);
    guest.narrow();
    guest.cpu.rip = CODE;
    guest.go();
    assert_eq!(guest.cpu.gpr[RAX], 1);
}

#[test]
fn the_cache_can_run_full() {
    let mut guest = Guest::new();
    // A page of 2,000 jumps to the next instruction, over and over under changing bytes.
    let mut code = Vec::new();
    for _ in 0..1800 {
        code.extend([0xeb, 0x00]);
    }
    for n in 0..80 {
        guest.run(&code);
        // Making the page another one each time fills the cache with blocks that are void.
        guest.bytes(CODE + 0xf00, &[n]);
        guest.bytes(CODE, &[0xeb]);
    }
    assert!(guest.cpu.cache.epoch > 0);
    assert_eq!(guest.cpu.rip, CODE + 3601);
}
