//! IRET.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::Rflags;
use umbra_x86::reg::gpr::RSP;
use umbra_x86::segment::{access, sreg};

const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];
const IRETW: &[u8] = &[0x66, 0xcf];
const ALL: u64 = 0x3f_7fd7;

#[test]
fn flags_by_level() {
    let io = Rflags::IOPL.bits();
    let v = (Rflags::VIF | Rflags::VIP).bits();
    let vm = Rflags::VM.bits();
    let nt = Rflags::NT.bits();
    // CPL, flags before, image, flags after; the width is 32 bits. NT is left out before: it would return to another task.
    let cases = [
        (0, 2, ALL & !vm, ALL & !vm),
        (0, ALL & !(vm | nt), 0, 2),
        (1, 2, ALL & !vm, ALL & !(vm | v | io | 0x200)),
        (3, io | 2, ALL & !vm, ALL & !(vm | v)),
        (3, 2, ALL, ALL & !(vm | v | io | 0x200)),
        (3, 0x202, 0, 0x202),
        (3, io | 0x202, 0, io | 2),
    ];
    for (cpl, before, image, after) in cases {
        let mut b = Bench::new(Start::P32, cpl);
        let cs = b.cpu.seg[sreg::CS].selector;
        b.cpu.rflags = before;
        b.push(&[0x1234, u64::from(cs), image], 4);
        assert_eq!(b.step(IRET), Ok(Flow::Jump));
        assert_eq!(
            (b.cpu.rflags, b.cpu.rip, b.cpu.mode.cpl),
            (after, 0x1234, cpl),
            "CPL {cpl} image {image:#x}"
        );
    }
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.rflags = 0x4_0002;
    b.push(&[0x1234, u64::from(CODE0), 0xffff], 2);
    assert_eq!(b.step(IRETW), Ok(Flow::Jump));
    assert_eq!((b.cpu.rflags, b.cpu.rip), (0x4_7fd7, 0x1234), "16 bits leave the upper flags");
}

#[test]
fn to_the_same_level() {
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1234, u64::from(CODE0), 2], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x1234, DATA0, STACK));
    let cases = [
        (0, 0, Fault::GP0),
        (u64::from(DATA0), 0, Fault::gp(DATA0)),
        (u64::from(FREE), 0, Fault::np(FREE)),
        (u64::from(FREE + 8), 0x11, Fault::GP0),
        (0x18, 0, Fault::gp(0x18)),
    ];
    for (selector, rip, fault) in cases {
        let mut b = Bench::new(Start::P32, 0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R & !access::P | BIG));
        b.gdt(FREE + 8, descriptor(0, 0x10, CODE_R | access::DB));
        b.push(&[rip, selector, ALL & !0x2_0000], 4);
        assert_eq!(b.refuse(IRET), fault, "{selector:#x}");
    }
    let mut b = Bench::new(Start::P32, 3);
    b.push(&[0, u64::from(CODE0), 2], 4);
    assert_eq!(b.refuse(IRET), Fault::gp(CODE0));
}

#[test]
fn to_an_outer_level() {
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1234, u64::from(CODE3), 0x3202, 0x5000, u64::from(DATA3)], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE3, 0x1234, DATA3, 0x5000));
    assert_eq!((b.cpu.mode.cpl, b.cpu.rflags), (3, 0x3202));
    assert!(b.cpu.seg[sreg::DS].unusable);
    // A 16-bit stack takes only the lower half of ESP.
    let mut b = Bench::new(Start::P32, 0);
    b.gdt(FREE, descriptor(0, 0xffff, at(3, DATA_W)));
    b.cpu.gpr[RSP] = 0x1_0ff0;
    b.push(&[0x1234, u64::from(CODE3), 2, 0xabcd_5000, u64::from(FREE | 3)], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.cpu.gpr[RSP], 0x1_5000);
    for (ss, fault) in
        [(0, Fault::GP0), (u64::from(DATA0), Fault::gp(DATA0)), (u64::from(FREE | 3), Fault::ss(FREE))]
    {
        let mut b = Bench::new(Start::P32, 0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, at(3, DATA_W) & !access::P | BIG));
        b.push(&[0x1234, u64::from(CODE3), 2, 0x5000, ss], 4);
        assert_eq!(b.refuse(IRET), fault);
    }
}

#[test]
fn to_virtual_8086_mode() {
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1234, 0x100, 0x2_3202, 0xfff0, 0x200, 0x300, 0x400, 0x500, 0x600], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (0x100, 0x1234, 0x200, 0xfff0));
    assert_eq!(b.cpu.seg.map(|s| s.selector), [0x300, 0x100, 0x200, 0x400, 0x500, 0x600]);
    assert!(
        b.cpu.seg.iter().all(|s| s.base == u64::from(s.selector) << 4 && s.limit == 0xffff && s.dpl() == 3)
    );
    assert!(b.cpu.mode.v86 && b.cpu.mode.cpl == 3 && b.cpu.mode.code == 16);
    assert_eq!(b.cpu.rflags, 0x2_3202);
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1_0000, 0x100, 0x2_0002, 0xfff0, 0x200, 0x300, 0x400, 0x500, 0x600], 4);
    assert_eq!(b.refuse(IRET), Fault::GP0);
    // At another level, and in long mode, VM in the image is ignored.
    let mut b = Bench::new(Start::P32, 1);
    b.push(&[0x1234, 0x19, 0x2_0002], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert!(!b.cpu.mode.v86);
}

#[test]
fn in_real_and_virtual_8086_mode() {
    let mut b = Bench::new(Start::Real, 0);
    b.push(&[0x1234, 0x100, 0xffff], 2);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!((b.cpu.rip, b.cpu.seg[sreg::CS].base, b.cpu.rflags), (0x1234, 0x1000, 0x7fd7));
    let mut b = Bench::new(Start::Real, 0);
    b.push(&[0x1234, 0x100, 0xffff_ffff], 4);
    assert_eq!(b.step(IRETW), Ok(Flow::Jump));
    assert_eq!(b.cpu.rflags, 0x25_7fd7);
    let mut b = Bench::new(Start::V86, 3);
    b.push(&[0x1234, 0x100, 0xffff], 2);
    assert_eq!(b.refuse(IRET), Fault::GP0, "needs IOPL 3");
    b.cpu.rflags |= 0x3000;
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.cpu.rflags, 0x2_7fd7);
    assert!(b.cpu.mode.v86);
    b.push(&[0x1234, 0x100, 0], 2);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.cpu.rflags, 0x2_3002, "IOPL and VM stay");
}

#[test]
fn in_64_bit_mode_the_stack_is_always_loaded() {
    let mut b = Bench::new(Start::Long, 0);
    b.push(&[0x1234, u64::from(CODE0), 2, 0x5000, u64::from(DATA0)], 8);
    assert_eq!(b.step(IRETQ), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x1234, DATA0, 0x5000));
    b.cpu.gpr[RSP] = STACK;
    b.push(&[0x1234, u64::from(CODE0), 2, 0x5000, 0], 8);
    assert_eq!(b.step(IRETQ), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x1234, 0, 0x5000));
    b.cpu.gpr[RSP] = STACK;
    b.push(&[0x1234, u64::from(CODE3), 0x3202, 0x5000, u64::from(DATA3)], 8);
    assert_eq!(b.step(IRETQ), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.cpl), ((CODE3, 0x1234, DATA3, 0x5000), 3));
    let cases = [
        ([0x8000_0000_0000, u64::from(CODE0), 2, 0x5000, u64::from(DATA0)], Fault::GP0),
        ([0x1234, u64::from(CODE3), 2, 0x5000, 0], Fault::GP0),
        ([0x1234, u64::from(FREE), 2, 0x5000, 0], Fault::GP0),
        ([0x1234, u64::from(FREE), 2, 0x5000, u64::from(DATA3)], Fault::gp(DATA3)),
    ];
    for (frame, fault) in cases {
        let mut b = Bench::new(Start::Long, 0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R | BIG));
        b.push(&frame, 8);
        assert_eq!(b.refuse(IRETQ), fault, "{frame:x?}");
    }
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.rflags |= Rflags::NT.bits();
    b.push(&[0x1234, u64::from(CODE0), 2, 0x5000, u64::from(DATA0)], 8);
    assert_eq!(b.refuse(IRETQ), Fault::GP0, "no tasks in long mode");
}

#[test]
fn null_selectors_become_zero_on_the_way_out_but_bases_stay() {
    let mut b = Bench::new(Start::Long, 0);
    for n in [sreg::DS, sreg::GS] {
        b.cpu.seg[n] = crate::sys::segment::null_segment(3, 0);
        b.cpu.seg[n].base = 0x7000_0000_0000;
    }
    b.push(&[0x1234, u64::from(CODE3), 2, 0x5000, u64::from(DATA3)], 8);
    assert_eq!(b.step(IRETQ), Ok(Flow::Jump));
    let seen = [sreg::DS, sreg::GS].map(|n| (b.cpu.seg[n].selector, b.cpu.seg[n].base));
    assert_eq!(seen, [(0, 0x7000_0000_0000); 2]);
}

#[test]
fn to_compatibility_mode_and_back() {
    let mut b = Bench::new(Start::Long, 0);
    b.gdt(FREE, descriptor(0, 0xf_ffff, at(3, CODE_R) | BIG));
    b.push(&[0x1234, u64::from(FREE | 3), 2, 0x5000, u64::from(DATA3)], 8);
    assert_eq!(b.step(IRETQ), Ok(Flow::Jump));
    assert_eq!((b.cpu.mode.code, b.cpu.mode.stack, b.cpu.mode.cpl), (32, 32, 3));
    // In compatibility mode the stack stays where the level does.
    b.push(&[0x4321, u64::from(FREE | 3), 2], 4);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (FREE | 3, 0x4321, DATA3, 0x5000));
}

#[test]
fn a_fault_unmasks_nmis_all_the_same() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.nmi_masked = true;
    b.push(&[0x1234, 0, 2], 4);
    assert_eq!(b.refuse(IRET), Fault::GP0);
    assert!(!b.cpu.nmi_masked);
}
