//! One decoded operation, and how handlers pass on from one to the next.

use std::ops::Deref;

use iced_x86::Instruction;

use super::address::slot;
use crate::cpu::Cpu;

/// What executes an [`Op`] and all that follow it in its block.
pub(crate) type Handler = fn(&mut Cpu, OpRef) -> Exit;

/// How a block was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Exit {
    /// At its end, to the instruction that follows it. RIP has been set.
    Fall,
    /// By a direct branch. RIP has been set.
    Taken,
    /// By an indirect branch. RIP has been set.
    Jump,
    /// Something that translation, decoding or interrupts depend on may have changed, or an event waits. RIP has been set.
    State,
    /// As `State`, and the processor waits.
    Wait,
    /// RIP is that of an instruction that goes on later.
    Again,
    /// RIP is that of an instruction that raised `Fast::fault`.
    Fault,
}

/// One operation.
///
/// Registers are byte offsets into the general registers (AH is 1). Addresses are made of *slots*: eight-byte words of the state
/// block by index, of which the general registers are the first 16, RIP the next and a zero the one after.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub run: Handler,
    /// Immediate, branch target or whatever the handler wants.
    pub imm: u64,
    /// Displacement; RIP-relative ones are from the block's start.
    pub disp: i32,
    /// Destination register.
    pub a: u8,
    /// Source register.
    pub b: u8,
    /// Slot of the base.
    pub base: u8,
    /// Slot of the index.
    pub index: u8,
    /// Slot of the segment base.
    pub segment: u8,
    /// See [`op_flag`].
    pub flags: u8,
    /// Where the instruction starts in its block.
    pub offset: u16,
    /// Where the whole instruction is kept, if it is: its distance from this operation in units of 8 bytes.
    pub instruction: u16,
    /// Length of the instruction.
    pub len: u8,
}

impl Op {
    /// An operation without operands.
    pub(crate) fn new(run: Handler) -> Self {
        let (base, index, segment) = (slot::ZERO, slot::ZERO, slot::ZERO);
        Self {
            run,
            imm: 0,
            disp: 0,
            a: 0,
            b: 0,
            base,
            index,
            segment,
            flags: 0,
            offset: 0,
            instruction: 0,
            len: 0,
        }
    }
}

/// Bits of [`Op::flags`].
pub(crate) mod op_flag {
    /// The address is computed from the whole instruction.
    pub const GENERAL: u8 = 1;
    /// The segment is SS.
    pub const STACK: u8 = 2;
    /// The address is 32 bits wide. The value is by how much it is shifted up and down again.
    pub const NARROW: u8 = 32;
    /// The shift of the index is in the bits from this one.
    pub const SCALE_SHIFT: u32 = 6;
}

const _: () = assert!(size_of::<Op>() == 32);

/// A reference to an operation in a block, from which the next one can be reached.
#[derive(Clone, Copy)]
pub(crate) struct OpRef(*const Op);

impl OpRef {
    /// # Safety
    /// `op` lies in a block that stays while handlers run, and is followed by all operations up to one that leaves the block.
    pub(crate) unsafe fn new(op: *const Op) -> Self {
        Self(op)
    }

    /// Goes on with the operation after this one.
    #[inline(always)]
    pub(crate) fn next(self, cpu: &mut Cpu) -> Exit {
        // SAFETY: `new` has been promised that operations follow up to one that leaves the block, and only others call this.
        let next = Self(unsafe { self.0.add(1) });
        (next.run)(cpu, next)
    }

    /// The whole instruction, if it is kept.
    #[inline(always)]
    pub(crate) fn instruction<'a>(self) -> &'a Instruction {
        debug_assert!(self.instruction != 0);
        // SAFETY: the decoder puts instructions behind the operations of the block, and this distance into those that need theirs. The
        // block stays while handlers run, and nobody changes it.
        unsafe { &*self.0.cast::<u64>().add(usize::from(self.instruction)).cast::<Instruction>() }
    }
}

impl Deref for OpRef {
    type Target = Op;
    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: `new` has been promised that the operation stays while handlers run.
        unsafe { &*self.0 }
    }
}

/// Goes on with a value, or leaves the handler with its exit.
macro_rules! get {
    ($e:expr) => {
        match $e {
            Ok(value) => value,
            Err(exit) => return exit,
        }
    };
}
pub(crate) use get;
