//! An export as a storage.
//!
//! It cannot grow. Requests that are not in the server's blocks are made with what the blocks hold beside. What the server
//! said of allocation is remembered for a moment, so that a walk over a sparse disk asks once for many runs; a write
//! forgets it.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use umbra_block::{
    Cancel, Error as BlockError, IoBuf, IoSrc, Result as BlockResult, Run, Storage, StorageInfo, slice_bufs,
    slice_srcs,
};

use super::link::Link;
use crate::address::Address;
use crate::channel::Channel;
use crate::tls::TlsClient;
use crate::wire::{Allocation, CommandFlags, PAYLOAD_MAX, Transmission, command};
use crate::{Error, Result, lock};

/// Bytes of one request here: several are in flight sooner than a great one is done.
const STEP: u64 = 2 << 20;
/// Bytes of one request without data.
const SPAN: u64 = 1 << 30;
/// For how long what the server said of allocation is believed.
const REMEMBERED: Duration = Duration::from_secs(1);
/// What `write_zero_bytes` writes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An export of an NBD server.
pub struct NbdStorage {
    connection: Link,
    name: String,
    read_only: bool,
    /// Requests for parts of blocks, which read and write whole ones.
    part_of_block: Mutex<()>,
    runs: Mutex<Runs>,
    /// Counts changes, so that what was asked before one is not remembered after it.
    changes: AtomicU64,
}

/// What the server said of allocation.
#[derive(Debug)]
struct Runs {
    asked: Instant,
    /// Start, end, and whether there is data.
    list: Vec<(u64, u64, bool)>,
}

impl fmt::Debug for NbdStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdStorage").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NbdStorage {
    /// Connects to an export. `tls` is what its address asks for. An export that the server does not let be written is
    /// opened only with `read_only`.
    ///
    /// # Errors
    /// Nobody answers, no such export, a server that cannot be understood.
    pub fn open(address: &Address, tls: Option<&TlsClient>, read_only: bool) -> Result<Self> {
        let tls = match (&address.tls, tls) {
            (None, _) => None,
            (Some(_), Some(tls)) => Some(tls),
            (Some(_), None) => return Err(Error::Tls(format!("no certificates are there for {address}"))),
        };
        Self::over_link(Link::open(address, tls)?, address.to_string(), read_only)
    }

    /// An export of the server at the other end of a socket that is connected already.
    ///
    /// # Errors
    /// As `open`.
    pub fn over(stream: UnixStream, export: &str, name: impl Into<String>, read_only: bool) -> Result<Self> {
        Self::over_link(Link::over_channel(Channel::plain(stream), export)?, name.into(), read_only)
    }

    fn over_link(connection: Link, name: String, read_only: bool) -> Result<Self> {
        if !read_only && connection.facts().flags.contains(Transmission::READ_ONLY) {
            let what = "request on write denied without write permission: the server exports it read-only";
            return Err(Error::Refused { what: what.to_owned(), message: String::new() });
        }
        let runs = Runs { asked: Instant::now(), list: Vec::new() };
        Ok(Self {
            connection,
            name,
            read_only,
            part_of_block: Mutex::new(()),
            runs: runs.into(),
            changes: AtomicU64::new(0),
        })
    }

    /// When `cancel` is set, a server that says nothing for two seconds has lost the connection: who waits for it is told.
    ///
    /// # Errors
    /// The host's.
    pub fn give_up_when(&self, cancel: Cancel) -> Result<()> {
        self.connection.give_up_when(cancel)
    }

    fn size(&self) -> u64 {
        self.connection.facts().size
    }

    fn block(&self) -> u64 {
        u64::from(self.connection.facts().block_min)
    }

    fn can(&self, flag: Transmission) -> bool {
        self.connection.facts().flags.contains(flag)
    }

    /// The greatest request with data, in whole blocks.
    fn step(&self) -> u64 {
        let max = u64::from(self.connection.facts().payload_max.min(PAYLOAD_MAX)).min(STEP);
        max - max % self.block()
    }

    fn failed(&self, doing: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> BlockError {
        move |error| BlockError::io(doing(), &self.name, error)
    }

    /// Fails for a range that does not lie in the export: it cannot grow.
    fn within(&self, what: &str, offset: u64, len: u64) -> BlockResult<()> {
        match offset.checked_add(len).is_some_and(|end| end <= self.size()) {
            true => Ok(()),
            false => Err(BlockError::io(
                format!("{what} {len} bytes at {offset}, behind the end ({} bytes) of", self.size()),
                &self.name,
                io::ErrorKind::StorageFull.into(),
            )),
        }
    }

    /// Calls `work` with offset and length of each piece, and whether it is whole blocks, of up to a step; others are parts
    /// of one block, at either end.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
        mut work: impl FnMut(u64, u64, bool) -> io::Result<()>,
    ) -> io::Result<()> {
        let (block, step) = (self.block(), self.step());
        let mut done = 0;
        while done < len {
            let (at, left) = (offset + done, len - done);
            let within = at % block;
            let (part, whole) = match within {
                0 if left >= block => (left.min(step) / block * block, true),
                _ => (left.min(block - within), false),
            };
            work(at, part, whole)?;
            done += part;
        }
        Ok(())
    }

    fn read_piece(&self, at: u64, bufs: &[IoBuf<'_>], len: u64, whole: bool) -> io::Result<()> {
        if whole {
            return self.connection.read(at, len as u32, bufs);
        }
        let mut bytes = vec![0; self.block() as usize];
        let within = at % self.block();
        self.connection.read(at - within, bytes.len() as u32, &[IoBuf::new(&mut bytes)])?;
        let mut rest = &bytes[within as usize..];
        for buf in bufs {
            buf.copy_from(rest);
            rest = &rest[buf.len()..];
        }
        Ok(())
    }

    fn write_piece(&self, at: u64, srcs: &[IoSrc<'_>], len: u64, whole: bool) -> io::Result<()> {
        if whole {
            return self.connection.write(at, len as u32, srcs);
        }
        let _alone = lock(&self.part_of_block);
        let mut bytes = vec![0; self.block() as usize];
        let within = at % self.block();
        self.connection.read(at - within, bytes.len() as u32, &[IoBuf::new(&mut bytes)])?;
        let mut rest = &mut bytes[within as usize..];
        for src in srcs {
            src.copy_to(rest);
            rest = &mut rest[src.len()..];
        }
        self.connection.write(at - within, bytes.len() as u32, &[IoSrc::new(&bytes)])
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> BlockResult<()> {
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROES.len() as u64);
            self.writev(offset + done, &[IoSrc::new(&ZEROES[..part as usize])])?;
            done += part;
        }
        Ok(())
    }

    /// Runs a change, before and after which nothing that the server said of allocation counts.
    fn changing<T>(&self, work: impl FnOnce() -> T) -> T {
        let forget = || {
            self.changes.fetch_add(1, Ordering::SeqCst);
            lock(&self.runs).list.clear();
        };
        forget();
        let result = work();
        forget();
        result
    }

    /// Requests without data for the whole blocks of a range; the rest is the caller's: (offset, length) at both ends.
    fn spans(&self, command: u16, flags: CommandFlags, offset: u64, len: u64) -> io::Result<[(u64, u64); 2]> {
        let block = self.block();
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(block), end - end % block);
        if first >= last {
            return Ok([(offset, len), (end, 0)]);
        }
        let mut at = first;
        while at < last {
            let part = (last - at).min(SPAN);
            self.connection.command(command, flags, at, part as u32)?;
            at += part;
        }
        Ok([(offset, first - offset), (last, end - last)])
    }

    fn remembered(&self, offset: u64) -> Option<(u64, bool)> {
        let runs = lock(&self.runs);
        if runs.asked.elapsed() > REMEMBERED {
            return None;
        }
        let at = runs.list.partition_point(|&(_, end, _)| end <= offset);
        let &(start, end, data) = runs.list.get(at)?;
        (start <= offset).then_some((end - offset, data))
    }

    fn ask_runs(&self, context: u32, offset: u64) -> io::Result<(u64, bool)> {
        let block = self.block();
        let start = offset - offset % block;
        let span = (self.size() - start).min(SPAN);
        let before = self.changes.load(Ordering::SeqCst);
        let extents = self.connection.status(start, span as u32, context)?;
        let mut list: Vec<(u64, u64, bool)> = Vec::with_capacity(extents.len());
        let mut at = start;
        for (len, flags) in extents {
            // The last may reach further than was asked, and beyond the end where the server is wrong.
            let end = at.saturating_add(u64::from(len)).min(self.size());
            let data = !Allocation::from_bits_truncate(flags).contains(Allocation::ZERO);
            match list.last_mut() {
                Some(last) if last.2 == data => last.1 = end,
                _ if end > at => list.push((at, end, data)),
                _ => break,
            }
            at = end;
        }
        // The run that is asked for is the first, if the blocks are right.
        let found =
            list.iter().find(|&&(_, end, _)| end > offset).map(|&(_, end, data)| (end - offset, data));
        let mut runs = lock(&self.runs);
        if self.changes.load(Ordering::SeqCst) == before {
            *runs = Runs { asked: Instant::now(), list };
        }
        Ok(found.unwrap_or((self.size() - offset, true)))
    }
}

impl Storage for NbdStorage {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> BlockResult<()> {
        let total: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        let len = self.size().saturating_sub(offset).min(total);
        slice_bufs(bufs, len, total - len).iter().for_each(IoBuf::zero);
        self.pieces(offset, len, |at, part, whole| {
            self.read_piece(at, &slice_bufs(bufs, at - offset, part), part, whole)
        })
        .map_err(self.failed(|| format!("read {total} bytes at {offset} of")))
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> BlockResult<()> {
        let total: u64 = srcs.iter().map(|src| src.len() as u64).sum();
        self.within("write", offset, total)?;
        self.changing(|| {
            self.pieces(offset, total, |at, part, whole| {
                self.write_piece(at, &slice_srcs(srcs, at - offset, part), part, whole)
            })
        })
        .map_err(self.failed(|| format!("write {total} bytes at {offset} of")))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> BlockResult<()> {
        self.within("write", offset, len)?;
        if !self.can(Transmission::SEND_WRITE_ZEROES) {
            return self.write_zero_bytes(offset, len);
        }
        let flags = if unmap { CommandFlags::empty() } else { CommandFlags::NO_HOLE };
        let ends = self
            .changing(|| self.spans(command::WRITE_ZEROES, flags, offset, len))
            .map_err(self.failed(|| format!("write {len} zeroes at {offset} of")))?;
        ends.into_iter().try_for_each(|(at, len)| self.write_zero_bytes(at, len))
    }

    fn discard(&self, offset: u64, len: u64) -> BlockResult<()> {
        let len = self.size().saturating_sub(offset).min(len);
        if len == 0 || !self.can(Transmission::SEND_TRIM) {
            return Ok(());
        }
        self.changing(|| self.spans(command::TRIM, CommandFlags::empty(), offset, len))
            .map(drop)
            .map_err(self.failed(|| format!("discard {len} bytes at {offset} of")))
    }

    fn allocate(&self, offset: u64, len: u64) -> BlockResult<()> {
        // What the server has reserved is its own affair.
        self.within("reserve", offset, len)
    }

    fn len(&self) -> BlockResult<u64> {
        Ok(self.size())
    }

    fn set_len(&self, len: u64) -> BlockResult<()> {
        match len <= self.size() {
            true => Ok(()),
            false => Err(BlockError::Refused("Cannot grow NBD nodes".to_owned())),
        }
    }

    fn flush(&self) -> BlockResult<()> {
        if self.read_only || !self.can(Transmission::SEND_FLUSH) {
            return Ok(());
        }
        self.connection
            .command(command::FLUSH, CommandFlags::empty(), 0, 0)
            .map_err(self.failed(|| "flush".to_owned()))
    }

    fn run(&self, offset: u64, len: u64) -> BlockResult<Run> {
        if offset >= self.size() {
            return Ok(Run { data: false, len });
        }
        let Some(context) = self.connection.facts().allocation else {
            return Ok(Run { data: true, len: len.min(self.size() - offset) });
        };
        let (have, data) = match self.remembered(offset) {
            Some(run) => run,
            None => self
                .ask_runs(context, offset)
                .map_err(self.failed(|| format!("ask what is at {offset} of")))?,
        };
        Ok(Run { data, len: have.min(len) })
    }

    fn info(&self) -> StorageInfo {
        StorageInfo {
            name: self.name.clone(),
            alignment: 1,
            read_only: self.read_only,
            allocated: None,
            fixed_len: true,
            identity: None,
        }
    }
}
