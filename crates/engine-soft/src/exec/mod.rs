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

use std::ptr::{null, null_mut};

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::mmu::Entry;
use crate::translate::{HostFault, Jump, SLOTS};
use crate::vm::Activity;

pub(crate) use address::{Any, Near, slot};
pub(crate) use arith::*;
pub(crate) use atomic::*;
pub(crate) use bits::*;
pub(crate) use branch::*;
pub(crate) use flags::{from_rflags as status_of, to_rflags as rflags_of};
pub(crate) use misc::*;
pub(crate) use mov::*;
pub(crate) use muldiv::*;
pub(crate) use op::{Exit, Handler, Op, OpRef, op_flag};
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
    /// The context whose tags of the TLB match now, in the bits that they have it in.
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
    /// What must be seen to after the instruction; see `mmu::event`.
    pub(crate) event: u32,
    /// What the last handler raised.
    pub(crate) fault: Fault,
    /// This processor has stopped the world.
    pub(crate) stopped_world: bool,
    /// It was inside the world before it stopped it.
    pub(crate) inside_before: bool,
    /// What it does at the moment.
    pub(crate) activity: Activity,
    /// What translations need; see `translate`.
    /// The state block itself.
    pub(crate) this: *mut Cpu,
    /// The page of RIP, while a translation runs.
    pub(crate) page: u64,
    /// The first TLB entry of the class of accesses at the current privilege.
    pub(crate) tlb: *const Entry,
    /// Those of the two classes of supervisor accesses; and zero if STAC and CLAC do nothing but switch between them.
    pub(crate) classes: [*const Entry; 2],
    pub(crate) keeps_ac: u8,
    /// The attention word.
    pub(crate) attention: *const u32,
    /// The table of translations by linear address, and what of the key goes into a place in it.
    pub(crate) jumps: *const Jump,
    pub(crate) jump_hash: u64,
    /// What code that is there in every context is looked up under.
    pub(crate) global_key: u64,
    /// The target of an indirect call or of an exit.
    pub(crate) target: u64,
    /// What is to be added to addresses in a window; see `translate::window`.
    pub(crate) windows: [u64; SLOTS],
    /// Where translations go for their slow path, to leave, and for a target in the table.
    pub(crate) slow: usize,
    pub(crate) leave: usize,
    pub(crate) find: usize,
    /// How many jumps to other pages may still be looked up before one is linked anew.
    pub(crate) patience: i32,
    /// The site of the slow path or the exit.
    pub(crate) site: u32,
    /// Vector units that are live in the host's registers, and those that shall be.
    pub(crate) live: u8,
    pub(crate) wanted: u8,
    /// How the interpreter left the instruction that a translation asked it for.
    pub(crate) exit: Exit,
    pub(crate) host_fault: HostFault,
    /// `Cache::epoch` that translations are of.
    pub(crate) epoch: u64,
    /// Guest instructions of translations that count them, and how many of all the interpreter did.
    pub(crate) translated: u64,
    pub(crate) interpreted: u64,
    /// How often translations were entered from the run loop.
    pub(crate) entered: u64,
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
            event: 0,
            fault: Fault::UD,
            stopped_world: false,
            activity: Activity::Dispatch,
            inside_before: false,
            this: null_mut(),
            page: 0,
            tlb: null(),
            classes: [null(); 2],
            keeps_ac: 1,
            attention: null(),
            jumps: null(),
            jump_hash: 0,
            global_key: 0,
            target: 0,
            windows: [0; SLOTS],
            slow: 0,
            leave: 0,
            find: 0,
            patience: 0,
            site: 0,
            live: 0,
            wanted: 0,
            exit: Exit::Jump,
            host_fault: HostFault::default(),
            epoch: 0,
            translated: 0,
            interpreted: 0,
            entered: 0,
        }
    }
}
