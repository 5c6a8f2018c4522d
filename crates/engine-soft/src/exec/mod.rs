//! The interpreter: handlers of the common instructions, and the loop that runs blocks.

use crate::cpu::Cpu;

/// The interpreter's own part of the state block, close to the general registers.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Fast {
    /// Guest instructions executed, for statistics.
    pub instructions: u64,
}

/// Why [`run`] returned; always at an instruction boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Something in the attention word, or an interrupt that can now be taken.
    Attention,
    /// The processor waits: see `Cpu::run_state`.
    Wait,
    /// A fault while delivering a double fault.
    TripleFault,
    /// A debug condition of the host's side.
    Debug,
}

/// Runs guest code until something wants attention. Delivers exceptions itself.
pub fn run(cpu: &mut Cpu) -> Stop {
    let _ = cpu;
    todo!()
}
