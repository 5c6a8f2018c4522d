//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the bases.

use super::bench::*;
use super::shown;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::{RAX, RCX, RDX, RSP};
use umbra_x86::reg::{Cr4, Efer};
use umbra_x86::segment::{Segment, access, sreg};

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRET: &[u8] = &[0x0f, 0x07];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

fn bench(start: Start, cpl: u8, vendor: &[u8; 12]) -> Bench {
    let mut b = Bench::new(start, cpl);
    b.cpu.cpuid = shown(vendor);
    b.cpu.msr.star = 0x0030_0008 << 32 | 0x7777_0000;
    b.cpu.msr.lstar = 0xffff_8000_0000_1000;
    b.cpu.msr.cstar = 0xffff_8000_0000_2000;
    b.cpu.msr.fmask = 0x4_7700;
    b.cpu.msr.sysenter_cs = 8;
    b.cpu.msr.sysenter_eip = 0xffff_8000_0000_3000;
    b.cpu.msr.sysenter_esp = 0xffff_8000_0000_4000;
    b
}

fn attributes(s: &Segment) -> (u16, u64, u32, u16, bool) {
    (s.selector, s.base, s.limit, s.access, s.unusable)
}

#[test]
fn syscall_and_sysret() {
    let mut b = bench(Start::Long, 3, b"GenuineIntel");
    b.cpu.rflags = 0x4_3747;
    assert_eq!(b.step(SYSCALL), Ok(Flow::Jump));
    assert_eq!(b.place(), (8, 0xffff_8000_0000_1000, 0x10, STACK3));
    assert_eq!((b.cpu.gpr[RCX], b.cpu.gpr[11], b.cpu.rflags), (CODE + 2, 0x4_3747, 0x47));
    let flat = u32::MAX;
    assert_eq!(attributes(&b.cpu.seg[sreg::CS]), (8, 0, flat, CODE_R | LONG, false));
    assert_eq!(attributes(&b.cpu.seg[sreg::SS]), (0x10, 0, flat, DATA_W | BIG, false));
    assert_eq!((b.cpu.mode.cpl, b.cpu.mode.code), (0, 64));
    b.cpu.rip = CODE;
    b.cpu.gpr[11] = u64::MAX;
    assert_eq!(b.step(SYSRETQ), Ok(Flow::Jump));
    assert_eq!(b.place(), (0x43, CODE + 2, 0x3b, STACK3));
    assert_eq!(b.cpu.rflags, 0x3c_7fd7, "RF and VM are not restored");
    assert_eq!(attributes(&b.cpu.seg[sreg::CS]), (0x43, 0, flat, at(3, CODE_R) | LONG, false));
    assert_eq!(attributes(&b.cpu.seg[sreg::SS]), (0x3b, 0, flat, at(3, DATA_W) | BIG, false));
    let mut b = bench(Start::Long, 0, b"GenuineIntel");
    b.cpu.gpr[RCX] = 0xffff_ffff_0000_1234;
    assert_eq!(b.step(SYSRET), Ok(Flow::Jump));
    assert_eq!(b.place(), (0x33, 0x1234, 0x3b, STACK));
    assert_eq!((b.cpu.mode.code, b.cpu.mode.cpl), (32, 3), "to compatibility mode");
}

#[test]
fn sysret_checks_by_vendor() {
    let mut b = bench(Start::Long, 0, b"GenuineIntel");
    b.cpu.gpr[RCX] = NOT_CANONICAL;
    assert_eq!(b.refuse(SYSRETQ), Fault::GP0, "in the kernel");
    let mut b = bench(Start::Long, 0, b"AuthenticAMD");
    b.cpu.gpr[RCX] = NOT_CANONICAL;
    b.cpu.seg[sreg::SS] = Segment { access: 0, unusable: true, ..Segment::default() };
    assert_eq!(b.step(SYSRETQ), Ok(Flow::Jump));
    let ss = b.cpu.seg[sreg::SS];
    assert_eq!((b.cpu.rip, b.cpu.mode.cpl, ss.selector, ss.unusable), (NOT_CANONICAL, 3, 0x3b, true));
    let mut b = bench(Start::Long, 3, b"GenuineIntel");
    assert_eq!(b.refuse(SYSRETQ), Fault::GP0);
    b.cpu.efer.remove(Efer::SCE);
    assert_eq!((b.refuse(SYSRETQ), b.refuse(SYSCALL)), (Fault::UD, Fault::UD));
}

#[test]
fn syscall_outside_of_64_bit_mode_is_amds() {
    assert_eq!(bench(Start::Compat, 3, b"GenuineIntel").refuse(SYSCALL), Fault::UD);
    let mut b = bench(Start::Compat, 3, b"AuthenticAMD");
    assert_eq!(b.step(SYSCALL), Ok(Flow::Jump));
    assert_eq!((b.cpu.rip, b.cpu.mode.code, b.cpu.gpr[RCX]), (0xffff_8000_0000_2000, 64, CODE + 2));
    let mut b = bench(Start::P32, 3, b"AuthenticAMD");
    b.cpu.efer = Efer::SCE;
    b.cpu.rflags = 0x302;
    b.cpu.gpr[11] = 0x1111;
    assert_eq!(b.step(SYSCALL), Ok(Flow::Jump));
    assert_eq!((b.cpu.rip, b.cpu.mode.code, b.cpu.rflags, b.cpu.gpr[11]), (0x7777_0000, 32, 0x102, 0x1111));
    b.cpu.rip = CODE;
    assert_eq!(b.step(SYSRET), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.rflags), ((0x33, CODE + 2, 0x3b, STACK3), 0x302));
    let mut b = bench(Start::Real, 0, b"AuthenticAMD");
    b.cpu.efer = Efer::SCE;
    assert_eq!(b.refuse(SYSCALL), Fault::UD);
}

#[test]
fn sysenter_and_sysexit() {
    let mut b = bench(Start::Compat, 3, b"GenuineIntel");
    b.cpu.rflags = 0x1_0302;
    assert_eq!(b.step(SYSENTER), Ok(Flow::Jump));
    assert_eq!(b.place(), (8, 0xffff_8000_0000_3000, 0x10, 0xffff_8000_0000_4000));
    assert_eq!((b.cpu.mode.code, b.cpu.mode.cpl, b.cpu.rflags), (64, 0, 0x102));
    (b.cpu.rip, b.cpu.gpr[RCX], b.cpu.gpr[RDX]) = (CODE, 0xffff_ffff_0000_5000, 0xffff_ffff_0000_1234);
    assert_eq!(b.step(SYSEXIT), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.code), ((0x1b, 0x1234, 0x23, 0x5000), 32));
    let mut b = bench(Start::Long, 0, b"GenuineIntel");
    (b.cpu.gpr[RCX], b.cpu.gpr[RDX]) = (0x5000, 0x1234);
    assert_eq!(b.step(SYSEXITQ), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.code), ((0x2b, 0x1234, 0x33, 0x5000), 64));
    let mut b = bench(Start::P32, 3, b"GenuineIntel");
    assert_eq!(b.step(SYSENTER), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.code), ((8, 0x3000, 0x10, 0x4000), 32));
}

#[test]
fn sysenter_checks() {
    let mut b = bench(Start::Long, 0, b"GenuineIntel");
    for (rcx, rdx) in [(NOT_CANONICAL, 0), (0, NOT_CANONICAL)] {
        (b.cpu.gpr[RCX], b.cpu.gpr[RDX]) = (rcx, rdx);
        assert_eq!(b.refuse(SYSEXITQ), Fault::GP0);
    }
    b.cpu.msr.sysenter_cs = 3;
    assert_eq!((b.refuse(SYSENTER), b.refuse(SYSEXIT)), (Fault::GP0, Fault::GP0));
    assert_eq!(bench(Start::Long, 3, b"GenuineIntel").refuse(SYSEXIT), Fault::GP0);
    assert_eq!(bench(Start::Real, 0, b"GenuineIntel").refuse(SYSENTER), Fault::GP0);
    assert_eq!(bench(Start::Long, 3, b"AuthenticAMD").refuse(SYSENTER), Fault::UD);
}

#[test]
fn swapgs_and_bases() {
    let mut b = bench(Start::Long, 0, b"GenuineIntel");
    b.cpu.msr.kernel_gs_base = 0x1234;
    b.cpu.seg[sreg::GS].base = 0x5678;
    assert_eq!(b.step(&[0x0f, 0x01, 0xf8]), Ok(Flow::Next));
    assert_eq!((b.cpu.seg[sreg::GS].base, b.cpu.msr.kernel_gs_base), (0x1234, 0x5678));
    assert_eq!(bench(Start::Long, 3, b"GenuineIntel").refuse(&[0x0f, 0x01, 0xf8]), Fault::GP0);
    let mut b = bench(Start::Long, 3, b"GenuineIntel");
    b.cpu.gpr[RAX] = 0xffff_8000_1234_5678;
    // WRFSBASE RAX
    let write: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xd0];
    assert_eq!(b.refuse(write), Fault::UD, "CR4.FSGSBASE");
    b.cpu.cr4 |= Cr4::FSGSBASE;
    assert_eq!(b.step(write), Ok(Flow::Next));
    assert_eq!(b.cpu.seg[sreg::FS].base, 0xffff_8000_1234_5678);
    // RDFSBASE ECX; WRGSBASE ECX; RDGSBASE RDX
    b.step(&[0xf3, 0x0f, 0xae, 0xc1]).unwrap();
    b.step(&[0xf3, 0x0f, 0xae, 0xd9]).unwrap();
    b.step(&[0xf3, 0x48, 0x0f, 0xae, 0xca]).unwrap();
    assert_eq!((b.cpu.gpr[RCX], b.cpu.gpr[RDX]), (0x1234_5678, 0x1234_5678));
    b.cpu.gpr[RAX] = NOT_CANONICAL;
    assert_eq!(b.refuse(write), Fault::GP0);
    assert_eq!(b.cpu.gpr[RSP], STACK3);
    assert_eq!(access::L & b.cpu.seg[sreg::CS].access, access::L);
}
