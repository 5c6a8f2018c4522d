//! A connection in transmission, served by a few threads: one of them reads the next request while the others carry out
//! those before it. The one that has read a request carries it out itself, so that a lone request changes no thread.

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Scope;

use zerocopy::FromBytes;

use super::handshake::Agreed;
use super::request;
use crate::channel::Channel;
use crate::wire::{self, PAYLOAD_MAX, Request, command};
use crate::{Error, Result, lock};

/// Requests of one client that are carried out at once: as many as QEMU's server does.
const IN_FLIGHT: usize = 16;
/// Bytes of data of one client's requests at once.
const BYTES_MAX: u64 = PAYLOAD_MAX as u64;
/// Bytes that are read from the socket at once, beside those of great payloads.
const BUFFERED: usize = 64 << 10;

/// A client's connection.
pub struct Session<'a> {
    pub agreed: &'a Agreed<'a>,
    reading: Mutex<Reading>,
    /// Keeps the messages of replies apart.
    pub writing: Mutex<()>,
    threads: AtomicUsize,
    /// Threads that wait for their turn to read.
    idle: AtomicUsize,
    bytes: Mutex<u64>,
    bytes_given: Condvar,
}

struct Reading {
    reader: BufReader<Channel>,
    /// Nothing more is read; an error where it was not the client's farewell.
    ended: Option<Result<()>>,
}

/// A request with its data.
pub struct Ordered {
    pub head: Request,
    pub data: Vec<u8>,
    /// What it counts among the bytes of requests at once.
    weight: u64,
}

/// Serves a client until it leaves, and waits for what it has ordered.
///
/// # Errors
/// What ended the connection, if it was not the client's farewell.
pub fn run(agreed: &Agreed<'_>) -> Result<()> {
    let reader = BufReader::with_capacity(BUFFERED, agreed.channel.clone());
    let session = Session {
        agreed,
        reading: Reading { reader, ended: None }.into(),
        writing: Mutex::new(()),
        threads: AtomicUsize::new(1),
        idle: AtomicUsize::new(0),
        bytes: Mutex::new(0),
        bytes_given: Condvar::new(),
    };
    std::thread::scope(|scope| session.work(scope));
    lock(&session.reading).ended.take().unwrap_or(Ok(()))
}

impl Session<'_> {
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut spare = Vec::new();
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let mut reading = lock(&self.reading);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            if reading.ended.is_some() {
                return;
            }
            let ordered = match self.next(&mut reading.reader, &mut spare) {
                Ok(Some(ordered)) => ordered,
                ended => {
                    reading.ended = Some(ended.map(drop));
                    return;
                }
            };
            drop(reading);
            self.ensure_reader(scope);
            let weight = ordered.weight;
            spare = match request::carry_out(self, ordered) {
                Ok(spare) => spare,
                Err(_) => {
                    // The client takes no more replies: nothing more is read either.
                    self.agreed.channel.socket().shutdown(Shutdown::Both);
                    Vec::new()
                }
            };
            self.give_bytes(weight);
        }
    }

    /// Sees that somebody reads the next request, if another thread may be had for it.
    fn ensure_reader<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if self.idle.load(Ordering::SeqCst) > 0 {
            return;
        }
        let more = |threads| (threads < IN_FLIGHT).then_some(threads + 1);
        if self.threads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_err() {
            return;
        }
        let began =
            std::thread::Builder::new().name("nbd".to_owned()).spawn_scoped(scope, || self.work(scope));
        if began.is_err() {
            // The host has no more threads: those that are there do the work.
            self.threads.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Reads a request; `None` for the client's farewell.
    fn next(&self, reader: &mut BufReader<Channel>, spare: &mut Vec<u8>) -> Result<Option<Ordered>> {
        let mut bytes = [0; size_of::<Request>()];
        match reader.read_exact(&mut bytes) {
            // Many leave without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        let head = Request::read_from_bytes(&bytes).map_err(|_| Error::protocol("a short request"))?;
        if head.magic.get() != wire::REQUEST_MAGIC {
            return Err(Error::protocol("a request without its magic number"));
        }
        let len = head.len.get();
        let (payload, weight) = match head.command.get() {
            command::DISC => return Ok(None),
            // What follows would be taken for requests if it were not read, and it is too much to read.
            command::WRITE if len > PAYLOAD_MAX => {
                return Err(Error::protocol(format!("a write of {len} bytes")));
            }
            command::WRITE => (len as usize, len),
            command::READ => (0, request::read_weight(self, len, head.flags.get())),
            _ => (0, 0),
        };
        self.take_bytes(u64::from(weight));
        let mut data = std::mem::take(spare);
        data.resize(payload, 0);
        if let Err(error) = reader.read_exact(&mut data) {
            self.give_bytes(u64::from(weight));
            return Err(error.into());
        }
        Ok(Some(Ordered { head, data, weight: u64::from(weight) }))
    }

    fn take_bytes(&self, weight: u64) {
        let mut bytes = lock(&self.bytes);
        while *bytes > 0 && *bytes + weight > BYTES_MAX {
            bytes = self.bytes_given.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes += weight;
    }

    fn give_bytes(&self, weight: u64) {
        if weight > 0 {
            let mut bytes = lock(&self.bytes);
            *bytes = bytes.saturating_sub(weight);
            self.bytes_given.notify_all();
        }
    }
}
