//! How a device reaches its driver: MSI-X vectors or the interrupt pin, and the status that both sides write.
//!
//! Authority: section 4.1.4.5 (ISR status), 4.1.5.3 and 4.1.5.4 (used buffer and configuration change notifications), 2.1
//! (device status).

use std::sync::{Arc, Mutex, MutexGuard};

use bitflags::bitflags;
use umbra_pci::{Intx, Msix};

use crate::lock;

/// A vector that is none.
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR status: configuration has changed, or the device needs a reset.
const ISR_CONFIG: u8 = 2;

bitflags! {
    /// Device status (section 2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Status: u8 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        const NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

/// The registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) status: Status,
    pub(crate) isr: u8,
    /// Moves with every change of configuration.
    pub(crate) generation: u8,
    pub(crate) config_vector: u16,
}

impl Registers {
    fn new() -> Self {
        Self { status: Status::empty(), isr: 0, generation: 0, config_vector: NO_VECTOR }
    }
}

struct Shared {
    msix: Msix,
    intx: Intx,
    registers: Mutex<Registers>,
}

/// The way to the driver. Clones are the same one; it may be used from any thread.
#[derive(Clone)]
pub struct Interrupts(Arc<Shared>);

impl Interrupts {
    pub(crate) fn new(msix: Msix, intx: Intx) -> Self {
        Self(Arc::new(Shared { msix, intx, registers: Mutex::new(Registers::new()) }))
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.0.registers)
    }

    pub(crate) fn msix(&self) -> &Msix {
        &self.0.msix
    }

    pub(crate) fn intx(&self) -> &Intx {
        &self.0.intx
    }

    fn signal(&self, registers: &mut Registers, vector: u16, isr: u8) {
        if self.0.msix.is_enabled() {
            self.0.msix.signal(vector);
        } else {
            registers.isr |= isr;
            self.0.intx.set(true);
        }
    }

    /// A queue with this vector has used buffers.
    pub(crate) fn queue(&self, vector: u16) {
        self.signal(&mut self.registers(), vector, ISR_QUEUE);
    }

    /// The device's configuration space has changed: the driver reads it again.
    pub fn config_changed(&self) {
        let mut registers = self.registers();
        registers.generation = registers.generation.wrapping_add(1);
        self.tell_config(&mut registers);
    }

    /// The driver has made a mistake from which only a reset leads back.
    pub(crate) fn needs_reset(&self) {
        let mut registers = self.registers();
        if !registers.status.contains(Status::NEEDS_RESET) {
            registers.status |= Status::NEEDS_RESET;
            self.tell_config(&mut registers);
        }
    }

    fn tell_config(&self, registers: &mut Registers) {
        if registers.status.contains(Status::DRIVER_OK) {
            let vector = registers.config_vector;
            self.signal(registers, vector, ISR_CONFIG);
        }
    }

    /// The driver reads ISR status, which clears it and the pin.
    pub(crate) fn take_isr(&self) -> u8 {
        let mut registers = self.registers();
        self.0.intx.set(false);
        std::mem::take(&mut registers.isr)
    }

    /// As after a reset.
    pub(crate) fn reset(&self) {
        *self.registers() = Registers::new();
        self.0.intx.set(false);
    }
}
