//! PUSHF, POPF, CLI, STI, CLAC, STAC.
//!
//! SDM volume 2, those instructions; virtual interrupts (VME, PVI) are not offered.

use iced_x86::{Code, Instruction};
use umbra_x86::reg::Rflags;

use super::stack::Stack;
use crate::cpu::{Cpu, Shadow};
use crate::fault::{Exec, Fault, Flow};

/// The flags that exist, but for the fixed one.
pub(super) const WRITABLE: u64 = Rflags::all().bits() & !Rflags::FIXED.bits();

/// The flags after IRET with an image of `bytes` bytes, at the present privilege level; VM stays.
pub(super) fn restored(cpu: &Cpu, image: u64, bytes: u32) -> u64 {
    let mut allowed = popped_mask(cpu);
    if bytes == 2 {
        allowed &= 0xffff;
    } else {
        allowed |= Rflags::RF.bits();
        if cpu.mode.protected && cpu.mode.cpl == 0 {
            allowed |= (Rflags::VIF | Rflags::VIP).bits();
        }
    }
    cpu.rflags & !allowed | image & allowed
}

/// The flags that both POPF and IRET may change.
fn popped_mask(cpu: &Cpu) -> u64 {
    let mut fixed = Rflags::FIXED | Rflags::RF | Rflags::VM | Rflags::VIF | Rflags::VIP;
    if cpu.mode.cpl > 0 {
        fixed |= Rflags::IOPL;
    }
    if cpu.mode.cpl > cpu.iopl() {
        fixed |= Rflags::IF;
    }
    Rflags::all().difference(fixed).bits()
}

fn bytes(code: Code) -> u32 {
    match code {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

fn check_v86(cpu: &Cpu) -> Exec {
    if cpu.mode.v86 && cpu.iopl() < 3 { Err(Fault::GP0) } else { Ok(()) }
}

/// PUSHF: RF and VM read as zero.
pub(super) fn pushf(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_v86(cpu)?;
    let image = cpu.rflags & !(Rflags::RF | Rflags::VM).bits();
    let mut stack = Stack::current(cpu);
    stack.push(cpu, image, bytes(i.code()))?;
    stack.commit(cpu);
    Ok(Flow::Next)
}

/// POPF.
pub(super) fn popf(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_v86(cpu)?;
    let bytes = bytes(i.code());
    let mut stack = Stack::current(cpu);
    let image = stack.pop(cpu, bytes)?;
    let mut allowed = popped_mask(cpu);
    let mut cleared = Rflags::RF.bits();
    if bytes == 2 {
        allowed &= 0xffff;
    } else if !cpu.mode.v86 {
        cleared |= (Rflags::VIF | Rflags::VIP).bits();
    }
    stack.commit(cpu);
    change(cpu, cpu.rflags & !allowed & !cleared | image & allowed);
    Ok(Flow::End)
}

/// Changes the flags; translation depends on AC.
pub(super) fn change(cpu: &mut Cpu, rflags: u64) {
    let changed = cpu.rflags ^ rflags;
    cpu.rflags = rflags;
    if changed & Rflags::AC.bits() != 0 {
        cpu.update_context();
    }
}

fn check_iopl(cpu: &Cpu) -> Exec {
    if cpu.mode.cpl > cpu.iopl() { Err(Fault::GP0) } else { Ok(()) }
}

/// CLI. In virtual-8086 mode the privilege level is 3, so IOPL must be too.
pub(super) fn cli(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_iopl(cpu)?;
    cpu.set_flag(Rflags::IF, false);
    Ok(Flow::Next)
}

/// STI. If interrupts were disabled they stay so for one more instruction.
pub(super) fn sti(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_iopl(cpu)?;
    if cpu.flag(Rflags::IF) {
        return Ok(Flow::Next);
    }
    cpu.set_flag(Rflags::IF, true);
    cpu.shadow = Shadow::Sti;
    Ok(Flow::End)
}

/// CLAC.
pub(super) fn clac(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    set_ac(cpu, false)
}

/// STAC.
pub(super) fn stac(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    set_ac(cpu, true)
}

fn set_ac(cpu: &mut Cpu, on: bool) -> Exec<Flow> {
    if cpu.mode.cpl > 0 {
        return Err(Fault::UD);
    }
    cpu.set_flag(Rflags::AC, on);
    cpu.update_context();
    Ok(Flow::Next)
}
