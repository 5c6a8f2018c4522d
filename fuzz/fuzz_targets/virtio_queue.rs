//! The queues and the transport of virtio, under a device that echoes: any rings, any registers, any saved state.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use umbra_device::DeviceError;
use umbra_state::{Record, Saved};
use umbra_virtio::{Kind, Queue, Running, VirtioDevice};

umbra_state::saved! {
    struct EchoV1: "echo", 1 {}
}

/// Writes what it reads, and completes what it gets at once.
#[derive(Default)]
struct Echo(Vec<Arc<Queue>>);

/// Chains at one notification: nobody fills the ring meanwhile.
const CHAINS_MAX: usize = 64;

impl VirtioDevice for Echo {
    fn kind(&self) -> Kind {
        Kind { device_type: 42, class: [0xff, 0, 0], features: 1, queue_sizes: vec![8, 64] }
    }
    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}
    fn start(&mut self, running: Running) {
        self.0 = running.queues;
    }
    fn notify(&mut self, queue: u16) {
        let Some(queue) = self.0.get(usize::from(queue)) else { return };
        for _ in 0..CHAINS_MAX {
            let Some(chain) = queue.pop() else { return };
            let mut data = vec![0; chain.readable_len().min(4096) as usize];
            assert_eq!(chain.read(0, &mut data), data.len(), "all of it is memory");
            let room = chain.writable_len().min(data.len() as u64);
            assert_eq!(chain.write(0, &data) as u64, room, "all of it is memory");
            let bufs = chain.io_bufs(0, room);
            assert_eq!(bufs.iter().map(|buf| buf.len() as u64).sum::<u64>(), room);
            chain.wrote(0, room);
            chain.complete(room as u32);
        }
    }
    fn reset(&mut self) {
        self.0.clear();
    }
    fn save(&self) -> Result<Record, DeviceError> {
        Ok(EchoV1 {}.to_record("echo"))
    }
    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        EchoV1::from_record(record).map(drop).map_err(DeviceError::state("echo"))
    }
}

fuzz_target!(|bytes: &[u8]| {
    umbra_fuzz::virtio::run(bytes, &|| Box::new(Echo::default()));
});
