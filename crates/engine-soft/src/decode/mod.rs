//! Decoded blocks: runs of instructions as operations, kept by physical address.
//!
//! A block starts anywhere and ends at the first branch, at the end of its page, or after [`cache::INSTRUCTIONS_MAX`] instructions. An
//! instruction that crosses pages is a block of its own. What a block was made from is remembered as the version of its page's code
//! (`umbra_memory::CodePage`), which is looked at whenever the block is entered; a store to its own page by a block ends it after that
//! instruction. So code that changes is exact, whoever changes it.

mod address;
mod build;
mod cache;
mod find;
mod select;
mod table;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::fault::{Exec, Flow};

pub use cache::Cache;
pub(crate) use cache::{Block, BlockId, Link};
pub(crate) use find::Want;

/// A handler that works from the whole decoded instruction. RIP is the instruction's own while it runs.
pub type Slow = fn(&mut Cpu, &Instruction) -> Exec<Flow>;
