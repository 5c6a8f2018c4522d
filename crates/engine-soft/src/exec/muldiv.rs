//! MUL, IMUL, DIV, IDIV, and sign extension of the accumulator.

use umbra_x86::reg::gpr::{RAX, RDX};

use super::address::Any;
use super::int::{Int, Wide};
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;
use crate::fault::Fault;

const A: u8 = (RAX * 8) as u8;
const D: u8 = (RDX * 8) as u8;
const AH: u8 = A + 1;

/// Where the upper half of the product or dividend is.
#[inline(always)]
const fn high<T: Int>() -> u8 {
    if T::BITS == 8 { AH } else { D }
}

#[inline(always)]
fn multiply<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef, b: T) -> Exit {
    let (low, up, s) = T::mul(SIGNED, cpu.get(A), b, cpu.fast.status);
    cpu.fast.status = s;
    cpu.set(A, low);
    cpu.set(high::<T>(), up);
    op.next(cpu)
}

/// MUL, IMUL by a register.
pub(crate) fn mul_r<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = cpu.get(op.a);
    multiply::<T, SIGNED>(cpu, op, b)
}

/// MUL, IMUL by memory.
pub(crate) fn mul_m<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = get!(cpu.read::<T, Any>(op));
    multiply::<T, SIGNED>(cpu, op, b)
}

#[inline(always)]
fn divide<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef, by: T) -> Exit {
    let done = T::div(SIGNED, cpu.get(A), cpu.get(high::<T>()), by, cpu.fast.status);
    let Some((quotient, remainder, s)) = done else { return cpu.raise(op, Fault::DE) };
    cpu.fast.status = s;
    cpu.set(A, quotient);
    cpu.set(high::<T>(), remainder);
    op.next(cpu)
}

/// DIV, IDIV by a register.
pub(crate) fn div_r<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let by = cpu.get(op.a);
    divide::<T, SIGNED>(cpu, op, by)
}

/// DIV, IDIV by memory.
pub(crate) fn div_m<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let by = get!(cpu.read::<T, Any>(op));
    divide::<T, SIGNED>(cpu, op, by)
}

#[inline(always)]
fn imul<T: Wide>(cpu: &mut Cpu, op: OpRef, a: T, b: T) -> Exit {
    let (r, s) = T::imul(a, b, cpu.fast.status);
    cpu.fast.status = s;
    cpu.set(op.a, r);
    op.next(cpu)
}

/// IMUL register, register.
pub(crate) fn imul_rr<T: Wide>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (a, b) = (cpu.get(op.a), cpu.get(op.b));
    imul::<T>(cpu, op, a, b)
}

/// IMUL register, memory.
pub(crate) fn imul_rm<T: Wide>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = get!(cpu.read::<T, Any>(op));
    let a = cpu.get(op.a);
    imul::<T>(cpu, op, a, b)
}

/// IMUL register, register, immediate.
pub(crate) fn imul_rri<T: Wide>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let a = cpu.get(op.b);
    imul::<T>(cpu, op, a, T::from_u64(op.imm))
}

/// IMUL register, memory, immediate.
pub(crate) fn imul_rmi<T: Wide>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let a = get!(cpu.read::<T, Any>(op));
    imul::<T>(cpu, op, a, T::from_u64(op.imm))
}

/// CBW, CWDE, CDQE: the lower half of `T` extended to all of it.
pub(crate) fn extend_a<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let shift = 64 - T::BITS / 2;
    let value = (cpu.gpr[RAX] << shift) as i64 >> shift;
    cpu.set(A, T::from_u64(value as u64));
    op.next(cpu)
}

/// CWD, CDQ, CQO: the sign into the upper half.
pub(crate) fn extend_d<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let sign = (cpu.gpr[RAX] << (64 - T::BITS)) as i64 >> 63;
    cpu.set(D, T::from_u64(sign as u64));
    op.next(cpu)
}
