//! Decoded blocks.

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::fault::{Exec, Flow};

/// A handler that works from the whole decoded instruction. RIP is the instruction's own while it runs.
pub type Slow = fn(&mut Cpu, &Instruction) -> Exec<Flow>;

/// Decoded blocks of one processor.
pub struct Cache {}

impl Cache {
    /// An empty cache.
    pub fn new() -> Box<Self> {
        Box::new(Self {})
    }
}
