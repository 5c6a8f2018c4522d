//! The seam: what executes guest instructions, seen from above.
//!
//! An [`Engine`] makes [`Vm`]s, a `Vm` makes [`Vcpu`]s, and a `Vcpu` runs until something above must decide ([`Halt`]). While
//! it runs it asks the rest of the machine through [`CpuIo`]. Nothing above this crate can tell which engine runs, except
//! by asking for its name; a machine saved under one resumes under another, because [`CpuState`] says
//! everything about a processor in the architecture's own terms.
#![forbid(unsafe_code)]

mod capability;
mod halt;
mod io;
mod state;
mod traits;

pub use capability::{DoorbellAt, Doorbells, IrqEvents};
pub use halt::{Counters, EngineError, Halt, Kicker};
pub use io::CpuIo;
pub use state::{
    ApicState, CpuState, Event, Events, MACHINE_CHECK_BANKS, RunState, SavedCpuid, SavedSegment, SavedTable,
    xcomp,
};
pub use traits::{Engine, PIN_COUNT, Vcpu, VcpuSpec, Vm, VmSpec};

#[cfg(test)]
#[path = "state_test.rs"]
mod state_test;
