//! Reads and writes of files that nobody waits for: handed to the kernel through io_uring.
//!
//! Constraints: the kernel writes to a request's memory until it completes, so a ring keeps what belongs to a request,
//! and is not gone before the last one has completed. Whoever makes a ring must let it be dropped. What the kernel does
//! in part, or not at all, is done again by the storage itself, which knows of ends of files and of alignment.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::{fmt, io};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::file::IOV_MAX;
use super::{IoBuf, IoSrc, Storage, slice_bufs, slice_srcs};
use crate::Result;

/// Bytes that one request to the kernel has at most: it does no more at once.
const LEN_MAX: u64 = 1 << 30;
/// Bytes of the page cache's pages, or of a part of them.
const PAGE: u64 = 4096;
/// Bytes that are copied to the page cache rather than handed over.
const WRITE_MAX: u64 = 64 << 10;
/// The number of the request that waits for [`Wake`].
const WAKE: u64 = u64::MAX;

/// Memory of a request, and which way the bytes go.
#[derive(Debug)]
pub(crate) enum Memory<'m> {
    Read(Vec<IoBuf<'m>>),
    Write(Vec<IoSrc<'m>>),
}

/// A request for bytes of a storage that has a file.
#[derive(Debug)]
pub(crate) struct Op<'m> {
    pub storage: Arc<dyn Storage>,
    pub offset: u64,
    pub memory: Memory<'m>,
}

impl Memory<'_> {
    fn len(&self) -> u64 {
        match self {
            Memory::Read(bufs) => IoBuf::total(bufs),
            Memory::Write(srcs) => IoSrc::total(srcs),
        }
    }

    fn parts(&self) -> usize {
        match self {
            Memory::Read(bufs) => bufs.len(),
            Memory::Write(srcs) => srcs.len(),
        }
    }

    /// The memory as the kernel takes it.
    fn vectors(&self) -> *const libc::iovec {
        match self {
            Memory::Read(bufs) => IoBuf::vectors(bufs),
            Memory::Write(srcs) => IoSrc::vectors(srcs),
        }
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Memory::Write(_))
    }

    /// Whether a request at `offset` is as a file wants it that goes around the page cache.
    pub(crate) fn is_aligned(&self, offset: u64, alignment: u64) -> bool {
        match self {
            Memory::Read(bufs) => IoBuf::are_aligned(bufs, offset, alignment),
            Memory::Write(srcs) => IoSrc::are_aligned(srcs, offset, alignment),
        }
    }
}

impl Op<'_> {
    /// Whether one request to the kernel can be all of it.
    fn is_one(&self) -> bool {
        self.memory.len() <= LEN_MAX && self.memory.parts() <= IOV_MAX
    }

    /// Ends a request of which the kernel has done `done` bytes: all of it, or the rest here and now.
    fn finish(&self, done: i32) -> Result<()> {
        let (len, done) = (self.memory.len(), u64::try_from(done).unwrap_or(0));
        // Where the kernel ends within a block, the storage begins at the block.
        let done = done - done % self.storage.handle().map_or(1, |handle| handle.alignment);
        match &self.memory {
            _ if done >= len => Ok(()),
            Memory::Read(bufs) => self.storage.readv(self.offset + done, &slice_bufs(bufs, done, len)),
            Memory::Write(srcs) => self.storage.writev(self.offset + done, &slice_srcs(srcs, done, len)),
        }
    }
}

/// Reads what the page cache has, without waiting for a disk; whether it had all.
pub(crate) fn read_at_once(op: &Op<'_>) -> bool {
    is_cached(op, LEN_MAX) && move_at_once(op, libc::RWF_NOWAIT)
}

/// Writes whole pages to the page cache; whether that could be done. It does not wait for a disk, unless the host holds
/// writers back because too much is to be written.
pub(crate) fn write_at_once(op: &Op<'_>) -> bool {
    let whole = op.offset.is_multiple_of(PAGE) && op.memory.len().is_multiple_of(PAGE);
    whole && is_cached(op, WRITE_MAX) && move_at_once(op, 0)
}

fn is_cached(op: &Op<'_>, max: u64) -> bool {
    let alignment = op.storage.handle().map(|handle| handle.alignment);
    alignment == Some(1) && op.is_one() && op.memory.len() <= max
}

/// One call for the whole request; whether it has done all.
fn move_at_once(op: &Op<'_>, flags: libc::c_int) -> bool {
    let file = op.storage.handle().map(|handle| handle.file.as_raw_fd());
    let (Some(file), Ok(offset)) = (file, libc::off_t::try_from(op.offset)) else { return false };
    let (vectors, count) = (op.memory.vectors(), op.memory.parts() as libc::c_int);
    let done = match op.memory {
        // SAFETY: a list of buffers is one of vectors; each is memory that its `IoBuf` vouches for, writable, for longer
        // than the call.
        Memory::Read(_) => unsafe { libc::preadv2(file, vectors, count, offset, flags) },
        // SAFETY: the same of `IoSrc`, readable.
        Memory::Write(_) => unsafe { libc::pwritev2(file, vectors, count, offset, flags) },
    };
    u64::try_from(done).is_ok_and(|done| done == op.memory.len())
}

/// Ends the wait of a ring, from another thread.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    fn new() -> io::Result<Self> {
        // SAFETY: the call takes no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is a new descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn wake(&self) {
        // It fails only where it is set already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// Requests that the kernel has.
pub(crate) struct Ring<'m> {
    ring: IoUring,
    /// By number. The owner's number, and what must stay until the request has completed.
    slots: Vec<Option<(usize, Op<'m>)>>,
    free: Vec<usize>,
    wake: Arc<Wake>,
    /// The ring waits for `wake`.
    armed: bool,
}

impl fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl<'m> Ring<'m> {
    /// A ring for about `depth` requests at once.
    ///
    /// # Errors
    /// The host's: it is too old, or a sandbox forbids it.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth.clamp(8, 4096)).unwrap_or(8).next_power_of_two();
        let mut quick = IoUring::builder();
        // One thread submits and waits, so completions need not interrupt it.
        quick.setup_single_issuer().setup_defer_taskrun();
        let ring = quick.build(entries).or_else(|_| IoUring::new(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let wanted = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::PollAdd::CODE,
        ];
        if !wanted.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut ring =
            Self { ring, slots: Vec::new(), free: Vec::new(), wake: Arc::new(Wake::new()?), armed: false };
        ring.try_out()?;
        Ok(ring)
    }

    /// Hands over a request for nothing: a sandbox may let rings be made and not be used.
    fn try_out(&mut self) -> io::Result<()> {
        if !self.push_entry(&opcode::Nop::new().build()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        while let Err(error) = self.ring.submit_and_wait(1) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.ring.completion().next();
        Ok(())
    }

    /// What ends a wait from another thread.
    pub(crate) fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Requests that have not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a request; `owner` comes back with its completion. It is on its way when somebody waits.
    pub(crate) fn push(&mut self, owner: usize, op: Op<'m>, done: &mut Vec<(usize, Result<()>)>) {
        let file = op.storage.handle().map(|handle| handle.file.as_fd().as_raw_fd());
        let Some(file) = file.filter(|_| op.is_one()) else {
            done.push((owner, op.finish(0)));
            return;
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let entry = entry(&op, types::Fd(file)).user_data(number as u64);
        self.slots[number] = Some((owner, op));
        if !self.push_entry(&entry) {
            // The kernel takes no more: it is done here.
            self.complete(number as u64, 0, done);
        }
    }

    /// Puts an entry into the queue, which is handed over where it is full; whether there was room.
    fn push_entry(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: the file and the memory are kept in the request's slot until it completes, and the ring until then.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    /// Hands over what was pushed and takes what has completed: at least one request, or `wake`, with `wait`.
    pub(crate) fn turn(&mut self, wait: bool, done: &mut Vec<(usize, Result<()>)>) {
        if wait && !self.armed {
            let poll = opcode::PollAdd::new(types::Fd(self.wake.0.as_raw_fd()), libc::POLLIN as u32);
            self.armed = self.push_entry(&poll.build().user_data(WAKE));
        }
        // An error is one of being interrupted or of too little room, both of which go away when completions are taken.
        let _ = self.ring.submit_and_wait(usize::from(wait));
        while let Some(entry) = { self.ring.completion().next() } {
            if entry.user_data() == WAKE {
                self.armed = false;
                self.wake.clear();
            } else {
                self.complete(entry.user_data(), entry.result(), done);
            }
        }
    }

    fn complete(&mut self, number: u64, result: i32, done: &mut Vec<(usize, Result<()>)>) {
        let number = number as usize;
        let Some((owner, op)) = self.slots.get_mut(number).and_then(Option::take) else { return };
        self.free.push(number);
        done.push((owner, op.finish(result)));
    }
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        // The memory is its owner's again only when the kernel has done with it.
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            self.turn(true, &mut done);
        }
    }
}

/// The request as the kernel takes it.
fn entry(op: &Op<'_>, file: types::Fd) -> squeue::Entry {
    let (vectors, count) = (op.memory.vectors(), op.memory.parts() as u32);
    match &op.memory {
        Memory::Read(bufs) => match bufs.as_slice() {
            [one] => {
                let (address, len) = (one.address() as *mut u8, one.len() as u32);
                opcode::Read::new(file, address, len).offset(op.offset).build()
            }
            _ => opcode::Readv::new(file, vectors, count).offset(op.offset).build(),
        },
        Memory::Write(srcs) => match srcs.as_slice() {
            [one] => {
                let (address, len) = (one.address() as *const u8, one.len() as u32);
                opcode::Write::new(file, address, len).offset(op.offset).build()
            }
            _ => opcode::Writev::new(file, vectors, count).offset(op.offset).build(),
        },
    }
}
