//! Many requests to a disk at once, from one thread that does not wait for each.
//!
//! What is nothing but bytes of files (`plan`) is done at once where the page cache can, and else goes to the kernel by
//! io_uring; all other requests are done by threads that may wait. They do everything else where io_uring is not to be had
//! (default seccomp profiles of containers forbid it) or not wanted. Writes to the page cache hardly ever wait, and a
//! file system that cannot promise it has the kernel pay with a thread for each; so they are done at once until one
//! has waited, and the next ones are handed over.
//!
//! Constraints: memory of a request belongs to the queue until the request is done, so a queue lives within
//! [`Disk::queue`], which waits for all of them. A request that is under way keeps others from changing its mapping,
//! and whoever drains waits for it: the queue's thread must come back to [`Queue::wait`], and must not drain.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::Disk;
use super::gate::Pass;
use super::plan::Plan;
use crate::io::{Op, Ring, Wake, read_at_once, write_at_once};
use crate::{IoBuf, IoSrc, Result};

/// A write to the page cache that takes longer has waited for something.
const WAITED: Duration = Duration::from_millis(1);
/// Writes that are handed over after one has waited.
const HELD_BACK: u32 = 1000;
/// Threads of a queue: they wait for disks more than they compute.
const THREADS_MAX: usize = 16;

/// How requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aio {
    /// By io_uring where the host lets us, else by threads.
    #[default]
    Uring,
    /// By threads.
    Threads,
}

/// What is asked of a disk.
#[derive(Debug)]
pub enum Request<'m> {
    /// Fill the buffers from an offset.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to.
        bufs: Vec<IoBuf<'m>>,
    },
    /// Write the sources to an offset.
    Write {
        /// Where on the disk.
        offset: u64,
        /// What.
        srcs: Vec<IoSrc<'m>>,
    },
    /// Make durable what was done before it was asked for.
    Flush,
}

/// A request that is done: the number that it was given, and what came of it.
#[derive(Debug)]
pub struct Done {
    /// The caller's number.
    pub tag: u64,
    /// What came of it.
    pub result: Result<()>,
}

impl Request<'_> {
    /// Does it here and now.
    fn run(&self, disk: &Disk) -> Result<()> {
        match self {
            Request::Read { offset, bufs } => disk.readv(*offset, bufs),
            Request::Write { offset, srcs } => disk.writev(*offset, srcs),
            Request::Flush => disk.flush(),
        }
    }
}

/// A request in parts that the kernel has.
struct Parts<'d, 'm> {
    tag: u64,
    left: usize,
    result: Result<()>,
    /// Held until the last part is done.
    _plan: Plan<'m>,
    _pass: Pass<'d>,
}

#[derive(Default)]
struct Work<'m> {
    jobs: VecDeque<(u64, Request<'m>)>,
    done: Vec<Done>,
    /// Threads that wait for a job.
    idle: usize,
    threads: usize,
    closed: bool,
}

/// What the threads share with the queue.
struct Pool<'m> {
    work: Mutex<Work<'m>>,
    /// A job came, or the end.
    called: Condvar,
    /// One is done.
    finished: Condvar,
    wake: Option<Arc<Wake>>,
}

impl<'m> Pool<'m> {
    fn work(&self) -> MutexGuard<'_, Work<'m>> {
        self.work.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// What a thread does.
    fn serve(&self, disk: &Disk) {
        let mut work = self.work();
        loop {
            if let Some((tag, request)) = work.jobs.pop_front() {
                drop(work);
                let result = request.run(disk);
                work = self.work();
                work.done.push(Done { tag, result });
                match &self.wake {
                    Some(wake) => wake.wake(),
                    None => self.finished.notify_one(),
                }
            } else if work.closed {
                return;
            } else {
                work.idle += 1;
                work = self.called.wait(work).unwrap_or_else(|poison| poison.into_inner());
                work.idle -= 1;
            }
        }
    }
}

/// Requests to a disk that are under way.
pub struct Queue<'scope, 'env> {
    disk: &'env Disk,
    scope: &'scope Scope<'scope, 'env>,
    ring: Option<Ring<'env>>,
    /// By number: requests that the ring has parts of.
    parts: Vec<Option<Parts<'env, 'env>>>,
    free: Vec<usize>,
    pool: Arc<Pool<'env>>,
    /// Requests that the threads have.
    pooled: usize,
    ready: Vec<Done>,
    completed: Vec<(usize, Result<()>)>,
    /// So many writes are handed over before one is done at once again.
    held_back: u32,
    /// A ring is its thread's.
    _here: PhantomData<*const ()>,
}

impl fmt::Debug for Queue<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = self.parts.len() - self.free.len();
        f.debug_struct("Queue").field("ring", &has).field("pool", &self.pooled).finish_non_exhaustive()
    }
}

impl Disk {
    /// Runs `work` with a queue for about `depth` requests at once, and waits for what is under way at its end.
    pub fn queue<'env, T>(
        &'env self,
        aio: Aio,
        depth: usize,
        work: impl for<'scope> FnOnce(&mut Queue<'scope, 'env>) -> T,
    ) -> T {
        std::thread::scope(|scope| {
            let ring = match aio {
                // Without io_uring threads do the same.
                Aio::Uring => Ring::new(depth).ok(),
                Aio::Threads => None,
            };
            let pool = Pool {
                work: Mutex::default(),
                called: Condvar::new(),
                finished: Condvar::new(),
                wake: ring.as_ref().map(Ring::wake),
            };
            work(&mut Queue {
                disk: self,
                scope,
                ring,
                parts: Vec::new(),
                free: Vec::new(),
                pool: Arc::new(pool),
                pooled: 0,
                ready: Vec::new(),
                completed: Vec::new(),
                held_back: 0,
                _here: PhantomData,
            })
        })
    }
}

impl<'env> Queue<'_, 'env> {
    /// How requests are carried out.
    pub fn aio(&self) -> Aio {
        if self.ring.is_some() { Aio::Uring } else { Aio::Threads }
    }

    /// Requests that are under way, those included that `wait` would tell at once.
    pub fn under_way(&self) -> usize {
        self.parts.len() - self.free.len() + self.pooled + self.ready.len()
    }

    /// Takes a request; `tag` comes back when it is done. What io_uring has is on its way when somebody waits.
    pub fn push(&mut self, tag: u64, request: Request<'env>) {
        match self.plan(&request) {
            Some((pass, plan)) => self.start(tag, pass, plan, request),
            None => self.hand_over(tag, request),
        }
    }

    /// Takes what is done: at least one request, where any is under way.
    pub fn wait(&mut self, done: &mut Vec<Done>) {
        let before = done.len();
        loop {
            done.append(&mut self.ready);
            self.collect(done, false);
            if let Some(ring) = &mut self.ring {
                ring.turn(done.len() == before && self.pooled + ring.in_flight() > 0, &mut self.completed);
                self.settle();
                done.append(&mut self.ready);
            } else if done.len() == before {
                self.collect(done, true);
            }
            if done.len() > before || self.under_way() == 0 {
                return;
            }
        }
    }

    fn plan(&self, request: &Request<'env>) -> Option<(Pass<'env>, Plan<'env>)> {
        let pass = self.disk.gate.try_enter()?;
        let plan = match request {
            Request::Read { offset, bufs } => Plan::read(pass.node(), *offset, bufs),
            Request::Write { offset, srcs } => Plan::write(self.disk, pass.node(), *offset, srcs),
            Request::Flush => None,
        };
        Some((pass, plan?))
    }

    /// Whether the page cache has done a planned request.
    fn is_done_at_once(&mut self, ops: &[Op<'_>]) -> bool {
        if !ops.iter().any(|op| op.memory.is_write()) {
            return ops.iter().all(read_at_once);
        }
        if self.held_back > 0 {
            self.held_back -= 1;
            return false;
        }
        let began = Instant::now();
        let is_done = ops.iter().all(write_at_once);
        if began.elapsed() > WAITED {
            self.held_back = HELD_BACK;
        }
        is_done
    }

    fn start(&mut self, tag: u64, pass: Pass<'env>, mut plan: Plan<'env>, request: Request<'env>) {
        let ops = std::mem::take(&mut plan.ops);
        if self.is_done_at_once(&ops) {
            self.ready.push(Done { tag, result: Ok(()) });
            return;
        }
        let Some(ring) = self.ring.as_mut() else {
            drop((plan, pass));
            return self.hand_over(tag, request);
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.parts.push(None);
            self.parts.len() - 1
        });
        self.parts[number] = Some(Parts { tag, left: ops.len(), result: Ok(()), _plan: plan, _pass: pass });
        for op in ops {
            ring.push(number, op, &mut self.completed);
        }
        self.settle();
    }

    /// Gives a request to a thread.
    fn hand_over(&mut self, tag: u64, request: Request<'env>) {
        self.pooled += 1;
        let mut work = self.pool.work();
        work.jobs.push_back((tag, request));
        if work.idle >= work.jobs.len() || work.threads == THREADS_MAX {
            self.pool.called.notify_one();
            return;
        }
        work.threads += 1;
        drop(work);
        let (pool, disk) = (self.pool.clone(), self.disk);
        self.scope.spawn(move || pool.serve(disk));
    }

    /// What came of parts.
    fn settle(&mut self) {
        for (number, result) in self.completed.drain(..) {
            let Some(place) = self.parts.get_mut(number) else { continue };
            let Some(parts) = place else { continue };
            parts.left -= 1;
            if parts.result.is_ok() {
                parts.result = result;
            }
            if parts.left == 0
                && let Some(parts) = place.take()
            {
                self.ready.push(Done { tag: parts.tag, result: parts.result });
                self.free.push(number);
            }
        }
    }

    /// Takes what the threads have done, and waits for it with `wait`.
    fn collect(&mut self, done: &mut Vec<Done>, wait: bool) {
        if self.pooled == 0 {
            return;
        }
        let mut work = self.pool.work();
        while wait && work.done.is_empty() {
            work = self.pool.finished.wait(work).unwrap_or_else(|poison| poison.into_inner());
        }
        self.pooled -= work.done.len();
        done.append(&mut work.done);
    }
}

impl Drop for Queue<'_, '_> {
    fn drop(&mut self) {
        // First what the threads may wait for; they do all that they were given, and the scope waits for them.
        self.ring = None;
        self.parts.clear();
        self.pool.work().closed = true;
        self.pool.called.notify_all();
    }
}
