//! The machine's interrupt controllers and interval timer: IOAPIC, PIC, PIT, and the router that joins devices to them.
//!
//! Each chip is two files. The pure model (`*_chip.rs`) knows registers and lines and nothing else; its wiring is a
//! handle whose clones are the same chip: it implements [`Device`](umbra_device::Device) and the register access
//! traits, takes interrupt lines, and sends what the chip decides.
//!
//! # Locks
//! A chip is behind a lock of its own, inside its handle. The order is: device, router, chip, engine. A chip holds its lock
//! while it sends a message or tells of a change, so that two changes arrive in the order in which they happened;
//! what it calls ([`MsiSink`](umbra_device::MsiSink), [`RouteSink`], [`IntrSink`]) must not call back, and an engine must not
//! call a chip while it holds a lock that they take.
#![forbid(unsafe_code)]

mod ioapic;
mod ioapic_chip;
mod pic;
mod pic_chip;
mod pit;
mod pit_chip;
mod pit_counter;
mod router;
mod state;

pub use ioapic::{IOAPIC_BASE, IOAPIC_SIZE, Ioapic, RouteSink};
pub use ioapic_chip::PIN_COUNT;
pub use pic::{ELCR_PORTS, IntrSink, MASTER_PORTS, Pic, PicPorts, PicRange, SLAVE_PORTS};
pub use pit::{COUNTER_PORTS, PORT_B, Pit, PitCounters, PortB};
pub use pit_chip::PIT_HZ;
pub use router::{IrqRouter, RouterError};
pub use state::{IoapicV1, PicV1, PitV1, RouterV1};

use std::sync::{Mutex, MutexGuard, PoisonError};

use umbra_device::{DeviceError, PortIo};

/// Locks; a panic elsewhere does not take the interrupt controllers with it.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `Ok` if `possible`.
fn check(id: &str, possible: bool, what: &'static str) -> Result<(), DeviceError> {
    if possible { Ok(()) } else { Err(DeviceError::Impossible { id: id.into(), what }) }
}

/// A run of byte-wide ports. A wider access is split into bytes, as the bus does it; what lies behind the last port reads
/// all ones.
trait BytePorts: Send {
    const COUNT: u16;
    fn read_byte(&mut self, offset: u16) -> u8;
    fn write_byte(&mut self, offset: u16, value: u8);
}

/// Implements [`PortIo`] for a [`BytePorts`].
macro_rules! byte_ports {
    ($($t:ty),*) => {$(
        impl PortIo for $t {
            fn port_read(&mut self, offset: u16, data: &mut [u8]) {
                for (port, byte) in (offset..=u16::MAX).zip(data) {
                    *byte = if port < <Self as BytePorts>::COUNT { self.read_byte(port) } else { 0xff };
                }
            }
            fn port_write(&mut self, offset: u16, data: &[u8]) {
                for (port, byte) in (offset..<Self as BytePorts>::COUNT).zip(data) {
                    self.write_byte(port, *byte);
                }
            }
        }
    )*};
}
byte_ports!(PicPorts, PitCounters, PortB);

#[cfg(test)]
mod ioapic_test;
#[cfg(test)]
mod pic_test;
#[cfg(test)]
mod pit_test;
#[cfg(test)]
mod random_test;
#[cfg(test)]
mod router_test;
#[cfg(test)]
mod test_kit;
