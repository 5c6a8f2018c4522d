//! The one place where a link's thread sleeps.
//!
//! Descriptors are watched edge-triggered: each is registered once, with all that it may ever tell, and who gets an event
//! remembers it until the descriptor says "would block". So a busy socket costs no `epoll_ctl`, a counter that wakes
//! somebody need not be read, and a guest that takes no frames does not make the thread spin.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bitflags::bitflags;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

bitflags! {
    /// What a descriptor is ready for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Ready: u8 {
        /// Something can be read, or the other side has closed.
        const READ = 1;
        /// Something can be written, or writing would tell an error.
        const WRITE = 2;
    }
}

/// Events that are taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 64;

/// A set of descriptors that are watched, each under a number of its owner's.
#[derive(Debug, Clone)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?) })
    }

    /// Watches `fd`; events carry `token`. Closing the descriptor ends it.
    ///
    /// # Errors
    /// The kernel's limit of watched descriptors, or a descriptor that cannot be watched.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&*self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits for events, for ever without a `timeout`, and adds them to `found`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, timeout: Option<Duration>, found: &mut Vec<(u64, Ready)>) -> io::Result<()> {
        // A time that the call has no room for is as good as a day.
        let timeout = timeout.map(|time| time.min(Duration::from_secs(86_400))).map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_AT_ONCE);
        match epoll::wait(&*self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        found.extend(events.iter().map(|event| {
            let flags = event.flags;
            let mut ready = Ready::empty();
            let ended = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | ended) {
                ready |= Ready::READ;
            }
            if flags.intersects(epoll::EventFlags::OUT | ended) {
                ready |= Ready::WRITE;
            }
            (event.data.u64(), ready)
        }));
        Ok(())
    }
}

/// Wakes the thread that watches it, from any thread; a call is never lost.
#[derive(Debug, Clone)]
pub struct Wake {
    counter: Arc<OwnedFd>,
}

impl Wake {
    /// One that nobody watches yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { counter: Arc::new(counter) })
    }

    /// Wakes.
    pub fn wake(&self) {
        // It fails only when the counter is at its end, and then it has told already.
        let _ = rustix::io::write(&*self.counter, &1u64.to_ne_bytes());
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}
