//! A PC's CMOS: real-time clock and 128 bytes of battery-backed memory, behind an index port and a data port.
//!
//! The clock shows the time that it was made with, plus machine time: it stands while the machine is paused. Memory
//! holds the sizes of guest memory where firmware looks for them.

mod calendar;
mod rtc;

use umbra_device::{Alarm, Clock, Device, DeviceError, IrqLine, PortIo, Timed};
use umbra_state::{Record, Saved};

use crate::bytes::{FLOATING, read_each, write_each};
use rtc::Rtc;

/// Offset of the index port. Its top bit masks NMIs on a PC, and nothing here.
const INDEX: u16 = 0;
/// Offset of the data port.
const DATA: u16 = 1;

umbra_state::saved! {
    /// Real-time clock and CMOS memory.
    pub struct CmosV1: "cmos", 1 {
        /// The selected register.
        1 index: u8,
        /// Memory, with time and alarm registers as they were shown last.
        2 ram: [u8; 128],
        /// Register A without the update-in-progress bit.
        3 register_a: u8,
        /// Register B.
        4 register_b: u8,
        /// Register C without the request bit.
        5 register_c: u8,
        /// The divider chain's position at machine time zero in nanoseconds, modulo 2^64.
        6 chain_base: u64,
        /// Seconds since 1970 at the chain's position zero.
        7 epoch: i64,
        /// The chain's position up to which flags have been raised.
        8 seen: u64,
    }
}

/// What a CMOS starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmosSpec {
    /// The time of day when the machine is made: nanoseconds since 1970, UTC.
    pub unix_ns: u64,
    /// Guest memory below 4 GiB, in bytes.
    pub ram_below_4g: u64,
    /// Guest memory above 4 GiB, in bytes.
    pub ram_above_4g: u64,
}

/// Real-time clock and CMOS memory.
pub struct Cmos {
    id: String,
    index: u8,
    rtc: Rtc,
    clock: Clock,
    alarm: Alarm,
    /// What the alarm is set to, so that it is not set again for nothing.
    alarm_at: Option<u64>,
    line: IrqLine,
    /// What the line was driven to last.
    level: bool,
}

impl Cmos {
    /// How many ports it occupies.
    pub const PORTS: u16 = 2;
    /// The memory index of the century, for the FADT.
    pub const CENTURY: u8 = rtc::CENTURY;

    /// A CMOS that interrupts through `line` (IRQ 8 on a PC).
    pub fn new(id: impl Into<String>, spec: CmosSpec, clock: Clock, alarm: Alarm, line: IrqLine) -> Self {
        let mut rtc = Rtc::new(spec.unix_ns, clock.now());
        for (index, value) in memory_sizes(spec) {
            rtc.set_memory(index, value);
        }
        Self { id: id.into(), index: 0, rtc, clock, alarm, alarm_at: None, line, level: false }
    }

    /// Drives the line, and sets the alarm for the next interrupt.
    fn update(&mut self, now: u64) {
        let level = self.rtc.interrupt();
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
        let at = self.rtc.next_event(now);
        if at != self.alarm_at {
            self.set_alarm(at);
        }
    }

    fn set_alarm(&mut self, at: Option<u64>) {
        self.alarm_at = at;
        match at {
            Some(at) => self.alarm.set(at),
            None => self.alarm.clear(),
        }
    }
}

/// Memory sizes as firmware and boot loaders look them up.
fn memory_sizes(spec: CmosSpec) -> impl Iterator<Item = (u8, u8)> {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let base_kib = (spec.ram_below_4g / KIB).min(640);
    let extended_kib = (spec.ram_below_4g.saturating_sub(MIB) / KIB).min(0xffff);
    let above_16m = (spec.ram_below_4g.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff);
    let above_4g = (spec.ram_above_4g / (64 * KIB)).min(0xff_ffff);
    [
        (0x15, base_kib, 2),
        (0x17, extended_kib, 2),
        (0x30, extended_kib, 2),
        (0x34, above_16m, 2),
        (0x5b, above_4g, 3),
    ]
    .into_iter()
    .flat_map(|(index, size, len)| (index..).zip(size.to_le_bytes()).take(len))
}

impl PortIo for Cmos {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        let now = self.clock.now();
        read_each(offset, data, |port| if port == DATA { self.rtc.read(self.index, now) } else { FLOATING });
        self.update(now);
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        let now = self.clock.now();
        write_each(offset, data, |port, value| match port {
            INDEX => self.index = value & 0x7f,
            DATA => self.rtc.write(self.index, value, now),
            _ => {}
        });
        self.update(now);
    }
}

impl Timed for Cmos {
    fn alarm(&mut self, now: u64) {
        self.alarm_at = None;
        self.rtc.advance(now);
        self.update(now);
    }
}

impl Device for Cmos {
    fn id(&self) -> &str {
        &self.id
    }

    /// Interrupts are off afterwards; time and memory are battery-backed and stay, as on a PC.
    fn reset(&mut self) {
        self.rtc.reset();
        self.index = 0;
        self.level = false;
        self.line.set(false);
        self.set_alarm(None);
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(self.rtc.save(self.index).to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let state = CmosV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        (self.rtc, self.index) =
            Rtc::load(state).map_err(|what| DeviceError::Impossible { id: self.id.clone(), what })?;
        self.level = self.rtc.interrupt();
        let at = self.rtc.next_event(self.clock.now());
        self.set_alarm(at);
        Ok(())
    }
}

#[cfg(test)]
#[path = "calendar_test.rs"]
mod calendar_test;
#[cfg(test)]
#[path = "cmos_test.rs"]
mod cmos_test;
