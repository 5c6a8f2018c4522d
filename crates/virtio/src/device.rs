//! What a virtio device is, apart from how a guest reaches it.

use std::sync::Arc;

use bitflags::bitflags;
use umbra_device::DeviceError;
use umbra_state::Record;

use crate::{Interrupts, Queue};

bitflags! {
    /// Features of the transport and the queues (section 6); those below bit 24 are each device's own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Feature: u64 {
        /// Descriptors may name a table of further ones.
        const INDIRECT_DESCRIPTORS = 1 << 28;
        /// Both sides say from which entry on they want to be told.
        const EVENT_INDEX = 1 << 29;
        /// The driver keeps to version 1 and later.
        const VERSION_1 = 1 << 32;
    }
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Its type (section 5).
    pub device_type: u16,
    /// PCI base class, sub-class and programming interface.
    pub class: [u8; 3],
    /// Its own features, beside those of the transport.
    pub features: u64,
    /// The greatest size of each of its queues, powers of two. At most 64 queues.
    pub queue_sizes: Vec<u16>,
}

/// What a driver that is ready (DRIVER_OK) gives a device to work with.
#[derive(Clone)]
pub struct Running {
    /// The features that were negotiated.
    pub features: u64,
    /// The queues; those that the driver did not enable are empty for ever.
    pub queues: Vec<Arc<Queue>>,
    /// To say that configuration space has changed.
    pub interrupts: Interrupts,
}

impl Running {
    /// Whether a feature bit was negotiated.
    pub fn has(&self, bit: u32) -> bool {
        self.features >> bit & 1 != 0
    }
}

/// A virtio device.
///
/// Order: made, `load` at most once, then any number of rounds of `start`, `notify` and `reset`. All of it is called under
/// the function's lock and must not block: a device that waits for its host has threads of its own, which take chains
/// from the queues and complete them.
pub trait VirtioDevice: Send {
    /// What it is. Always the same.
    fn kind(&self) -> Kind;
    /// A guest reads its configuration space at `offset`, any length. All of `data` is zero and what is not written stays so.
    /// A device may have none.
    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}
    /// A guest writes its configuration space at `offset`, any length. There may be nothing in it to be written.
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready.
    fn start(&mut self, running: Running);
    /// The driver, or a machine that goes on, says that there is something in a queue.
    fn notify(&mut self, queue: u16);
    /// As at power-on. No chain of it is in flight any more. Idempotent.
    fn reset(&mut self);
    /// Its own state. No chain of it is in flight.
    ///
    /// # Errors
    /// [`DeviceError::NotSaveable`], said on purpose.
    fn save(&self) -> Result<Record, DeviceError>;
    /// Takes a saved state, before [`VirtioDevice::start`] where the driver was ready.
    ///
    /// # Errors
    /// A record that is not a state of this device.
    fn load(&mut self, record: &Record) -> Result<(), DeviceError>;
}

/// Reads registers at `offset`: what they and `data` have in common is copied.
pub(crate) fn read_registers(registers: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|at| registers.get(at..)).unwrap_or_default();
    data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
