//! JMP, Jcc, also as one with the comparison before it, and the end of a block that no branch ends.

use super::address::Address;
use super::arith::Alu;
use super::flags::condition;
use super::int::Int;
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;

#[inline(always)]
fn branch(cpu: &mut Cpu, op: OpRef, taken: bool, target: u64) -> Exit {
    let next = u64::from(op.offset) + u64::from(op.len);
    let to = if taken { target } else { next };
    cpu.rip = cpu.rip.wrapping_add(to) & cpu.fast.rip_mask;
    if taken { Exit::Taken } else { Exit::Fall }
}

/// The block ends here; the immediate is its length.
pub(crate) fn fall(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.rip = cpu.rip.wrapping_add(op.imm) & cpu.fast.rip_mask;
    Exit::Fall
}

/// JMP relative.
pub(crate) fn jmp_near(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.rip = cpu.rip.wrapping_add(op.imm) & cpu.fast.rip_mask;
    Exit::Taken
}

/// JMP register.
pub(crate) fn jmp_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.rip = cpu.get::<T>(op.a).to_u64();
    Exit::Jump
}

/// JMP memory.
pub(crate) fn jmp_m<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.rip = get!(cpu.read::<T, A>(op)).to_u64();
    Exit::Jump
}

/// Jcc.
pub(crate) fn jcc<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let taken = condition::<C>(cpu.fast.status);
    branch(cpu, op, taken, op.imm)
}

/// CMP or TEST of registers, then Jcc, whose target is in the displacement.
pub(crate) fn alu_rr_jcc<T: Int, K: Alu, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (r, s) = K::apply::<T>(cpu.get(op.a), cpu.get(op.b), cpu.fast.status);
    if K::WRITES {
        cpu.set(op.a, r);
    }
    cpu.fast.status = s;
    branch(cpu, op, condition::<C>(s), op.disp as u64)
}

/// CMP or TEST of a register with an immediate, then Jcc.
pub(crate) fn alu_ri_jcc<T: Int, K: Alu, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (r, s) = K::apply::<T>(cpu.get(op.a), T::from_u64(op.imm), cpu.fast.status);
    if K::WRITES {
        cpu.set(op.a, r);
    }
    cpu.fast.status = s;
    branch(cpu, op, condition::<C>(s), op.disp as u64)
}

/// DEC of a register, then Jcc.
pub(crate) fn dec_r_jcc<T: Int, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (r, s) = T::dec(cpu.get(op.a), cpu.fast.status);
    cpu.set(op.a, r);
    cpu.fast.status = s;
    branch(cpu, op, condition::<C>(s), op.disp as u64)
}
