//! The device's thread: it sleeps until a socket, the driver or the machine has something for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use umbra_net::{Poller, Wake};

use super::Shared;
use super::host::{Host, Outside};
use super::table::{Progress, Table};
use crate::{Queue, Running};

/// Tokens of what is no connection.
pub(super) const WAKE: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
/// How long to wait before a host that has no descriptor left is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// Connections of the host's that are taken at once.
const ACCEPT_MAX: usize = 16;

/// Queues: packets for the guest, packets from it, events.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// Event 0 (section 5.10.6.7): all connections are gone, and the context ID is to be read again.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// What the thread has.
pub(super) struct Pump {
    shared: Arc<Shared>,
    poller: Poller,
    listener: Option<OwnedFd>,
    outside: Box<dyn Outside>,
    table: Table,
    /// The driver's life that the connections are of.
    life: u64,
    is_listener_ready: bool,
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>, host: Host, wake: &Wake) -> std::io::Result<Self> {
        let Host { listener, outside } = host;
        let poller = Poller::new()?;
        poller.add(wake, WAKE)?;
        if let Some(listener) = &listener {
            rustix::io::ioctl_fionbio(listener, true)?;
            poller.add(listener, LISTENER)?;
        }
        let table = Table::new();
        Ok(Self { shared, poller, listener, outside, table, life: 0, is_listener_ready: true })
    }

    pub(super) fn run(mut self, stop: &AtomicBool) {
        let mut events = Vec::new();
        let mut timeout = Some(Duration::ZERO);
        while !stop.load(Ordering::Acquire) {
            if self.poller.wait(timeout, &mut events).is_err() {
                return;
            }
            for (token, ready) in events.drain(..) {
                match token {
                    WAKE => {}
                    LISTENER => self.is_listener_ready = true,
                    _ => self.table.event(token, ready),
                }
            }
            timeout = match self.round() {
                Progress::More => Some(Duration::ZERO),
                Progress::Idle if self.is_listener_ready => Some(RETRY),
                Progress::Idle => None,
            };
        }
    }

    fn round(&mut self) -> Progress {
        let now = self.shared.now();
        if self.life != now.life {
            self.life = now.life;
            self.table.clear();
        }
        self.accept();
        self.table.work(now.running.is_some());
        let Some(Running { queues, .. }) = now.running else { return Progress::Idle };
        let [receive, transmit, event] = [RECEIVE, TRANSMIT, EVENT].map(|index| queues.get(index));
        let (Some(receive), Some(transmit), Some(event)) = (receive, transmit, event) else {
            return Progress::Idle;
        };
        if now.is_moved {
            self.tell_of_move(event);
        }
        let given = self.table.transmit(transmit, now.cid, &self.poller, &mut *self.outside);
        let taken = self.table.receive(receive, now.cid);
        // A guest without room for answers says when it has some.
        if given == Progress::Idle || self.table.is_deaf() { taken } else { given }
    }

    /// The driver's connections were another machine's.
    fn tell_of_move(&mut self, queue: &Arc<Queue>) {
        if let Some(chain) = queue.pop() {
            let written = chain.write(0, &TRANSPORT_RESET);
            chain.complete(written as u32);
            self.shared.moved_is_told();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.is_listener_ready) else {
            self.is_listener_ready = false;
            return;
        };
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        for _ in 0..ACCEPT_MAX {
            match rustix::net::accept_with(listener, flags) {
                Ok(socket) => self.table.accept(socket, &self.poller),
                Err(rustix::io::Errno::AGAIN) => {
                    self.is_listener_ready = false;
                    return;
                }
                // No descriptor is left, or this one has gone away already.
                Err(_) => return,
            }
        }
    }
}
