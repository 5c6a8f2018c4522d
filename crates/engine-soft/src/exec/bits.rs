//! BT and its kin on registers, BSF, BSR, TZCNT, LZCNT, POPCNT, BSWAP.

use super::address::Any;
use super::flags::Status;
use super::int::{Bit, Wide};
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;

/// BT, BTS, BTR, BTC of a register; the bit number in a register or an immediate.
pub(crate) fn bit_r<T: Wide, const KIND: u8, const IMMEDIATE: bool>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let kind = [Bit::Test, Bit::Set, Bit::Reset, Bit::Complement][usize::from(KIND & 3)];
    let n = if IMMEDIATE { op.imm } else { cpu.get::<T>(op.b).to_u64() };
    let bit = T::from_u64(n & u64::from(T::BITS - 1));
    let (r, s) = T::bit(kind, cpu.get(op.a), bit, cpu.fast.status);
    cpu.fast.status = s;
    if KIND != 0 {
        cpu.set(op.a, r);
    }
    op.next(cpu)
}

/// An operation from source to destination. The destination is the whole register, because BSF and BSR of zero leave of it what the processor
/// pleases.
pub(crate) trait Scan: 'static {
    fn scan<T: Wide>(old: u64, source: T, s: Status) -> (u64, Status);
}

macro_rules! scan {
    ($($name:ident $method:ident;)*) => {$(
        #[doc = concat!("The operation ", stringify!($name), ".")]
        pub(crate) struct $name;
        impl Scan for $name {
            #[inline(always)]
            fn scan<T: Wide>(old: u64, source: T, s: Status) -> (u64, Status) {
                T::$method(old, source, s)
            }
        }
    )*};
}
scan! {
    Bsf bsf;
    Bsr bsr;
    Tzcnt tzcnt;
    Lzcnt lzcnt;
    Popcnt popcnt;
}

#[inline(always)]
fn scan<T: Wide, K: Scan>(cpu: &mut Cpu, op: OpRef, source: T) -> Exit {
    let (r, s) = K::scan(cpu.get::<u64>(op.a), source, cpu.fast.status);
    cpu.fast.status = s;
    cpu.set(op.a, r);
    op.next(cpu)
}

/// Of a register.
pub(crate) fn scan_rr<T: Wide, K: Scan>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let source = cpu.get::<T>(op.b);
    scan::<T, K>(cpu, op, source)
}

/// Of memory.
pub(crate) fn scan_rm<T: Wide, K: Scan>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let source = get!(cpu.read::<T, Any>(op));
    scan::<T, K>(cpu, op, source)
}

/// BSWAP.
pub(crate) fn bswap<T: Wide>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = T::bswap(cpu.get(op.a));
    cpu.set(op.a, value);
    op.next(cpu)
}
