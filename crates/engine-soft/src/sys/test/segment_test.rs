//! Loads of segment registers.

use super::bench::*;
use crate::cpu::Shadow;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::{RAX, RSP};
use umbra_x86::segment::{access, sreg};

const MOV_ES_AX: &[u8] = &[0x8e, 0xc0];
const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];
const MOV_FS_AX: &[u8] = &[0x8e, 0xe0];
const MOV_CS_AX: &[u8] = &[0x8e, 0xc8];

const CODE_X: u16 = 0x99;
const CODE_C: u16 = 0x9f;
const DATA_RO: u16 = 0x91;
const LDT: u16 = 0x82;

fn load(cpl: u8, rpl: u16, access: u16, code: &[u8]) -> (Bench, Result<Flow, Fault>) {
    let mut b = Bench::new(Start::P32, cpl);
    b.gdt(FREE, descriptor(0x1234_5000, 0xf, access));
    b.cpu.gpr[RAX] = u64::from(FREE | rpl);
    let result = b.step(code);
    (b, result)
}

#[test]
fn data_segments_are_checked_by_type_level_and_presence() {
    let gp = Err(Fault::gp(FREE));
    let np = Err(Fault::np(FREE));
    let ok = Ok(Flow::Next);
    let cases = [
        // CPL, RPL, access: what
        (0, 0, DATA_W, ok),
        (0, 0, DATA_RO, ok),
        (0, 0, CODE_R, ok),
        (0, 0, CODE_X, gp),
        (0, 0, LDT, gp),
        (0, 0, DATA_W & !access::P, np),
        (0, 0, CODE_X & !access::P, gp),
        (0, 3, DATA_W, gp),
        (0, 3, at(3, DATA_W), ok),
        (3, 3, at(3, DATA_W), ok),
        (3, 0, at(3, DATA_W), ok),
        (3, 0, DATA_W, gp),
        (3, 3, at(2, CODE_R), gp),
        (3, 3, CODE_C, ok),
        (1, 0, at(1, DATA_W), ok),
        (1, 2, at(1, DATA_W), gp),
    ];
    for (cpl, rpl, access, expected) in cases {
        // Base 0x12345000, so the register is not flat and blocks end.
        let expected = expected.map(|_| Flow::End);
        let (b, result) = load(cpl, rpl, access, MOV_ES_AX);
        assert_eq!(result, expected, "CPL {cpl} RPL {rpl} access {access:#x}");
        if expected.is_ok() {
            let s = b.cpu.seg[sreg::ES];
            assert_eq!((s.base, s.limit, s.selector), (0x1234_5000, 0xf, FREE | rpl));
        }
    }
}

#[test]
fn stack_segments_must_be_writable_data_of_the_level() {
    let gp = Err(Fault::gp(FREE));
    let cases = [
        (0, 0, DATA_W, Ok(Flow::End)),
        (0, 0, DATA_RO, gp),
        (0, 0, CODE_R, gp),
        (0, 0, LDT, gp),
        (0, 0, DATA_W & !access::P, Err(Fault::ss(FREE))),
        (0, 1, DATA_W, gp),
        (0, 0, at(3, DATA_W), gp),
        (3, 3, at(3, DATA_W), Ok(Flow::End)),
        (3, 0, at(3, DATA_W), gp),
        (3, 3, DATA_W, gp),
    ];
    for (cpl, rpl, access, expected) in cases {
        let (b, result) = load(cpl, rpl, access, MOV_SS_AX);
        assert_eq!(result, expected, "CPL {cpl} RPL {rpl} access {access:#x}");
        assert_eq!(b.cpu.shadow == Shadow::MovSs, expected.is_ok());
    }
}

#[test]
fn the_accessed_bit_is_set_in_the_table() {
    let mut b = Bench::new(Start::P32, 0);
    b.gdt(FREE, descriptor(0, 0xf_ffff, DATA_W & !1 | BIG));
    b.cpu.gpr[RAX] = u64::from(FREE);
    assert_eq!(b.step(MOV_ES_AX), Ok(Flow::Next));
    assert_eq!(b.read(GDT + u64::from(FREE) + 5, 1), u64::from(DATA_W));
    assert_eq!(b.cpu.seg[sreg::ES].access & 1, 1);
}

#[test]
fn null_and_foreign_selectors() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.gpr[RAX] = 3;
    assert!(b.step(MOV_ES_AX).is_ok());
    assert!(b.cpu.seg[sreg::ES].unusable);
    assert_eq!(b.cpu.linear(sreg::ES, 0, 1, false), Err(Fault::GP0));
    b.cpu.gpr[RAX] = 0;
    assert_eq!(b.refuse(MOV_SS_AX), Fault::GP0);
    b.cpu.gpr[RAX] = 0x7f8 + 8;
    assert_eq!(b.refuse(MOV_ES_AX), Fault::gp(0x800), "beyond the table");
    assert_eq!(b.refuse(MOV_CS_AX), Fault::UD);
    b.write(LDT_BASE + 8, descriptor(0x777, 0x10, DATA_W), 8);
    b.cpu.gpr[RAX] = 0xc;
    assert!(b.step(MOV_ES_AX).is_ok());
    assert_eq!(b.cpu.seg[sreg::ES].base, 0x777);
    b.cpu.gpr[RAX] = 0x84;
    assert_eq!(b.refuse(MOV_ES_AX), Fault::gp(0x84), "beyond the LDT");
    b.cpu.ldtr.unusable = true;
    b.cpu.gpr[RAX] = 0xc;
    assert_eq!(b.refuse(MOV_ES_AX), Fault::gp(0xc), "no LDT");
}
const LDT_BASE: u64 = super::bench::LDT;

#[test]
fn null_ss_in_64_bit_mode() {
    for (cpl, selector, ok) in
        [(0, 0, true), (0, 1, false), (1, 1, true), (2, 2, true), (3, 3, false), (3, 0, false)]
    {
        let mut b = Bench::new(Start::Long, cpl);
        b.cpu.gpr[RAX] = selector;
        assert_eq!(b.step(MOV_SS_AX).is_ok(), ok, "CPL {cpl} selector {selector}");
        assert_eq!(b.cpu.mode.cpl, cpl);
    }
    let mut b = Bench::new(Start::Compat, 0);
    assert_eq!(b.refuse(MOV_SS_AX), Fault::GP0);
}

#[test]
fn a_null_selector_clears_the_base_of_fs() {
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.seg[sreg::FS].base = 0x1234_5678_9abc;
    assert!(b.step(MOV_FS_AX).is_ok());
    assert_eq!(b.cpu.seg[sreg::FS].base, 0);
    b.cpu.gpr[RAX] = u64::from(DATA0);
    b.cpu.seg[sreg::FS].base = 0x1234_5678_9abc;
    assert!(b.step(MOV_FS_AX).is_ok());
    assert_eq!(b.cpu.seg[sreg::FS].base, 0, "a descriptor's base has 32 bits");
}

#[test]
fn real_mode_changes_base_and_selector_alone() {
    let mut b = Bench::new(Start::Real, 0);
    b.cpu.seg[sreg::ES].limit = u32::MAX;
    b.cpu.gpr[RAX] = 0x1234;
    assert!(b.step(MOV_ES_AX).is_ok());
    let es = b.cpu.seg[sreg::ES];
    assert_eq!((es.selector, es.base, es.limit), (0x1234, 0x12340, u32::MAX));
    let mut b = Bench::new(Start::V86, 3);
    b.cpu.gpr[RAX] = 0x1234;
    assert!(b.step(MOV_ES_AX).is_ok());
    let es = b.cpu.seg[sreg::ES];
    assert_eq!((es.selector, es.base, es.limit, es.dpl()), (0x1234, 0x12340, 0xffff, 3));
}

#[test]
fn far_pointers() {
    let mut b = Bench::new(Start::P32, 0);
    b.write(DATA, 0x1234_5678, 4);
    b.write(DATA + 4, u64::from(DATA0), 2);
    // LSS ESP, [DATA]
    assert!(b.step(&[0x0f, 0xb2, 0x25, 0x00, 0x90, 0, 0]).is_ok());
    assert_eq!((b.cpu.gpr[RSP], b.cpu.shadow), (0x1234_5678, Shadow::None));
    b.write(DATA + 4, 0x7fc, 2);
    // LES EAX, [DATA]
    assert_eq!(b.refuse(&[0xc4, 0x05, 0x00, 0x90, 0, 0]), Fault::gp(0x7fc));
    let mut b = Bench::new(Start::Long, 0);
    b.write(DATA, 0x1122_3344_5566_7788, 8);
    b.write(DATA + 8, u64::from(DATA3), 2);
    // LGS RAX, [DATA]
    assert!(b.step(&[0x48, 0x0f, 0xb5, 0x04, 0x25, 0x00, 0x90, 0, 0]).is_ok());
    assert_eq!((b.cpu.gpr[RAX], b.cpu.seg[sreg::GS].selector), (0x1122_3344_5566_7788, DATA3));
}

#[test]
fn push_and_pop() {
    let mut b = Bench::new(Start::P32, 0);
    b.write(STACK - 4, 0xaaaa_aaaa, 4);
    // PUSH DS
    assert_eq!(b.step(&[0x1e]), Ok(Flow::Next));
    assert_eq!((b.cpu.gpr[RSP], b.read(STACK - 4, 4)), (STACK - 4, 0xaaaa_0000 | u64::from(DATA0)));
    // POP FS
    assert!(b.step(&[0x0f, 0xa1]).is_ok());
    assert_eq!((b.cpu.gpr[RSP], b.cpu.seg[sreg::FS].selector), (STACK, DATA0));
    b.push(&[0x3f8], 4);
    // POP SS
    assert_eq!(b.refuse(&[0x17]), Fault::gp(0x3f8));
    let mut b = Bench::new(Start::Real, 0);
    b.cpu.gpr[RSP] = 1;
    assert_eq!(b.refuse(&[0x1e]), Fault::SS0, "a word across the end of the segment");
}
