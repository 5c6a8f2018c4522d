//! What the tests put around a chip: a clock by hand, and recorders at its outputs.

use std::sync::{Arc, Mutex};

use umbra_device::{Alarm, AlarmSink, Clock, IrqSink, Msi, MsiSink, PortIo};

use crate::{Ioapic, Pic, PicPorts, PicRange, lock};

/// Records everything that a chip sends.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) messages: Mutex<Vec<Msi>>,
    pub(crate) lines: Mutex<Vec<(u32, bool)>>,
    pub(crate) alarm: Mutex<Option<u64>>,
    pub(crate) alarms_set: Mutex<usize>,
    pub(crate) routes: Mutex<Vec<[Option<Msi>; 24]>>,
}

impl MsiSink for Log {
    fn send(&self, msi: Msi) {
        lock(&self.messages).push(msi);
    }
}

impl IrqSink for Log {
    fn set_level(&self, pin: u32, high: bool) {
        lock(&self.lines).push((pin, high));
    }
}

impl AlarmSink for Log {
    fn set_alarm(&self, _id: usize, at: Option<u64>) {
        *lock(&self.alarm) = at;
        *lock(&self.alarms_set) += 1;
    }
}

impl Log {
    /// The vectors of the messages sent since the last call.
    pub(crate) fn vectors(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.messages)).iter().map(|msi| msi.data as u8).collect()
    }

    /// What was driven since the last call.
    pub(crate) fn driven(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut *lock(&self.lines))
    }
}

pub(crate) fn ioapic() -> (Ioapic, Arc<Log>, Clock) {
    let (log, clock) = (Arc::new(Log::default()), Clock::new());
    let routes = log.clone();
    let alarm = Alarm::new(log.clone(), 0);
    let ioapic =
        Ioapic::new(log.clone(), clock.clone(), alarm, Arc::new(move |r| lock(&routes.routes).push(*r)));
    (ioapic, log, clock)
}

/// A PIC by its ports.
pub(crate) struct PicBoard {
    pub(crate) pic: Pic,
    pub(crate) output: Arc<Mutex<Vec<bool>>>,
    master: PicPorts,
    slave: PicPorts,
    elcr: PicPorts,
}

impl PicBoard {
    pub(crate) fn new() -> Self {
        let output = Arc::new(Mutex::new(Vec::new()));
        let log = output.clone();
        let pic = Pic::new(Arc::new(move |high| lock(&log).push(high)));
        let [master, slave, elcr] = [PicRange::Master, PicRange::Slave, PicRange::Elcr].map(|r| pic.ports(r));
        Self { pic, output, master, slave, elcr }
    }

    fn range(&mut self, port: u16) -> (&mut PicPorts, u16) {
        match port {
            0x20..0x22 => (&mut self.master, port - 0x20),
            0xa0..0xa2 => (&mut self.slave, port - 0xa0),
            _ => (&mut self.elcr, port - 0x4d0),
        }
    }

    pub(crate) fn outb(&mut self, port: u16, value: u8) {
        let (ports, offset) = self.range(port);
        ports.port_write(offset, &[value]);
    }

    pub(crate) fn inb(&mut self, port: u16) -> u8 {
        let (ports, offset) = self.range(port);
        let mut byte = [0];
        ports.port_read(offset, &mut byte);
        byte[0]
    }
}

/// A small generator (xorshift64*), so that a failure can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
