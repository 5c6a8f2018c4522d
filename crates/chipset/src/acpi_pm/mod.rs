//! ACPI power management: the fixed hardware's twelve ports, the system control interrupt, the power button.
//!
//! ```text
//! offset 0  PM1a_STS   2 bytes, write 1 to clear
//!        2  PM1a_EN    2 bytes
//!        4  PM1a_CNT   2 bytes
//!        8  PM_TMR     4 bytes, read only, all 32 bits (the FADT sets TMR_VAL_EXT)
//! ```

mod pm1;

use umbra_device::{Alarm, Clock, Device, DeviceError, EventSink, IrqLine, MachineEvent, PortIo, Timed};
use umbra_state::{Record, Saved};

use crate::bytes::{FLOATING, write_each};
use pm1::{BLOCK_LEN, Pm1};

/// The value of SLP_TYP that switches the power off; the DSDT's `_S5` package must say the same.
pub const SLP_TYP_S5: u8 = 5;

umbra_state::saved! {
    /// ACPI's fixed hardware.
    pub struct AcpiPmV1: "acpi-pm", 1 {
        /// PM1 status register.
        1 status: u16,
        /// PM1 enable register.
        2 enable: u16,
        /// SLP_TYP of the PM1 control register.
        3 sleep_type: u8,
        /// Machine time in nanoseconds up to which the timer's changes are in `status`.
        4 seen: u64,
    }
}

/// ACPI power management.
pub struct AcpiPm {
    id: String,
    pm1: Pm1,
    clock: Clock,
    /// For the timer's interrupt.
    alarm: Alarm,
    sci: IrqLine,
    /// What the line was driven to last.
    level: bool,
    events: EventSink,
}

impl AcpiPm {
    /// How many ports it occupies.
    pub const PORTS: u16 = BLOCK_LEN as u16;

    /// The fixed hardware with its level-triggered, active-high `sci` line. Powering off is reported to `events`.
    pub fn new(id: impl Into<String>, clock: Clock, alarm: Alarm, sci: IrqLine, events: EventSink) -> Self {
        let pm1 = Pm1::new(clock.now());
        Self { id: id.into(), pm1, clock, alarm, sci, level: false, events }
    }

    /// Somebody presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.pm1.press_power_button();
        self.drive();
    }

    fn drive(&mut self) {
        let level = self.pm1.sci();
        if level != self.level {
            self.level = level;
            self.sci.set(level);
        }
    }

    fn set_alarm(&self) {
        match self.pm1.next_event() {
            Some(at) => self.alarm.set(at),
            None => self.alarm.clear(),
        }
    }
}

impl PortIo for AcpiPm {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        let registers = self.pm1.registers(self.clock.now());
        data.fill(FLOATING);
        let from = registers.get(usize::from(offset)..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
        self.drive();
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        let (now, before) = (self.clock.now(), self.pm1.next_event());
        let mut sleep = None;
        write_each(offset, data, |register, value| {
            sleep = self.pm1.write(register, value, now).or(sleep);
        });
        self.drive();
        if self.pm1.next_event() != before {
            self.set_alarm();
        }
        if sleep == Some(SLP_TYP_S5) {
            (self.events)(MachineEvent::PowerOff);
        }
    }
}

impl Timed for AcpiPm {
    fn alarm(&mut self, now: u64) {
        self.pm1.advance(now);
        self.drive();
        self.set_alarm();
    }
}

impl Device for AcpiPm {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.pm1 = Pm1::new(self.clock.now());
        self.level = false;
        self.sci.set(false);
        self.alarm.clear();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(self.pm1.save().to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = AcpiPmV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.pm1 = Pm1::load(state).map_err(|what| DeviceError::Impossible { id: self.id.clone(), what })?;
        self.level = self.pm1.sci();
        self.set_alarm();
        Ok(())
    }
}

#[cfg(test)]
#[path = "acpi_pm_test.rs"]
mod acpi_pm_test;
