//! Where the devices' interrupt lines end: global system interrupts (GSIs), each joined to its inputs of PIC and IOAPIC.
//!
//! GSI 0 to 15 are the ISA interrupts, at the PIC's input and the IOAPIC's pin of their number, but for the timer:
//! GSI 0 is input 0 of the PIC and pin 2 of the IOAPIC (in ACPI an interrupt source override; 2 is the PIC's cascade
//! and therefore free). GSI 16 to 23 are at the IOAPIC only. Several devices may be on one GSI: it is high while any drives it high.

use std::sync::{Arc, Mutex};

use thiserror::Error;
use umbra_device::{Device, DeviceError, IrqLine, IrqSink};
use umbra_state::{Record, Saved};

use crate::ioapic_chip::PIN_COUNT;
use crate::{RouterV1, check, lock};

/// Devices on one GSI.
const SOURCES_MAX: u32 = 32;
/// The ISA timer's GSI, and its pin of the IOAPIC.
const TIMER: (u32, u32) = (0, 2);

const ID: &str = "irq-router";

/// Why there is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RouterError {
    /// The GSI does not exist, or is the pin that the timer uses.
    #[error("there is no interrupt line {0} for a device; 0, 1 and 3 to 23 exist")]
    NoSuchGsi(u32),
    /// Too many devices share the GSI.
    #[error("more than 32 devices share interrupt line {0}; put some on others")]
    Full(u32),
}

/// The router. Clones are the same one.
#[derive(Clone)]
pub struct IrqRouter(Arc<Shared>);

struct Shared {
    gsis: Mutex<[Gsi; PIN_COUNT]>,
    pic: Arc<dyn IrqSink>,
    ioapic: Arc<dyn IrqSink>,
}

#[derive(Clone, Copy, Default)]
struct Gsi {
    /// How many sources there are.
    count: u32,
    /// Which are high.
    high: u32,
}

impl Shared {
    fn drive(&self, gsi: u32, high: bool) {
        if gsi < 16 {
            self.pic.set_level(gsi, high);
        }
        self.ioapic.set_level(if gsi == TIMER.0 { TIMER.1 } else { gsi }, high);
    }
}

impl IrqSink for Shared {
    /// `pin` is the GSI in bits 0 to 7 and the source in those above. The lock is held while the chips are driven, so that
    /// the last level they see is the right one.
    fn set_level(&self, pin: u32, high: bool) {
        let (gsi, source) = (pin & 0xff, pin >> 8);
        let mut gsis = lock(&self.gsis);
        let Some(Gsi { high: sources, .. }) = gsis.get_mut(gsi as usize) else { return };
        let Some(bit) = 1u32.checked_shl(source) else { return };
        let before = *sources != 0;
        *sources = if high { *sources | bit } else { *sources & !bit };
        if before != (*sources != 0) {
            self.drive(gsi, high);
        }
    }
}

impl IrqRouter {
    /// A router to the inputs of `pic` and `ioapic`.
    pub fn new(pic: Arc<dyn IrqSink>, ioapic: Arc<dyn IrqSink>) -> Self {
        Self(Arc::new(Shared { gsis: Default::default(), pic, ioapic }))
    }

    /// A new line to `gsi`, for one device. Lines are told apart by the order in which they were made, so a restored machine
    /// must make the same ones in the same order.
    ///
    /// # Errors
    /// No such GSI, or too many lines to it.
    pub fn line(&self, gsi: u32) -> Result<IrqLine, RouterError> {
        let mut gsis = lock(&self.0.gsis);
        let entry =
            gsis.get_mut(gsi as usize).filter(|_| gsi != TIMER.1).ok_or(RouterError::NoSuchGsi(gsi))?;
        if entry.count == SOURCES_MAX {
            return Err(RouterError::Full(gsi));
        }
        let source = entry.count;
        entry.count += 1;
        Ok(IrqLine::new(self.0.clone(), gsi | source << 8))
    }
}

impl Device for IrqRouter {
    fn id(&self) -> &str {
        ID
    }

    fn reset(&mut self) {
        let mut gsis = lock(&self.0.gsis);
        for (number, gsi) in (0..).zip(gsis.iter_mut()) {
            if std::mem::take(&mut gsi.high) != 0 {
                self.0.drive(number, false);
            }
        }
    }

    fn save(&self) -> Result<Record, DeviceError> {
        let gsis = lock(&self.0.gsis);
        Ok(RouterV1 { levels: gsis.map(|gsi| gsi.high) }.to_record(ID))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let RouterV1 { levels } = RouterV1::from_record(record).map_err(DeviceError::state(ID))?;
        let mut gsis = lock(&self.0.gsis);
        for (gsi, high) in gsis.iter().zip(levels) {
            check(ID, u64::from(high) >> gsi.count == 0, "interrupt source")?;
        }
        gsis.iter_mut().zip(levels).for_each(|(gsi, high)| gsi.high = high);
        Ok(())
    }
}
