//! Debug registers, single step and breakpoints.
//!
//! SDM volume 3, "Debug Registers" and "Debug Exceptions". While [`is_stepping`] says so, the run loop executes one instruction
//! at a time between [`begin_step`] and [`end_step`]. What traps after the instruction is collected as bits of DR6 in `Cpu::debug_pending`.

use iced_x86::{Instruction, Register};
use umbra_x86::reg::{Cr4, Rflags};
use umbra_x86::segment::sreg;

use crate::cpu::{Cpu, Shadow};
use crate::fault::{Exec, Fault, Flow};
use crate::operand::mask;

/// DR6: a debug register was accessed.
const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub(super) const DR6_BS: u64 = 1 << 14;
/// DR6: task switch.
pub(super) const DR6_BT: u64 = 1 << 15;
/// DR6: the four breakpoints.
const DR6_B: u64 = 0xf;
/// Bits of DR6 that software writes; the others read as ones but for bit 12 and the upper half.
const DR6_WRITABLE: u64 = DR6_B | DR6_BD | DR6_BS | DR6_BT;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7: accesses to debug registers raise #DB.
pub(super) const DR7_GD: u64 = 1 << 13;
const DR7_WRITABLE: u64 = 0xffff_2bff;
const DR7_FIXED: u64 = 0x400;
/// DR7: any breakpoint is enabled.
const DR7_ENABLED: u64 = 0xff;

/// What a breakpoint waits for: the R/W field of DR7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Execution.
    Execute = 0,
    /// Data written.
    Write = 1,
    /// A port, with CR4.DE.
    Port = 2,
    /// Data read or written.
    Access = 3,
}

/// Breakpoint `n` as it is set: what, from where, and how many bytes; `None` if it is not enabled.
fn breakpoint(cpu: &Cpu, n: usize) -> Option<(Watch, u64, u64)> {
    if cpu.dr7 >> (2 * n) & 3 == 0 {
        return None;
    }
    let watch = match cpu.dr7 >> (16 + 4 * n) & 3 {
        0 => Watch::Execute,
        1 => Watch::Write,
        2 if cpu.cr4.contains(Cr4::DE) => Watch::Port,
        2 => return None,
        _ => Watch::Access,
    };
    let len = match cpu.dr7 >> (18 + 4 * n) & 3 {
        0 => 1,
        1 => 2,
        2 => 8,
        _ => 4,
    };
    // The address is aligned to the length.
    Some((watch, cpu.dr[n] & !(len - 1), len))
}

/// The breakpoints, as bits of DR6, that `len` bytes at `address` meet and that wait for one of `watches`.
fn met(cpu: &Cpu, watches: &[Watch], address: u64, len: u64) -> u64 {
    (0..4).fold(0, |bits, n| match breakpoint(cpu, n) {
        Some((watch, at, size))
            if watches.contains(&watch) && at < address.saturating_add(len) && address < at + size =>
        {
            bits | 1 << n
        }
        _ => bits,
    })
}

/// Whether the next instruction must be executed alone, between [`begin_step`] and [`end_step`].
pub fn is_stepping(cpu: &Cpu) -> bool {
    cpu.flag(Rflags::TF | Rflags::RF)
        || cpu.dr7 & DR7_ENABLED != 0
        || cpu.shadow != Shadow::None
        || cpu.debug_pending != 0
}

/// Whether a repeated string instruction must stop after each iteration, because it may trap there.
pub fn traps_iterations(cpu: &Cpu) -> bool {
    let waits = |n| breakpoint(cpu, n).is_some_and(|(watch, ..)| watch != Watch::Execute);
    cpu.flag(Rflags::TF) || cpu.dr7 & DR7_ENABLED != 0 && (0..4).any(waits)
}

/// Before an instruction in stepping: instruction breakpoints; the shadow of the instruction before ends.
///
/// # Errors
/// #DB by an instruction breakpoint; the instruction is not executed.
pub fn begin_step(cpu: &mut Cpu) -> Exec {
    let resumed = cpu.flag(Rflags::RF);
    if cpu.dr7 & DR7_ENABLED != 0 && !resumed && cpu.shadow != Shadow::MovSs {
        let code = &cpu.seg[sreg::CS];
        let base = if cpu.mode.code == 64 { 0 } else { code.base };
        let width = if cpu.mode.code == 64 { 64 } else { 32 };
        let hits = met(cpu, &[Watch::Execute], base.wrapping_add(cpu.rip) & mask(width), 1);
        if hits != 0 {
            cpu.debug_pending = 0;
            cpu.dr6 = cpu.dr6 & !DR6_B | hits;
            return Err(Fault::DB);
        }
    }
    cpu.set_flag(Rflags::RF, false);
    // Data breakpoints met by MOV SS wait for the end of this instruction.
    cpu.debug_pending &= DR6_B;
    if cpu.flag(Rflags::TF) {
        cpu.debug_pending |= DR6_BS;
    }
    cpu.ending_shadow = std::mem::take(&mut cpu.shadow);
    Ok(())
}

/// After an instruction in stepping that raised no fault, RIP advanced. `again` says that it is a string instruction with iterations left, RIP unchanged.
///
/// # Errors
/// #DB by single step or a data or port breakpoint: deliver it.
pub fn end_step(cpu: &mut Cpu, again: bool) -> Exec {
    cpu.ending_shadow = Shadow::None;
    if again {
        cpu.set_flag(Rflags::RF, true);
    }
    if cpu.shadow == Shadow::MovSs {
        cpu.debug_pending &= DR6_B;
        return Ok(());
    }
    take_pending(cpu)
}

/// Turns what is pending into #DB.
fn take_pending(cpu: &mut Cpu) -> Exec {
    let hits = std::mem::take(&mut cpu.debug_pending);
    if hits == 0 {
        return Ok(());
    }
    cpu.dr6 = cpu.dr6 & !DR6_B | hits;
    Err(Fault::DB)
}

/// A data access, for the memory accesses of an instruction while data breakpoints are enabled.
pub fn data_access(cpu: &mut Cpu, linear: u64, len: u64, write: bool) {
    let watches: &[Watch] = if write { &[Watch::Write, Watch::Access] } else { &[Watch::Access] };
    cpu.debug_pending |= met(cpu, watches, linear, len);
}

/// A port access of an instruction.
pub(super) fn port_access(cpu: &mut Cpu, port: u16, len: u64) {
    if cpu.dr7 & DR7_ENABLED != 0 {
        cpu.debug_pending |= met(cpu, &[Watch::Port], u64::from(port), len);
    }
}

/// Checks an access to debug register `n`, and gives its real number: DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
fn check(cpu: &mut Cpu, n: usize) -> Exec<usize> {
    let n = match n {
        4 | 5 if cpu.cr4.contains(Cr4::DE) => return Err(Fault::UD),
        4 | 5 => n + 2,
        0..=7 => n,
        _ => return Err(Fault::UD),
    };
    if cpu.mode.cpl > 0 {
        return Err(Fault::GP0);
    }
    if cpu.dr7 & DR7_GD != 0 {
        cpu.dr6 |= DR6_BD;
        // A fault, so unlike with an instruction breakpoint its handler finds RF set.
        cpu.set_flag(Rflags::RF, true);
        return Err(Fault::DB);
    }
    Ok(n)
}

fn number(r: Register) -> usize {
    (r as usize).wrapping_sub(Register::DR0 as usize)
}

/// MOV from a debug register.
pub(super) fn mov_from_dr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = check(cpu, number(i.op1_register()))?;
    let value = match n {
        6 => cpu.dr6,
        7 => cpu.dr7,
        _ => cpu.dr[n],
    };
    cpu.set_reg(i.op0_register(), value);
    Ok(Flow::Next)
}

/// MOV to a debug register.
pub(super) fn mov_to_dr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = check(cpu, number(i.op0_register()))?;
    let value = cpu.reg(i.op1_register());
    if n >= 6 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match n {
        6 => cpu.dr6 = value & DR6_WRITABLE | DR6_FIXED,
        7 => cpu.dr7 = value & DR7_WRITABLE | DR7_FIXED,
        _ => cpu.dr[n] = value,
    }
    cpu.update_context();
    Ok(Flow::End)
}
