//! The small devices of a PC's board: serial port, clock and CMOS memory, keyboard controller, ACPI power
//! management, reset register and panic notifier.
//!
//! Each device is a pure model (registers and time in, bytes and levels out) and its wiring (lines, clock, sinks).
//! No device knows its address: the machine places it, and register offsets count from there.
#![forbid(unsafe_code)]

mod acpi_pm;
mod bytes;
mod cmos;
mod i8042;
mod pvpanic;
mod reset_register;
mod serial;

pub use acpi_pm::{AcpiPm, AcpiPmV1, SLP_TYP_S5};
pub use cmos::{Cmos, CmosSpec, CmosV1};
pub use i8042::{I8042, I8042V1};
pub use pvpanic::{PvPanic, PvPanicV1};
pub use reset_register::{ResetRegister, ResetRegisterV1};
pub use serial::{BACKLOG_MAX, Serial, SerialV1};

#[cfg(test)]
mod test_support;

#[cfg(test)]
#[path = "fuzz_test.rs"]
mod fuzz_test;
