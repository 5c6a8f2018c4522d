//! The thread of a link: frames both ways, in batches, and sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::link::{Backend, Frame, Nic, Offloads, Received, Sent};
use crate::poller::{Poller, Wake};
use crate::{Error, Result};

/// Frames a direction between two looks at the sockets: enough that a system call is shared by many, few enough that neither
/// direction waits long for the other.
const BATCH: usize = 64;

/// The number under which the thread watches its own wake-ups.
const WAKE: u64 = u64::MAX;

/// A running link. Dropping it stops the thread and closes the backend.
#[derive(Debug)]
pub struct LinkThread {
    wake: Wake,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LinkThread {
    /// Starts the thread `name` between a card and a backend. `wake` is what the card is kicked by, when the guest has frames to
    /// send or has made room: a doorbell's descriptor, for one.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn start(name: &str, wake: Wake, nic: Box<dyn Nic>, mut backend: Box<dyn Backend>) -> Result<Self> {
        let poller = Poller::new().map_err(Error::host("watch sockets"))?;
        poller.add(&wake, WAKE).map_err(Error::host("watch the doorbell of a network card"))?;
        backend.attach(&poller).map_err(Error::host("watch sockets"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || Pump::new(nic, backend, poller, stopped).run())
            .map_err(Error::host("start the thread of a network card"))?;
        Ok(Self { wake, stop, thread: Some(thread) })
    }

    /// What wakes the thread: the guest has frames to send, or room for more, or its driver has changed its mind about offloads.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }
}

impl Drop for LinkThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told of by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Pump {
    nic: Box<dyn Nic>,
    backend: Box<dyn Backend>,
    poller: Poller,
    stop: Arc<AtomicBool>,
    frame: Frame,
    /// `frame` was not taken yet.
    held: bool,
    /// The guest had no room for the last frame.
    starved: bool,
    offloads: Offloads,
    up: Option<bool>,
}

impl Pump {
    fn new(nic: Box<dyn Nic>, backend: Box<dyn Backend>, poller: Poller, stop: Arc<AtomicBool>) -> Self {
        let frame = Frame::default();
        let offloads = Offloads::empty();
        Self { nic, backend, poller, stop, frame, held: false, starved: false, offloads, up: None }
    }

    fn run(mut self) {
        let mut events = Vec::new();
        let mut busy = true;
        let mut due = None;
        while !self.stop.load(Ordering::Acquire) {
            let mut timeout = Some(Duration::ZERO);
            if !busy && !self.nic.arm(self.starved) {
                timeout = due.map(|due: Instant| due.saturating_duration_since(Instant::now()));
            }
            if self.poller.wait(timeout, &mut events).is_err() {
                return;
            }
            let now = Instant::now();
            for (token, ready) in events.drain(..).filter(|(token, _)| *token != WAKE) {
                self.backend.event(now, token, ready);
            }
            self.look_at_link();
            let sent = self.send(now);
            due = self.backend.tick(now);
            busy = self.receive(now) || sent;
            self.nic.flush();
        }
    }

    fn look_at_link(&mut self) {
        let offloads = self.nic.offloads();
        if offloads != self.offloads {
            self.offloads = offloads;
            self.backend.set_guest_offloads(offloads);
        }
        let up = self.backend.link_up();
        if self.up != Some(up) {
            self.up = Some(up);
            self.nic.set_link(up);
        }
    }

    /// Whether there may be more to send at once.
    fn send(&mut self, now: Instant) -> bool {
        for _ in 0..BATCH {
            if !self.held && !self.nic.transmit(&mut self.frame) {
                return false;
            }
            self.held = self.backend.send(now, &self.frame) == Sent::Busy;
            if self.held {
                return false;
            }
        }
        true
    }

    /// Whether there may be more to receive at once.
    fn receive(&mut self, now: Instant) -> bool {
        self.starved = false;
        for _ in 0..BATCH {
            let nic = &mut self.nic;
            match self.backend.receive(now, &mut |header, parts| nic.receive(header, parts)) {
                Received::Frame => {}
                Received::Refused => {
                    self.starved = true;
                    return false;
                }
                Received::Nothing => return false,
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "thread_test.rs"]
mod thread_test;
