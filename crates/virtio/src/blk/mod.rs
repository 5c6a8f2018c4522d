//! Disk (section 5.2) over a disk image.
//!
//! Requests are carried out by threads, `io-` and the disk's name, straight between the image and guest memory. A
//! queue's size bounds how many there are, a limit of bytes how long each takes.

mod config;
mod request;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use config::{BlkConfig, BlkFeature, SECTOR, WRITE_BACK};
use request::Target;
use umbra_block::Disk;
use umbra_device::DeviceError;
use umbra_state::{Record, Saved};
use zerocopy::IntoBytes;

use crate::device::read_registers;
use crate::threads::Threads;
use crate::{Kind, Running, VirtioDevice};

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// Threads of a disk: so many requests wait for the host at once.
const THREADS: usize = 8;
/// Bytes of a serial number (GET_ID).
pub const SERIAL_LEN: usize = 20;
/// The most queues that a disk has.
pub const QUEUES_MAX: u16 = 16;

umbra_state::saved! {
    /// A disk; what is on it is not part of it.
    pub struct BlkV1: "virtio-blk", 1 {
        /// How many sectors it has.
        1 sectors: u64,
        /// What is written may wait for a flush.
        2 write_back: bool,
    }
}

/// What a disk shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkSpec {
    /// Its name, such as `vda`, for its threads.
    pub name: String,
    /// It cannot be written.
    pub read_only: bool,
    /// Its serial number; bytes beyond the twentieth are left out.
    pub serial: String,
    /// How many queues it has, 1 to 16; others are taken as the nearest.
    pub queues: u16,
}

/// The device.
pub struct Blk {
    spec: BlkSpec,
    config: BlkConfig,
    target: Arc<Target>,
    threads: Threads,
    /// The features under which the driver works.
    features: BlkFeature,
}

impl Blk {
    /// One for `disk`, with its threads.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new(mut spec: BlkSpec, disk: Arc<Disk>) -> io::Result<Self> {
        spec.queues = spec.queues.clamp(1, QUEUES_MAX);
        let sectors = disk.size() / SECTOR;
        let config = BlkConfig::new(&spec, sectors, disk.geometry().unit);
        let mut serial = [0; SERIAL_LEN];
        serial.iter_mut().zip(spec.serial.bytes()).for_each(|(to, from)| *to = from);
        let write_through = AtomicBool::new(true);
        let target = Arc::new(Target { disk, sectors, read_only: spec.read_only, serial, write_through });
        let worker = target.clone();
        let threads =
            Threads::new(&format!("io-{}", spec.name), THREADS, Box::new(move |c| worker.serve(c)))?;
        Ok(Self { spec, config, target, threads, features: BlkFeature::empty() })
    }

    /// What the driver's features and its write to configuration make of the cache (section 5.2.5.2).
    fn set_cache(&self) {
        let can_flush = self.features.contains(BlkFeature::FLUSH);
        let write_back = match self.features.contains(BlkFeature::CONFIG_WRITE_CACHE) {
            true => self.config.write_back != 0,
            false => can_flush,
        };
        self.target.write_through.store(!write_back, Ordering::Relaxed);
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        Kind {
            device_type: 2,
            class: [0x01, 0x80, 0x00],
            features: BlkConfig::features(&self.spec).bits(),
            queue_sizes: vec![QUEUE_SIZE; self.spec.queues.into()],
        }
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_registers(self.config.as_bytes(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (WRITE_BACK, &[value @ (0 | 1)]) = (offset, data)
            && self.features.contains(BlkFeature::CONFIG_WRITE_CACHE)
        {
            self.config.write_back = value;
            self.set_cache();
        }
    }

    fn start(&mut self, running: Running) {
        self.features = BlkFeature::from_bits_truncate(running.features);
        self.set_cache();
        self.threads.watch(&running.queues);
    }

    fn notify(&mut self, _queue: u16) {
        self.threads.call();
    }

    fn reset(&mut self) {
        self.threads.watch(&[]);
        self.features = BlkFeature::empty();
        self.config.write_back = 1;
        self.set_cache();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        let saved = BlkV1 { sectors: self.target.sectors, write_back: self.config.write_back != 0 };
        Ok(saved.to_record(&self.spec.name))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let id = self.spec.name.as_str();
        let BlkV1 { sectors, write_back } = BlkV1::from_record(record).map_err(DeviceError::state(id))?;
        if sectors != self.target.sectors {
            let what = "size of the disk: the image that was given has another";
            return Err(DeviceError::Impossible { id: id.into(), what });
        }
        self.config.write_back = write_back.into();
        Ok(())
    }
}
