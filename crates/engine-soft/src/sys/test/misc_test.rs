//! ENTER and LEAVE, HLT, time, hypercalls, caches.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_engine::RunState;
use umbra_x86::reg::Cr4;
use umbra_x86::reg::gpr::{RAX, RBP, RCX, RSP};

#[test]
fn enter_and_leave() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.gpr[RBP] = 0x1234;
    // ENTER 0x10, 0
    b.step(&[0xc8, 0x10, 0, 0]).unwrap();
    assert_eq!((b.cpu.gpr[RBP], b.cpu.gpr[RSP], b.read(STACK - 4, 4)), (STACK - 4, STACK - 20, 0x1234));
    b.step(&[0xc9]).unwrap();
    assert_eq!((b.cpu.gpr[RBP], b.cpu.gpr[RSP]), (0x1234, STACK));
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.gpr[RBP] = DATA + 0x18;
    b.write(DATA + 0x10, 0x11, 8);
    b.write(DATA + 0x8, 0x22, 8);
    // ENTER 8, 3: two outer frames and its own
    b.step(&[0xc8, 8, 0, 3]).unwrap();
    assert_eq!(b.stack(5, 8)[1..], [STACK - 8, 0x22, 0x11, DATA + 0x18]);
    assert_eq!((b.cpu.gpr[RBP], b.cpu.gpr[RSP]), (STACK - 8, STACK - 40));
    let mut b = Bench::new(Start::Real, 0);
    (b.cpu.gpr[RBP], b.cpu.gpr[RSP]) = (0x1111_2222, 0xaaaa_7ff0);
    // ENTER 4, 0 with operands of 32 bits on a 16-bit stack
    b.step(&[0x66, 0xc8, 4, 0, 0]).unwrap();
    assert_eq!((b.cpu.gpr[RBP], b.cpu.gpr[RSP]), (0xaaaa_7fec, 0xaaaa_7fe8));
    b.step(&[0x66, 0xc9]).unwrap();
    assert_eq!((b.cpu.gpr[RBP], b.cpu.gpr[RSP]), (0x1111_2222, 0xaaaa_7ff0));
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.gpr[RSP] = MISSING + 0x1008;
    // The last write fits, the end of the frame does not.
    assert_eq!(b.refuse(&[0xc8, 0x10, 0, 0]), Fault::pf(2));
}

#[test]
fn halt_and_caches_are_the_kernels() {
    let mut b = Bench::new(Start::Long, 0);
    assert_eq!(b.step(&[0xf4]), Ok(Flow::Wait));
    assert_eq!((b.cpu.run_state, b.cpu.rip), (RunState::Halted, CODE + 1));
    for code in [&[0xf4][..], &[0x0f, 0x09], &[0x0f, 0x08], &[0x0f, 0x01, 0x38]] {
        assert_eq!(Bench::new(Start::Long, 3).refuse(code), Fault::GP0);
    }
    b.cpu.gpr[RAX] = DATA;
    assert_eq!(b.step(&[0x0f, 0xae, 0x38]), Ok(Flow::Next));
    b.cpu.gpr[RAX] = MISSING;
    assert_eq!(b.refuse(&[0x0f, 0xae, 0x38]), Fault::pf(0), "CLFLUSH is a load");
}

#[test]
fn time_stamps() {
    let mut b = Bench::new(Start::Long, 3);
    b.cpu.msr.tsc_aux = 0x1_0002;
    assert_eq!(b.step(&[0x0f, 0x01, 0xf9]), Ok(Flow::Next));
    assert_eq!(b.cpu.gpr[RCX], 0x1_0002);
    b.step(&[0xf3, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_eq!(b.cpu.gpr[RAX], 0x1_0002, "RDPID");
    b.cpu.cr4 |= Cr4::TSD;
    assert_eq!((b.refuse(&[0x0f, 0x31]), b.refuse(&[0x0f, 0x01, 0xf9])), (Fault::GP0, Fault::GP0));
    assert_eq!(b.refuse(&[0x0f, 0x33]), Fault::GP0, "RDPMC");
}

#[test]
fn hypercalls() {
    for code in [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]] {
        let mut b = Bench::new(Start::Long, 0);
        b.cpu.gpr[RAX] = 0x7777;
        b.step(&code).unwrap();
        assert_eq!(b.cpu.gpr[RAX], -1000i64 as u64);
        let mut b = Bench::new(Start::Compat, 3);
        b.cpu.gpr[RAX] = 0x7777;
        b.step(&code).unwrap();
        assert_eq!(b.cpu.gpr[RAX], 0xffff_ffff);
    }
}

#[test]
fn undefined() {
    let codes: [&[u8]; 6] = [
        &[0x0f, 0x0b],       // UD2
        &[0x0f, 0xb9, 0xc0], // UD1
        &[0x0f, 0xff, 0xc0], // UD0
        &[0x0f, 0x01, 0xc2], // VMLAUNCH
        &[0x0f, 0x01, 0xd8], // VMRUN
        &[0x0f, 0x01, 0xc8], // MONITOR, which is not offered
    ];
    for code in codes {
        assert_eq!(Bench::new(Start::Long, 0).refuse(code), Fault::UD, "{code:x?}");
    }
}
