//! Locked instructions, and XCHG, XADD and CMPXCHG with memory, which are always done as if locked.
//!
//! They are the host's own locked instructions on guest memory, so they are atomic towards other processors and devices.

use umbra_x86::reg::gpr::RAX;

use super::address::Any;
use super::arith::{Alu, UnaryOp};
use super::int::{Bit, Int, Wide};
use super::op::{Exit, OpRef, get, op_flag};
use crate::cpu::Cpu;

#[inline(always)]
fn lock_alu<T: Int, K: Alu>(cpu: &mut Cpu, op: OpRef, b: T) -> Exit {
    let done = cpu.modify::<T, Any, ()>(op, true, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        cpu.fast.status = unsafe { T::lock_op(K::NUMBER, p, b, cpu.fast.status) };
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}

/// LOCK op memory, register.
pub(crate) fn lock_alu_mr<T: Int, K: Alu>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = cpu.get(op.b);
    lock_alu::<T, K>(cpu, op, b)
}

/// LOCK op memory, immediate.
pub(crate) fn lock_alu_mi<T: Int, K: Alu>(cpu: &mut Cpu, op: OpRef) -> Exit {
    lock_alu::<T, K>(cpu, op, T::from_u64(op.imm))
}

/// LOCK INC, DEC, NEG, NOT.
pub(crate) fn lock_unary_m<T: Int, K: UnaryOp>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let done = cpu.modify::<T, Any, ()>(op, true, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        cpu.fast.status = unsafe { T::lock_unary(K::KIND, p, cpu.fast.status) };
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}

/// XCHG with memory.
pub(crate) fn xchg_m<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<T>(op.b);
    // SAFETY: `modify` gives an address that can be read and written for the word.
    let done = cpu.modify::<T, Any, T>(op, true, |_, p| unsafe { T::exchange(p, value) });
    let (old, event) = get!(done);
    cpu.set(op.b, old);
    cpu.go_on(op, event)
}

/// XADD register, register.
pub(crate) fn xadd_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let (a, b) = (cpu.get::<T>(op.a), cpu.get::<T>(op.b));
    let (sum, s) = T::add(a, b);
    cpu.fast.status = s;
    cpu.set(op.b, a);
    cpu.set(op.a, sum);
    op.next(cpu)
}

/// XADD memory, register.
pub(crate) fn xadd_m<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<T>(op.b);
    // SAFETY: `modify` gives an address that can be read and written for the word.
    let done = cpu.modify::<T, Any, _>(op, true, |cpu, p| unsafe { T::lock_xadd(p, value, cpu.fast.status) });
    let ((old, s), event) = get!(done);
    cpu.fast.status = s;
    cpu.set(op.b, old);
    cpu.go_on(op, event)
}

/// CMPXCHG register, register.
pub(crate) fn cmpxchg_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let accumulator = cpu.get::<T>((RAX * 8) as u8);
    let (a, b) = (cpu.get::<T>(op.a), cpu.get::<T>(op.b));
    let (_, s) = T::sub(accumulator, a);
    cpu.fast.status = s;
    if accumulator == a {
        cpu.set(op.a, b);
    } else {
        cpu.set((RAX * 8) as u8, a);
    }
    op.next(cpu)
}

/// CMPXCHG memory, register.
pub(crate) fn cmpxchg_m<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let accumulator = cpu.get::<T>((RAX * 8) as u8);
    let value = cpu.get::<T>(op.b);
    let done = cpu.modify::<T, Any, _>(op, true, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        unsafe { T::lock_cmpxchg(p, accumulator, value, cpu.fast.status) }
    });
    let ((seen, s), event) = get!(done);
    cpu.fast.status = s;
    if seen != accumulator {
        cpu.set((RAX * 8) as u8, seen);
    }
    cpu.go_on(op, event)
}

/// BT, BTS, BTR, BTC of memory, locked where it writes. `OFFSET`: the bit number is in a register and reaches beyond the operand.
pub(crate) fn bit_m<T: Wide, const KIND: u8, const OFFSET: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let kind = [Bit::Test, Bit::Set, Bit::Reset, Bit::Complement][usize::from(KIND & 3)];
    let n = if OFFSET { cpu.get::<T>(op.b).to_u64() } else { op.imm };
    let bit = T::from_u64(n & u64::from(T::BITS - 1));
    let len = u64::from(T::BITS / 8);
    // The signed bit number, in units of the operand size.
    let shift = 64 - T::BITS;
    let words = ((n << shift) as i64 >> shift) >> T::BITS.trailing_zeros();
    let beyond = if OFFSET { (words as u64).wrapping_mul(len) } else { 0 };
    let linear = if op.flags & op_flag::GENERAL != 0 {
        get!(cpu.general_beyond(op, beyond, len, KIND != 0))
    } else {
        let narrow = op.flags & op_flag::NARROW;
        let effective = cpu.effective::<Any>(&op).wrapping_add(beyond);
        (effective << narrow >> narrow).wrapping_add(cpu.slot(op.segment))
    };
    if KIND == 0 {
        let word = get!(cpu.read_at::<T>(op, linear));
        cpu.fast.status = T::bit(kind, word, bit, cpu.fast.status).1;
        return op.next(cpu);
    }
    let done = cpu.modify_at::<T, ()>(op, linear, true, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word, and the bit lies within it.
        cpu.fast.status = unsafe { T::lock_bit(kind, p, bit, cpu.fast.status) };
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}
