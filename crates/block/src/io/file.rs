//! Files and block devices of the host.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{
    Access, FileHandle, IoBuf, IoSrc, LockMode, Run, Storage, StorageInfo, lock, slice_bufs, slice_srcs,
};
use crate::{Error, Result};

/// Buffers that one request to the kernel takes.
pub(super) const IOV_MAX: usize = 1024;
/// Zeroes that are written where the host has no better way.
static ZEROES: [u8; 65536] = [0; 65536];

/// How to open a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStorageSpec {
    /// For what.
    pub access: Access,
    /// Around the page cache (O_DIRECT).
    pub direct: bool,
    /// Whom to keep out.
    pub lock: LockMode,
}

impl FileStorageSpec {
    /// With the page cache, locked.
    pub fn new(access: Access) -> Self {
        Self { access, direct: false, lock: LockMode::Exclusive }
    }
}

/// A file or block device of the host.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
    read_only: bool,
    block_device: bool,
    alignment: u64,
    /// Length of a block device, and the greatest length of a file that we have seen: reads beyond need no call.
    device_len: AtomicU64,
    /// Held while a part of a block is written around the page cache: the rest of the block is read and written too.
    part_of_block: Mutex<()>,
}

/// A hole, which does not make the file longer.
const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// What O_DIRECT wants of offsets, lengths and addresses.
const DIRECT_ALIGN: u64 = 4096;
/// Bytes that are copied at once where they are not aligned.
const BOUNCE: u64 = 1 << 20;

/// Aligned memory for O_DIRECT.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: u64) -> Self {
        let bytes = vec![0; (len + DIRECT_ALIGN) as usize];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN as usize);
        Self { bytes, start }
    }

    fn get(&mut self, len: u64) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len as usize]
    }
}

impl FileStorage {
    /// Opens a file that is there.
    ///
    /// # Errors
    /// The host's, or [`Error::Locked`].
    pub fn open(path: impl AsRef<Path>, spec: &FileStorageSpec) -> Result<Self> {
        let write = spec.access == Access::ReadWrite;
        let mut options = OpenOptions::new();
        // What is no file is refused, and not waited for: opening a pipe would wait for whoever else opens it.
        let direct = if spec.direct { libc::O_DIRECT } else { 0 };
        options.read(true).write(write).custom_flags(libc::O_NONBLOCK | direct);
        Self::with(path.as_ref(), &options, spec)
    }

    /// Makes a new file, or empties the one that is there if nobody uses it.
    ///
    /// # Errors
    /// The host's, or [`Error::Locked`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
        let storage = Self::with(path.as_ref(), &options, &FileStorageSpec::new(Access::ReadWrite))?;
        if !storage.block_device {
            storage.set_len(0)?;
        }
        Ok(storage)
    }

    /// A file that somebody else has opened.
    ///
    /// # Errors
    /// The host's, or [`Error::Locked`].
    pub fn from_file(file: File, name: impl Into<String>, spec: &FileStorageSpec) -> Result<Self> {
        let name = name.into();
        let meta = file.metadata().map_err(|error| Error::io("look at", &name, error))?;
        if meta.is_dir() {
            return Err(Error::io("open", &name, io::ErrorKind::IsADirectory.into()));
        }
        if meta.file_type().is_fifo() || meta.file_type().is_socket() {
            let reason =
                io::Error::other("it is a pipe or a socket, and an image is a file or a block device");
            return Err(Error::io("open", &name, reason));
        }
        if spec.lock == LockMode::Exclusive {
            lock::lock(file.as_fd(), &name, spec.access == Access::ReadWrite)?;
        }
        let block_device = meta.file_type().is_block_device();
        let storage = Self {
            file,
            name,
            read_only: spec.access == Access::Read,
            block_device,
            alignment: if spec.direct { DIRECT_ALIGN } else { 1 },
            device_len: AtomicU64::new(0),
            part_of_block: Mutex::new(()),
        };
        if block_device {
            let len = rustix::fs::seek(&storage.file, SeekFrom::End(0));
            let len = len.map_err(|error| storage.error("find the size of", error))?;
            storage.device_len.store(len, Ordering::Relaxed);
        }
        Ok(storage)
    }

    fn with(path: &Path, options: &OpenOptions, spec: &FileStorageSpec) -> Result<Self> {
        let name = path.display().to_string();
        let file = options.open(path).map_err(|error| Error::io("open", &name, error))?;
        Self::from_file(file, name, spec)
    }

    /// The name that it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn error(&self, doing: impl Into<String>, error: impl Into<io::Error>) -> Error {
        Error::io(doing, &self.name, error.into())
    }

    /// One `preadv`, of as many bytes as it gives.
    fn read_some(&self, offset: u64, bufs: &[IoBuf<'_>]) -> io::Result<usize> {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = bufs.len().min(IOV_MAX) as libc::c_int;
        // SAFETY: a list of buffers is one of vectors; each is memory that its `IoBuf` vouches for, writable, for longer
        // than the call.
        let got = unsafe { libc::preadv(self.file.as_raw_fd(), IoBuf::vectors(bufs), count, at) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// One `pwritev`, of as many bytes as it takes.
    fn write_some(&self, offset: u64, srcs: &[IoSrc<'_>]) -> io::Result<usize> {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = srcs.len().min(IOV_MAX) as libc::c_int;
        // SAFETY: a list of sources is one of vectors; each is memory that its `IoSrc` vouches for, readable, for longer
        // than the call.
        let put = unsafe { libc::pwritev(self.file.as_raw_fd(), IoSrc::vectors(srcs), count, at) };
        usize::try_from(put).map_err(|_| io::Error::last_os_error())
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> rustix::io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Err(Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Reads through aligned memory.
    fn read_bounced(&self, offset: u64, bufs: &[IoBuf<'_>], total: u64) -> Result<()> {
        let mut bounce = Aligned::new(BOUNCE + 2 * DIRECT_ALIGN);
        let mut done = 0;
        while done < total {
            let part = (total - done).min(BOUNCE);
            let at = offset + done;
            let (start, span) = blocks_of(at, part);
            let bytes = bounce.get(span);
            self.read_aligned(start, bytes)?;
            let mut rest = &bytes[(at - start) as usize..(at - start + part) as usize];
            for buf in slice_bufs(bufs, done, part) {
                buf.copy_from(rest);
                rest = &rest[buf.len()..];
            }
            done += part;
        }
        Ok(())
    }

    /// Fills aligned memory from an aligned offset; zeroes behind the end.
    fn read_aligned(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read_some(offset + done as u64, &[IoBuf::new(&mut bytes[done..])]) {
                // Less than whole blocks: the file has ended.
                Ok(got) if (got as u64).is_multiple_of(DIRECT_ALIGN) && got > 0 => done += got,
                Ok(got) => {
                    bytes[done + got..].fill(0);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(self.error(format!("read {} bytes at {offset} of", bytes.len()), error));
                }
            }
        }
        Ok(())
    }

    /// Writes through aligned memory, with what the first and the last block hold beside.
    fn write_bounced(&self, offset: u64, srcs: &[IoSrc<'_>], total: u64) -> Result<()> {
        let _alone = self.part_of_block.lock().unwrap_or_else(|poison| poison.into_inner());
        let old_len = self.len()?;
        let mut bounce = Aligned::new(BOUNCE + 2 * DIRECT_ALIGN);
        let mut done = 0;
        while done < total {
            let part = (total - done).min(BOUNCE);
            let at = offset + done;
            let (start, span) = blocks_of(at, part);
            let bytes = bounce.get(span);
            self.read_aligned(start, bytes)?;
            let mut rest = &mut bytes[(at - start) as usize..];
            for src in slice_srcs(srcs, done, part) {
                src.copy_to(rest);
                rest = &mut rest[src.len()..];
            }
            self.write_all(start, &[IoSrc::new(bounce.get(span))], span)?;
            done += part;
        }
        // The last block is written whole, and the file shall not be longer for it.
        let end = (offset + total).max(old_len);
        if self.block_device || end.is_multiple_of(DIRECT_ALIGN) { Ok(()) } else { self.set_len(end) }
    }

    fn write_all(&self, mut offset: u64, srcs: &[IoSrc<'_>], total: u64) -> Result<()> {
        let mut done = 0;
        let mut rest = std::borrow::Cow::Borrowed(srcs);
        while done < total {
            match self.write_some(offset, &rest) {
                Ok(0) => {
                    let error = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(self.error(format!("write {total} bytes at {offset} of"), error));
                }
                Ok(put) => {
                    done += put as u64;
                    offset += put as u64;
                    if done < total {
                        rest = slice_srcs(srcs, done, total).into();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(format!("write {total} bytes at {offset} of"), error)),
            }
        }
        Ok(())
    }

    fn write_zero_bytes(&self, mut offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        while offset < end {
            let part = (end - offset).min(ZEROES.len() as u64);
            self.writev(offset, &[IoSrc::new(&ZEROES[..part as usize])])?;
            offset += part;
        }
        Ok(())
    }
}

/// The blocks that a range touches: start and length.
fn blocks_of(at: u64, len: u64) -> (u64, u64) {
    let start = at - at % DIRECT_ALIGN;
    (start, (at + len).next_multiple_of(DIRECT_ALIGN) - start)
}

/// Whether the host says that it cannot do this on this file.
fn cannot(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL | Errno::PERM | Errno::BADF)
}

impl Storage for FileStorage {
    fn readv(&self, mut offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let total = IoBuf::total(bufs);
        if !IoBuf::are_aligned(bufs, offset, self.alignment) {
            return self.read_bounced(offset, bufs, total);
        }
        let mut done = 0;
        let mut rest = std::borrow::Cow::Borrowed(bufs);
        while done < total {
            match self.read_some(offset, &rest) {
                Ok(0) => {
                    slice_bufs(bufs, done, total).iter().for_each(IoBuf::zero);
                    return Ok(());
                }
                Ok(got) => {
                    done += got as u64;
                    offset += got as u64;
                    if !offset.is_multiple_of(self.alignment) {
                        // Around the page cache a part of a block is only read at the file's end.
                        slice_bufs(bufs, done, total).iter().for_each(IoBuf::zero);
                        return Ok(());
                    }
                    if done < total {
                        rest = slice_bufs(bufs, done, total).into();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(format!("read {total} bytes at {offset} of"), error)),
            }
        }
        Ok(())
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        let total = IoSrc::total(srcs);
        if IoSrc::are_aligned(srcs, offset, self.alignment) {
            return self.write_all(offset, srcs, total);
        }
        self.write_bounced(offset, srcs, total)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let doing = || format!("write {len} zeroes at {offset} of");
        if unmap {
            let end = offset.saturating_add(len);
            if !self.block_device && self.len()? < end {
                self.set_len(end)?;
            }
            match self.fallocate(HOLE, offset, len) {
                Ok(()) => return Ok(()),
                Err(error) if cannot(error) => {}
                Err(error) => return Err(self.error(doing(), error)),
            }
        }
        match self.fallocate(FallocateFlags::ZERO_RANGE, offset, len) {
            Ok(()) => Ok(()),
            Err(error) if cannot(error) => self.write_zero_bytes(offset, len),
            Err(error) => Err(self.error(doing(), error)),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.fallocate(HOLE, offset, len) {
            Ok(()) => Ok(()),
            Err(error) if cannot(error) => Ok(()),
            Err(error) => Err(self.error(format!("discard {len} bytes at {offset} of"), error)),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.block_device {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::empty(), offset, len) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.error(format!("reserve {len} bytes at {offset} of"), error)),
        }
    }

    fn len(&self) -> Result<u64> {
        if self.block_device {
            return Ok(self.device_len.load(Ordering::Relaxed));
        }
        Ok(self.file.metadata().map_err(|error| self.error("look at", error))?.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.block_device {
            let have = self.device_len.load(Ordering::Relaxed);
            return if len <= have {
                Ok(())
            } else {
                Err(self.error("grow the block device", io::Error::from(io::ErrorKind::StorageFull)))
            };
        }
        self.file.set_len(len).map_err(|error| self.error(format!("set the length ({len}) of"), error))
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| self.error("flush", error))
    }

    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        if self.block_device {
            return Ok(Run { data: true, len });
        }
        let until = |end: u64| (end.saturating_sub(offset)).clamp(1, len.max(1));
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => return Ok(Run { data: false, len: until(data) }),
            Ok(_) => {}
            // Nothing but a hole up to the end, or behind it.
            Err(Errno::NXIO) => return Ok(Run { data: false, len }),
            Err(_) => return Ok(Run { data: true, len }),
        }
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Ok(Run { data: true, len: until(hole) }),
            _ => Ok(Run { data: true, len }),
        }
    }

    fn info(&self) -> StorageInfo {
        let meta = self.file.metadata().ok();
        StorageInfo {
            name: self.name.clone(),
            alignment: self.alignment,
            read_only: self.read_only,
            allocated: meta.as_ref().map(|meta| meta.blocks().saturating_mul(512)),
            fixed_len: self.block_device,
            identity: meta.map(|meta| (meta.dev(), meta.ino())),
        }
    }

    fn handle(&self) -> Option<FileHandle<'_>> {
        Some(FileHandle { file: self.file.as_fd(), alignment: self.alignment })
    }
}
