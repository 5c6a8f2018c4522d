//! System instructions that are translated, and those between translated ones.

use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSI, RSP};
use umbra_x86::reg::{Cr4, Rflags};
use umbra_x86::segment::sreg;

use super::{NOTHING, Pair, hex};
use crate::exec::test::guest::{CODE, DATA, Guest, STACK};

/// No interrupt waits.
fn calm(guest: &mut Guest) {
    guest.cpu.interrupt_hint = false;
}

#[test]
fn flags_on_the_stack() {
    let mut pair = Pair::new(64);
    for flags in [0u64, 0x8d5, 0x41, 0x800, 0x200, 0x3000, 0x4_0000, 0x20_0000, 0x24_3ad5] {
        let setup = |guest: &mut Guest| {
            calm(guest);
            guest.cpu.rflags = flags | 2;
        };
        // pushfq; pop rax; cmp rbx,rbx; pushfq; pop rcx; adc rdx,rdx; pushfq; mov rsi,[rsp]; add rsp,8
        let code = hex("9c584839db9c594811d29c488b34244883c408");
        assert_eq!(pair.run(setup, &code), NOTHING);
        assert_eq!(pair.translated.cpu.gpr[RAX], flags | 2);
        assert_eq!(pair.translated.cpu.gpr[RCX], flags & !0x8d5 | 0x46);
    }
}

#[test]
fn the_interrupt_flag() {
    let mut pair = Pair::new(64);
    // pushfq; pop rax; sti; nop; pushfq; pop rcx; cli; pushfq; pop rdx; sti; mov eax,eax; cli; stc; sti; adc rbx,rbx; cli
    let code = hex("9c58fb909c59fa9c5afb89c0faf9fb4811dbfa");
    assert_eq!(pair.run(calm, &code), NOTHING);
    let gpr = &pair.translated.cpu.gpr;
    let bit = Rflags::IF.bits();
    assert_eq!([gpr[RAX], gpr[RCX], gpr[RDX]].map(|flags| flags & bit), [0, bit, 0]);
    assert!(!pair.translated.cpu.flag(Rflags::IF));
}

#[test]
fn user_code_may_not() {
    // Without a task there is no stack for the handler: the processor ends in a triple fault, at the instruction.
    // nop; cli
    // nop; sti
    // nop; swapgs
    // nop; stac
    // nop; clac
    for code in [hex("90fa"), hex("90fb"), hex("900f01f8"), hex("900f01cb"), hex("900f01ca")] {
        let mut pair = Pair::new(64);
        pair.both(|guest| {
            guest.cpu.cr4.insert(Cr4::SMAP);
            guest.user();
            guest.cpu.paging_changed();
            guest.bytes(CODE, &code);
            guest.cpu.rip = CODE;
            assert_eq!(crate::exec::run(&mut guest.cpu), crate::exec::Stop::TripleFault);
        });
        assert!(pair.translated.cpu.fast.translated > 0);
        assert_eq!(pair.translated.cpu.rip, CODE + 1, "{code:x?}");
        pair.compare();
    }
}

#[test]
fn the_other_base_of_gs() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.cpu.seg[sreg::GS].base = DATA;
        guest.cpu.msr.kernel_gs_base = DATA + 0x1000;
        guest.cpu.gpr[RBX] = 8;
        guest.put(DATA + 8, 0x1111, 8);
        guest.put(DATA + 0x1008, 0x2222, 8);
    };
    // mov rax,gs:[rbx]; swapgs; mov rcx,gs:[8]; mov gs:[rbx+8],rax; swapgs; stc; swapgs; adc gs:[rbx],rcx; mov rdx,gs:[rbx]
    let code = hex("65488b030f01f865488b0c250800000065488943080f01f8f90f01f86548110b65488b13");
    assert_eq!(pair.run(setup, &code), NOTHING);
    let cpu = &pair.translated.cpu;
    assert_eq!((cpu.gpr[RAX], cpu.gpr[RCX], cpu.gpr[RDX]), (0x1111, 0x2222, 0x4445));
    assert_eq!((cpu.seg[sreg::GS].base, cpu.msr.kernel_gs_base), (DATA + 0x1000, DATA));
    assert_eq!(pair.translated.peek(DATA + 0x1010, 8), 0x1111);
}

#[test]
fn access_to_the_pages_of_users() {
    let mut pair = Pair::new(64);
    pair.both(|guest| {
        guest.cpu.cr4.insert(Cr4::SMAP);
        for page in [STACK - 0x1000, STACK, 0x2000, 0x5000, 0x6000, 0x1000] {
            guest.map(page, page | 3);
        }
        guest.cpu.paging_changed();
    });
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = DATA;
        guest.cpu.gpr[RSI] = STACK - 0x100;
    };
    // stac; mov eax,[rbx]; add [rbx+8],eax; mov rcx,[rsi]; clac; mov rcx,[rsi]; push rcx; pop rdx; stac; inc qword ptr [rbx]; clac
    let allowed = hex("0f01cb8b03014308488b0e0f01ca488b0e515a0f01cb48ff030f01ca");
    assert_eq!(pair.run(setup, &allowed), NOTHING);
    for code in [
        // stac; mov eax,[rbx]; clac; mov eax,[rbx]
        hex("0f01cb8b030f01ca8b03"),
        // stac; add [rbx],eax; clac; add [rbx],eax
        hex("0f01cb01030f01ca0103"),
    ] {
        assert_eq!(pair.run(setup, &code), 14);
        let guest = &pair.translated;
        assert_eq!(guest.peek(guest.cpu.gpr[RSP] + 8, 8), CODE + 8, "the second access");
        assert_eq!(guest.cpu.cr2, DATA);
    }
    // An exception leaves AC alone.
    // mov ecx,1; stac; ud2
    let code = hex("b9010000000f01cb0f0b");
    assert_eq!(pair.run(setup, &code), 6);
    assert!(pair.translated.cpu.flag(Rflags::AC));
}

#[test]
fn paging_changes_between_translated_instructions() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = DATA;
        guest.map(DATA, DATA | 5);
        guest.cpu.flush_page(DATA);
        guest.cpu.cr0.insert(umbra_x86::reg::Cr0::WP);
        guest.cpu.paging_changed();
    };
    // Without CR0.WP a read-only page is writable.
    // mov rax,[rbx]; mov rdx,cr0; btr edx,16; mov cr0,rdx; mov [rbx],rdx; mov rax,[rbx]; bts edx,16; mov cr0,rdx; mov rcx,[rbx]; mov [rbx],rax
    let code = hex("488b030f20c20fbaf2100f22c2488913488b030fbaea100f22c2488b0b488903");
    assert_eq!(pair.run(setup, &code), 14);
    assert_eq!(pair.translated.peek(DATA, 4), pair.translated.cpu.gpr[RAX]);
    assert_eq!(pair.translated.cpu.cr2, DATA);
}
