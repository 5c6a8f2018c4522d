//! Translated code that changes: by itself, by remapping, by devices, by other processors.

use std::thread;

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDI, RDX, RSI, RSP};

use super::{NOTHING, Pair, guest, hex};
use crate::exec::test::guest::{CODE, DATA, Guest, TABLES, machine};

const ONE: u64 = DATA + 0x4000;
const OTHER: u64 = DATA + 0x5000;
/// Linear address of the page that is now the one, now the other.
const PLACE: u64 = 0x60_0000;

fn entry_of(linear: u64) -> u64 {
    TABLES + 0x3000 + (linear >> 12) * 8
}

#[test]
fn a_page_is_remapped_under_linked_blocks() {
    let mut pair = Pair::new(64);
    pair.both(|guest| {
        // Three blocks, linked to each other.
        // add rax,1; jmp .+2; test rax,rax; jz 1f; dec rbp; 1: ret
        guest.bytes(ONE, &hex("4883c001eb004885c0740348ffcdc3"));
        // add rax,3; jmp .+2; test rax,rax; jz 1f; dec rbp; 1: ret
        guest.bytes(OTHER, &hex("4883c003eb004885c0740348ffcdc3"));
        guest.map(PLACE, ONE | 7);
    });
    let setup = |guest: &mut Guest| {
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (0, 100);
        (guest.cpu.gpr[RBX], guest.cpu.gpr[RSI]) = (PLACE, entry_of(PLACE));
        guest.cpu.gpr[RDI] = ONE | 7;
    };
    // Calls it three times, then the other page comes in its place.
    // 1: call rbx; call rbx; call rbx; xor edi,0x1000; mov [rsi],rdi; invlpg [rbx]; dec ecx; jnz 1b
    let code = hex("ffd3ffd3ffd381f70010000048893e0f013bffc975ea");
    pair.both(|guest| assert_eq!((ONE ^ OTHER, guest.cpu.mode.code), (0x1000, 64)));
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 50 * 3 + 50 * 9);
}

#[test]
fn a_page_remaps_itself() {
    let mut pair = Pair::new(64);
    pair.both(|guest| {
        // mov [rsi],rdi; invlpg [rbx]; add rax,1; ret
        guest.bytes(ONE, &hex("48893e0f013b4883c001c3"));
        // mov [rsi],rdi; invlpg [rbx]; add rax,7; ret
        guest.bytes(OTHER, &hex("48893e0f013b4883c007c3"));
    });
    let setup = |guest: &mut Guest| {
        guest.map(PLACE, ONE | 7);
        guest.cpu.flush_page(PLACE);
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (0, 10);
        (guest.cpu.gpr[RBX], guest.cpu.gpr[RSI]) = (PLACE, entry_of(PLACE));
        guest.cpu.gpr[RDI] = OTHER | 7;
    };
    // What follows INVLPG is of the page that has come.
    // 1: call rbx; xor edi,0x1000; dec ecx; jnz 1b
    let code = hex("ffd381f700100000ffc975f4");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 5 * 7 + 5);
}

#[test]
fn permissions_are_taken_away_under_linked_blocks() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.map(PLACE, DATA | 7);
        guest.cpu.flush_page(PLACE);
        (guest.cpu.gpr[RBX], guest.cpu.gpr[RSI], guest.cpu.gpr[RCX]) = (PLACE, entry_of(PLACE), 10);
    };
    // After the loop the page becomes read-only.
    // 1: add [rbx],rcx; dec ecx; jnz 1b; and qword ptr [rsi],-3; invlpg [rbx]; mov rax,[rbx]; add [rbx],rax
    let code = hex("48010bffc975f9488326fd0f013b488b03480103");
    assert_eq!(pair.run(setup, &code), 14);
    assert_eq!(pair.translated.cpu.gpr[RAX], 55);
    assert_eq!(pair.translated.cpu.cr2, PLACE);
}

#[test]
fn code_changes_itself() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RBX]) = (0, 50, CODE);
        guest.cpu.gpr[RSP] = DATA + 0x800;
    };
    // The immediate of the addition is the counter: in this block, before the addition.
    // 1: mov [rbx+5],cl; add eax,1; dec ecx; jnz 1b
    let same = hex("884b0583c001ffc975f6");
    assert_eq!(same[3..5], [0x83, 0xc0]);
    assert_eq!(pair.run(setup, &same), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 50 * 51 / 2);
    // After it, so that the next turn sees it.
    // 1: add eax,1; mov [rbx+2],cl; dec ecx; jnz 1b
    let next = hex("83c001884b02ffc975f6");
    assert_eq!(pair.run(setup, &next), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 1 + 50 * 51 / 2 - 1);
    // In a block that this one is linked to.
    // 1: mov [rbx+7],cl; jmp .+2; add eax,1; dec ecx; jnz 1b
    let linked = hex("884b07eb0083c001ffc975f4");
    assert_eq!(linked[5..7], [0x83, 0xc0]);
    assert_eq!(pair.run(setup, &linked), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 50 * 51 / 2);
}

#[test]
fn every_kind_of_store_counts() {
    // Into the immediate of the instruction that follows, which moves zero into RAX.
    let stores = [
        // mov [rbx],ecx
        hex("890b"),
        // xchg [rbx],ecx
        hex("870b"),
        // lock xadd [rbx],ecx
        hex("f00fc10b"),
        // movd [rbx],xmm0
        hex("660f7e03"),
        // movups [rbx-8],xmm1
        hex("0f114bf8"),
        // push rcx
        hex("51"),
        // inc byte ptr [rbx]
        hex("fe03"),
        // call .+5
        hex("e800000000"),
        // xchg eax,ecx; stosd
        hex("91ab"),
        // lock cmpxchg [rbx],ecx
        hex("f00fb10b"),
        // cmpxchg8b [rbx]
        hex("0fc70b"),
        // setnz [rbx]
        hex("0f9503"),
    ];
    let mut pair = Pair::new(64);
    for store in stores {
        let place = CODE + 0x42 + store.len() as u64;
        let mut code = vec![0xeb, 0x3e];
        code.resize(0x40, 0x90);
        code.extend(&store);
        // movabs rax,0
        code.extend(hex("48b80000000000000000"));
        let setup = |guest: &mut Guest| {
            let gpr = &mut guest.cpu.gpr;
            (gpr[RAX], gpr[RBX], gpr[RCX], gpr[RDX], gpr[RDI]) = (0, place, 0x77, 0, place);
            gpr[RSP] = place + 8;
            guest.cpu.vector.zmm[0][..4].copy_from_slice(&[9, 8, 7, 6]);
            // The bytes before the immediate, and it.
            let mut bytes = [0x90; 16];
            bytes[6 - store.len()..6].copy_from_slice(&store);
            bytes[6..9].copy_from_slice(&[0x48, 0xb8, 0x55]);
            guest.cpu.vector.zmm[1][..16].copy_from_slice(&bytes);
        };
        assert_eq!(pair.run(setup, &code), NOTHING, "{store:x?}");
        assert_ne!(pair.translated.cpu.gpr[RAX], 0, "{store:x?}");
    }
}

#[test]
fn devices_write_over_executed_code() {
    let mut guest = guest(64);
    // mov eax,1; jmp .+2; add eax,0x10; ret
    let function = hex("b801000000eb0083c010c3");
    guest.bytes(ONE, &function);
    for n in 1..40u8 {
        guest.cpu.gpr[RBX] = ONE;
        // call rbx; call rbx
        guest.run(&hex("ffd3ffd3"));
        let first = if n == 1 { 1 } else { u64::from(n) };
        assert_eq!(guest.cpu.gpr[RAX], first + if n > 1 { u64::from(n) } else { 0x10 });
        // The block that is called, and the one that it is linked to.
        guest.bytes(ONE + 1, &[n + 1]);
        guest.bytes(ONE + 9, &[n + 1]);
    }
}

#[test]
fn devices_write_while_it_runs() {
    let mut guest = guest(64);
    let memory = guest.cpu.shared.memory.clone();
    // mov al,0; ret
    guest.bytes(ONE, &hex("b000c3"));
    thread::scope(|s| {
        s.spawn(|| {
            guest.cpu.gpr[RBX] = ONE;
            // 1: call rbx; cmp al,100; jne 1b
            guest.run(&hex("ffd33c6475fa"));
        });
        s.spawn(|| {
            for n in 1..=100u8 {
                memory.write(ONE + 1, &[n]).unwrap();
                thread::sleep(std::time::Duration::from_micros(100));
            }
        });
    });
}

/// A processor runs `function` over and over until it comes to 100; another counts up to that in its byte `at`. The one that ran it.
fn changed_by_another_processor(function: &str, at: u8) -> Guest {
    let shared = machine(2);
    let [mut reader, mut writer] = [Guest::of(shared.clone(), 0), Guest::of(shared, 1)];
    for guest in [&mut reader, &mut writer] {
        guest.cpu.translator.after = 0;
        guest.cpu.gpr[RBX] = ONE;
    }
    reader.bytes(ONE, &hex(function));
    // 1: inc byte ptr [rbx+at]; mov ecx,2000; 2: dec ecx; jnz 2b; cmp byte ptr [rbx+at],100; jne 1b; hlt
    let code = hex(&format!("fe43{at:02x}b9d0070000ffc975fc807b{at:02x}6475eef4"));
    writer.bytes(CODE + 0x1000, &code);
    thread::scope(|s| {
        // 1: call rbx; cmp al,100; jne 1b
        s.spawn(|| reader.run(&hex("ffd33c6475fa")));
        s.spawn(|| {
            writer.cpu.rip = CODE + 0x1000;
            writer.go();
        });
    });
    reader
}

#[test]
fn another_processor_changes_the_code() {
    // mov al,0; ret
    changed_by_another_processor("b000c3", 1);
}

#[test]
fn another_processor_changes_what_comes_after_serialize() {
    // serialize; mov al,0; serialize; ret
    let reader = changed_by_another_processor("0f01e8b0000f01e8c3", 4);
    assert!(reader.cpu.fast.interpreted < 1000, "SERIALIZE is translated");
    // stc; serialize; adc eax,1; 1: serialize; dec ecx; jnz 1b
    let code = hex("f90f01e883d0010f01e8ffc975f9");
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (0, 50);
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 2);
}

#[test]
fn code_on_the_page_of_the_stack() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RSP] = CODE + 0xff0;
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX]) = (0, 200);
    };
    // 1: push rcx; call 2f; pop rcx; dec ecx; jnz 1b; jmp 3f; 2: pop rdx; push rdx; add rax,[rsp+8]; ret; 3: nop
    let code = hex("51e80700000059ffc975f5eb085a524803442408c390");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RAX], 200 * 201 / 2);
    // Code that is on the stack itself: push it, call it, take it off.
    // movabs rdx,0x909090c301c08348; push rdx; call rsp; inc byte ptr [rsp+3]; call rsp; add rsp,8
    let code = hex("48ba4883c001c390909052ffd4fe442403ffd44883c408");
    assert_eq!(pair.run(setup, &code), NOTHING);
    assert_eq!(pair.translated.cpu.gpr[RSP], CODE + 0xff0);
}

#[test]
fn a_compiler_of_the_guest() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RDI]) = (0, 300, ONE);
    };
    // Makes "add eax, ecx's low byte; ret" and calls it, each time a little further on.
    // 1: mov word ptr [rdi],0xc083; mov [rdi+2],cl; mov byte ptr [rdi+3],0xc3; call rdi; add rdi,4; and rdi,-513; dec ecx; jnz 1b
    let code = hex("66c70783c0884f02c64703c3ffd74883c7044881e7fffdffffffc975e3");
    assert_eq!(pair.run(setup, &code), NOTHING);
    let sum: u64 = (1..=300u64).map(|n| n as u8 as i8 as u64).fold(0, u64::wrapping_add);
    assert_eq!(pair.translated.cpu.gpr[RAX] as u32, sum as u32);
}
