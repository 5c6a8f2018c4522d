//! What comes back for one request, chunk by chunk, checked against what was asked.
//!
//! Authority: `doc/proto.md`, "Structured reply message" and "Structured reply types".

use std::io::{self, Read};

use umbra_block::{IoBuf, slice_bufs};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::connection::{Ask, Reader};
use crate::wire::{self, ExtentWord, STRING_MAX, chunk, command, errno};
use crate::{Error, Result};

/// Bytes that are taken from the connection at once; they stay in a processor's cache.
const BOUNCE: usize = 64 << 10;
/// Pieces of a read that came out of order and touch no other.
const PIECES_MAX: usize = 1024;
/// Errors in one reply that are read.
const ERRORS_MAX: usize = 64;
/// Extents of one reply that are kept, and that are read.
const EXTENTS_KEPT: usize = 8192;
const EXTENTS_MAX: u32 = 1 << 21;

/// The head of a reply or of a chunk of one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Head {
    Simple { cookie: u64, error: u32 },
    Chunk { cookie: u64, done: bool, kind: u16, len: u32 },
}

impl Head {
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => *cookie,
        }
    }
}

/// Where what comes back goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    Nothing,
    Data(&'a [IoBuf<'a>]),
    /// Extents in a context.
    Extents(u32),
}

/// A reply in the making.
pub(crate) struct Taken<'a> {
    command: u16,
    offset: u64,
    len: u32,
    structured: bool,
    payload: Payload<'a>,
    /// What of a read has come: starts and ends, in order, none touching another.
    pieces: Vec<(u64, u64)>,
    extents: Vec<(u32, u32)>,
    told_extents: bool,
    error: Option<(u32, String)>,
    errors: usize,
}

/// Begins a reply to `ask`.
pub(crate) fn take<'a>(ask: &Ask, structured: bool, payload: Payload<'a>) -> Taken<'a> {
    Taken {
        command: ask.command,
        offset: ask.offset,
        len: ask.len,
        structured,
        payload,
        pieces: Vec::new(),
        extents: Vec::new(),
        told_extents: false,
        error: None,
        errors: 0,
    }
}

fn number<T: FromBytes + FromZeros + IntoBytes>(reader: &mut Reader) -> Result<T> {
    let mut value = T::new_zeroed();
    reader.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

impl Taken<'_> {
    /// Takes what follows a head; whether the reply is complete.
    ///
    /// # Errors
    /// What ends the connection. An error of the request itself comes with `finish`.
    pub fn take(&mut self, head: Head, reader: &mut Reader) -> Result<bool> {
        match head {
            Head::Simple { error, .. } => {
                if self.structured && self.command == command::READ {
                    return Err(Error::protocol("a simple reply to a read"));
                }
                if error != 0 {
                    self.error = Some((error, String::new()));
                } else if self.command == command::BLOCK_STATUS {
                    return Err(Error::protocol("a status without extents"));
                } else {
                    self.data(0, u64::from(self.len), reader)?;
                }
                Ok(true)
            }
            Head::Chunk { .. } if !self.structured => Err(Error::protocol("a chunk that was not negotiated")),
            Head::Chunk { done, kind, len, .. } => {
                self.chunk(kind, len, done, reader)?;
                if done && self.error.is_none() {
                    self.check_complete()?;
                }
                Ok(done)
            }
        }
    }

    /// The extents, if there are any; the error that the server told.
    pub fn finish(self) -> io::Result<Vec<(u32, u32)>> {
        match self.error {
            None => Ok(self.extents),
            Some((code, message)) => Err(told(code, &message)),
        }
    }

    fn chunk(&mut self, kind: u16, len: u32, done: bool, reader: &mut Reader) -> Result<()> {
        let is_read = self.command == command::READ;
        match kind {
            chunk::NONE if len == 0 && done => Ok(()),
            chunk::OFFSET_DATA if is_read && len > 8 => {
                let offset: U64 = number(reader)?;
                self.piece(offset.get(), u64::from(len - 8), Some(reader))
            }
            chunk::OFFSET_HOLE if is_read && len == 12 => {
                let offset: U64 = number(reader)?;
                let hole: U32 = number(reader)?;
                self.piece(offset.get(), u64::from(hole.get()), None)
            }
            chunk::BLOCK_STATUS if len >= 12 && len % 8 == 4 => self.status((len - 4) / 8, reader),
            kind if kind & chunk::ERROR_BIT != 0 && len >= 6 => self.failure(kind, len, reader),
            _ => Err(Error::protocol(format!("a chunk of kind {kind} and {len} bytes"))),
        }
    }

    /// Takes a part of a read, which came with data or is a hole.
    fn piece(&mut self, offset: u64, len: u64, data: Option<&mut Reader>) -> Result<()> {
        let wrong = || Error::protocol("data that was not asked for");
        let start = offset.checked_sub(self.offset).ok_or_else(wrong)?;
        let end = start.checked_add(len).filter(|&end| end <= u64::from(self.len)).ok_or_else(wrong)?;
        if len == 0 {
            return Err(wrong());
        }
        self.note(start, end)?;
        match (data, self.payload) {
            (Some(reader), _) => self.data(start, len, reader),
            (None, Payload::Data(bufs)) => {
                slice_bufs(bufs, start, len).iter().for_each(IoBuf::zero);
                Ok(())
            }
            (None, _) => Err(wrong()),
        }
    }

    /// Remembers what has come, so that nothing comes twice and nothing is missing.
    fn note(&mut self, start: u64, end: u64) -> Result<()> {
        let at = self.pieces.partition_point(|&(_, before)| before < start);
        let overlaps = |piece: Option<&(u64, u64)>| piece.is_some_and(|&(from, to)| from < end && start < to);
        if overlaps(self.pieces.get(at)) || overlaps(self.pieces.get(at + 1)) {
            return Err(Error::protocol("the same data twice"));
        }
        let joins_before = self.pieces.get(at).is_some_and(|&(_, before)| before == start);
        let behind = if joins_before { at + 1 } else { at };
        let joins_behind = self.pieces.get(behind).is_some_and(|&(from, _)| from == end);
        match (joins_before, joins_behind) {
            (true, true) => {
                self.pieces[at].1 = self.pieces[behind].1;
                self.pieces.remove(behind);
            }
            (true, false) => self.pieces[at].1 = end,
            (false, true) => self.pieces[behind].0 = start,
            (false, false) if self.pieces.len() < PIECES_MAX => self.pieces.insert(at, (start, end)),
            (false, false) => return Err(Error::protocol("data in too many pieces")),
        }
        Ok(())
    }

    /// Takes `len` bytes of data, from `start` of what was asked on.
    fn data(&mut self, start: u64, len: u64, reader: &mut Reader) -> Result<()> {
        let Payload::Data(bufs) = self.payload else { return Ok(()) };
        let mut bounce = vec![0; BOUNCE.min(usize::try_from(len).unwrap_or(BOUNCE))];
        for buf in slice_bufs(bufs, start, len) {
            let mut rest = buf;
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(bounce.len());
                let bytes = &mut bounce[..part.len()];
                reader.read_exact(bytes)?;
                part.copy_from(bytes);
                rest = behind;
            }
        }
        Ok(())
    }

    fn status(&mut self, count: u32, reader: &mut Reader) -> Result<()> {
        let Payload::Extents(context) = self.payload else {
            return Err(Error::protocol("extents that were not asked for"));
        };
        let id: U32 = number(reader)?;
        if id.get() != context || self.told_extents || count > EXTENTS_MAX {
            return Err(Error::protocol(format!("{count} extents of context {}", id.get())));
        }
        self.told_extents = true;
        for _ in 0..count {
            let extent: ExtentWord = number(reader)?;
            if extent.len.get() == 0 {
                return Err(Error::protocol("an extent of no length"));
            }
            if self.extents.len() < EXTENTS_KEPT {
                self.extents.push((extent.len.get(), extent.flags.get()));
            }
        }
        Ok(())
    }

    fn failure(&mut self, kind: u16, len: u32, reader: &mut Reader) -> Result<()> {
        self.errors += 1;
        let code: U32 = number(reader)?;
        let message_len: U16 = number(reader)?;
        let behind = if kind == chunk::ERROR_OFFSET { 8 } else { 0 };
        let rest = len - 6;
        let message_len = u32::from(message_len.get());
        // Kinds that are not known may say more behind the message.
        let fits = match kind {
            chunk::ERROR | chunk::ERROR_OFFSET => message_len.checked_add(behind) == Some(rest),
            _ => message_len <= rest,
        };
        if !fits || rest > 2 * STRING_MAX as u32 || self.errors > ERRORS_MAX || code.get() == 0 {
            return Err(Error::protocol("an error that is none"));
        }
        let mut bytes = vec![0; rest as usize];
        reader.read_exact(&mut bytes)?;
        bytes.truncate(message_len as usize);
        // The first one counts.
        self.error.get_or_insert_with(|| (code.get(), wire::shown(&bytes)));
        Ok(())
    }

    fn check_complete(&self) -> Result<()> {
        let whole = [(0, u64::from(self.len))];
        match self.command {
            command::READ if self.len > 0 && self.pieces != whole => {
                Err(Error::protocol("a part of a read is missing"))
            }
            command::BLOCK_STATUS if !self.told_extents => Err(Error::protocol("a status without extents")),
            _ => Ok(()),
        }
    }
}

/// An error that a server told, in the host's own kind.
fn told(code: u32, message: &str) -> io::Error {
    // The numbers are the host's. What is not known means a wrong argument.
    let code = if errno::ALL.contains(&code) { code } else { errno::EINVAL };
    let error = io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(0));
    match message.is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{} ({message})", crate::error::plain(&error))),
    }
}
