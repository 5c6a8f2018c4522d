//! MOV, MOVZX, MOVSX, LEA, XCHG of registers, CMOVcc, SETcc.

use std::marker::PhantomData;

use super::address::Address;
use super::flags::condition;
use super::int::Int;
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;
use crate::fault::Fault;

/// MOV register, register.
pub(crate) fn mov_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<T>(op.b);
    cpu.set(op.a, value);
    op.next(cpu)
}

/// MOV register, immediate.
pub(crate) fn mov_ri<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.set(op.a, T::from_u64(op.imm));
    op.next(cpu)
}

/// MOV register, memory.
pub(crate) fn mov_rm<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = get!(cpu.read::<T, A>(op));
    cpu.set(op.a, value);
    op.next(cpu)
}

/// MOV memory, register.
pub(crate) fn mov_mr<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<T>(op.b);
    let event = get!(cpu.write::<T, A>(op, value));
    cpu.go_on(op, event)
}

/// MOV memory, immediate.
pub(crate) fn mov_mi<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let event = get!(cpu.write::<T, A>(op, T::from_u64(op.imm)));
    cpu.go_on(op, event)
}

/// How a narrow value becomes a wide one.
pub(crate) trait Extend: 'static {
    type From: Int;
    type To: Int;
    fn extend(value: Self::From) -> Self::To;
}

/// MOVZX.
pub(crate) struct Zero<S, D>(PhantomData<(S, D)>);
impl<S: Int, D: Int> Extend for Zero<S, D> {
    type From = S;
    type To = D;
    #[inline(always)]
    fn extend(value: S) -> D {
        D::from_u64(value.to_u64())
    }
}

/// MOVSX and MOVSXD.
pub(crate) struct Sign<S, D>(PhantomData<(S, D)>);
impl<S: Int, D: Int> Extend for Sign<S, D> {
    type From = S;
    type To = D;
    #[inline(always)]
    fn extend(value: S) -> D {
        let shift = 64 - S::BITS;
        D::from_u64(((value.to_u64() << shift) as i64 >> shift) as u64)
    }
}

/// MOVZX, MOVSX of a register.
pub(crate) fn extend_rr<E: Extend>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<E::From>(op.b);
    cpu.set(op.a, E::extend(value));
    op.next(cpu)
}

/// MOVZX, MOVSX of memory.
pub(crate) fn extend_rm<E: Extend, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = get!(cpu.read::<E::From, A>(op));
    cpu.set(op.a, E::extend(value));
    op.next(cpu)
}

/// LEA.
pub(crate) fn lea<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let address = cpu.effective::<A>(&op);
    cpu.set(op.a, T::from_u64(address));
    op.next(cpu)
}

/// LEA of an address that the whole instruction is needed for.
pub(crate) fn lea_general<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let start = cpu.rip;
    cpu.rip = start.wrapping_add(op.offset.into());
    let address = cpu.effective_address(op.instruction());
    cpu.rip = start;
    cpu.set(op.a, T::from_u64(address));
    op.next(cpu)
}

/// XCHG register, register.
pub(crate) fn xchg_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (a, b) = (cpu.get::<T>(op.a), cpu.get::<T>(op.b));
    cpu.set(op.a, b);
    cpu.set(op.b, a);
    op.next(cpu)
}

/// CMOVcc register, register. A 32-bit destination loses its upper half either way.
pub(crate) fn cmov_rr<T: Int, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let source = if condition::<C>(cpu.fast.status) { op.b } else { op.a };
    let value = cpu.get::<T>(source);
    cpu.set(op.a, value);
    op.next(cpu)
}

/// CMOVcc register, memory: reads it either way.
pub(crate) fn cmov_rm<T: Int, A: Address, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let new = get!(cpu.read::<T, A>(op));
    let old = cpu.get::<T>(op.a);
    cpu.set(op.a, if condition::<C>(cpu.fast.status) { new } else { old });
    op.next(cpu)
}

/// SETcc register.
pub(crate) fn setcc_r<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = u8::from(condition::<C>(cpu.fast.status));
    cpu.set(op.a, value);
    op.next(cpu)
}

/// SETcc memory.
pub(crate) fn setcc_m<A: Address, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = u8::from(condition::<C>(cpu.fast.status));
    let event = get!(cpu.write::<u8, A>(op, value));
    cpu.go_on(op, event)
}

/// What cannot be decoded or is not offered: #UD.
pub(crate) fn undefined(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.raise(op, Fault::UD)
}

/// An instruction of more than 15 bytes: #GP.
pub(crate) fn too_long(cpu: &mut Cpu, op: OpRef) -> Exit {
    cpu.raise(op, Fault::GP0)
}
