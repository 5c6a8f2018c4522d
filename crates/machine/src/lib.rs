//! From a specification to a running machine.
//!
//! This is the only crate that names both engines' seam and devices. It lays out memory and devices of machine type
//! `umbra-1`, starts, pauses, resets, saves and restores. It opens nothing by path and prints nothing: files come in
//! as descriptors, what happens goes out as [`Event`]s.
#![forbid(unsafe_code)]

mod board;
mod bus;
mod cpu_model;
mod crew;
mod functions;
mod image;
mod machine;
mod save;
mod spec;
mod timer;

use std::io;

use thiserror::Error;
use umbra_boot::BootError;
use umbra_device::DeviceError;
use umbra_engine::EngineError;
use umbra_memory::MemoryError;
use umbra_pci::PciError;
use umbra_state::{ContainerError, StateError};

pub use image::BootFiles;
pub use machine::{Console, Machine, Parts};
pub use save::{SavedMachine, saved_spec};
pub use spec::{CpuModel, DiskSpec, KernelEntry, MachineSpec, NetworkSpec, SPEC_VERSION, VsockSpec};
pub use umbra_virtio::vsock::{Host as VsockHost, Outside as VsockOutside};

/// What happens to a machine by the guest's doing, or to its engine. All vCPUs stand, or will in a moment, when one is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest switched the power off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel says that it has panicked.
    Panicked,
    /// A vCPU has shut down after a triple fault.
    TripleFault {
        /// Which.
        vcpu: usize,
    },
    /// The engine cannot go on.
    Error(String),
}

/// Why a machine could not be made, saved or restored.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The specification is wrong.
    #[error("{0}")]
    Spec(String),
    /// The kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The PCI bus.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// An image.
    #[error("cannot {doing} the disk {name}: {source}")]
    Disk {
        /// What was to be done.
        doing: &'static str,
        /// Which disk.
        name: String,
        /// Why not.
        source: Box<umbra_block::Error>,
    },
    /// A network.
    #[error(transparent)]
    Net(#[from] umbra_net::Error),
    /// The saved file.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A saved record.
    #[error("the saved file is not of this version: {0}")]
    State(#[from] StateError),
    /// The saved machine does not fit here.
    #[error("cannot restore this machine: {0}")]
    Restore(String),
    /// The host refused.
    #[error("{0}: {1}")]
    Host(&'static str, #[source] io::Error),
}

#[cfg(test)]
#[path = "functions_test.rs"]
mod functions_test;
#[cfg(test)]
#[path = "machine_test.rs"]
mod machine_test;
