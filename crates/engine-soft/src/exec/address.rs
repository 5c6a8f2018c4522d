//! Registers and memory operands of an [`Op`].

use super::int::Int;
use super::op::{Exit, Op, OpRef, op_flag};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::mmu::Word;
use crate::operand::mask;

/// How the address of a memory operand is computed.
pub(crate) trait Address: 'static {
    /// Base and displacement alone, 64 bits wide.
    const NEAR: bool;
}

/// 64-bit mode: base (or RIP) and displacement.
pub(crate) struct Near;
impl Address for Near {
    const NEAR: bool = true;
}

/// Anything.
pub(crate) struct Any;
impl Address for Any {
    const NEAR: bool = false;
}

/// Slots: indices of eight-byte integers in the state block.
pub(crate) mod slot {
    use std::mem::offset_of;

    use umbra_x86::segment::{Segment, sreg};

    use crate::cpu::Cpu;
    use crate::exec::Fast;

    const fn of(offset: usize) -> u8 {
        assert!(offset.is_multiple_of(8) && offset / 8 < 256);
        (offset / 8) as u8
    }

    const fn base_of(n: usize) -> u8 {
        of(offset_of!(Cpu, seg) + n * size_of::<Segment>() + offset_of!(Segment, base))
    }

    /// RIP of the block's start. The general registers are the slots below.
    pub(crate) const RIP: u8 = of(offset_of!(Cpu, rip));
    /// Always zero.
    pub(crate) const ZERO: u8 = of(offset_of!(Cpu, fast) + offset_of!(Fast, zero));
    /// The base of FS.
    pub(crate) const FS: u8 = base_of(sreg::FS);
    /// The base of GS.
    pub(crate) const GS: u8 = base_of(sreg::GS);
    /// Every slot there is.
    pub(super) const ALL: [u8; 20] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, RIP, ZERO, FS, GS];
    const _: () = assert!(offset_of!(Cpu, gpr) == 0);
}

impl Cpu {
    /// An eight-byte word of the state block.
    #[inline(always)]
    pub(crate) fn slot(&self, n: u8) -> u64 {
        debug_assert!(slot::ALL.contains(&n));
        // SAFETY: the decoder's slots are eight-byte integers of the state block, which is `repr(C)`; see `slot`.
        unsafe { std::ptr::from_ref(self).cast::<u64>().add(usize::from(n)).read() }
    }

    /// A general register by its byte offset.
    #[inline(always)]
    pub(crate) fn get<T: Int>(&self, offset: u8) -> T {
        let word = self.gpr[usize::from(offset >> 3) & 15];
        T::from_u64(if T::BITS == 8 { word >> ((offset & 1) * 8) } else { word })
    }

    /// Sets a general register by its byte offset: 8 and 16 bits keep the rest, 32 bits zero the upper half.
    #[inline(always)]
    pub(crate) fn set<T: Int>(&mut self, offset: u8, value: T) {
        let word = &mut self.gpr[usize::from(offset >> 3) & 15];
        let shift = if T::BITS == 8 { (offset & 1) * 8 } else { 0 };
        *word = match T::BITS {
            8 => *word & !(0xff << shift) | value.to_u64() << shift,
            16 => *word & !0xffff | value.to_u64(),
            _ => value.to_u64(),
        };
    }

    /// The effective address of a memory operand that is not general, without segment base.
    #[inline(always)]
    pub(crate) fn effective<A: Address>(&self, op: &Op) -> u64 {
        let near = self.slot(op.base).wrapping_add(op.disp as u64);
        if A::NEAR {
            return near;
        }
        let sum = near.wrapping_add(self.slot(op.index) << (op.flags >> op_flag::SCALE_SHIFT));
        let narrow = op.flags & op_flag::NARROW;
        sum << narrow >> narrow
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub(crate) fn linear_of<A: Address>(&mut self, op: OpRef, len: u64, write: bool) -> Result<u64, Exit> {
        if !A::NEAR && op.flags & op_flag::GENERAL != 0 {
            return self.general(op, len, write);
        }
        let effective = self.effective::<A>(&op);
        Ok(if A::NEAR { effective } else { effective.wrapping_add(self.slot(op.segment)) })
    }

    #[inline(never)]
    fn general(&mut self, op: OpRef, len: u64, write: bool) -> Result<u64, Exit> {
        self.general_beyond(op, 0, len, write)
    }

    /// The linear address of `len` bytes `beyond` the memory operand of an operation whose address is computed from the whole instruction.
    pub(super) fn general_beyond(
        &mut self,
        op: OpRef,
        beyond: u64,
        len: u64,
        write: bool,
    ) -> Result<u64, Exit> {
        let start = self.rip;
        self.rip = start.wrapping_add(op.offset.into());
        let i = op.instruction();
        let offset = self.effective_address(i).wrapping_add(beyond) & mask(self.address_bits(i));
        let linear = self.linear(self.memory_segment_number(i), offset, len, write);
        self.rip = start;
        linear.map_err(|fault| self.raise(op, fault))
    }

    /// Reads the memory operand.
    #[inline(always)]
    pub(crate) fn read<T: Word, A: Address>(&mut self, op: OpRef) -> Result<T, Exit> {
        let linear = self.linear_of::<A>(op, size_of::<T>() as u64, false)?;
        self.read_at(op, linear)
    }

    /// Reads at a linear address.
    #[inline(always)]
    pub(crate) fn read_at<T: Word>(&mut self, op: OpRef, linear: u64) -> Result<T, Exit> {
        match self.load(linear) {
            Ok(value) => Ok(value),
            Err(fault) => Err(self.memory_fault(op, fault)),
        }
    }

    /// Writes the memory operand. Whether the block must end after the instruction.
    #[inline(always)]
    pub(crate) fn write<T: Word, A: Address>(&mut self, op: OpRef, value: T) -> Result<bool, Exit> {
        let linear = self.linear_of::<A>(op, size_of::<T>() as u64, true)?;
        self.write_at(op, linear, value)
    }

    /// Writes at a linear address. Whether the block must end after the instruction.
    #[inline(always)]
    pub(crate) fn write_at<T: Word>(&mut self, op: OpRef, linear: u64, value: T) -> Result<bool, Exit> {
        match self.writable(linear, size_of::<T>() as u64) {
            Some(p) => {
                // SAFETY: the TLB gives out addresses within RAM; the word ends on the same page.
                unsafe { value.write(p) };
                Ok(false)
            }
            None => self.write_slow(op, linear, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Word>(&mut self, op: OpRef, linear: u64, value: T) -> Result<bool, Exit> {
        match self.store(linear, value) {
            Ok(()) => Ok(self.fast.event != 0),
            Err(fault) => Err(self.memory_fault(op, fault)),
        }
    }

    /// As [`Cpu::write_at`], onto the stack, whatever segment the operand's memory is in.
    #[inline(always)]
    pub(crate) fn write_stack<T: Word>(&mut self, op: OpRef, linear: u64, value: T) -> Result<bool, Exit> {
        match self.writable(linear, size_of::<T>() as u64) {
            Some(p) => {
                // SAFETY: as in `write_at`.
                unsafe { value.write(p) };
                Ok(false)
            }
            None => self.write_stack_slow(op, linear, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_stack_slow<T: Word>(&mut self, op: OpRef, linear: u64, value: T) -> Result<bool, Exit> {
        match self.store(linear, value) {
            Ok(()) => Ok(self.fast.event != 0),
            Err(Fault::GP0) => Err(self.raise(op, Fault::SS0)),
            Err(fault) => Err(self.raise(op, fault)),
        }
    }

    /// Reads and writes the memory operand by `f`, which gets the address at which one machine instruction may do both. What `f` gives,
    /// and whether the block must end after the instruction.
    #[inline(always)]
    pub(crate) fn modify<T: Word, A: Address, R>(
        &mut self,
        op: OpRef,
        lock: bool,
        f: impl FnOnce(&mut Self, *mut u8) -> R,
    ) -> Result<(R, bool), Exit> {
        let linear = self.linear_of::<A>(op, size_of::<T>() as u64, true)?;
        self.modify_at::<T, R>(op, linear, lock, f)
    }

    /// As [`Cpu::modify`] at a linear address.
    #[inline(always)]
    pub(crate) fn modify_at<T: Word, R>(
        &mut self,
        op: OpRef,
        linear: u64,
        lock: bool,
        f: impl FnOnce(&mut Self, *mut u8) -> R,
    ) -> Result<(R, bool), Exit> {
        let direct = self.writable(linear, size_of::<T>() as u64);
        let p = match direct {
            Some(p) => p,
            None => self.modify_slow(op, linear, size_of::<T>(), lock)?,
        };
        let r = f(self, p);
        Ok((r, direct.is_none() && self.modified()))
    }

    #[cold]
    #[inline(never)]
    fn modify_slow(&mut self, op: OpRef, linear: u64, len: usize, lock: bool) -> Result<*mut u8, Exit> {
        self.modify_begin(linear, len, lock).map_err(|fault| self.memory_fault(op, fault))
    }

    #[cold]
    #[inline(never)]
    fn modified(&mut self) -> bool {
        self.modify_end();
        self.fast.event != 0
    }

    /// Leaves the block with `fault`, RIP at the instruction.
    #[cold]
    #[inline(never)]
    pub(crate) fn raise(&mut self, op: OpRef, fault: Fault) -> Exit {
        self.rip = self.rip.wrapping_add(op.offset.into());
        self.fast.fault = fault;
        Exit::Fault
    }

    /// Leaves the block with a fault of the memory operand: an address that is not canonical is a stack fault in SS.
    #[cold]
    #[inline(never)]
    pub(crate) fn memory_fault(&mut self, op: OpRef, fault: Fault) -> Exit {
        let stack = fault == Fault::GP0 && op.flags & op_flag::STACK != 0;
        self.raise(op, if stack { Fault::SS0 } else { fault })
    }

    /// Leaves the block after the instruction, because an event waits.
    #[cold]
    #[inline(never)]
    pub(crate) fn after(&mut self, op: OpRef) -> Exit {
        self.rip = self.following(op);
        Exit::State
    }

    /// Where the instruction after `op` starts.
    #[inline(always)]
    pub(crate) fn following(&self, op: OpRef) -> u64 {
        self.rip.wrapping_add(u64::from(op.offset) + u64::from(op.len)) & self.fast.rip_mask
    }

    /// Ends a handler that may have met an event.
    #[inline(always)]
    pub(crate) fn go_on(&mut self, op: OpRef, event: bool) -> Exit {
        if event { self.after(op) } else { op.next(self) }
    }

    /// Checks the target of an indirect branch with side effects.
    #[inline(always)]
    pub(crate) fn check_near_target(&self, target: u64) -> Exec {
        let canonical = ((target << 16) as i64 >> 16) as u64 == target;
        if canonical && target <= self.fast.rip_max { Ok(()) } else { Err(Fault::GP0) }
    }
}
