//! The I/O APIC in the machine: its register page, its input lines, and the messages it sends.

use std::sync::{Arc, Mutex};

use umbra_device::{Alarm, Clock, Device, DeviceError, IrqSink, Mmio, Msi, MsiLine, Timed};
use umbra_state::{Record, Saved};

use crate::ioapic_chip::{IoapicChip, PIN_COUNT, Pins};
use crate::{IoapicV1, lock};

/// Where the register page is in guest physical memory.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// The size of the register page.
pub const IOAPIC_SIZE: u64 = 0x1000;

/// How long a pin is held back in an interrupt storm.
const STORM_PAUSE_NS: u64 = 10_000_000;

const ID: &str = "ioapic";

/// What hears of changed [`Ioapic::routes`], before any message is sent along them. It must not call the IOAPIC.
pub type RouteSink = Arc<dyn Fn(&[Option<Msi>; PIN_COUNT]) + Send + Sync>;

/// The I/O APIC. Clones are the same chip.
#[derive(Clone)]
pub struct Ioapic(Arc<Mutex<Inner>>);

struct Inner {
    chip: IoapicChip,
    routes: [Option<Msi>; PIN_COUNT],
    msi: MsiLine,
    clock: Clock,
    alarm: Alarm,
    on_routes: RouteSink,
}

impl Inner {
    /// After any change of the chip: tells of changed routes, then sends.
    fn settle(&mut self, send: Pins) {
        let routes = self.chip.routes();
        if routes != self.routes {
            self.routes = routes;
            (self.on_routes)(&routes);
        }
        for pin in (0..PIN_COUNT).filter(|pin| send >> pin & 1 != 0) {
            self.msi.send(self.chip.message(pin));
        }
    }

    fn end(&mut self, vector: u8) {
        let held = self.chip.held();
        let send = self.chip.end(vector);
        self.settle(send);
        self.pause(held);
    }

    /// Sets the alarm if there are pins held that were not before.
    fn pause(&self, held_before: Pins) {
        if self.chip.held() & !held_before != 0 {
            self.alarm.set(self.clock.now().saturating_add(STORM_PAUSE_NS));
        }
    }
}

impl Ioapic {
    /// An IOAPIC that sends through `msi`, with an alarm on `clock`.
    pub fn new(msi: MsiLine, clock: Clock, alarm: Alarm, on_routes: RouteSink) -> Self {
        let routes = [None; PIN_COUNT];
        Self(Arc::new(Mutex::new(Inner { chip: IoapicChip::new(), routes, msi, clock, alarm, on_routes })))
    }

    /// A local APIC has ended a level-triggered interrupt with `vector`.
    pub fn eoi(&self, vector: u8) {
        lock(&self.0).end(vector);
    }

    /// What each pin sends; `None` for those that send nothing.
    pub fn routes(&self) -> [Option<Msi>; PIN_COUNT] {
        lock(&self.0).routes
    }
}

impl IrqSink for Ioapic {
    fn set_level(&self, pin: u32, high: bool) {
        let mut inner = lock(&self.0);
        if inner.chip.set_line(pin as usize, high) {
            inner.settle(1 << pin);
        }
    }
}

impl Mmio for Ioapic {
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = lock(&self.0).chip.read(offset).to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    /// A register takes 32 bits; narrower writes are filled up with zeros, of wider ones the low 32 bits count.
    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let mut inner = lock(&self.0);
        let held = inner.chip.held();
        let send = inner.chip.write(offset, u32::from_le_bytes(bytes));
        inner.settle(send);
        inner.pause(held);
    }
}

impl Timed for Ioapic {
    fn alarm(&mut self, _now: u64) {
        let mut inner = lock(&self.0);
        let send = inner.chip.release();
        inner.settle(send);
    }
}

impl Device for Ioapic {
    fn id(&self) -> &str {
        ID
    }

    fn reset(&mut self) {
        let mut inner = lock(&self.0);
        inner.chip = IoapicChip::new();
        inner.alarm.clear();
        inner.settle(0);
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(lock(&self.0).chip.save().to_record(ID))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = IoapicV1::from_record(record).map_err(DeviceError::state(ID))?;
        let chip = IoapicChip::load(state).map_err(|what| DeviceError::Impossible { id: ID.into(), what })?;
        let mut inner = lock(&self.0);
        inner.chip = chip;
        inner.settle(0);
        inner.pause(0);
        Ok(())
    }
}
