//! Socket device (section 5.10): streams between programs of the guest and programs of the host, without a network.
//!
//! The host's side is Unix sockets, by the convention that Firecracker has made common: see [`Host`]. Credit goes both ways,
//! so that neither side's data is gathered without end. Connections are the process's and not the machine's: a machine that
//! is restored tells its driver so, which ends the guest's ends of them.
//!
//! One thread, `vsock`, does everything; no vCPU waits for it.

mod connection;
mod host;
mod packet;
mod pump;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub use host::{Host, Outside};
use pump::Pump;
use umbra_device::DeviceError;
use umbra_net::Wake;
use umbra_state::{Record, Saved};

use crate::device::read_registers;
use crate::{Kind, Running, VirtioDevice, lock};

/// Entries of the queues of packets.
const QUEUE_SIZE: u16 = 128;
/// Entries of the queue of events, of which there is one at a time.
const EVENT_QUEUE_SIZE: u16 = 8;
/// Feature: streams.
const STREAMS: u64 = 1;
/// The least context ID of a guest; those below are taken by the specification.
pub const CID_MIN: u32 = 3;
/// The greatest one: the one above means any.
pub const CID_MAX: u32 = u32::MAX - 1;

umbra_state::saved! {
    /// A socket device; its connections are not part of it.
    pub struct VsockV1: "virtio-vsock", 1 {
        /// The guest's context ID.
        1 cid: u64,
    }
}

/// What the thread finds.
#[derive(Clone)]
struct Now {
    /// What the driver gave, while it is ready.
    running: Option<Running>,
    /// Moves when the driver's connections end.
    life: u64,
    cid: u64,
    /// The driver is to be told that it has moved.
    is_moved: bool,
}

/// What the device and its thread share.
struct Shared(Mutex<Now>);

impl Shared {
    fn now(&self) -> Now {
        lock(&self.0).clone()
    }

    fn moved_is_told(&self) {
        lock(&self.0).is_moved = false;
    }
}

/// The device.
pub struct Vsock {
    shared: Arc<Shared>,
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vsock {
    /// One for the guest with this context ID, with its thread.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn new(cid: u32, host: Host) -> std::io::Result<Self> {
        let now = Now { running: None, life: 0, cid: cid.into(), is_moved: false };
        let shared = Arc::new(Shared(Mutex::new(now)));
        let wake = Wake::new()?;
        let pump = Pump::new(shared.clone(), host, &wake)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("vsock".into()).spawn(move || pump.run(&stopped))?;
        Ok(Self { shared, wake, stop, thread: Some(thread) })
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind {
            device_type: 19,
            class: [0x07, 0x80, 0x00],
            features: STREAMS,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE],
        }
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_registers(&lock(&self.shared.0).cid.to_le_bytes(), offset, data);
    }

    fn start(&mut self, running: Running) {
        lock(&self.shared.0).running = Some(running);
        self.wake.wake();
    }

    fn notify(&mut self, _queue: u16) {
        self.wake.wake();
    }

    fn reset(&mut self) {
        {
            let mut now = lock(&self.shared.0);
            now.running = None;
            now.life += 1;
            now.is_moved = false;
        }
        self.wake.wake();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(VsockV1 { cid: lock(&self.shared.0).cid }.to_record("vsock"))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let VsockV1 { cid } = VsockV1::from_record(record).map_err(DeviceError::state("vsock"))?;
        if !(u64::from(CID_MIN)..=u64::from(CID_MAX)).contains(&cid) {
            return Err(DeviceError::Impossible { id: "vsock".into(), what: "context ID" });
        }
        let mut now = lock(&self.shared.0);
        (now.cid, now.is_moved) = (cid, true);
        Ok(())
    }
}
