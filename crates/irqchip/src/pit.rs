//! The interval timer in the machine: its ports, its interrupt line, and an alarm for counter 0.

use std::sync::{Arc, Mutex};

use umbra_device::{Alarm, Clock, Device, DeviceError, IrqLine, Timed};
use umbra_state::{Record, Saved};

use crate::pit_chip::{PitChip, ns_of, ticks};
use crate::{BytePorts, PitV1, lock};

/// The counters' and the control word's ports, four of them: [`PitCounters`].
pub const COUNTER_PORTS: u16 = 0x40;
/// The port of counter 2's gate and output: [`PortB`].
pub const PORT_B: u16 = 0x61;

const ID: &str = "pit";

/// The interval timer. Clones are the same one.
#[derive(Clone)]
pub struct Pit(Arc<Mutex<Inner>>);

struct Inner {
    chip: PitChip,
    irq: IrqLine,
    clock: Clock,
    alarm: Alarm,
    /// What the alarm is set to, in ticks.
    alarm_at: Option<u64>,
}

impl Inner {
    /// Brings the chip up to date. The tick that it is.
    fn advance(&mut self) -> u64 {
        let tick = ticks(self.clock.now());
        if self.chip.advance(tick) {
            self.irq.set(false);
            self.irq.set(true);
        }
        tick
    }

    /// After an access or the alarm.
    fn settle(&mut self) {
        let at = self.chip.edge_at();
        if at != self.alarm_at {
            self.alarm_at = at;
            match at {
                Some(tick) => self.alarm.set(ns_of(tick)),
                None => self.alarm.clear(),
            }
        }
    }
}

impl Pit {
    /// A timer on `clock`, with `irq` for counter 0's output.
    pub fn new(irq: IrqLine, clock: Clock, alarm: Alarm) -> Self {
        Self(Arc::new(Mutex::new(Inner { chip: PitChip::new(), irq, clock, alarm, alarm_at: None })))
    }

    /// The ports at [`COUNTER_PORTS`].
    pub fn counters(&self) -> PitCounters {
        PitCounters(self.clone())
    }

    /// The port at [`PORT_B`].
    pub fn port_b(&self) -> PortB {
        PortB(self.clone())
    }
}

/// The ports of the counters and of the control word.
pub struct PitCounters(Pit);

impl BytePorts for PitCounters {
    const COUNT: u16 = 4;

    fn read_byte(&mut self, offset: u16) -> u8 {
        let mut inner = lock(&self.0.0);
        let tick = inner.advance();
        let value = inner.chip.read(offset, tick);
        inner.settle();
        value
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        let mut inner = lock(&self.0.0);
        let tick = inner.advance();
        inner.chip.write(offset, value, tick);
        let high = inner.chip.irq(tick);
        inner.irq.set(high);
        inner.settle();
    }
}

/// Port 0x61: counter 2's gate (bit 0) and output (bit 5), the speaker (bit 1), the refresh toggle (bit 4).
pub struct PortB(Pit);

impl BytePorts for PortB {
    const COUNT: u16 = 1;

    fn read_byte(&mut self, _offset: u16) -> u8 {
        let mut inner = lock(&self.0.0);
        let tick = inner.advance();
        inner.settle();
        inner.chip.read_port_b(tick)
    }

    fn write_byte(&mut self, _offset: u16, value: u8) {
        let mut inner = lock(&self.0.0);
        let tick = inner.advance();
        inner.chip.write_port_b(value, tick);
        inner.settle();
    }
}

impl Timed for Pit {
    fn alarm(&mut self, _now: u64) {
        let mut inner = lock(&self.0);
        inner.alarm_at = None;
        inner.advance();
        inner.settle();
    }
}

impl Device for Pit {
    fn id(&self) -> &str {
        ID
    }

    fn reset(&mut self) {
        let mut inner = lock(&self.0);
        inner.chip = PitChip::new();
        inner.irq.set(false);
        inner.settle();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(lock(&self.0).chip.save().to_record(ID))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = PitV1::from_record(record).map_err(DeviceError::state(ID))?;
        let chip = PitChip::load(&state).map_err(|what| DeviceError::Impossible { id: ID.into(), what })?;
        let mut inner = lock(&self.0);
        inner.chip = chip;
        inner.alarm_at = None;
        inner.settle();
        Ok(())
    }
}
