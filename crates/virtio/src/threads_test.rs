//! Requests that wait for the host hold up nobody else.

use std::sync::{Arc, Mutex};

use umbra_device::DeviceError;
use umbra_state::Record;

use crate::driver::{Driver, wait_until};
use crate::threads::Threads;
use crate::{Chain, Kind, Running, VirtioDevice, lock};

/// A device whose requests wait where their first byte says so, until the gate is opened.
struct Slow {
    threads: Threads,
}

fn serve(gate: &Mutex<()>, chain: Chain) {
    let mut byte = [0];
    chain.read(0, &mut byte);
    if byte == [1] {
        drop(lock(gate));
    }
    chain.complete(0);
}

impl VirtioDevice for Slow {
    fn kind(&self) -> Kind {
        Kind { device_type: 42, class: [0xff, 0, 0], features: 0, queue_sizes: vec![16] }
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
        Err(DeviceError::NotSaveable { id: "slow".into(), why: "it is a test" })
    }
    fn load(&mut self, _record: &Record) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn one_that_waits_holds_up_nobody() {
    let gate = Arc::new(Mutex::new(()));
    let of_device = gate.clone();
    let threads = Threads::new("io-slow", 4, Box::new(move |chain| serve(&of_device, chain))).unwrap();
    let mut driver = Driver::new(Box::new(Slow { threads }));
    driver.init(1 << 32 | 1 << 29);
    let closed = lock(&gate);
    // Three of the four threads wait.
    let waiting: Vec<u16> = (0..3).map(|_| driver.give(0, &[&[1]], &[]).head).collect();
    for _ in 0..200 {
        let quick = driver.give(0, &[&[0]], &[]).head;
        driver.kick(0);
        // A thread is known to wait after a moment: the driver that waits for nothing tells again.
        let mut back = None;
        wait_until("a quick request", || {
            driver.kick(0);
            back = driver.take(0);
            back.is_some()
        });
        assert_eq!(back.unwrap().0, quick);
    }
    drop(closed);
    let mut late: Vec<u16> = (0..3).map(|_| driver.wait(0).0).collect();
    late.sort_unstable();
    assert_eq!(late, waiting);
}
