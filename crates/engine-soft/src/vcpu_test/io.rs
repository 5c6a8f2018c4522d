//! The rest of the machine, as far as the guests need one.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use umbra_engine::{CpuIo, Halt, Kicker, Vcpu};

/// A write to this port ends the run.
pub const EXIT: u16 = 0xf4;

/// Ports that note what is written to them, a PIC with a list of vectors.
#[derive(Default)]
pub struct Io {
    pub writes: Mutex<Vec<(u16, u32, Instant)>>,
    pub ended: Mutex<Vec<u8>>,
    pub pic: Mutex<VecDeque<u8>>,
    pub exit: Mutex<Option<Kicker>>,
}

impl Io {
    /// When `port` was written.
    pub fn times(&self, port: u16) -> Vec<Instant> {
        self.writes.lock().unwrap().iter().filter(|w| w.0 == port).map(|w| w.2).collect()
    }

    /// Runs `vcpu` until it writes to [`EXIT`].
    pub fn run_to_exit(&self, vcpu: &mut dyn Vcpu) {
        *self.exit.lock().unwrap() = Some(vcpu.kicker());
        let halt = vcpu.run(self);
        assert!(matches!(halt, Halt::Stopped), "{halt:?}");
        assert!(!self.times(EXIT).is_empty(), "it was kicked by somebody else");
    }
}

impl CpuIo for Io {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        let value = data.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b));
        self.writes.lock().unwrap().push((port, value, Instant::now()));
        if port == EXIT {
            self.exit.lock().unwrap().iter().for_each(Kicker::kick);
        }
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn external_interrupt(&self) -> Option<u8> {
        self.pic.lock().unwrap().pop_front()
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }
}
