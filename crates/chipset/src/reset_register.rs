//! The reset control register, port 0xCF9 on a PC (Intel ICH data sheets, "Reset Control Register").
//!
//! It lies inside PCI's configuration ports; the machine gives it its one byte, and wider accesses at 0xCF8 go to PCI.

use umbra_device::{Device, DeviceError, EventSink, MachineEvent, PortIo};
use umbra_state::{Record, Saved};

use crate::bytes::FLOATING;

/// Bit 2: reset the processors. The reset happens when it is written.
const RST_CPU: u8 = 1 << 2;
/// Bits that hold what was written: 1, a hard reset is asked for; 3, with a power cycle. Both are one reset here.
const HELD: u8 = 1 << 1 | 1 << 3;

umbra_state::saved! {
    /// The reset register.
    pub struct ResetRegisterV1: "reset-register", 1 {
        /// The bits that hold what was written.
        1 held: u8,
    }
}

/// The reset control register.
pub struct ResetRegister {
    id: String,
    held: u8,
    events: EventSink,
}

impl ResetRegister {
    /// How many ports it occupies.
    pub const PORTS: u16 = 1;

    /// A register that reports resets to `events`.
    pub fn new(id: impl Into<String>, events: EventSink) -> Self {
        Self { id: id.into(), held: 0, events }
    }
}

impl PortIo for ResetRegister {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(FLOATING);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = self.held;
        }
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        let (0, Some(&value)) = (offset, data.first()) else { return };
        self.held = value & HELD;
        if value & RST_CPU != 0 {
            (self.events)(MachineEvent::Reset);
        }
    }
}

impl Device for ResetRegister {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.held = 0;
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(ResetRegisterV1 { held: self.held }.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let ResetRegisterV1 { held } =
            ResetRegisterV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        if held & !HELD != 0 {
            return Err(DeviceError::Impossible { id: self.id.clone(), what: "reset register" });
        }
        self.held = held;
        Ok(())
    }
}

#[cfg(test)]
#[path = "reset_register_test.rs"]
mod reset_register_test;
