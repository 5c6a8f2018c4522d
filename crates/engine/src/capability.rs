//! What only some engines can do. An engine that can gives `Some` of these; the others do not stub them.

use std::os::fd::BorrowedFd;

use umbra_device::Msi;

use crate::EngineError;

/// Interrupts raised by event file descriptors without passing through this process (irqfd).
pub trait IrqEvents: Send + Sync {
    /// Each signal of `event` sends `msi`. Returns a handle.
    ///
    /// # Errors
    /// The host refuses.
    fn attach(&self, event: BorrowedFd<'_>, msi: Msi) -> Result<u32, EngineError>;
    /// Changes the message of `handle`.
    ///
    /// # Errors
    /// The host refuses; an unknown handle.
    fn retarget(&self, handle: u32, msi: Msi) -> Result<(), EngineError>;
    /// Ends what [`IrqEvents::attach`] began.
    ///
    /// # Errors
    /// The host refuses; an unknown handle.
    fn detach(&self, handle: u32, event: BorrowedFd<'_>) -> Result<(), EngineError>;
}

/// Where a doorbell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorbellAt {
    /// An I/O port.
    Port(u16),
    /// A guest physical address.
    Mmio(u64),
}

/// Guest writes that signal an event file descriptor without an exit to this process (ioeventfd).
pub trait Doorbells: Send + Sync {
    /// A write of `len` bytes (1, 2, 4, 8, or 0 for any) at `at`, of `value` if given, signals `event` and comes to no device.
    ///
    /// # Errors
    /// The host refuses.
    fn attach(
        &self,
        at: DoorbellAt,
        len: u32,
        value: Option<u64>,
        event: BorrowedFd<'_>,
    ) -> Result<(), EngineError>;
    /// Ends what [`Doorbells::attach`] began with the same arguments.
    ///
    /// # Errors
    /// The host refuses.
    fn detach(
        &self,
        at: DoorbellAt,
        len: u32,
        value: Option<u64>,
        event: BorrowedFd<'_>,
    ) -> Result<(), EngineError>;
}
