//! A file that was taken for raw because it begins like no known format, and that is written.
//!
//! Whoever writes to such a disk, a guest perhaps, could give it the beginning of an image of another format. The next
//! time it would be taken for that, with a backing file that the guest has chosen. So its beginning never becomes one.

use std::sync::{Arc, Mutex, PoisonError};

use super::{IoBuf, IoSrc, Run, Storage, StorageExt, StorageInfo};
use crate::{Error, Registry, Result};

/// What a format is known by.
const HEAD: u64 = Registry::PROBE_BYTES as u64;

/// A storage whose beginning stays unlike that of a known format.
#[derive(Debug)]
pub(crate) struct GuessedRaw {
    storage: Arc<dyn Storage>,
    registry: Registry,
    /// Two writes to the beginning could be harmless each and not together.
    head: Mutex<()>,
}

impl GuessedRaw {
    /// Over a storage that `registry` takes for raw.
    pub(crate) fn over(storage: Arc<dyn Storage>, registry: Registry) -> Self {
        Self { storage, registry, head: Mutex::new(()) }
    }

    /// Does `work`, which puts `len` bytes to `offset`; `fill` puts into a slice what it writes from that offset on.
    fn guarded(
        &self,
        offset: u64,
        len: u64,
        fill: impl FnOnce(&mut [u8]),
        work: impl FnOnce(&dyn Storage) -> Result<()>,
    ) -> Result<()> {
        if offset >= HEAD || len == 0 {
            return work(&*self.storage);
        }
        let _alone = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let mut head = self.storage.read_vec(0, HEAD as usize)?;
        let end = offset.saturating_add(len).min(HEAD);
        fill(&mut head[offset as usize..end as usize]);
        let file_len = self.storage.len()?.max(offset.saturating_add(len));
        let name = self.storage.info().name;
        match self.registry.probe(&head, file_len, &name) {
            Some(driver) if driver.name() != "raw" => {
                let denied = std::io::Error::from_raw_os_error(libc::EPERM);
                let doing = format!("write what makes an image of format {} of", driver.name());
                Err(Error::io(doing, name, denied))
            }
            _ => work(&*self.storage),
        }
    }
}

impl Storage for GuessedRaw {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        self.storage.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        if offset >= HEAD {
            return self.storage.writev(offset, srcs);
        }
        // Copied once: what is judged is what is written, whoever changes the buffers meanwhile.
        let mut bytes = Vec::new();
        for src in srcs {
            let start = bytes.len();
            bytes.resize(start + src.len(), 0);
            src.copy_to(&mut bytes[start..]);
        }
        let fill = |head: &mut [u8]| head.copy_from_slice(&bytes[..head.len()]);
        self.guarded(offset, bytes.len() as u64, fill, |storage| storage.write_at(offset, &bytes))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.guarded(offset, len, |head| head.fill(0), |storage| storage.write_zeroes(offset, len, unmap))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.guarded(offset, len, |head| head.fill(0), |storage| storage.discard(offset, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.storage.allocate(offset, len)
    }

    fn len(&self) -> Result<u64> {
        self.storage.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.storage.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush()
    }

    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        self.storage.run(offset, len)
    }

    fn info(&self) -> StorageInfo {
        self.storage.info()
    }
}
