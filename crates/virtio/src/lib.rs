//! virtio: the modern PCI transport, split queues, and one module a device (Virtual I/O Device, version 1.3, OASIS).
//!
//! A device is a [`VirtioDevice`]: its features, its configuration space, and what it does with what a driver puts into its
//! [`Queue`]s. [`VirtioPci`] makes a PCI function of it. Everything in guest memory is the driver's to write at any time:
//! it is read once, checked, and then used; a ring that cannot be is told by NEEDS_RESET and left alone until the driver
//! resets the device.
//!
//! # Locks and threads
//! A function is behind one lock, as every device. Its queues and its interrupts have locks of their own, taken after it
//! (function, queue, interrupts), so that threads which do a device's I/O never take the function's. A driver's reset
//! waits for requests in flight without blocking a vCPU: status reads as zero when the last one is done.
#![deny(unsafe_code)]

pub mod blk;
mod buffer;
mod device;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod interrupts;
pub mod net;
mod pci;
mod queue;
pub mod rng;
mod threads;
pub mod vsock;

pub use device::{Feature, Kind, Running, VirtioDevice};
pub use interrupts::Interrupts;
pub use pci::{VirtioPci, VirtioPciV1};
pub use queue::{Chain, Queue, QueueV1, Room};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a thread that panicked left is still a register file or a ring.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod blk_test;
#[cfg(test)]
#[path = "net_test.rs"]
mod net_test;
#[cfg(test)]
#[path = "rng_test.rs"]
mod rng_test;
#[cfg(test)]
#[path = "threads_test.rs"]
mod threads_test;
#[cfg(test)]
#[path = "transport_test.rs"]
mod transport_test;
#[cfg(test)]
#[path = "vsock_test.rs"]
mod vsock_test;
