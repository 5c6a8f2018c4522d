//! A running machine's serial line in the broker: one stream of the worker, and everybody who reads and types.
//!
//! Readers are the user's terminal, the log of a machine without one, and clients of the control socket. A client has a queue and a thread
//! of its own: what does not fit is left out and told, so that a client that does not read stops neither the guest nor another client.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::log::Log;

/// Clients at a time: each has two threads and a queue.
const CLIENTS_MAX: usize = 16;
/// Bytes that wait for one client.
const QUEUE_MAX: usize = 1 << 20;
/// What a new client is shown of what came before it.
const RECENT_MAX: usize = 4 << 10;
/// How long clients may take to read what the guest wrote last, when it is gone.
const LAST_TIME: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who reads besides the clients.
pub enum Reader {
    /// The user's terminal, or whatever standard output is.
    Standard,
    /// The log.
    Log(Log),
}

#[derive(Default)]
struct State {
    clients: Vec<Arc<Client>>,
    recent: VecDeque<u8>,
    ended: bool,
}

/// The serial line and its clients.
pub struct Hub {
    guest: UnixStream,
    state: Mutex<State>,
}

impl Hub {
    /// Of the machine whose serial line is the other end of `guest`.
    pub fn new(guest: UnixStream) -> Self {
        Self { guest, state: Mutex::default() }
    }

    /// Passes on what the guest writes until it is gone; then the clients' connections end.
    pub fn pass_output(&self, mut reader: Reader) {
        let (mut bytes, mut is_gone) = ([0; 4096], false);
        while let Ok(n @ 1..) = (&self.guest).read(&mut bytes) {
            let bytes = &bytes[..n];
            match &mut reader {
                // If nobody reads it any more, it is dropped, and the guest goes on.
                Reader::Standard if is_gone => {}
                Reader::Standard => {
                    let mut out = std::io::stdout().lock();
                    is_gone = out.write_all(bytes).and_then(|()| out.flush()).is_err();
                }
                Reader::Log(log) => log.write(bytes),
            }
            self.show(bytes);
        }
        self.end();
    }

    fn show(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        state.recent.extend(bytes);
        let more = state.recent.len().saturating_sub(RECENT_MAX);
        state.recent.drain(..more);
        state.clients.iter().for_each(|client| client.put(bytes));
    }

    fn end(&self) {
        let clients = {
            let mut state = lock(&self.state);
            state.ended = true;
            std::mem::take(&mut state.clients)
        };
        clients.iter().for_each(|client| client.end());
        let deadline = Instant::now() + LAST_TIME;
        clients.iter().for_each(|client| client.wait_until_told(deadline));
    }

    /// Where what is typed goes; writing waits while the guest takes nothing.
    pub fn input(&self) -> &UnixStream {
        &self.guest
    }

    /// Room for one more client; `None` if there are enough.
    pub fn client(&self) -> Option<Arc<Client>> {
        let mut state = lock(&self.state);
        if state.clients.len() >= CLIENTS_MAX || state.ended {
            return None;
        }
        let client = Arc::new(Client::default());
        // From the beginning of a line.
        let skipped = state.recent.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let skipped = if state.recent.len() < RECENT_MAX { 0 } else { skipped };
        let recent: Vec<u8> = state.recent.iter().copied().skip(skipped).collect();
        client.put(&recent);
        state.clients.push(client.clone());
        Some(client)
    }

    /// Serves a client until it or the guest goes away.
    pub fn serve(&self, client: &Arc<Client>, stream: UnixStream) {
        let writer = client.clone();
        let out = stream.try_clone().and_then(|out| {
            std::thread::Builder::new().name("console-out".into()).spawn(move || writer.write_to(&out))
        });
        if out.is_ok() {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = (&stream).read(&mut bytes) {
                if (&self.guest).write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
        }
        client.leave();
        // Its thread may wait for it to read.
        let ended = lock(&self.state).ended;
        let _ = stream.shutdown(if ended { Shutdown::Read } else { Shutdown::Both });
        lock(&self.state).clients.retain(|other| !Arc::ptr_eq(other, client));
    }
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    left_out: u64,
    /// Nothing comes any more.
    ending: bool,
    /// It reads no more, or has read everything.
    gone: bool,
}

/// A client of the serial line.
#[derive(Default)]
pub struct Client {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Client {
    fn put(&self, bytes: &[u8]) {
        let mut queue = lock(&self.queue);
        if queue.left_out > 0 || queue.bytes.len() + bytes.len() > QUEUE_MAX {
            queue.left_out += bytes.len() as u64;
        } else {
            queue.bytes.extend_from_slice(bytes);
        }
        self.changed.notify_all();
    }

    fn end(&self) {
        lock(&self.queue).ending = true;
        self.changed.notify_all();
    }

    /// The client has gone away.
    fn leave(&self) {
        let mut queue = lock(&self.queue);
        if !queue.ending {
            queue.gone = true;
        }
        self.changed.notify_all();
    }

    fn wait_until_told(&self, deadline: Instant) {
        let mut queue = lock(&self.queue);
        while !queue.gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_to(&self, out: &UnixStream) {
        while let Some(bytes) = self.next() {
            let mut to = out;
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        lock(&self.queue).gone = true;
        self.changed.notify_all();
        // Whoever reads from it learns that this was all.
        let _ = out.shutdown(Shutdown::Both);
    }

    /// What is to be written next; `None` at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        while queue.bytes.is_empty() && queue.left_out == 0 && !queue.ending && !queue.gone {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.gone {
            return None;
        }
        let mut bytes = std::mem::take(&mut queue.bytes);
        if bytes.is_empty() && queue.left_out > 0 {
            // What came before the gap has been taken; what comes now is after it.
            bytes = format!("\r\n[umbra: {} bytes left out]\r\n", std::mem::take(&mut queue.left_out)).into();
        }
        Some(bytes).filter(|bytes| !bytes.is_empty())
    }
}

#[cfg(test)]
#[path = "hub_test.rs"]
mod hub_test;
