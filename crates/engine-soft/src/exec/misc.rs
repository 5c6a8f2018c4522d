//! NOP, single flags, LAHF, SAHF.

use umbra_x86::reg::Rflags;

use super::flags::{CF, OF, from_rflags, to_rflags};
use super::op::{Exit, OpRef};
use crate::cpu::Cpu;

/// NOP and what is one here: ENDBR, prefetches, hints.
pub(crate) fn nop(cpu: &mut Cpu, op: OpRef) -> Exit {
    op.next(cpu)
}

/// CLC.
pub(crate) fn clc(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.fast.status &= !CF;
    op.next(cpu)
}

/// STC.
pub(crate) fn stc(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.fast.status |= CF;
    op.next(cpu)
}

/// CMC.
pub(crate) fn cmc(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.fast.status ^= CF;
    op.next(cpu)
}

/// CLD.
pub(crate) fn cld(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.set_flag(Rflags::DF, false);
    op.next(cpu)
}

/// STD.
pub(crate) fn std(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.set_flag(Rflags::DF, true);
    op.next(cpu)
}

const AH: u8 = 1;

/// LAHF.
pub(crate) fn lahf(cpu: &mut Cpu, op: OpRef) -> Exit {
    let flags = to_rflags(cpu.fast.status) | Rflags::FIXED.bits();
    cpu.set(AH, flags as u8);
    op.next(cpu)
}

/// SAHF.
pub(crate) fn sahf(cpu: &mut Cpu, op: OpRef) -> Exit {
    let flags = u64::from(cpu.get::<u8>(AH));
    cpu.fast.status = from_rflags(flags) | cpu.fast.status & OF;
    op.next(cpu)
}
