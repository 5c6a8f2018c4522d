//! One request to a disk (section 5.2.6): a head, data, a status byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use umbra_block::{Disk, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::SERIAL_LEN;
use super::config::{RANGE_SECTORS_MAX, RANGES_MAX, REQUEST_MAX, SECTOR};
use crate::Chain;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Write zeroes: the space may be given back.
const UNMAP: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// Bytes of the head.
const HEAD_LEN: u64 = size_of::<Head>() as u64;

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Range {
    sector: U64,
    sectors: U32,
    flags: U32,
}

const RANGE_LEN: u64 = size_of::<Range>() as u64;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

impl From<Result<()>> for Status {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Status::Ok,
            // The guest learns that it failed, as from a disk. It is the guest's to tell of it.
            Err(_) => Status::Error,
        }
    }
}

/// What requests are carried out on.
pub(super) struct Target {
    pub(super) disk: Arc<Disk>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) serial: [u8; SERIAL_LEN],
    /// What is written is durable before the request ends.
    pub(super) write_through: AtomicBool,
}

impl Target {
    /// Carries out a request and gives it back.
    pub(super) fn serve(&self, chain: Chain) {
        let mut head = Head::new_zeroed();
        let Some(room) = chain.writable_len().checked_sub(1) else { return chain.refuse() };
        if chain.read(0, head.as_mut_bytes()) < HEAD_LEN as usize {
            return chain.refuse();
        }
        let sector = head.sector.get();
        let (status, written) = match head.kind.get() {
            READ => self.read(&chain, sector, room),
            WRITE => (self.write(&chain, sector), 0),
            FLUSH => (self.disk.flush().into(), 0),
            GET_ID => (Status::Ok, chain.write(0, &self.serial[..SERIAL_LEN.min(room as usize)]) as u64),
            kind @ (DISCARD | WRITE_ZEROES) => (self.ranges(&chain, kind == DISCARD), 0),
            _ => (Status::Unsupported, 0),
        };
        chain.write(room, &[status as u8]);
        // Bytes from the first on that were surely written: the status is the last of all.
        let written = if written == room { room + 1 } else { written };
        chain.complete(written as u32);
    }

    /// The offset of `len` bytes at `sector`, if they are whole sectors of the disk and not too many.
    fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len / SECTOR)?;
        let good = len.is_multiple_of(SECTOR) && len <= REQUEST_MAX && end <= self.sectors;
        good.then(|| sector * SECTOR)
    }

    fn read(&self, chain: &Chain, sector: u64, len: u64) -> (Status, u64) {
        let Some(offset) = self.offset(sector, len) else { return (Status::Error, 0) };
        let result = self.disk.readv(offset, &chain.io_bufs(0, len));
        // In part it may be written even where it failed.
        chain.wrote(0, len);
        match result {
            Ok(()) => (Status::Ok, len),
            Err(_) => (Status::Error, 0),
        }
    }

    fn write(&self, chain: &Chain, sector: u64) -> Status {
        let len = chain.readable_len() - HEAD_LEN;
        match self.offset(sector, len) {
            Some(offset) if !self.read_only => {
                self.written(self.disk.writev(offset, &chain.io_srcs(HEAD_LEN, len)))
            }
            _ => Status::Error,
        }
    }

    /// After a change: durable, if the driver wants it so.
    fn written(&self, result: Result<()>) -> Status {
        let through = self.write_through.load(Ordering::Relaxed);
        result.and_then(|()| if through { self.disk.flush() } else { Ok(()) }).into()
    }

    /// Discards or zeroes ranges.
    fn ranges(&self, chain: &Chain, is_discard: bool) -> Status {
        let len = chain.readable_len() - HEAD_LEN;
        if self.read_only || !len.is_multiple_of(RANGE_LEN) || len > RANGE_LEN * u64::from(RANGES_MAX) {
            return Status::Error;
        }
        for at in (0..len).step_by(RANGE_LEN as usize) {
            let mut range = Range::new_zeroed();
            chain.read(HEAD_LEN + at, range.as_mut_bytes());
            let status = self.range(&range, is_discard);
            if status != Status::Ok {
                return status;
            }
        }
        self.written(Ok(()))
    }

    fn range(&self, range: &Range, is_discard: bool) -> Status {
        let (sector, sectors, flags) = (range.sector.get(), range.sectors.get(), range.flags.get());
        if flags & !UNMAP != 0 || is_discard && flags != 0 {
            return Status::Unsupported;
        }
        if sectors > RANGE_SECTORS_MAX
            || sector.checked_add(sectors.into()).is_none_or(|end| end > self.sectors)
        {
            return Status::Error;
        }
        let (offset, len) = (sector * SECTOR, u64::from(sectors) * SECTOR);
        match is_discard {
            true => self.disk.discard(offset, len).into(),
            false => self.disk.write_zeroes(offset, len, flags & UNMAP != 0).into(),
        }
    }
}
