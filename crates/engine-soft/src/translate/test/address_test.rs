//! Translations know no linear address: one serves all places where its page is mapped.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDI, RDX, RSI, RSP};

use super::{NOTHING, Pair, guest, hex};
use crate::exec::test::guest::{DATA, Guest, STACK, TABLES};
use crate::translate::validate::seen;

/// Other places where the page of code is mapped, each with another page after it.
const ALIASES: [u64; 3] = [0x60_0000, 0x70_0000, 0xffff_ff80_0078_0000];
const HERE: u64 = DATA + 0x8000;

fn alias(guest: &mut Guest) {
    // The highest 512 GiB are the lowest once more.
    guest.put(TABLES + 511 * 8, (TABLES + 0x1000) | 7, 8);
    for (n, at) in (1..).zip(ALIASES) {
        let low = at & 0xff_ffff;
        guest.map(low, HERE | 7);
        guest.map(low + 0x1000, (DATA + 0x1000 * n) | 7);
        guest.put(DATA + 0x1000 * n + 0x10, 0x1111 * n, 8);
    }
}

#[test]
fn one_page_at_several_addresses() {
    let mut pair = Pair::new(64);
    // What it reads is 0x10 bytes into the next page.
    // lea rax,[rip-7]; mov rcx,[rip+0x1002]; call 1f; ret; 1: pop rdx; push rdx; ret
    let f = hex("488d05f9ffffff488b0d02100000e801000000c35a52c3");
    pair.both(|guest| {
        alias(guest);
        guest.bytes(HERE, &f);
    });
    // call rbx; mov [rsi],rax; mov [rsi+8],rcx; mov [rsi+16],rdx
    let call = hex("ffd348890648894e0848895610");
    for round in 0..3 {
        for (n, at) in (1..).zip(ALIASES) {
            let setup = |guest: &mut Guest| (guest.cpu.gpr[RBX], guest.cpu.gpr[RSI]) = (at, DATA);
            assert_eq!(pair.run(setup, &call), NOTHING, "{round}");
            let gpr = &pair.translated.cpu.gpr;
            assert_eq!((gpr[RAX], gpr[RCX], gpr[RDX]), (at, 0x1111 * n, at + 19));
            assert_eq!(gpr[RSP], STACK);
        }
    }
}

#[test]
fn they_share_a_translation() {
    let mut guest = guest(64);
    alias(&mut guest);
    // lea rax,[rip]; ret
    let f = hex("488d0500000000c3");
    guest.bytes(HERE, &f);
    // call rbx
    let call = hex("ffd3");
    let mut made = Vec::new();
    for at in ALIASES {
        seen::take();
        guest.cpu.gpr[RBX] = at;
        guest.run(&call);
        assert_eq!(guest.cpu.gpr[RAX], at + 7);
        made.push(seen::take().len());
    }
    // The calling code is written anew each time, the function is not.
    assert_eq!(made[1], made[2]);
    assert_eq!(made[0], made[1] + 1);
}

#[test]
fn branches_to_and_fro() {
    let mut pair = Pair::new(64);
    // At the page's end, so that branches leave it in both directions: each leads to the alias of its own neighbours.
    // add rax,1; dec rcx; jmp .+0x1e
    let before = hex("4883c00148ffc9eb1c");
    // add rax,0x100; cmp rcx,5; ja .-0x2f; hlt
    let after = hex("4805000100004883f90577cff4");
    pair.both(|guest| {
        alias(guest);
        guest.bytes(HERE + 0xfe0, &before);
        for n in 1..4u64 {
            guest.bytes(DATA + 0x1000 * n + 5, &after);
        }
    });
    for at in ALIASES {
        let setup = |guest: &mut Guest| {
            (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RDI]) = (0, 25, at + 0xfe0)
        };
        // jmp rdi
        let jump = hex("ffe7");
        assert_eq!(pair.run(setup, &jump), NOTHING);
        assert_eq!(pair.translated.cpu.gpr[RCX], 5);
        assert_eq!(pair.translated.cpu.gpr[RAX], 20 * 0x101);
        assert!(pair.translated.cpu.rip > at);
    }
}

#[test]
fn narrow_code_wraps() {
    let mut pair = Pair::new(32);
    // Addresses are cut to 32 bits, in the stack pointer too.
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = 0xffff_f000;
        guest.cpu.gpr[RCX] = (DATA + 0x1000) >> 2;
        guest.put(DATA + 8, 0x1234_5678, 4);
    };
    // mov eax,[ebx+ecx*4+8]; push eax; lea edx,[ebx+ebx+0x10]; mov esi,esp; add [ebx+ecx*4+8],eax; pop edi
    let code = hex("8b448b08508d541b1089e601448b085f");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 0x1234_5678);
    assert_eq!(pair.translated.peek(DATA + 8, 4), 0x2468_acf0);
    assert_eq!(pair.translated.cpu.gpr[RDX], 0xffff_e010);
}

#[test]
fn a_branch_too_far_to_compute_falls_through() {
    let mut pair = Pair::new(64);
    // inc rcx; test eax,eax; jne .+0x80000005; inc rdx. The displacement from the page's start has more than 32 bits.
    let code = hex("48ffc185c00f85ffffff7f48ffc2");
    let setup = |guest: &mut Guest| (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RDX]) = (0, 0, 0);
    for _ in 0..3 {
        assert_eq!(pair.run(setup, &code), NOTHING);
        let gpr = &pair.translated.cpu.gpr;
        assert_eq!((gpr[RCX], gpr[RDX]), (1, 1));
    }
}
