//! Descriptor tables and instructions that look at descriptors.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::RAX;
use umbra_x86::reg::{Cr4, Rflags};
use umbra_x86::segment::{Table, access};

const DISP: [u8; 4] = [0x00, 0x90, 0, 0];

/// `prefix` with the operand [DATA] of 32-bit code.
fn at_data(prefix: &[u8]) -> Vec<u8> {
    [prefix, &DISP].concat()
}

#[test]
fn lgdt_and_sgdt() {
    let mut b = Bench::new(Start::P32, 0);
    b.write(DATA, 0x1234_5678_abcd, 8);
    b.step(&at_data(&[0x0f, 0x01, 0x15])).unwrap();
    assert_eq!(b.cpu.gdtr, Table { base: 0x1234_5678, limit: 0xabcd });
    b.step(&at_data(&[0x66, 0x0f, 0x01, 0x1d])).unwrap();
    assert_eq!(b.cpu.idtr, Table { base: 0x34_5678, limit: 0xabcd }, "24 bits with an operand of 16");
    b.write(DATA, u64::MAX, 8);
    b.step(&at_data(&[0x0f, 0x01, 0x05])).unwrap();
    assert_eq!(b.read(DATA, 8), 0xffff_1234_5678_abcd, "six bytes");
    let mut b = Bench::new(Start::Long, 0);
    b.write(DATA, 0x7fff_1234_5678_abcd, 8);
    b.write(DATA + 8, 0xffff, 2);
    // The base is 0xffff_7fff_1234_5678.
    assert_eq!(b.refuse(&[0x0f, 0x01, 0x14, 0x25, 0x00, 0x90, 0, 0]), Fault::GP0, "not canonical");
    b.write(DATA + 6, 0xffff_8000, 4);
    b.step(&[0x0f, 0x01, 0x14, 0x25, 0x00, 0x90, 0, 0]).unwrap();
    assert_eq!(b.cpu.gdtr.base, 0xffff_8000_1234_5678);
}

#[test]
fn user_mode_is_kept_out() {
    let loads: [&[u8]; 6] = [
        &[0x0f, 0x01, 0x15, 0x00, 0x90, 0, 0], // LGDT
        &[0x0f, 0x01, 0x1d, 0x00, 0x90, 0, 0], // LIDT
        &[0x0f, 0x00, 0xd0],                   // LLDT AX
        &[0x0f, 0x00, 0xd8],                   // LTR AX
        &[0x0f, 0x01, 0xf0],                   // LMSW AX
        &[0x0f, 0x06],                         // CLTS
    ];
    for code in loads {
        assert_eq!(Bench::new(Start::P32, 3).refuse(code), Fault::GP0, "{code:x?}");
    }
    let stores: [&[u8]; 5] = [
        &[0x0f, 0x01, 0x05, 0x00, 0x90, 0, 0], // SGDT
        &[0x0f, 0x01, 0x0d, 0x00, 0x90, 0, 0], // SIDT
        &[0x0f, 0x00, 0xc0],                   // SLDT EAX
        &[0x0f, 0x00, 0xc8],                   // STR EAX
        &[0x0f, 0x01, 0xe0],                   // SMSW EAX
    ];
    for code in stores {
        let mut b = Bench::new(Start::P32, 3);
        assert!(b.step(code).is_ok(), "{code:x?}");
        b.cpu.rip = CODE;
        b.cpu.cr4 |= Cr4::UMIP;
        assert_eq!(b.refuse(code), Fault::GP0, "{code:x?}");
    }
}

#[test]
fn lldt_and_ltr() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.gpr[RAX] = u64::from(TSS_B_SEL);
    b.step(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!((b.cpu.tr.selector, b.cpu.tr.base, b.cpu.tr.access), (TSS_B_SEL, TSS_B, 0x8b));
    assert_eq!(b.read(GDT + u64::from(TSS_B_SEL) + 5, 1), 0x8b, "busy");
    b.cpu.rip = CODE;
    assert_eq!(b.refuse(&[0x0f, 0x00, 0xd8]), Fault::gp(TSS_B_SEL), "it is busy now");
    b.cpu.gpr[RAX] = 0;
    assert_eq!(b.refuse(&[0x0f, 0x00, 0xd8]), Fault::GP0);
    b.step(&[0x0f, 0x00, 0xd0]).unwrap();
    assert!(b.cpu.ldtr.unusable);
    let cases = [
        (CODE0, Fault::gp(CODE0)),
        (FREE, Fault::np(FREE)),
        (0xc, Fault::gp(0xc)),
        (0x1000, Fault::gp(0x1000)),
    ];
    for (selector, fault) in cases {
        b.gdt(FREE, descriptor(0, 0xff, 0x02));
        b.cpu.gpr[RAX] = u64::from(selector);
        assert_eq!(b.refuse(&[0x0f, 0x00, 0xd0]), fault);
    }
    let mut b = Bench::new(Start::Real, 0);
    for reg in [0xd0, 0xd8, 0xc0, 0xc8, 0xe0, 0xe8] {
        assert_eq!(b.refuse(&[0x0f, 0x00, reg]), Fault::UD);
    }
}

#[test]
fn system_descriptors_of_long_mode_have_16_bytes() {
    let mut b = Bench::new(Start::Long, 0);
    b.gdt(FREE, descriptor(0x1234_5678, 0xff, 0x89));
    b.gdt(FREE + 8, 0xffff_9abc);
    b.cpu.gpr[RAX] = u64::from(FREE);
    b.step(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!(b.cpu.tr.base, 0xffff_9abc_1234_5678);
    let cases = [(0x0001_0000, "not canonical"), (1 << 40, "type")];
    for (upper, why) in cases {
        b.gdt(FREE, descriptor(0x1234_5678, 0xff, 0x89));
        b.gdt(FREE + 8, upper);
        assert_eq!(b.refuse(&[0x0f, 0x00, 0xd8]), Fault::gp(FREE), "{why}");
    }
    b.gdt(FREE + 8, 0);
    b.gdt(FREE, descriptor(0, 0xff, 0x81));
    assert_eq!(b.refuse(&[0x0f, 0x00, 0xd8]), Fault::gp(FREE), "no 16-bit TSS");
    b.cpu.gdtr.limit = FREE + 11;
    b.gdt(FREE, descriptor(0, 0xff, 0x89));
    assert_eq!(b.refuse(&[0x0f, 0x00, 0xd8]), Fault::gp(FREE), "half of it beyond the table");
}

/// Runs LAR, LSL, VERR and VERW on a descriptor: the values that LAR and LSL give, and whether VERR and VERW say yes.
fn look(start: Start, cpl: u8, rpl: u16, raw: u64) -> (Option<u64>, Option<u64>, bool, bool) {
    let mut b = Bench::new(start, cpl);
    b.gdt(FREE, raw);
    let mut run = |code: &[u8]| {
        b.cpu.rip = CODE;
        b.cpu.gpr[RAX] = 0xdead;
        b.cpu.gpr[1] = u64::from(FREE | rpl);
        assert_eq!(b.step(code), Ok(Flow::Next));
        (b.cpu.gpr[RAX], b.cpu.flag(Rflags::ZF))
    };
    let mut value = |code: &[u8]| {
        let (value, found) = run(code);
        assert!(found || value == 0xdead, "the destination stays");
        found.then_some(value)
    };
    let lar = value(&[0x0f, 0x02, 0xc1]);
    let lsl = value(&[0x0f, 0x03, 0xc1]);
    (lar, lsl, run(&[0x0f, 0x00, 0xe1]).1, run(&[0x0f, 0x00, 0xe9]).1)
}

#[test]
fn lar_lsl_verr_verw_by_type() {
    let big = 0xcf_0000;
    let limit = Some(0xf_ffff_ffff >> 4);
    let segment = |access: u16| Some(u64::from(access) << 8 | big);
    let cases = [
        // access, LAR, LSL, VERR, VERW
        (DATA_W, segment(DATA_W), limit, true, true),
        (0x91, segment(0x91), limit, true, false),
        (CODE_R, segment(CODE_R), limit, true, false),
        (0x99, segment(0x99), limit, false, false),
        (DATA_W & !access::P, segment(0x13), limit, true, true),
        (0x82, segment(0x82), limit, false, false),
        (0x89, segment(0x89), limit, false, false),
        (0x8b, segment(0x8b), limit, false, false),
        (0x81, segment(0x81), limit, false, false),
        (0x83, segment(0x83), limit, false, false),
        (0x84, segment(0x84), None, false, false),
        (0x85, segment(0x85), None, false, false),
        (0x8c, segment(0x8c), None, false, false),
        (0x86, None, None, false, false),
        (0x8e, None, None, false, false),
        (0x80, None, None, false, false),
        (0x88, None, None, false, false),
    ];
    for (access, lar, lsl, verr, verw) in cases {
        let raw = descriptor(0, 0xf_ffff, access | BIG);
        assert_eq!(look(Start::P32, 0, 0, raw), (lar, lsl, verr, verw), "{access:#x}");
        let only_legacy = matches!(access, 0x81 | 0x83 | 0x84 | 0x85);
        let (lar, lsl) = if only_legacy { (None, None) } else { (lar, lsl) };
        assert_eq!(look(Start::Long, 0, 0, raw), (lar, lsl, verr, verw), "{access:#x} in long mode");
    }
}

#[test]
fn lar_and_kin_by_level() {
    let seen = |cpl, rpl, access| look(Start::P32, cpl, rpl, descriptor(0, 0, access)).0.is_some();
    assert!(seen(3, 3, at(3, DATA_W)));
    assert!(!seen(3, 3, at(2, DATA_W)));
    assert!(!seen(0, 3, at(2, DATA_W)));
    assert!(seen(2, 1, at(2, DATA_W)));
    assert!(seen(3, 3, 0x9f), "conforming code is everybody's");
    let mut b = Bench::new(Start::P32, 0);
    for selector in [0u64, 3, 0x1000] {
        b.cpu.gpr[1] = selector;
        b.cpu.rflags |= Rflags::ZF.bits();
        assert_eq!(b.step(&[0x0f, 0x02, 0xc1]), Ok(Flow::Next));
        assert!(!b.cpu.flag(Rflags::ZF), "{selector:#x}");
    }
    for code in [[0x0f, 0x02, 0xc1], [0x0f, 0x03, 0xc1]] {
        assert_eq!(Bench::new(Start::V86, 3).refuse(&code), Fault::UD);
    }
}

#[test]
fn arpl() {
    for (own, least, result, raised) in
        [(0x10u64, 3, 0x13, true), (0x13, 2, 0x13, false), (0x12, 2, 0x12, false)]
    {
        let mut b = Bench::new(Start::P32, 3);
        b.cpu.gpr[RAX] = 0xffff_0000 | own;
        b.cpu.gpr[1] = least;
        // ARPL AX, CX
        assert_eq!(b.step(&[0x63, 0xc8]), Ok(Flow::Next));
        assert_eq!((b.cpu.gpr[RAX], b.cpu.flag(Rflags::ZF)), (0xffff_0000 | result, raised));
    }
    assert_eq!(Bench::new(Start::Real, 0).refuse(&[0x63, 0xc8]), Fault::UD);
}
