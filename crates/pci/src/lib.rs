//! PCI: configuration space, base address registers, the bus with both ways to configure it, and the host bridge.
//!
//! The machine puts functions ([`PciDevice`]) on a [`Bus`]. A guest finds and configures them through the bus's ports
//! (configuration mechanism #1) or its memory window (ECAM). Where a function's base address registers decode is
//! reported to the machine's address space, a [`BarMapper`], which from then on sends accesses to the [`BarTarget`]
//! it was given.
//!
//! # Locks
//! The bus is locked first, then a function, then what interrupts ([`Msix`], [`Intx`]). A [`BarMapper`] is called with the
//! bus locked and no function.
#![forbid(unsafe_code)]

mod bar;
mod bus;
mod config;
mod device;
mod header;
mod host_bridge;
mod intx;
mod msix;

pub use bar::{Bar, BarMapper, BarRegion, BarSpace, BarTarget};
pub use bus::{Bus, PciBusV1};
pub use config::ConfigSpace;
pub use device::PciDevice;
pub use header::{Command, Identity};
pub use host_bridge::{HostBridge, HostBridgeV1};
pub use intx::Intx;
pub use msix::{Msix, MsixV1};

use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// How a machine was put together wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PciError {
    /// There is no such slot.
    #[error("there is no PCI slot {0}; slots are 0 to 31")]
    NoSlot(u8),
    /// The slot is taken.
    #[error("PCI slot {0} is occupied")]
    Occupied(u8),
    /// A base address register that cannot be.
    #[error(
        "PCI base address register {index} cannot be {bar:?}: its size, its place or the one before it forbids it"
    )]
    Bar {
        /// Which of the six.
        index: u8,
        /// What it was to be.
        bar: Bar,
    },
    /// The capability does not fit behind those that are there.
    #[error("a PCI capability of {len} bytes does not fit into configuration space")]
    CapabilityTooLong {
        /// Its length with its two-byte head.
        len: usize,
    },
    /// MSI-X' table or pending bits cannot be there.
    #[error("MSI-X cannot be at offset {offset:#x} of PCI base address register {bar}")]
    MsixPlace {
        /// Which base address register.
        bar: u8,
        /// Where behind it.
        offset: u32,
    },
}

/// Locks; a function that panicked elsewhere is still a register file.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test_support;

#[cfg(test)]
#[path = "bus_test.rs"]
mod bus_test;
#[cfg(test)]
#[path = "config_test.rs"]
mod config_test;
#[cfg(test)]
#[path = "fuzz_test.rs"]
mod fuzz_test;
#[cfg(test)]
#[path = "interrupt_test.rs"]
mod interrupt_test;
