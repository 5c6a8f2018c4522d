//! Task switches.

use super::bench::*;
use crate::fault::{Fault, Flow};
use crate::sys::{deliver_fault, deliver_interrupt};
use umbra_x86::reg::gpr::{RAX, RSP};
use umbra_x86::reg::{Cr0, Rflags};
use umbra_x86::segment::{Segment, access, sreg};

const NT: u64 = 0x4000;
const ENTRY: u64 = 0xa000;
const JMP_B: &[u8] = &[0xea, 0, 0, 0, 0, 0x68, 0];
const CALL_B: &[u8] = &[0x9a, 0, 0, 0, 0, 0x68, 0];
const IRET: &[u8] = &[0xcf];

/// A bench with a second task at level `cpl`, in a 32-bit TSS.
fn two_tasks(cpl: u64) -> Bench {
    let mut b = Bench::new(Start::P32, 0);
    b.write(TSS_B + 0x20, ENTRY, 4);
    b.write(TSS_B + 0x24, 0x202, 4);
    for n in 0..8 {
        b.write(TSS_B + 0x28 + 4 * n, 0x100 + n, 4);
    }
    b.write(TSS_B + 0x38, 0x5800, 4);
    let data = 0x10 + 0x11 * cpl;
    for n in 0..6 {
        b.write(TSS_B + 0x48 + 4 * n, if n == 1 { data - 8 } else { data }, 4);
    }
    b.write(TSS_B + 0x60, u64::from(LDT_SEL), 4);
    b.cpu.gpr[RAX] = 0x77;
    b
}

fn kind(b: &Bench, selector: u16) -> u64 {
    b.read(GDT + u64::from(selector) + 5, 1) & 0xf
}

#[test]
fn jump_to_a_tss() {
    let mut b = two_tasks(0);
    b.cpu.rflags = NT | 0x202;
    assert_eq!(b.step(JMP_B), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, ENTRY, DATA0, 0x5800));
    assert_eq!((b.cpu.gpr[RAX], b.cpu.rflags), (0x100, 0x202));
    assert_eq!((b.cpu.tr.selector, b.cpu.tr.base, b.cpu.ldtr.base), (TSS_B_SEL, TSS_B, LDT));
    assert_eq!((kind(&b, TSS_SEL), kind(&b, TSS_B_SEL)), (9, 0xb), "busy moves");
    assert!(b.cpu.cr0.contains(Cr0::TS));
    assert_eq!(b.read(TSS + 0x20, 4), CODE + 7);
    assert_eq!(b.read(TSS + 0x24, 4), NT | 0x202);
    assert_eq!((b.read(TSS + 0x28, 4), b.read(TSS + 0x38, 4)), (0x77, STACK));
    assert_eq!(b.read(TSS + 0x4c, 2), u64::from(CODE0));
}

#[test]
fn call_and_return() {
    let mut b = two_tasks(3);
    b.cpu.rflags = 0x202;
    assert_eq!(b.step(CALL_B), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.cpl), ((CODE3, ENTRY, DATA3, 0x5800), 3));
    assert_eq!(b.cpu.rflags, NT | 0x202);
    assert_eq!((kind(&b, TSS_SEL), kind(&b, TSS_B_SEL)), (0xb, 0xb));
    assert_eq!(b.read(TSS_B, 2), u64::from(TSS_SEL), "the link");
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.cpl), ((CODE0, CODE + 7, DATA0, STACK), 0));
    assert_eq!((b.cpu.gpr[RAX], b.cpu.rflags), (0x77, 0x202));
    assert_eq!((kind(&b, TSS_SEL), kind(&b, TSS_B_SEL)), (0xb, 9));
    assert_eq!(b.read(TSS_B + 0x24, 4), 0x202, "IRET clears NT in the image");
    assert_eq!(b.read(TSS_B + 0x20, 4), ENTRY + 1);
}

#[test]
fn through_gates() {
    let mut b = two_tasks(0);
    b.gdt(FREE, gate(TSS_B_SEL, 0, 5, 0, 0));
    assert_eq!(b.step(&[0xea, 0, 0, 0, 0, FREE as u8, 0]), Ok(Flow::Jump));
    assert_eq!(b.cpu.tr.selector, TSS_B_SEL);
    let mut b = two_tasks(0);
    b.idt(0x40, gate(TSS_B_SEL, 0, 5, 0, 0));
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!((b.place(), b.cpu.rflags), ((CODE0, ENTRY, DATA0, 0x5800), NT | 0x202));
    assert_eq!(b.read(TSS + 0x20, 4), CODE);
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, CODE, DATA0, STACK));
    let mut b = two_tasks(0);
    b.idt(13, gate(TSS_B_SEL, 0, 5, 0, 0));
    deliver_fault(&mut b.cpu, Fault::gp(0x1230)).unwrap();
    assert_eq!((b.cpu.gpr[RSP], b.stack(1, 4)), (0x57fc, vec![0x1230]), "the error code is on the new stack");
    assert_eq!(b.read(TSS + 0x24, 4), 0x1_0002);
    let mut b = two_tasks(0);
    b.idt(0x40, gate(TSS_B_SEL, 0, 5, 0, 0));
    assert_eq!(b.step(&[0xcd, 0x40]), Ok(Flow::Jump));
    assert_eq!(b.read(TSS + 0x20, 4), CODE + 2);
}

#[test]
fn checks_before_the_switch_leave_everything() {
    let task_gate = |selector| gate(selector, 0, 5, 3, 0);
    let cases = [
        (descriptor(TSS_B, 0x66, 0x89), Fault::ts(FREE)),
        (descriptor(TSS_B, 0x7f, 0x8b), Fault::gp(FREE)),
        (descriptor(TSS_B, 0x7f, 0x09), Fault::np(FREE)),
        (descriptor(TSS_B, 0x2a, 0x81), Fault::ts(FREE)),
        (task_gate(TSS_B_SEL | 4), Fault::gp(TSS_B_SEL | 4)),
        (task_gate(CODE0), Fault::gp(CODE0)),
        (task_gate(0x1000), Fault::gp(0x1000)),
        (task_gate(TSS_SEL), Fault::gp(TSS_SEL)),
        (task_gate(TSS_B_SEL) & !(0x80 << 40), Fault::np(FREE)),
    ];
    for (raw, fault) in cases {
        let mut b = two_tasks(0);
        b.gdt(FREE, raw);
        assert_eq!(b.refuse(&[0xea, 0, 0, 0, 0, FREE as u8, 0]), fault, "{raw:#x}");
    }
    let mut b = Bench::new(Start::P32, 3);
    assert_eq!(b.refuse(&[0xea, 0, 0, 0, 0, 0x6b, 0]), Fault::gp(TSS_B_SEL), "the level of the TSS");
    b.cpu.rflags |= NT;
    b.write(TSS, u64::from(TSS_B_SEL), 2);
    assert_eq!(b.refuse(IRET), Fault::ts(TSS_B_SEL), "not busy");
    for start in [Start::Long, Start::Compat] {
        let mut b = Bench::new(start, 0);
        b.write(DATA, u64::from(TSS_B_SEL) << 32, 8);
        let disp: &[u8] = if start == Start::Long {
            &[0xff, 0x2c, 0x25, 0x00, 0x90, 0, 0]
        } else {
            &[0xff, 0x2d, 0x00, 0x90, 0, 0]
        };
        assert_eq!(b.refuse(disp), Fault::gp(TSS_B_SEL), "no tasks in long mode");
    }
}

#[test]
fn later_faults_are_the_new_tasks() {
    let bad = [
        (0x60, 0x1000, Fault::ts(0x1000)),
        (0x60, u64::from(CODE0), Fault::ts(CODE0)),
        (0x4c, 0, Fault::ts(0)),
        (0x4c, u64::from(DATA0), Fault::ts(DATA0)),
        (0x4c, u64::from(FREE), Fault::np(FREE)),
        (0x50, 0, Fault::ts(0)),
        (0x50, u64::from(CODE0), Fault::ts(CODE0)),
        (0x50, u64::from(FREE + 8), Fault::ss(FREE + 8)),
        (0x54, u64::from(FREE + 8), Fault::np(FREE + 8)),
        (0x58, 0x1000, Fault::ts(0x1000)),
    ];
    for (field, value, fault) in bad {
        let mut b = two_tasks(0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R & !access::P | BIG));
        b.gdt(FREE + 8, descriptor(0, 0xf_ffff, DATA_W & !access::P | BIG));
        b.write(TSS_B + field, value, 4);
        assert_eq!(b.step(JMP_B), Err(fault), "{field:#x} {value:#x}");
        assert_eq!((b.cpu.tr.selector, b.cpu.rip, b.cpu.gpr[RAX]), (TSS_B_SEL, ENTRY, 0x100));
    }
    let mut b = two_tasks(0);
    b.gdt(FREE, descriptor(0, 0x10, CODE_R | access::DB));
    b.write(TSS_B + 0x4c, u64::from(FREE), 4);
    assert_eq!(b.step(JMP_B), Err(Fault::GP0), "EIP beyond the limit");
}

#[test]
fn the_trap_flag_of_a_tss() {
    let mut b = two_tasks(0);
    b.write(TSS_B + 0x64, 1, 2);
    b.cpu.dr7 = 0x555;
    assert_eq!(b.step(JMP_B), Err(Fault::DB));
    assert_eq!((b.cpu.dr6 & 1 << 15, b.cpu.rip, b.cpu.dr7), (1 << 15, ENTRY, 0x400));
}

#[test]
fn to_virtual_8086_mode() {
    let mut b = two_tasks(0);
    b.write(TSS_B + 0x24, 0x2_3202, 4);
    for n in 0..6 {
        b.write(TSS_B + 0x48 + 4 * n, 0x100 * (n + 1), 4);
    }
    assert_eq!(b.step(JMP_B), Ok(Flow::Jump));
    assert!(b.cpu.mode.v86);
    assert_eq!(b.cpu.seg.map(|s| s.base), [0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]);
}

#[test]
fn tasks_of_16_bits() {
    let mut b = two_tasks(0);
    b.gdt(FREE, descriptor(0x4c00, 0x2b, 0x81));
    b.write(0x4c00 + 0xe, ENTRY, 2);
    b.write(0x4c00 + 0x10, 0x202, 2);
    for n in 0..8 {
        b.write(0x4c00 + 0x12 + 2 * n, 0x200 + n, 2);
    }
    for (n, selector) in [DATA0, CODE0, DATA0, DATA0].into_iter().enumerate() {
        b.write(0x4c00 + 0x22 + 2 * n as u64, u64::from(selector), 2);
    }
    assert_eq!(b.step(&[0x9a, 0, 0, 0, 0, FREE as u8, 0]), Ok(Flow::Jump));
    assert_eq!((b.cpu.rip, b.cpu.gpr[RAX], b.cpu.rflags), (ENTRY, 0x200, NT | 0x202));
    assert!(b.cpu.seg[sreg::FS].unusable && b.cpu.ldtr.unusable);
    assert_eq!((b.read(0x4c00, 2), kind(&b, FREE)), (u64::from(TSS_SEL), 3));
    assert_eq!(b.step(IRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, CODE + 7, DATA0, STACK));
    assert_eq!(b.read(0x4c00 + 0x10, 2), 0x202);
    assert_eq!(
        b.cpu.tr,
        Segment { base: TSS, limit: 0x7ff, selector: TSS_SEL, access: 0x8b, unusable: false }
    );
    assert_eq!(b.cpu.rflags & Rflags::NT.bits(), 0);
}
