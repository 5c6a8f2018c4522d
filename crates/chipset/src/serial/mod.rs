//! A serial port: a 16550A at eight ports, with an interrupt line and a console at the far end.
//!
//! Input that the guest does not take is bounded by [`BACKLOG_MAX`]; whoever feeds it asks [`Serial::free_space`]
//! and stops reading its source. Output goes to the console as it is written, a byte at a time.

mod state;
mod uart;

pub use state::SerialV1;
pub use uart::BACKLOG_MAX;

use umbra_device::{Device, DeviceError, IrqLine, PortIo};
use umbra_state::{Record, Saved};

use crate::bytes::{read_each, write_each};
use uart::Uart;

/// Takes what the guest transmits. It is called with the device locked and must not block without bound.
type Output = Box<dyn FnMut(&[u8]) + Send>;

/// A serial port.
pub struct Serial {
    id: String,
    uart: Uart,
    line: IrqLine,
    /// What the line was driven to last.
    level: bool,
    output: Output,
}

impl Serial {
    /// How many ports it occupies.
    pub const PORTS: u16 = 8;

    /// A serial port that interrupts through `line` and sends to `output`, which is called with the device locked and
    /// must not block without bound.
    pub fn new(id: impl Into<String>, line: IrqLine, output: impl FnMut(&[u8]) + Send + 'static) -> Self {
        Self { id: id.into(), uart: Uart::new(), line, level: false, output: Box::new(output) }
    }

    /// The console sends `bytes` to the guest. Returns how many were taken; the rest does not fit now.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = self.uart.receive(bytes);
        self.drive();
        count
    }

    /// How many bytes [`Serial::receive`] would take.
    pub fn free_space(&self) -> usize {
        self.uart.free_space()
    }

    fn drive(&mut self) {
        let level = self.uart.interrupt();
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }
}

impl PortIo for Serial {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        read_each(offset, data, |register| {
            u8::try_from(register).map_or(crate::bytes::FLOATING, |r| self.uart.read(r))
        });
        self.drive();
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        write_each(offset, data, |register, value| {
            let Ok(register) = u8::try_from(register) else { return };
            if let Some(byte) = self.uart.write(register, value) {
                (self.output)(&[byte]);
            }
        });
        self.drive();
    }
}

impl Device for Serial {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.uart.reset();
        self.level = false;
        self.line.set(false);
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(self.uart.save().to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = SerialV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.uart =
            Uart::load(state).map_err(|what| DeviceError::Impossible { id: self.id.clone(), what })?;
        self.level = self.uart.interrupt();
        Ok(())
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod serial_test;
