//! Bytes at offsets: the trait, and the storages of this crate.
//!
//! A storage reads as zeroes behind its end and grows when it is written there, so that formats need not know where a
//! file ends. All calls take `&self` and may come from many threads; calls that overlap are the caller's to keep apart.

mod buf;
mod file;
mod guessed;
mod lock;
mod memory;
mod recording;
mod ring;

#[cfg(test)]
mod file_test;

use std::fmt;
use std::os::fd::BorrowedFd;

pub use buf::{IoBuf, IoSrc, slice_bufs, slice_srcs};
pub use file::{FileStorage, FileStorageSpec};
pub(crate) use guessed::GuessedRaw;
pub use lock::LockMode;
pub use memory::MemoryStorage;
pub use recording::{Recorder, RecordingStorage};
pub(crate) use ring::{Memory, Op, Ring, Wake, read_at_once, write_at_once};

use crate::Result;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// What a storage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageInfo {
    /// Its name, for messages.
    pub name: String,
    /// Offsets, lengths and addresses of requests must be multiples of this (1 without O_DIRECT).
    pub alignment: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Bytes that the host has allocated for it, where it knows.
    pub allocated: Option<u64>,
    /// Whether its length is fixed (a block device).
    pub fixed_len: bool,
    /// What it is, where two names could mean the same: (device, inode). Chains are searched for loops by it.
    pub identity: Option<(u64, u64)>,
}

/// A run of data or of a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whether it may hold other bytes than zeroes.
    pub data: bool,
    /// Its length, at least 1.
    pub len: u64,
}

/// A file to which requests may go around its storage.
#[derive(Debug, Clone, Copy)]
pub struct FileHandle<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Offsets, lengths and addresses of requests must be multiples of this.
    pub alignment: u64,
}

/// Bytes at offsets.
// Whether it is empty is nothing that anybody asks.
#[allow(clippy::len_without_is_empty)]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Fills all buffers, the first byte from `offset`; zeroes behind the end.
    ///
    /// # Errors
    /// The host's.
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()>;

    /// Writes all buffers, the first byte to `offset`; grows where needed.
    ///
    /// # Errors
    /// The host's; part of it may be written.
    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()>;

    /// Makes a range read as zeroes, by a hole with `unmap`, allocated otherwise where the host can. Grows where needed.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;

    /// Gives the space of a range back where the host can. It reads as zeroes or as before afterwards.
    ///
    /// # Errors
    /// The host's; a host that cannot is none.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Reserves space for a range, which keeps its content; grows where needed.
    ///
    /// # Errors
    /// The host's; no space.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// The host's.
    fn len(&self) -> Result<u64>;

    /// Cuts or grows it (with a hole).
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The host's. What was written since the last flush may be lost then.
    fn flush(&self) -> Result<()>;

    /// What is at `offset`, for up to `len` bytes. Behind the end is a hole.
    ///
    /// # Errors
    /// The host's.
    fn run(&self, offset: u64, len: u64) -> Result<Run>;

    /// What it is.
    fn info(&self) -> StorageInfo;

    /// The file, where reads and writes may go to the kernel as they are, offset for offset.
    fn handle(&self) -> Option<FileHandle<'_>> {
        None
    }
}

/// Calls with plain slices, for metadata.
pub trait StorageExt: Storage {
    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// As [`Storage::readv`].
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.readv(offset, &[IoBuf::new(bytes)])
    }

    /// Writes `bytes` to `offset`.
    ///
    /// # Errors
    /// As [`Storage::writev`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writev(offset, &[IoSrc::new(bytes)])
    }

    /// `len` bytes from `offset`, in a new vector. The caller has bounded `len`.
    ///
    /// # Errors
    /// As [`Storage::readv`].
    fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}
