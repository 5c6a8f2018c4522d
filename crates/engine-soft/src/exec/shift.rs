//! Shifts and rotates.

use super::address::Any;
use super::int::{Int, Shift};
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;

/// Where the count is: CL.
const CL: u8 = 8;

/// A [`Shift`] from its number in ModRM.
#[inline(always)]
const fn kind(n: u8) -> Shift {
    match n {
        0 => Shift::Rol,
        1 => Shift::Ror,
        2 => Shift::Rcl,
        3 => Shift::Rcr,
        5 => Shift::Shr,
        7 => Shift::Sar,
        _ => Shift::Shl,
    }
}

#[inline(always)]
fn count<const BY_CL: bool>(cpu: &Cpu, op: OpRef) -> u8 {
    if BY_CL { cpu.get::<u8>(CL) } else { op.imm as u8 }
}

/// A register. A count of zero changes no flag, but clears the upper half of a 32-bit register's whole.
pub(crate) fn shift_r<T: Int, const KIND: u8, const BY_CL: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (r, s) = T::shift(kind(KIND), cpu.get(op.a), count::<BY_CL>(cpu, op), cpu.fast.status);
    cpu.fast.status = s;
    cpu.set(op.a, r);
    op.next(cpu)
}

/// Memory.
pub(crate) fn shift_m<T: Int, const KIND: u8, const BY_CL: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let count = count::<BY_CL>(cpu, op);
    let done = cpu.modify::<T, Any, ()>(op, false, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        unsafe {
            let (r, s) = T::shift(kind(KIND), T::read(p), count, cpu.fast.status);
            cpu.fast.status = s;
            r.write(p);
        }
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}
