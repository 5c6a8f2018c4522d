//! Interrupt lines and message-signalled interrupts, as a device sees them.

use std::sync::Arc;

/// What stands at the other end of interrupt lines: an interrupt controller, or a router of several.
pub trait IrqSink: Send + Sync {
    /// Drives input `pin` to `high`. Calling it again with the same level is no edge.
    fn set_level(&self, pin: u32, high: bool);
}

/// One wire from a device to an interrupt controller's input (a GSI).
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    pin: u32,
}

impl IrqLine {
    /// The wire to input `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// Drives the wire.
    pub fn set(&self, high: bool) {
        self.sink.set_level(self.pin, high);
    }

    /// Drives the wire high, then low: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (Intel SDM volume 3, "Message Signalled
/// Interrupts"; with the extended destination ID in address bits 5 to 11 as KVM defines it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Msi {
    /// The message address, 0xFEE0_0000 and above.
    pub address: u64,
    /// The message data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// What takes message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Delivers one message. A message that names no processor is dropped.
    fn send(&self, msi: Msi);
}

/// A device's way to send message-signalled interrupts.
pub type MsiLine = Arc<dyn MsiSink>;
