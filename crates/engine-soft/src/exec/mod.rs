//! The interpreter: handlers of the common instructions, and the loop that runs blocks.
//!
//! A block is an array of [`Op`]s. Each has its handler, which ends by calling the next one's; the compiler makes that a jump, and where it
//! does not (in a debug build) the stack grows by a frame an operation, of which a block has few. The last handler of a block
//! says how to go on ([`Exit`]) to the loop in `run`, which follows links between blocks.
//!
//! While handlers run, RIP is that of the block's first instruction, and the six status flags are in `Fast::status` as LAHF and
//! SETO give them. Whoever else looks at the processor finds both where they belong: see `Cpu::settle`.

mod address;
mod arith;
mod atomic;
mod bits;
mod branch;
mod flags;
mod int;
pub(crate) mod legacy;
mod misc;
mod mov;
mod muldiv;
mod op;
mod run;
mod shift;
mod slow;
mod stack;
#[cfg(test)]
pub(crate) mod test;

use crate::fault::Fault;

pub(crate) use address::{Any, Near, slot};
pub(crate) use arith::*;
pub(crate) use atomic::*;
pub(crate) use bits::*;
pub(crate) use branch::*;
pub(crate) use misc::*;
pub(crate) use mov::*;
pub(crate) use muldiv::*;
pub(crate) use op::{Handler, Op, OpRef, op_flag};
pub use run::{Stop, run};
pub(crate) use shift::*;
pub(crate) use slow::*;
pub(crate) use stack::*;

/// The interpreter's own part of the state block, close to the general registers.
#[derive(Debug)]
#[repr(C)]
pub struct Fast {
    /// Always zero: base and index of addresses that have none.
    pub(crate) zero: u64,
    /// Low bits of the TLB's tags that match now.
    pub(crate) context: u64,
    /// First TLB entry of the class of accesses at the current privilege.
    pub(crate) tlb_base: usize,
    /// What a linear address of code is looked up under: translation, privilege and mode.
    pub(crate) key: u64,
    /// The bits that RIP has.
    pub(crate) rip_mask: u64,
    /// The last offset in the code segment.
    pub(crate) rip_max: u64,
    /// Guest instructions executed, for statistics.
    pub instructions: u64,
    /// Status flags; see `exec::flags`.
    pub(crate) status: u16,
    /// Blocks until the timer is looked at.
    pub(crate) timer_blocks: u32,
    /// What must be seen to after the instruction; see `mmu::event`.
    pub(crate) event: u32,
    /// What the last handler raised.
    pub(crate) fault: Fault,
    /// This processor has stopped the world.
    pub(crate) stopped_world: bool,
    /// It was inside the world before it stopped it.
    pub(crate) inside_before: bool,
}

impl Default for Fast {
    fn default() -> Self {
        Self {
            zero: 0,
            context: crate::mmu::NO_CONTEXT,
            tlb_base: 0,
            key: 0,
            rip_mask: u64::MAX,
            rip_max: u64::MAX,
            instructions: 0,
            status: 0,
            timer_blocks: 0,
            event: 0,
            fault: Fault::UD,
            stopped_world: false,
            inside_before: false,
        }
    }
}
