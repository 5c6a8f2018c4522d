//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, and the bases of FS and GS.
//!
//! SDM volume 2, those instructions; AMD64 APM volume 3, SYSCALL and SYSRET, whose legacy forms and null checks are AMD's alone. The vendor
//! that CPUID shows decides.

use iced_x86::{Code, Instruction};
use umbra_x86::reg::gpr::{RCX, RDX, RSP};
use umbra_x86::reg::{Cr4, Efer, Rflags};
use umbra_x86::segment::{Segment, access, sreg};

use super::cpuid::is_amd;
use super::debug::DR6_BS;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::is_canonical;

const R11: usize = 11;

/// A flat code segment, as these instructions load it without looking at a descriptor.
fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
    let size = if long { access::L } else { access::DB };
    let kind = access::CODE | access::RW | access::ACCESSED | access::S | access::P | access::G;
    flat(selector, kind | size, dpl)
}

/// A flat stack segment.
fn flat_stack(selector: u16, dpl: u8) -> Segment {
    flat(selector, access::RW | access::ACCESSED | access::S | access::P | access::DB | access::G, dpl)
}

fn flat(selector: u16, access: u16, dpl: u8) -> Segment {
    let access = access | u16::from(dpl) << access::DPL_SHIFT;
    Segment { base: 0, limit: u32::MAX, selector, access, unusable: false }
}

/// Replaces CS and SS, with them the privilege level, and then RIP.
fn enter(cpu: &mut Cpu, cs: Segment, ss: Segment, rip: u64) -> Exec<Flow> {
    cpu.seg[sreg::CS] = cs;
    cpu.seg[sreg::SS] = ss;
    cpu.rip = rip;
    cpu.update_mode();
    Ok(Flow::Jump)
}

/// Outside of 64-bit mode only AMD's processors know SYSCALL and SYSRET, and only in protected mode.
fn check_syscall(cpu: &Cpu) -> Exec {
    let known = cpu.mode.code == 64 || is_amd(cpu) && cpu.mode.protected && !cpu.mode.v86;
    if known && cpu.efer.contains(Efer::SCE) { Ok(()) } else { Err(Fault::UD) }
}

/// SYSCALL.
pub(super) fn syscall(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_syscall(cpu)?;
    let star = cpu.msr.star;
    let selector = (star >> 32) as u16 & 0xfffc;
    let back = cpu.next_rip(i);
    let (rip, long, cleared) = if cpu.mode.long {
        let rip = if cpu.mode.code == 64 { cpu.msr.lstar } else { cpu.msr.cstar };
        cpu.gpr[R11] = cpu.rflags & !Rflags::RF.bits();
        (rip, true, cpu.msr.fmask)
    } else {
        (star & 0xffff_ffff, false, (Rflags::IF | Rflags::VM).bits())
    };
    cpu.gpr[RCX] = back;
    cpu.rflags = cpu.rflags & !(cleared | Rflags::RF.bits()) | Rflags::FIXED.bits();
    if !cpu.flag(Rflags::TF) {
        cpu.debug_pending &= !DR6_BS;
    }
    enter(cpu, flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0), rip)
}

/// SYSRET.
pub(super) fn sysret(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    const RESTORED: u64 = 0x3c_7fd7;
    check_syscall(cpu)?;
    if cpu.mode.cpl != 0 {
        return Err(Fault::GP0);
    }
    let wide = i.code() == Code::Sysretq;
    let rip = if wide { cpu.gpr[RCX] } else { cpu.gpr[RCX] & 0xffff_ffff };
    let amd = is_amd(cpu);
    // On AMD's processors the first fetch faults, in user mode.
    if !amd && !is_canonical(rip) {
        return Err(Fault::GP0);
    }
    let base = (cpu.msr.star >> 48) as u16;
    let selector = if wide { base.wrapping_add(16) } else { base } | 3;
    let cs = flat_code(selector, 3, wide);
    let mut ss = flat_stack(base.wrapping_add(8) | 3, 3);
    if amd {
        // The hidden part of SS stays, but for what is the privilege level here.
        let old = cpu.seg[sreg::SS];
        ss = Segment { selector: ss.selector, access: old.access | access::DPL, ..old };
    }
    cpu.rflags = if cpu.mode.long {
        cpu.gpr[R11] & RESTORED | Rflags::FIXED.bits()
    } else {
        cpu.rflags | Rflags::IF.bits()
    };
    enter(cpu, cs, ss, rip)
}

fn check_sysenter(cpu: &Cpu) -> Exec {
    if is_amd(cpu) && cpu.mode.long {
        return Err(Fault::UD);
    }
    let usable = cpu.mode.protected && cpu.msr.sysenter_cs & 0xfffc != 0;
    if usable { Ok(()) } else { Err(Fault::GP0) }
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_sysenter(cpu)?;
    let selector = cpu.msr.sysenter_cs as u16 & 0xfffc;
    let long = cpu.mode.long;
    let narrow = |v: u64| if long { v } else { v & 0xffff_ffff };
    let (rip, rsp) = (narrow(cpu.msr.sysenter_eip), narrow(cpu.msr.sysenter_esp));
    cpu.rflags &= !(Rflags::VM | Rflags::IF | Rflags::RF).bits();
    cpu.gpr[RSP] = rsp;
    enter(cpu, flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0), rip)
}

/// SYSEXIT.
pub(super) fn sysexit(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    // AMD's processors look at the privilege level before the mode, which the manuals leave open.
    if cpu.mode.protected && cpu.mode.cpl != 0 {
        return Err(Fault::GP0);
    }
    check_sysenter(cpu)?;
    let wide = i.code() == Code::Sysexitq;
    let (rip, rsp) = (cpu.gpr[RDX], cpu.gpr[RCX]);
    if wide && !(is_canonical(rip) && is_canonical(rsp)) {
        return Err(Fault::GP0);
    }
    let narrow = |v: u64| if wide { v } else { v & 0xffff_ffff };
    let base = cpu.msr.sysenter_cs as u16;
    let cs = base.wrapping_add(if wide { 32 } else { 16 }) | 3;
    let ss = base.wrapping_add(if wide { 40 } else { 24 }) | 3;
    cpu.gpr[RSP] = narrow(rsp);
    enter(cpu, flat_code(cs, 3, wide), flat_stack(ss, 3), narrow(rip))
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    if cpu.mode.code != 64 {
        return Err(Fault::UD);
    }
    super::control::check_cpl0(cpu)?;
    std::mem::swap(&mut cpu.seg[sreg::GS].base, &mut cpu.msr.kernel_gs_base);
    Ok(Flow::Next)
}

fn check_fsgsbase(cpu: &Cpu) -> Exec {
    if cpu.mode.code == 64 && cpu.cr4.contains(Cr4::FSGSBASE) { Ok(()) } else { Err(Fault::UD) }
}

fn base_register(i: &Instruction) -> usize {
    match i.code() {
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => sreg::FS,
        _ => sreg::GS,
    }
}

/// RDFSBASE, RDGSBASE.
pub(super) fn read_base(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_fsgsbase(cpu)?;
    let base = cpu.seg[base_register(i)].base;
    cpu.set_reg(i.op0_register(), base);
    Ok(Flow::Next)
}

/// WRFSBASE, WRGSBASE.
pub(super) fn write_base(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_fsgsbase(cpu)?;
    let base = cpu.reg(i.op0_register());
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    cpu.seg[base_register(i)].base = base;
    Ok(Flow::Next)
}
