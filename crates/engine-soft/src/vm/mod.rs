//! The machine.

mod world;

pub use world::World;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use umbra_device::Clock;
use umbra_memory::Memory;

/// Bits of a processor's attention word.
pub mod attention {
    /// `run` shall return.
    pub const KICK: u32 = 1;
    /// The local APIC may have an interrupt to deliver.
    pub const APIC: u32 = 2;
    /// The PIC's output is high (processor 0).
    pub const EXTERNAL: u32 = 4;
    /// NMI.
    pub const NMI: u32 = 8;
    /// INIT.
    pub const INIT: u32 = 16;
    /// SIPI; its vector is in `Port::sipi`.
    pub const SIPI: u32 = 32;
    /// Another processor stops the world.
    pub const WORLD: u32 = 64;
    /// Forget all translations.
    pub const FLUSH: u32 = 128;
    /// Forget which pages can be written: one of them now holds code, or is clean.
    pub const FLUSH_WRITES: u32 = 256;
}

/// What other threads see of a processor.
#[derive(Default)]
pub struct Port {
    /// What wants its attention; polled at least once a block.
    pub attention: AtomicU32,
    /// The processor executes guest code; see [`World`].
    pub inside: AtomicBool,
}

impl Port {
    /// Whether anything wants attention.
    pub fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed) != 0
    }
}

/// What all processors of a machine share.
pub struct Shared {
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// The machine's clock.
    pub clock: Clock,
    /// One a processor, by id.
    pub ports: Vec<Port>,
    /// What stops all processors for a moment.
    pub world: World,
}
