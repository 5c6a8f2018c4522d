//! The keyboard controller (Intel 8042) with its two interrupt lines, and the machine's oldest way to reset itself.
//!
//! Offset 0 is the data port, offset 4 the status and command port, as at 0x60 and 0x64 on a PC. The ports between
//! them belong to others, which the machine lays over it; the device itself leaves them floating.

mod controller;

use umbra_device::{Device, DeviceError, EventSink, IrqLine, MachineEvent, PortIo};
use umbra_state::{Record, Saved};

use crate::bytes::{FLOATING, read_each, write_each};
use controller::Controller;

/// Offset of the data port.
const DATA: u16 = 0;
/// Offset of the status (read) and command (write) port.
const COMMAND: u16 = 4;

umbra_state::saved! {
    /// A keyboard controller.
    pub struct I8042V1: "i8042", 1 {
        /// Status register.
        1 status: u8,
        /// The command byte.
        2 command_byte: u8,
        /// The output port's latch.
        3 output_port: u8,
        /// The command that waits for its data byte.
        4 awaiting: Option<u8>,
        /// The output buffer.
        5 output: u8,
    }
}

/// The keyboard controller.
pub struct I8042 {
    id: String,
    controller: Controller,
    keyboard: IrqLine,
    aux: IrqLine,
    /// What the two lines were driven to last.
    levels: (bool, bool),
    events: EventSink,
}

impl I8042 {
    /// From its first port to its last, those between included.
    pub const PORTS: u16 = 5;

    /// A controller that interrupts through `keyboard` and `aux` (IRQ 1 and 12 on a PC) and reports resets to `events`.
    pub fn new(id: impl Into<String>, keyboard: IrqLine, aux: IrqLine, events: EventSink) -> Self {
        Self { id: id.into(), controller: Controller::new(), keyboard, aux, levels: (false, false), events }
    }

    fn drive(&mut self) {
        let levels = self.controller.interrupts();
        if levels.0 != self.levels.0 {
            self.keyboard.set(levels.0);
        }
        if levels.1 != self.levels.1 {
            self.aux.set(levels.1);
        }
        self.levels = levels;
    }
}

impl PortIo for I8042 {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        read_each(offset, data, |register| match register {
            DATA => self.controller.read_data(),
            COMMAND => self.controller.status(),
            _ => FLOATING,
        });
        self.drive();
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        let mut reset = false;
        write_each(offset, data, |register, value| {
            reset |= match register {
                DATA => self.controller.write_data(value),
                COMMAND => self.controller.command(value),
                _ => false,
            }
        });
        self.drive();
        if reset {
            (self.events)(MachineEvent::Reset);
        }
    }
}

impl Device for I8042 {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.controller = Controller::new();
        self.levels = (false, false);
        self.keyboard.set(false);
        self.aux.set(false);
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(self.controller.save().to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = I8042V1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.controller =
            Controller::load(state).map_err(|what| DeviceError::Impossible { id: self.id.clone(), what })?;
        self.levels = self.controller.interrupts();
        Ok(())
    }
}

#[cfg(test)]
#[path = "i8042_test.rs"]
mod i8042_test;
