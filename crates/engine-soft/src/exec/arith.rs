//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use super::address::Address;
use super::flags::Status;
use super::int::Int;
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;

/// An operation on two integers.
pub(crate) trait Alu: 'static {
    /// Whether the result is written.
    const WRITES: bool;
    /// The operation's number in opcodes, for locked forms.
    const NUMBER: u8;
    fn apply<T: Int>(a: T, b: T, s: Status) -> (T, Status);
}

macro_rules! alu {
    ($($name:ident $number:literal $writes:literal |$a:ident, $b:ident, $s:ident| $e:expr;)*) => {$(
        #[doc = concat!("The operation ", stringify!($name), ".")]
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            const NUMBER: u8 = $number;
            #[inline(always)]
            fn apply<T: Int>($a: T, $b: T, $s: Status) -> (T, Status) {
                let _ = $s;
                $e
            }
        }
    )*};
}
alu! {
    Add 0 true |a, b, s| T::add(a, b);
    Or 1 true |a, b, s| T::or(a, b);
    Adc 2 true |a, b, s| T::adc(a, b, s);
    Sbb 3 true |a, b, s| T::sbb(a, b, s);
    And 4 true |a, b, s| T::and(a, b);
    Sub 5 true |a, b, s| T::sub(a, b);
    Xor 6 true |a, b, s| T::xor(a, b);
    Cmp 7 false |a, b, s| T::sub(a, b);
    Test 8 false |a, b, s| T::and(a, b);
}

#[inline(always)]
fn apply<T: Int, K: Alu>(cpu: &mut Cpu, a: T, b: T) -> T {
    let (r, s) = K::apply(a, b, cpu.fast.status);
    cpu.fast.status = s;
    r
}

/// Register, register.
pub(crate) fn alu_rr<T: Int, K: Alu>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let r = apply::<T, K>(cpu, cpu.get(op.a), cpu.get(op.b));
    if K::WRITES {
        cpu.set(op.a, r);
    }
    op.next(cpu)
}

/// Register, immediate.
pub(crate) fn alu_ri<T: Int, K: Alu>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let r = apply::<T, K>(cpu, cpu.get(op.a), T::from_u64(op.imm));
    if K::WRITES {
        cpu.set(op.a, r);
    }
    op.next(cpu)
}

/// Register, memory.
pub(crate) fn alu_rm<T: Int, K: Alu, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = get!(cpu.read::<T, A>(op));
    let r = apply::<T, K>(cpu, cpu.get(op.a), b);
    if K::WRITES {
        cpu.set(op.a, r);
    }
    op.next(cpu)
}

#[inline(always)]
fn on_memory<T: Int, K: Alu, A: Address>(cpu: &mut Cpu, op: OpRef, b: T) -> Exit {
    if !K::WRITES {
        let a = get!(cpu.read::<T, A>(op));
        apply::<T, K>(cpu, a, b);
        return op.next(cpu);
    }
    let done = cpu.modify::<T, A, ()>(op, false, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        unsafe { apply::<T, K>(cpu, T::read(p), b).write(p) }
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}

/// Memory, register.
pub(crate) fn alu_mr<T: Int, K: Alu, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let b = cpu.get(op.b);
    on_memory::<T, K, A>(cpu, op, b)
}

/// Memory, immediate.
pub(crate) fn alu_mi<T: Int, K: Alu, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    on_memory::<T, K, A>(cpu, op, T::from_u64(op.imm))
}

/// An operation on one integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// A [`Unary`] as a type.
pub(crate) trait UnaryOp: 'static {
    const KIND: Unary;
}
/// INC.
pub(crate) struct Inc;
/// DEC.
pub(crate) struct Dec;
/// NEG.
pub(crate) struct Neg;
/// NOT.
pub(crate) struct Not;
impl UnaryOp for Inc {
    const KIND: Unary = Unary::Inc;
}
impl UnaryOp for Dec {
    const KIND: Unary = Unary::Dec;
}
impl UnaryOp for Neg {
    const KIND: Unary = Unary::Neg;
}
impl UnaryOp for Not {
    const KIND: Unary = Unary::Not;
}

#[inline(always)]
fn unary<T: Int, K: UnaryOp>(cpu: &mut Cpu, a: T) -> T {
    let s = cpu.fast.status;
    let (r, s) = match K::KIND {
        Unary::Inc => T::inc(a, s),
        Unary::Dec => T::dec(a, s),
        Unary::Neg => T::neg(a),
        Unary::Not => (T::not(a), s),
    };
    cpu.fast.status = s;
    r
}

/// On a register.
pub(crate) fn unary_r<T: Int, K: UnaryOp>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let r = unary::<T, K>(cpu, cpu.get(op.a));
    cpu.set(op.a, r);
    op.next(cpu)
}

/// On memory.
pub(crate) fn unary_m<T: Int, K: UnaryOp, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let done = cpu.modify::<T, A, ()>(op, false, |cpu, p| {
        // SAFETY: `modify` gives an address that can be read and written for the word.
        unsafe { unary::<T, K>(cpu, T::read(p)).write(p) }
    });
    let ((), event) = get!(done);
    cpu.go_on(op, event)
}
