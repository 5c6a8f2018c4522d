//! Entropy device (section 5.4): the host's randomness for the guest.

use umbra_device::DeviceError;
use umbra_state::{Record, Saved};

use crate::threads::Threads;
use crate::{Chain, Kind, Running, VirtioDevice};

/// Bytes that one request gets: drivers ask for some tens, and may be given less than they ask for.
const BYTES_MAX: u64 = 4096;
/// One request is under way at a time, and drivers ask for no more.
const QUEUE_SIZE: u16 = 8;

umbra_state::saved! {
    /// It keeps nothing.
    pub struct RngV1: "virtio-rng", 1 {}
}

/// The device.
pub struct Rng {
    threads: Threads,
}

/// Fills what the driver gave.
fn fill(chain: Chain) {
    let mut bytes = [0; BYTES_MAX as usize];
    let wanted = chain.writable_len().min(BYTES_MAX) as usize;
    let (part, _) = bytes.split_at_mut(wanted);
    // A host whose generator is not seeded yet gives nothing; the driver asks again.
    let got = rustix::rand::getrandom(&mut *part, rustix::rand::GetRandomFlags::NONBLOCK).unwrap_or(0);
    let written = chain.write(0, part.get(..got).unwrap_or_default());
    chain.complete(written as u32);
}

impl Rng {
    /// One with its thread, `io-rng`.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { threads: Threads::new("io-rng", 1, Box::new(fill))? })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind { device_type: 4, class: [0x00, 0xff, 0x00], features: 0, queue_sizes: vec![QUEUE_SIZE] }
    }

    fn start(&mut self, running: Running) {
        self.threads.watch(&running.queues);
    }

    fn notify(&mut self, _queue: u16) {
        self.threads.call();
    }

    fn reset(&mut self) {
        self.threads.watch(&[]);
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(RngV1 {}.to_record("rng"))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let RngV1 {} = RngV1::from_record(record).map_err(DeviceError::state("rng"))?;
        Ok(())
    }
}
