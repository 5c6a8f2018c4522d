//! The machine: its processors, their local APICs, what wakes and interrupts them, and time.
//!
//! | file | what |
//! |---|---|
//! | `port` | what other threads see of a processor: attention, local APIC, sleep |
//! | `deliver` | interrupt messages, from devices and from processors |
//! | `apic` | a processor and its own local APIC |
//! | `events` | what a processor does before it executes: INIT, SIPI, NMI, interrupts, halted waiting |
//! | `alarm` | what interrupts guest code when a timer is due |
//! | `timer` | timers of the host that send signals to a thread |
//! | `time`, `frequency` | the time-stamp counter; how fast it is |
//! | `pvclock`, `hypercall` | KVM's paravirtual clock, and calls |
//! | `spin` | loops in which the guest waits |
//! | `profile` | where a processor's time goes |
//! | `hooks` | what system instructions ask of all that |
//! | `world` | stopping all processors for a moment |
//! | `machine` | the machine as `umbra-engine` has it |

mod alarm;
mod apic;
pub mod count;
mod deliver;
mod events;
mod frequency;
pub mod hooks;
mod hypercall;
mod machine;
mod port;
mod profile;
mod pvclock;
mod spin;
mod time;
mod timer;
mod world;

pub use alarm::{Alarm, set as set_alarm};
pub use events::Injected;
pub use frequency::host_khz;
pub use machine::SoftVm;
pub use port::Port;
pub use profile::{Activity, Profile, Sampler};
pub use pvclock::KvmClock;
pub use spin::Spin;
pub use time::{Time, Tsc, host_tsc, thread_time};
pub use world::World;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use umbra_device::Clock;
use umbra_memory::Memory;

/// The most processors that a machine can have.
pub const VCPUS_MAX: u32 = 254;

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
    /// SIPI; its vector is in the port.
    pub const SIPI: u32 = 32;
    /// Another processor stops the world.
    pub const WORLD: u32 = 64;
    /// Forget all translations.
    pub const FLUSH: u32 = 128;
    /// Forget which pages can be written: one of them now holds code, or is clean.
    pub const FLUSH_WRITES: u32 = 256;
    /// A message asks for an interrupt whose vector the PIC gives.
    pub const EXT_INT: u32 = 512;
    /// The alarm of the processor's thread has come; see `alarm`.
    pub const TIMER: u32 = 1024;

    /// A sample waits for its name; see `profile`.
    pub const PROFILE: u32 = 2048;

    /// What a halted processor wakes for.
    pub const WAKES: u32 = KICK | APIC | EXTERNAL | NMI | INIT | SIPI | EXT_INT;
    /// What a processor that waits for SIPI wakes for.
    pub const STARTS: u32 = KICK | INIT | SIPI;
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
    /// When guest time runs.
    pub time: Time,
    /// The PIC's output.
    pub external: AtomicBool,
}

impl Shared {
    /// A machine of at most `vcpus_max` processors on a host whose time-stamp counter runs at `khz`. Guest time stands.
    pub fn new(memory: Arc<Memory>, clock: Clock, vcpus_max: u32, khz: u32) -> Arc<Self> {
        Arc::new(Self {
            memory,
            clock,
            ports: (0..vcpus_max.min(VCPUS_MAX)).map(Port::new).collect(),
            world: World::default(),
            time: Time::new(khz),
            external: AtomicBool::new(false),
        })
    }
}
