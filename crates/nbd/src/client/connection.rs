//! A connection in transmission: requests of many threads in flight at once, and no thread of its own.
//!
//! Whoever waits for a reply reads the connection, one of them at a time. A head that is another request's is handed to
//! that request's thread together with the right to read on, so that every thread takes its own data. Whatever breaks
//! the protocol, or the connection, ends it for all.

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use umbra_block::{Cancel, IoBuf, IoSrc};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::handshake::{self, ExportFacts};
use super::reply::{Head, Payload, take};
use crate::channel::Channel;
use crate::tls::TlsClient;
use crate::wire::{self, ChunkHead, CommandFlags, Request, SimpleReply, command};
use crate::{Error, Result, lock};

/// Requests in flight: as many as QEMU's server serves at once.
const IN_FLIGHT: usize = 16;
/// Bytes that are read from the socket at once, beside those of great payloads.
const BUFFERED: usize = 64 << 10;
/// Bytes of a write that are gathered before they are sent.
const GATHERED: usize = 256 << 10;

pub(crate) type Reader = BufReader<Channel>;

/// A request on its way.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Free,
    /// Being sent.
    Sending(u64),
    /// Its thread waits.
    Waiting(u64),
    /// The head that was read is this one's; its thread reads on.
    Turn(Head, Box<Reader>),
}

#[derive(Debug)]
struct State {
    slots: [Slot; IN_FLIGHT],
    /// `None` while a thread reads.
    reader: Option<Box<Reader>>,
    next_cookie: u64,
    /// Why the connection is of no more use.
    broken: Option<String>,
}

/// A connection to an export.
#[derive(Debug)]
pub struct Connection {
    facts: ExportFacts,
    channel: Channel,
    sending: Mutex<Vec<u8>>,
    state: Mutex<State>,
    slot_free: Condvar,
    turns: [Condvar; IN_FLIGHT],
}

/// A request that is in flight, and its place.
#[derive(Debug, Clone, Copy)]
struct Flight {
    slot: usize,
    cookie: u64,
}

/// What a request sends and what it wants back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub command: u16,
    pub flags: CommandFlags,
    pub offset: u64,
    pub len: u32,
}

impl Ask {
    fn head(&self, cookie: u64) -> Request {
        Request {
            magic: U32::new(wire::REQUEST_MAGIC),
            flags: U16::new(self.flags.bits()),
            command: U16::new(self.command),
            cookie: U64::new(cookie),
            offset: U64::new(self.offset),
            len: U32::new(self.len),
        }
    }
}

impl Connection {
    /// The handshake over a connection, which has to be done by `deadline`.
    pub fn open(
        channel: Channel,
        tls: Option<(&TlsClient, Option<&str>)>,
        export: &str,
        deadline: Instant,
    ) -> Result<Self> {
        channel.socket().set_deadline(Some(deadline))?;
        let early = channel.clone();
        let (channel, facts) = match handshake::negotiate(channel, tls, export) {
            Ok(done) => done,
            Err(error) => {
                if matches!(error, Error::Refused { .. }) && tls.is_none() {
                    handshake::abort(&early);
                }
                return Err(error);
            }
        };
        channel.socket().set_deadline(None)?;
        let state = State {
            slots: Default::default(),
            reader: Some(Box::new(BufReader::with_capacity(BUFFERED, channel.clone()))),
            next_cookie: 1,
            broken: None,
        };
        Ok(Self {
            facts,
            channel,
            sending: Mutex::default(),
            state: state.into(),
            slot_free: Condvar::new(),
            turns: Default::default(),
        })
    }

    /// A server that is silent for a while when `cancel` is set has lost the connection.
    pub fn give_up_when(&self, cancel: Cancel) -> Result<()> {
        Ok(self.channel.give_up_when(cancel)?)
    }

    /// What the server said of the export.
    pub fn facts(&self) -> &ExportFacts {
        &self.facts
    }

    /// Fills the buffers from `offset`; they have `len` bytes together.
    pub fn read(&self, offset: u64, len: u32, bufs: &[IoBuf<'_>]) -> io::Result<()> {
        let ask = Ask { command: command::READ, flags: CommandFlags::empty(), offset, len };
        self.run(ask, &[], Payload::Data(bufs)).map(drop)
    }

    /// Writes the sources to `offset`; they have `len` bytes together.
    pub fn write(&self, offset: u64, len: u32, srcs: &[IoSrc<'_>]) -> io::Result<()> {
        let ask = Ask { command: command::WRITE, flags: CommandFlags::empty(), offset, len };
        self.run(ask, srcs, Payload::Nothing).map(drop)
    }

    /// A request without data.
    pub fn command(&self, command: u16, flags: CommandFlags, offset: u64, len: u32) -> io::Result<()> {
        self.run(Ask { command, flags, offset, len }, &[], Payload::Nothing).map(drop)
    }

    /// What is at `offset`: lengths and flags of the runs from there on, one at least.
    pub fn status(&self, offset: u64, len: u32, context: u32) -> io::Result<Vec<(u32, u32)>> {
        let ask = Ask { command: command::BLOCK_STATUS, flags: CommandFlags::empty(), offset, len };
        self.run(ask, &[], Payload::Extents(context))
    }

    fn run(&self, ask: Ask, srcs: &[IoSrc<'_>], payload: Payload<'_>) -> io::Result<Vec<(u32, u32)>> {
        let flight = self.begin()?;
        if let Err(error) = self.send(&ask, flight.cookie, srcs) {
            return Err(self.break_off(&error.into()));
        }
        let mut taken = take(&ask, self.facts.structured, payload);
        let mut reader = None;
        loop {
            let (head, mut mine) = self.next(flight, reader.take())?;
            match taken.take(head, &mut mine) {
                Ok(false) => reader = Some(mine),
                Ok(true) => {
                    self.end(flight, mine);
                    return taken.finish();
                }
                Err(error) => return Err(self.break_off(&error)),
            }
        }
    }

    /// A place for a request; waits while there are as many in flight as there may be.
    fn begin(&self) -> io::Result<Flight> {
        let mut state = lock(&self.state);
        loop {
            if let Some(why) = &state.broken {
                return Err(lost(why));
            }
            if let Some(slot) = state.slots.iter().position(|slot| matches!(slot, Slot::Free)) {
                let cookie = state.next_cookie;
                state.next_cookie = cookie.wrapping_add(1);
                state.slots[slot] = Slot::Sending(cookie);
                return Ok(Flight { slot, cookie });
            }
            state = self.slot_free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, ask: &Ask, cookie: u64, srcs: &[IoSrc<'_>]) -> io::Result<()> {
        let head = ask.head(cookie);
        let mut gathered = lock(&self.sending);
        gathered.clear();
        gathered.extend_from_slice(head.as_bytes());
        for src in srcs {
            let mut rest = *src;
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(GATHERED.saturating_sub(gathered.len()));
                let start = gathered.len();
                gathered.resize(start + part.len(), 0);
                part.copy_to(&mut gathered[start..]);
                rest = behind;
                if gathered.len() >= GATHERED {
                    self.channel.send(&[&gathered])?;
                    gathered.clear();
                }
            }
        }
        self.channel.send(&[&gathered])
    }

    /// The head of this request's next reply or chunk, and the reader behind it.
    fn next(&self, flight: Flight, reader: Option<Box<Reader>>) -> io::Result<(Head, Box<Reader>)> {
        let mut held = reader;
        let mut state = lock(&self.state);
        if let Slot::Sending(cookie) = state.slots[flight.slot] {
            state.slots[flight.slot] = Slot::Waiting(cookie);
        }
        loop {
            if let Some(why) = &state.broken {
                return Err(lost(why));
            }
            if matches!(state.slots[flight.slot], Slot::Turn(..)) {
                let turn = std::mem::replace(&mut state.slots[flight.slot], Slot::Waiting(flight.cookie));
                if let Slot::Turn(head, reader) = turn {
                    return Ok((head, reader));
                }
            }
            let Some(mut reader) = held.take().or_else(|| state.reader.take()) else {
                state = self.turns[flight.slot].wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let head = match read_head(&mut reader) {
                Ok(head) => head,
                Err(error) => return Err(self.break_off(&error)),
            };
            if head.cookie() == flight.cookie {
                return Ok((head, reader));
            }
            state = lock(&self.state);
            let whose = state.slots.iter().position(|slot| {
                matches!(slot, Slot::Sending(cookie) | Slot::Waiting(cookie) if *cookie == head.cookie())
            });
            let Some(whose) = whose else {
                drop(state);
                return Err(self.break_off(&Error::protocol("a reply to a request that was not made")));
            };
            state.slots[whose] = Slot::Turn(head, reader);
            self.turns[whose].notify_one();
        }
    }

    /// The request is answered: its place is free, and somebody else may read.
    fn end(&self, flight: Flight, reader: Box<Reader>) {
        let mut state = lock(&self.state);
        state.slots[flight.slot] = Slot::Free;
        state.reader = Some(reader);
        if let Some(next) = state.slots.iter().position(|slot| matches!(slot, Slot::Waiting(_))) {
            self.turns[next].notify_one();
        }
        self.slot_free.notify_one();
    }

    /// Ends the connection for all, because of `error`.
    fn break_off(&self, error: &Error) -> io::Error {
        let mut state = lock(&self.state);
        let why = state.broken.get_or_insert_with(|| error.to_string()).clone();
        self.channel.socket().shutdown(Shutdown::Both);
        self.turns.iter().for_each(Condvar::notify_all);
        self.slot_free.notify_all();
        lost(&why)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if lock(&self.state).broken.is_some() {
            return;
        }
        let ask = Ask { command: command::DISC, flags: CommandFlags::empty(), offset: 0, len: 0 };
        self.channel.end(&[ask.head(0).as_bytes()]);
    }
}

fn lost(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why.to_owned())
}

/// Reads the head of a simple reply or a chunk.
fn read_head(reader: &mut Reader) -> Result<Head> {
    let mut magic = [0; 4];
    reader.read_exact(&mut magic)?;
    match u32::from_be_bytes(magic) {
        wire::SIMPLE_REPLY_MAGIC => {
            let mut bytes = [0; size_of::<SimpleReply>()];
            reader.read_exact(&mut bytes)?;
            let head = SimpleReply::read_from_bytes(&bytes).map_err(|_| Error::protocol("a short reply"))?;
            Ok(Head::Simple { cookie: head.cookie.get(), error: head.error.get() })
        }
        wire::CHUNK_MAGIC => {
            let mut bytes = [0; size_of::<ChunkHead>()];
            reader.read_exact(&mut bytes)?;
            let head = ChunkHead::read_from_bytes(&bytes).map_err(|_| Error::protocol("a short chunk"))?;
            Ok(Head::Chunk {
                cookie: head.cookie.get(),
                done: head.flags.get() & wire::chunk::DONE != 0,
                kind: head.kind.get(),
                len: head.len.get(),
            })
        }
        other => Err(Error::protocol(format!("a reply that begins with {other:#x}"))),
    }
}
