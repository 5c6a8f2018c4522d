//! Replies to requests, simple or in chunks.

use std::io;

use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32, U64};

use super::session::Session;
use crate::lock;
use crate::wire::{self, ChunkHead, ExtentWord, SimpleReply, chunk};

/// The reply to one request.
pub struct Reply<'s, 'a> {
    session: &'s Session<'a>,
    cookie: u64,
}

/// An error of a request: its number, and words for it.
#[derive(Debug, Clone, Copy)]
pub struct Failure(pub u32, pub &'static str);

impl<'s, 'a> Reply<'s, 'a> {
    /// To the request of that cookie.
    pub fn to(session: &'s Session<'a>, cookie: u64) -> Self {
        Self { session, cookie }
    }

    fn structured(&self) -> bool {
        self.session.agreed.structured
    }

    fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _whole = lock(&self.session.writing);
        self.session.agreed.channel.send(parts)
    }

    fn simple(&self, error: u32, data: &[u8]) -> io::Result<()> {
        let head = SimpleReply { error: U32::new(error), cookie: U64::new(self.cookie) };
        self.send(&[&[U32::new(wire::SIMPLE_REPLY_MAGIC).as_bytes(), head.as_bytes()].concat(), data])
    }

    fn chunk(&self, done: bool, kind: u16, front: &[u8], data: &[u8]) -> io::Result<()> {
        let head = ChunkHead {
            flags: U16::new(if done { chunk::DONE } else { 0 }),
            kind: U16::new(kind),
            cookie: U64::new(self.cookie),
            // Data is bounded by a request, and so is what stands in front of it.
            len: U32::new((front.len() + data.len()) as u32),
        };
        self.send(&[&[U32::new(wire::CHUNK_MAGIC).as_bytes(), head.as_bytes(), front].concat(), data])
    }

    /// It is done, and there is nothing to tell.
    pub fn done(&self) -> io::Result<()> {
        if self.structured() { self.chunk(true, chunk::NONE, &[], &[]) } else { self.simple(0, &[]) }
    }

    /// It failed.
    pub fn failed(&self, Failure(code, message): Failure) -> io::Result<()> {
        if !self.structured() {
            return self.simple(code, &[]);
        }
        // The words are ours, and short.
        let front = [U32::new(code).as_bytes(), U16::new(message.len() as u16).as_bytes()].concat();
        self.chunk(true, chunk::ERROR, &front, message.as_bytes())
    }

    /// All of a read's data.
    pub fn whole(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.structured() { self.data(offset, data, true) } else { self.simple(0, data) }
    }

    /// A part of a read's data.
    pub fn data(&self, offset: u64, data: &[u8], done: bool) -> io::Result<()> {
        self.chunk(done, chunk::OFFSET_DATA, U64::new(offset).as_bytes(), data)
    }

    /// A part of a read that is zero.
    pub fn hole(&self, offset: u64, len: u32, done: bool) -> io::Result<()> {
        let front = [U64::new(offset).as_bytes(), U32::new(len).as_bytes()].concat();
        self.chunk(done, chunk::OFFSET_HOLE, &front, &[])
    }

    /// Extents in a context: lengths and flags.
    pub fn extents(&self, context: u32, extents: &[(u32, u32)], done: bool) -> io::Result<()> {
        let words: Vec<ExtentWord> = extents
            .iter()
            .map(|&(len, flags)| ExtentWord { len: U32::new(len), flags: U32::new(flags) })
            .collect();
        self.chunk(done, chunk::BLOCK_STATUS, U32::new(context).as_bytes(), words.as_bytes())
    }
}
