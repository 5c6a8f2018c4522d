//! What the devices' tests share: lines, alarms and events that remember, a clock set by hand, random numbers.

use std::sync::{Arc, Mutex};

use umbra_device::{Alarm, AlarmSink, Clock, Device, EventSink, IrqLine, IrqSink, MachineEvent, PortIo};

/// The machine around a device under test.
#[derive(Default, Clone)]
pub(crate) struct Board {
    pub(crate) clock: Clock,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    levels: Mutex<[bool; 16]>,
    edges: Mutex<[usize; 16]>,
    alarm: Mutex<Option<u64>>,
    events: Mutex<Vec<MachineEvent>>,
}

impl IrqSink for Log {
    fn set_level(&self, pin: u32, high: bool) {
        let was = std::mem::replace(&mut self.levels.lock().unwrap()[pin as usize], high);
        if high && !was {
            self.edges.lock().unwrap()[pin as usize] += 1;
        }
    }
}

impl AlarmSink for Log {
    fn set_alarm(&self, _id: usize, at: Option<u64>) {
        *self.alarm.lock().unwrap() = at;
    }
}

impl Board {
    pub(crate) fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.log.clone(), pin)
    }

    pub(crate) fn level(&self, pin: usize) -> bool {
        self.log.levels.lock().unwrap()[pin]
    }

    /// How often the line has risen.
    pub(crate) fn edges(&self, pin: usize) -> usize {
        self.log.edges.lock().unwrap()[pin]
    }

    pub(crate) fn alarm(&self) -> Alarm {
        Alarm::new(self.log.clone(), 0)
    }

    pub(crate) fn alarm_at(&self) -> Option<u64> {
        *self.log.alarm.lock().unwrap()
    }

    pub(crate) fn sink(&self) -> EventSink {
        let log = self.log.clone();
        Arc::new(move |event| log.events.lock().unwrap().push(event))
    }

    /// The events since the last call.
    pub(crate) fn events(&self) -> Vec<MachineEvent> {
        std::mem::take(&mut self.log.events.lock().unwrap())
    }

    /// Lets machine time run to `to` in one step for every alarm that goes off on the way. Returns how many did.
    pub(crate) fn run_to(&self, device: &mut impl umbra_device::Timed, to: u64) -> usize {
        let mut count = 0;
        while let Some(at) = self.alarm_at().filter(|&at| at <= to) {
            *self.log.alarm.lock().unwrap() = None;
            self.clock.set(at.max(self.clock.now()));
            device.alarm(self.clock.now());
            count += 1;
        }
        self.clock.set(to);
        count
    }
}

pub(crate) fn inb(device: &mut dyn PortIo, offset: u16) -> u8 {
    let mut data = [0xa5];
    device.port_read(offset, &mut data);
    data[0]
}

pub(crate) fn inw(device: &mut dyn PortIo, offset: u16) -> u16 {
    let mut data = [0xa5; 2];
    device.port_read(offset, &mut data);
    u16::from_le_bytes(data)
}

pub(crate) fn inl(device: &mut dyn PortIo, offset: u16) -> u32 {
    let mut data = [0xa5; 4];
    device.port_read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn outb(device: &mut dyn PortIo, offset: u16, value: u8) {
    device.port_write(offset, &[value]);
}

pub(crate) fn outw(device: &mut dyn PortIo, offset: u16, value: u16) {
    device.port_write(offset, &value.to_le_bytes());
}

/// Saves `from`, loads it into `to`, and checks that what `to` saves then is the same.
pub(crate) fn move_state(from: &impl Device, to: &mut impl Device) {
    let record = from.save().unwrap();
    to.load(&record).unwrap();
    assert!(to.save().unwrap() == record, "what was loaded is not what is saved");
}

/// Loads `from`'s state into `to` with each of its first bytes altered: it is taken or refused, without a panic, and a
/// refusal changes nothing.
pub(crate) fn load_altered(from: &impl Device, to: &mut impl Device) {
    let good = from.save().unwrap();
    for i in 0..good.bytes.len().min(400) {
        for flip in [0x01, 0x80, 0xff] {
            let before = to.save().unwrap();
            let mut bad = good.clone();
            bad.bytes[i] ^= flip;
            match to.load(&bad) {
                Ok(()) => to.load(&to.save().unwrap()).unwrap(),
                Err(_) => assert!(to.save().unwrap() == before, "a refusal at byte {i} changed something"),
            }
        }
    }
}

/// A xorshift generator.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
