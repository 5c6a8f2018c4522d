//! What a device is.
//!
//! A device is a plain Rust value. The machine reaches it through [`PortIo`] or [`Mmio`] when a processor
//! accesses its registers, through [`Timed`] when an alarm that it set goes off, and through [`Device`] for its
//! life: reset, save, load. It reaches the machine through small values it was given when it was made:
//! [`IrqLine`], [`MsiLine`], [`Clock`], [`Alarm`], [`EventSink`]. It never sees an engine.
//!
//! # Locks
//! The machine keeps a device behind one lock (`Arc<Mutex<D>>`) and holds it during every call into the device.
//! A device may call any of its small values while its lock is held. The order of locks is: device, interrupt
//! controller, engine. Interrupt controllers never call a device.
#![forbid(unsafe_code)]

mod clock;
mod event;
mod line;

pub use clock::{Alarm, AlarmSink, Clock, ClockV1, Timed};
pub use event::{EventSink, MachineEvent};
pub use line::{IrqLine, IrqSink, Msi, MsiLine, MsiSink};

use thiserror::Error;
use umbra_state::{Record, StateError};

/// A device's registers in the 64 KiB of I/O ports.
pub trait PortIo: Send {
    /// Reads 1, 2 or 4 bytes at `offset` from the start of the device's range. All of `data` must be written.
    fn port_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes at `offset` from the start of the device's range.
    fn port_write(&mut self, offset: u16, data: &[u8]);
}

/// A device's registers in guest physical address space.
pub trait Mmio: Send {
    /// Reads 1 to 64 bytes at `offset` from the start of the device's range; the access lies within the range. All of `data` must be written.
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes 1 to 64 bytes at `offset` from the start of the device's range.
    fn mmio_write(&mut self, offset: u64, data: &[u8]);
}

/// The life of a device.
///
/// Order: made, then `load` at most once, then any number of register accesses and `reset`s, then dropped.
/// `save`, `load` and `reset` are called only while no vCPU runs. None of them may block.
pub trait Device: Send {
    /// Which device this is, unique in the machine (`com1`): the id of its saved record.
    fn id(&self) -> &str;
    /// Puts every register to its value at power-on; interrupt lines go low. Idempotent.
    fn reset(&mut self);
    /// The device's state. Lines that it drives high are saved by the interrupt controller as well.
    ///
    /// # Errors
    /// [`DeviceError::NotSaveable`], if this device can't be saved: said on purpose, never by default.
    fn save(&self) -> Result<Record, DeviceError>;
    /// Replaces the device's state by a saved one. The device must be left as it was when it refuses. Alarms that the state
    /// implies are set again; lines are not driven (the interrupt controller's own state has them).
    ///
    /// # Errors
    /// A record that is not a state of this device.
    fn load(&mut self, record: &Record) -> Result<(), DeviceError>;
}

/// Why a device could not be saved or loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The saved bytes are wrong.
    #[error("device {id}: {source}")]
    State {
        /// The device.
        id: String,
        /// What is wrong.
        source: StateError,
    },
    /// The values are readable but cannot be of such a device.
    #[error("device {id}: the saved {what} is impossible")]
    Impossible {
        /// The device.
        id: String,
        /// Which value.
        what: &'static str,
    },
    /// This device can't be saved.
    #[error("device {id} can't be saved: {why}")]
    NotSaveable {
        /// The device.
        id: String,
        /// Why not, and what to do.
        why: &'static str,
    },
}

impl DeviceError {
    /// A closure that names the device `id` in an error about saved bytes.
    pub fn state(id: &str) -> impl FnOnce(StateError) -> Self {
        move |source| Self::State { id: id.into(), source }
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod device_test;
