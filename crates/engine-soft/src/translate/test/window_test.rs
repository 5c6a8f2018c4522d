//! One lookup for several accesses.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSP};

use super::{NOTHING, Pair, guest, hex, translation};
use crate::exec::test::guest::{CODE, DATA, DEVICE, Guest, STACK, TABLES};
use crate::translate::validate::listing;

/// How many lookups the translation of `code` and a branch has.
fn lookups(code: &str) -> usize {
    let (code, given) = translation(&mut guest(64), &hex(&format!("{code}ebfe")));
    listing(&code, &given, None).matches("gs:[tlb]").count()
}

#[test]
fn accesses_share_lookups() {
    // push rbp; mov rbp,rsp; sub rsp,32; mov [rbp-8],rdi; mov [rsp+8],rsi; mov rax,[rbp-8]; add rax,[rsp+8]; leave; pop rcx
    assert_eq!(lookups("554889e54883ec2048897df84889742408488b45f84803442408c959"), 3);
    // mov rdx,rax; mov [rdi],rax; movsx ecx,byte ptr [rax-1]; movsx edx,byte ptr [rdx]
    assert_eq!(lookups("4889c24889070fbe48ff0fbe12"), 3);
    // mov rax,[rbx]; cpuid; mov rax,[rbx+8]
    assert_eq!(lookups("488b030fa2488b4308"), 2);
    // mov rax,[rbx]; mov rbx,[rcx]; mov rax,[rbx+8]; mov rdx,[rcx+0x800]
    assert_eq!(lookups("488b03488b19488b4308488b9100080000"), 4);
}

#[test]
fn whatever_two_pages_do() {
    // mov rax,[rbx]; add [rbx+8],rax; movups xmm0,[rbx+16]; adc rax,[rbx+3]; movups [rbx+32],xmm0; adc rcx,[rbx+40]
    let code = hex("488b03480143080f104310481343030f11432048134b28");
    let entry = TABLES + 0x3000 + 8 * (DATA >> 12);
    // The second page is there, is not, may not be written, is a device's.
    for second in [(DATA + 0x3000) | 7, 0, (DATA + 0x3000) | 5, DEVICE | 7] {
        let mut pair = Pair::new(64);
        pair.both(|guest| guest.map(DATA + 0x1000, second));
        let mut seen = Vec::new();
        for off in (0..60).chain([0, 8, 60, 0]) {
            let setup = |guest: &mut Guest| {
                (0..16).for_each(|n| guest.put(DATA + 0xfc0 + 8 * n, 0x0edc_ba98_7654_3210 * (n + 1), 8));
                guest.cpu.gpr[RBX] = DATA + 0x1000 - off;
                guest.cpu.cr2 = 0;
            };
            seen.push(pair.run(setup, &code));
        }
        assert_eq!(seen[48], NOTHING);
        assert_eq!(seen[20] == NOTHING, second & 3 == 3);
        assert_eq!(pair.translated.peek(entry, 8), pair.interpreted.peek(entry, 8));
    }
}

#[test]
fn a_page_is_dirty_when_it_is_written() {
    let mut pair = Pair::new(64);
    let entry = TABLES + 0x3000 + 8 * (DATA >> 12);
    // mov rax,[rbx]; test rax,rax; je 1f; mov [rbx+8],rax; 1:
    let code = hex("488b034885c0740448894308");
    for (value, dirty) in [(0, 0), (0, 0), (5, 0x40), (0, 0x40)] {
        let setup = |guest: &mut Guest| {
            guest.put(DATA, value, 8);
            guest.cpu.gpr[RBX] = DATA;
        };
        assert_eq!(pair.run(setup, &code), NOTHING);
        pair.both(|guest| assert_eq!(guest.peek(entry, 8) & 0x40, dirty));
    }
}

#[test]
fn the_interpreter_ends_them() {
    let mut pair = Pair::new(64);
    // mov rax,[rbx]; mov rcx,[rdx]; mov rsi,[rbx+8]; add [rbx+16],rsi
    let code = hex("488b03488b0a488b730848017310");
    for at in [DATA + 0x800, DEVICE, DATA + 0x1ffc, DEVICE + 8] {
        let setup = |guest: &mut Guest| {
            (guest.cpu.gpr[RBX], guest.cpu.gpr[RDX]) = (DATA, at);
            (0..4).for_each(|n| guest.put(DATA + 8 * n, 0x1234 + n, 8));
        };
        assert_eq!(pair.run(setup, &code), NOTHING);
        assert_eq!(pair.translated.peek(DATA + 16, 8), 0x1236 + 0x1235);
    }
}

#[test]
fn code_that_writes_what_comes_next() {
    let mut pair = Pair::new(64);
    // lea rbx,[rip+1f]; mov eax,[rbx]; inc byte ptr [rbx+1]; mov ecx,[rbx]; 1: mov edx,0x11223344
    let code = hex("488d1d070000008b03fe43018b0bba44332211");
    for _ in 0..3 {
        assert_eq!(pair.run(|_| {}, &code), NOTHING);
        let gpr = &pair.translated.cpu.gpr;
        assert_eq!((gpr[RAX], gpr[RCX], gpr[RDX]), (0x2233_44ba, 0x2233_45ba, 0x1122_3345));
        assert_eq!(pair.translated.cpu.rip, CODE + code.len() as u64 + 1);
    }
}

#[test]
fn registers_that_move() {
    let mut pair = Pair::new(64);
    // mov r10,rbx; mov [r10],rsi; add r10,16; mov [r10-8],rdi; mov rax,[r10-16]; mov r11,[rbx+rcx*8]; add [rbx+rcx*8+8],r11;
    // mov r15,[rbx+rcx*8+8]; inc r10; mov [r10+7],r15b; sub r10,17; push [r10+1]; pop [rbx+64]; pop r8
    let code = hex(
        "4989da4989324983c21049897af8498b42f04c8b1ccb4c015ccb084c8b7ccb0849ffc245887a074983ea1141ff72018f43404158",
    );
    for off in [0, 8, 0xfb8, 0xff0] {
        let setup = |guest: &mut Guest| {
            (guest.cpu.gpr[RBX], guest.cpu.gpr[RCX]) = (DATA + off, 3);
            guest.cpu.gpr[RSP] = STACK - 0x1000 + off - 8;
        };
        assert_eq!(pair.run(setup, &code), NOTHING);
        assert_eq!(pair.translated.cpu.gpr[RSP], STACK - 0x1000 + off);
    }
}
