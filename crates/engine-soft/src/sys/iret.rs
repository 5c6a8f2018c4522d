//! IRET in every mode.
//!
//! SDM volume 2, IRET/IRETD/IRETQ.

use iced_x86::{Code, Instruction};
use umbra_x86::reg::Rflags;
use umbra_x86::segment::sreg;

use super::descriptor::rpl;
use super::far::OuterReturn;
use super::flags;
use super::segment::v86_segment;
use super::stack::Stack;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::vm::attention;

/// IRET, IRETD, IRETQ.
pub(super) fn iret(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = match i.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    unmask_nmi(cpu);
    if !cpu.mode.protected {
        return iret_real(cpu, bytes);
    }
    if cpu.mode.v86 {
        return if cpu.iopl() == 3 { iret_real(cpu, bytes) } else { Err(Fault::GP0) };
    }
    if cpu.flag(Rflags::NT) {
        if cpu.mode.long {
            return Err(Fault::GP0);
        }
        let back = cpu.next_rip(i);
        cpu.return_to_task(back)?;
        return Ok(Flow::Jump);
    }
    let mut stack = Stack::current(cpu);
    let [image, selector, rip] = stack.pop_all(cpu, bytes)?;
    let selector = selector as u16;
    let cpl = cpu.mode.cpl;
    if bytes == 4 && image & Rflags::VM.bits() != 0 && cpl == 0 && !cpu.mode.long {
        return iret_to_v86(cpu, stack, rip, selector, image);
    }
    let code = cpu.return_code(selector)?;
    let rflags = flags::restored(cpu, image, bytes);
    if rpl(selector) == cpl && cpu.mode.code != 64 {
        let target = cpu.code_target(code, rip, cpl)?;
        stack.commit(cpu);
        cpu.rflags = rflags;
        return Ok(target.enter(cpu));
    }
    // 64-bit mode loads SS and RSP even where the level stays.
    let [ss, sp] = stack.pop_all(cpu, bytes)?;
    let mut back = OuterReturn::check(cpu, code, rip, ss as u16)?;
    back.sp = sp;
    cpu.rflags = rflags;
    Ok(back.commit(cpu))
}

/// IRET ends the masking of NMIs, even if it faults.
fn unmask_nmi(cpu: &mut Cpu) {
    cpu.nmi_masked = false;
    if cpu.nmi_pending {
        cpu.port().signal(attention::NMI);
    }
}

/// Real mode, and virtual-8086 mode with IOPL 3, where IOPL stays.
fn iret_real(cpu: &mut Cpu, bytes: u32) -> Exec<Flow> {
    let mut stack = Stack::current(cpu);
    let [image, selector, rip] = stack.pop_all(cpu, bytes)?;
    let selector = selector as u16;
    let target = cpu.real_target(selector, rip)?;
    stack.commit(cpu);
    cpu.rflags = flags::restored(cpu, image, bytes);
    Ok(target.enter(cpu))
}

fn iret_to_v86(cpu: &mut Cpu, mut stack: Stack, rip: u64, cs: u16, image: u64) -> Exec<Flow> {
    let mut popped = [0; 6];
    for value in &mut popped {
        *value = stack.pop(cpu, 4)?;
    }
    let [sp, ss, es, ds, fs, gs] = popped;
    if rip > 0xffff {
        return Err(Fault::GP0);
    }
    let selectors = [
        (sreg::ES, es),
        (sreg::CS, u64::from(cs)),
        (sreg::SS, ss),
        (sreg::DS, ds),
        (sreg::FS, fs),
        (sreg::GS, gs),
    ];
    for (n, selector) in selectors {
        cpu.seg[n] = v86_segment(selector as u16);
    }
    cpu.rflags = image & flags::WRITABLE | Rflags::FIXED.bits();
    cpu.rip = rip;
    cpu.set_gpr(umbra_x86::reg::gpr::RSP, 32, sp);
    cpu.update_mode();
    Ok(Flow::Jump)
}
