//! Debug registers, single step, breakpoints.

use super::bench::*;
use crate::cpu::Shadow;
use crate::fault::{Exec, Fault, Flow};
use crate::sys::debug::{begin_step, data_access, end_step, is_stepping};
use crate::sys::deliver_fault;
use umbra_x86::reg::gpr::{RAX, RCX, RDI, RDX};
use umbra_x86::reg::{Cr4, Rflags};

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const FIXED: u64 = 0xffff_0ff0;
const TF: u64 = 0x100;
const RF: u64 = 0x1_0000;
const NOP: &[u8] = &[0x0f, 0x09]; // WBINVD: a system instruction without effect

/// MOV between EAX and DR `n`.
fn to_dr(n: u8) -> [u8; 3] {
    [0x0f, 0x23, 0xc0 | n << 3]
}

fn from_dr(n: u8) -> [u8; 3] {
    [0x0f, 0x21, 0xc0 | n << 3]
}

/// One instruction as the run loop executes it while stepping.
fn stepped(b: &mut Bench, code: &[u8]) -> Exec<Flow> {
    begin_step(&mut b.cpu)?;
    let flow = b.step(code)?;
    end_step(&mut b.cpu, flow == Flow::Again)?;
    Ok(flow)
}

#[test]
fn registers() {
    let mut b = Bench::new(Start::Long, 0);
    for (n, value, read) in [
        (0, 0x1234_5678_9abc_def0, 0x1234_5678_9abc_def0),
        (3, u64::MAX, u64::MAX),
        (6, 0xffff_ffff, 0xffff_efff),
        (6, 0, FIXED),
        (4, 0, FIXED),
        (7, 0xffff_ffff & !BD, 0xffff_0fff),
        (5, 0, 0x400),
    ] {
        b.cpu.gpr[RAX] = value;
        assert_eq!(b.step(&to_dr(n)), Ok(Flow::End));
        b.step(&from_dr(n)).unwrap();
        assert_eq!(b.cpu.gpr[RAX], read, "DR{n}");
    }
    b.cpu.gpr[RAX] = 1 << 32;
    assert_eq!((b.refuse(&to_dr(6)), b.refuse(&to_dr(7))), (Fault::GP0, Fault::GP0));
    b.cpu.cr4 |= Cr4::DE;
    for n in [4, 5] {
        assert_eq!((b.refuse(&to_dr(n)), b.refuse(&from_dr(n))), (Fault::UD, Fault::UD));
    }
    let mut b = Bench::new(Start::Long, 3);
    assert_eq!((b.refuse(&to_dr(0)), b.refuse(&from_dr(0))), (Fault::GP0, Fault::GP0));
}

#[test]
fn general_detect() {
    let mut b = Bench::new(Start::P32, 0);
    b.idt(1, gate(CODE0, 0xa000, 0xe, 0, 0));
    b.cpu.dr7 |= BD;
    assert_eq!(b.fault(&from_dr(0)), Ok(Fault::DB));
    assert_eq!(b.cpu.dr6 & BD, BD);
    assert_eq!(b.stack(3, 4)[2] & RF, RF);
    assert_eq!(b.cpu.dr7 & BD, 0);
}

#[test]
fn single_step_traps_after_the_instruction() {
    let mut b = Bench::new(Start::P32, 0);
    b.idt(1, gate(CODE0, 0xa000, 0xe, 0, 0));
    assert!(!is_stepping(&b.cpu));
    b.cpu.rflags |= TF;
    assert!(is_stepping(&b.cpu));
    assert_eq!(stepped(&mut b, NOP), Err(Fault::DB));
    assert_eq!((b.cpu.dr6, b.cpu.rip), (FIXED | BS, CODE + 2));
    deliver_fault(&mut b.cpu, Fault::DB).unwrap();
    assert_eq!(b.stack(3, 4), [CODE + 2, u64::from(CODE0), TF | 2]);
    assert_eq!(b.cpu.rflags & TF, 0);
}

#[test]
fn popf_that_sets_tf_traps_one_later_and_one_that_clears_it_at_once() {
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[TF | 2], 4);
    assert_eq!(stepped(&mut b, &[0x9d]), Ok(Flow::End));
    assert_eq!(stepped(&mut b, NOP), Err(Fault::DB));
    b.push(&[2], 4);
    assert_eq!(stepped(&mut b, &[0x9d]), Err(Fault::DB));
    assert_eq!(stepped(&mut b, NOP), Ok(Flow::Next));
}

#[test]
fn int_n_swallows_the_trap_and_mov_ss_delays_it() {
    let mut b = Bench::new(Start::P32, 0);
    b.idt(0x40, gate(CODE0, 0xa000, 0xe, 0, 0));
    b.cpu.rflags |= TF;
    assert_eq!(stepped(&mut b, &[0xcd, 0x40]), Ok(Flow::Jump));
    assert_eq!(b.stack(3, 4)[2] & TF, TF);
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.rflags |= TF;
    b.cpu.gpr[RAX] = u64::from(DATA0);
    assert_eq!(stepped(&mut b, &[0x8e, 0xd0]), Ok(Flow::End));
    assert_eq!(b.cpu.shadow, Shadow::MovSs);
    assert_eq!(stepped(&mut b, NOP), Err(Fault::DB));
    assert_eq!(b.cpu.shadow, Shadow::None);
    assert_eq!(stepped(&mut b, &[0x8e, 0xd0]), Ok(Flow::End));
    assert_eq!(stepped(&mut b, &[0x8e, 0xd0]), Err(Fault::DB), "a second one in a row holds nothing off");
}

#[test]
fn syscall_traps_only_if_tf_survives() {
    for (fmask, traps) in [(TF, false), (0, true)] {
        let mut b = Bench::new(Start::Long, 3);
        b.cpu.msr.star = 8 << 32;
        b.cpu.msr.lstar = 0xa000;
        b.cpu.msr.fmask = fmask;
        b.cpu.rflags |= TF;
        assert_eq!(stepped(&mut b, &[0x0f, 0x05]).is_err(), traps);
        assert_eq!(b.cpu.rip, 0xa000);
    }
}

#[test]
fn instruction_breakpoints_fault_before_unless_rf() {
    let mut b = Bench::new(Start::P32, 0);
    b.idt(1, gate(CODE0, 0xa000, 0xe, 0, 0));
    b.cpu.dr[1] = CODE;
    b.cpu.dr7 = 0x400 | 1 << 2;
    assert_eq!(stepped(&mut b, NOP), Err(Fault::DB));
    assert_eq!((b.cpu.dr6 & 0xf, b.cpu.rip), (2, CODE));
    deliver_fault(&mut b.cpu, Fault::DB).unwrap();
    assert_eq!(b.stack(3, 4)[2] & RF, 0, "the handler sets it itself");
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.dr[1] = CODE;
    b.cpu.dr7 = 0x400 | 1 << 2;
    b.cpu.rflags |= RF;
    assert_eq!(stepped(&mut b, NOP), Ok(Flow::Next));
    assert!(!b.cpu.flag(Rflags::RF), "good for one instruction");
    b.cpu.rip = CODE;
    b.cpu.shadow = Shadow::MovSs;
    assert_eq!(stepped(&mut b, NOP), Ok(Flow::Next), "not after MOV SS");
}

#[test]
fn iret_sets_rf_for_the_next_instruction() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.dr[0] = CODE;
    b.cpu.dr7 = 0x400 | 1;
    b.cpu.rip = CODE + 0x10;
    b.push(&[CODE, u64::from(CODE0), RF | 2], 4);
    assert_eq!(stepped(&mut b, &[0xcf]), Ok(Flow::Jump));
    assert!(is_stepping(&b.cpu));
    assert_eq!(stepped(&mut b, NOP), Ok(Flow::Next));
}

#[test]
fn data_breakpoints_by_kind_and_length() {
    let cases = [
        // DR7's field, address, access at, bytes, write, hit
        (0b0001, DATA, DATA, 1, true, true),
        (0b0001, DATA, DATA, 1, false, false),
        (0b0011, DATA, DATA, 1, false, true),
        (0b0011, DATA, DATA - 3, 4, false, true),
        (0b0011, DATA, DATA - 4, 4, false, false),
        (0b1101, DATA + 3, DATA, 1, true, true),
        (0b1101, DATA, DATA + 4, 1, true, false),
        (0b1001, DATA, DATA + 7, 1, true, true),
        (0b0000, DATA, DATA, 1, true, false),
    ];
    for (field, address, at, len, write, hit) in cases {
        let mut b = Bench::new(Start::P32, 0);
        b.cpu.dr[2] = address;
        b.cpu.dr7 = 0x400 | 1 << 4 | field << 24;
        begin_step(&mut b.cpu).unwrap();
        data_access(&mut b.cpu, at, len, write);
        assert_eq!(end_step(&mut b.cpu, false).is_err(), hit, "{field:#b} {at:#x}");
        assert_eq!(b.cpu.dr6 & 0xf, if hit { 4 } else { 0 });
    }
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.dr[0] = STACK - 4;
    b.cpu.dr7 = 0x400 | 1 | 0b1101 << 16;
    b.cpu.update_context();
    assert_eq!(stepped(&mut b, &[0x9c]), Err(Fault::DB), "PUSHF writes there");
}

#[test]
fn port_breakpoints_and_repeated_instructions() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.dr[0] = 0x60;
    b.cpu.dr7 = 0x400 | 1 | 0b0010 << 16;
    (b.cpu.gpr[RDX], b.cpu.gpr[RCX], b.cpu.gpr[RDI]) = (0x60, 3, DATA);
    assert_eq!(stepped(&mut b, &[0xec]), Ok(Flow::End), "only with CR4.DE");
    b.cpu.rip = CODE;
    b.cpu.cr4 |= Cr4::DE;
    assert_eq!(stepped(&mut b, &[0xec]), Err(Fault::DB));
    b.cpu.rip = CODE;
    assert_eq!(stepped(&mut b, &[0xf3, 0x6c]), Err(Fault::DB));
    assert_eq!((b.cpu.gpr[RCX], b.cpu.rip), (2, CODE), "after one iteration");
    assert!(b.cpu.flag(Rflags::RF));
}
