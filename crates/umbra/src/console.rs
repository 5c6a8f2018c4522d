//! The serial line's way out of the worker.
//!
//! A guest writes its console byte by byte. To pass each on by itself would cost three system calls and the wake-up of another process,
//! all on the vCPU's time; so bytes are gathered for a moment that nobody at a terminal notices, and written by a thread of their own.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, mem};

use umbra_machine::Console;

/// Bytes that wait. When there are as many, the guest waits, as with a slow terminal.
const ROOM: usize = 64 << 10;
/// How long bytes are gathered.
const GATHER: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Nothing comes any more.
    ending: bool,
    /// Nobody reads any more: what comes is dropped.
    gone: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    /// There is something to write, or room again, or an end.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, pending: MutexGuard<'a, Pending>) -> MutexGuard<'a, Pending> {
        self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, bytes: &[u8]) {
        let mut pending = self.lock();
        while pending.bytes.len() >= ROOM && !pending.gone {
            pending = self.wait(pending);
        }
        if !pending.gone {
            let is_first = pending.bytes.is_empty();
            pending.bytes.extend_from_slice(bytes);
            if is_first {
                self.changed.notify_all();
            }
        }
    }

    fn write_to(&self, mut out: impl Write) {
        let mut bytes = Vec::new();
        loop {
            let mut pending = self.lock();
            while pending.bytes.is_empty() && !pending.ending {
                pending = self.wait(pending);
            }
            if pending.bytes.is_empty() {
                return;
            }
            if !pending.ending {
                drop(pending);
                std::thread::sleep(GATHER);
                pending = self.lock();
            }
            mem::swap(&mut bytes, &mut pending.bytes);
            drop(pending);
            if bytes.len() >= ROOM {
                self.changed.notify_all();
            }
            if out.write_all(&bytes).is_err() {
                let mut pending = self.lock();
                (pending.gone, pending.bytes) = (true, Vec::new());
                self.changed.notify_all();
                return;
            }
            bytes.clear();
        }
    }
}

/// The thread that writes. When it is dropped, everything has been written.
pub struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Writes to `out`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("output".into()).spawn(move || theirs.write_to(out))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What a machine writes into.
    pub fn console(&self) -> Console {
        let shared = self.shared.clone();
        Box::new(move |bytes| shared.put(bytes))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod console_test;
