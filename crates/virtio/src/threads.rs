//! Threads that do a device's I/O: they take chains from its queues, so that no vCPU waits for the host.
//!
//! One thread does everything as long as nothing waits long, because handing a request to another thread costs more than
//! reading the page cache. When a request has waited, the others take part in those that come next.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::{Chain, Queue, lock};

/// A request that takes longer, in nanoseconds, has waited for something.
const WAITED: u64 = 200_000;
/// So many requests after one that has waited are shared between threads.
const SHARED: u32 = 1000;

/// What is done with a chain.
pub(crate) type Work = Box<dyn Fn(Chain) + Send + Sync>;

#[derive(Default)]
struct State {
    queues: Arc<[Arc<Queue>]>,
    /// There may be something in the queues.
    is_called: bool,
    /// Threads that wait to be called.
    idle: usize,
    is_ending: bool,
}

struct Shared {
    work: Work,
    threads: usize,
    state: Mutex<State>,
    called: Condvar,
    /// Requests that are to be shared between threads yet.
    sharing: AtomicU32,
    /// What times count from.
    epoch: Instant,
    /// When the last request was begun, in nanoseconds.
    begun: AtomicU64,
}

/// The threads of a device. They end when it is dropped, after what they have in hand.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Shared {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The requests that come are worth more than one thread.
    fn share(&self) {
        self.sharing.store(SHARED, Ordering::Relaxed);
    }

    fn call(&self) {
        let mut state = lock(&self.state);
        state.is_called = true;
        let all_idle = state.idle == self.threads;
        if !all_idle && self.now().saturating_sub(self.begun.load(Ordering::Relaxed)) > WAITED {
            // Whoever is at work waits for something.
            self.share();
        }
        // One that is at work looks again before it is idle.
        if all_idle || self.sharing.load(Ordering::Relaxed) > 0 {
            self.called.notify_one();
        }
    }

    /// What a thread does.
    fn serve(&self) {
        let mut state = lock(&self.state);
        while !state.is_ending {
            if std::mem::take(&mut state.is_called) {
                let queues = state.queues.clone();
                self.begun.store(self.now(), Ordering::Relaxed);
                drop(state);
                self.empty(&queues);
                state = lock(&self.state);
            } else {
                state.idle += 1;
                state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Works until nothing is left, a chain of each queue in turn.
    fn empty(&self, queues: &[Arc<Queue>]) {
        let mut any = true;
        while std::mem::take(&mut any) {
            for queue in queues {
                if let Some(chain) = queue.pop() {
                    any = true;
                    self.work_on(queue, chain);
                }
            }
        }
    }

    fn work_on(&self, queue: &Arc<Queue>, chain: Chain) {
        let left = self.sharing.load(Ordering::Relaxed);
        if left > 0 {
            self.sharing.store(left - 1, Ordering::Relaxed);
            if queue.has_chain() {
                self.call();
            }
        }
        let begun = self.now();
        self.begun.store(begun, Ordering::Relaxed);
        (self.work)(chain);
        if self.now().saturating_sub(begun) > WAITED {
            self.share();
        }
    }
}

impl Threads {
    /// Starts so many threads, all of this name. They wait until there are queues.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn new(name: &str, threads: usize, work: Work) -> io::Result<Self> {
        let (state, called, sharing) = (Mutex::default(), Condvar::new(), AtomicU32::new(0));
        let (epoch, begun) = (Instant::now(), AtomicU64::new(0));
        let shared = Arc::new(Shared { work, threads, state, called, sharing, epoch, begun });
        let mut this = Self { shared, handles: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let shared = this.shared.clone();
            this.handles.push(Builder::new().name(name.to_owned()).spawn(move || shared.serve())?);
        }
        Ok(this)
    }

    /// The queues to look at from now on.
    pub(crate) fn watch(&self, queues: &[Arc<Queue>]) {
        lock(&self.shared.state).queues = queues.into();
    }

    /// There may be something in the queues.
    pub(crate) fn call(&self) {
        self.shared.call();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.state).is_ending = true;
        self.shared.called.notify_all();
        for handle in self.handles.drain(..) {
            // A thread that panicked has said so.
            let _ = handle.join();
        }
    }
}
