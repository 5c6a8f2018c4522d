//! A storage that remembers every change and every flush, for tests of what a loss of power leaves.
//!
//! What was written before the last flush is there after a loss of power. Of what was written since, any part may be, in
//! any order, torn at sectors of 512 bytes. Several storages share one recorder, because an image may have two files.
//! It can also be told to fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{IoBuf, IoSrc, MemoryStorage, Run, Storage, StorageExt, StorageInfo};
use crate::{Error, Result};

/// What the power may tear.
const SECTOR: u64 = 512;

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64, grows: bool },
    Len(u64),
    Flush,
}

#[derive(Debug, Default)]
struct Log {
    /// Which storage, and what.
    entries: Vec<(usize, Change)>,
    storages: usize,
}

/// What several storages have in common: the order of their changes.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
    /// Changes that may still happen before all fail; 0 means that all fail, `u64::MAX` none.
    budget: Arc<AtomicU64>,
}

/// A storage in memory whose changes are recorded.
#[derive(Debug)]
pub struct RecordingStorage {
    recorder: Recorder,
    id: usize,
    inner: MemoryStorage,
}

impl Recorder {
    /// With nothing recorded yet.
    pub fn new() -> Self {
        Self { log: Arc::default(), budget: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// A further storage, which holds `bytes` durably.
    pub fn storage(&self, name: &str, bytes: &[u8]) -> Arc<RecordingStorage> {
        let mut log = self.lock();
        let id = log.storages;
        log.storages += 1;
        let first = Change::Write { offset: 0, bytes: bytes.to_vec() };
        log.entries.extend([(id, first), (id, Change::Flush)]);
        Arc::new(RecordingStorage {
            recorder: self.clone(),
            id,
            inner: MemoryStorage::with_bytes(name, bytes),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// How many changes and flushes there were.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// After so many further changes every one fails.
    pub fn fail_after(&self, changes: u64) {
        self.budget.store(changes, Ordering::Relaxed);
    }

    /// What the storages hold if the power goes after the first `at` entries. `pick(n)` chooses a number below n: of
    /// what is not durable, whether and in which order it is there.
    pub fn after_power_loss(&self, at: usize, pick: &mut dyn FnMut(u64) -> u64) -> Vec<Vec<u8>> {
        let log = self.lock();
        let entries = &log.entries[..at.min(log.entries.len())];
        let storage = |id: usize| {
            let own = || entries.iter().filter(move |entry| entry.0 == id).map(|entry| &entry.1);
            let durable = own().enumerate().filter(|(_, change)| matches!(change, Change::Flush)).last();
            let durable = durable.map_or(0, |(index, _)| index);
            let mut bytes = Vec::new();
            own().take(durable).for_each(|change| apply(&mut bytes, change, 0, u64::MAX));
            let mut pending: Vec<&Change> = own().skip(durable).collect();
            scatter(&mut bytes, &mut pending, pick);
            bytes
        };
        (0..log.storages).map(storage).collect()
    }
}

/// Applies some of the changes that are not durable, in some order, some in part.
fn scatter(bytes: &mut Vec<u8>, pending: &mut Vec<&Change>, pick: &mut dyn FnMut(u64) -> u64) {
    let style = pick(4);
    if style == 0 {
        // As written: only the last is cut short.
        let whole = pick(pending.len() as u64 + 1) as usize;
        pending.iter().take(whole).for_each(|change| apply(bytes, change, 0, u64::MAX));
        return;
    }
    while !pending.is_empty() {
        let change = pending.remove(if style == 1 { 0 } else { pick(pending.len() as u64) as usize });
        match pick(4) {
            0 => {}
            1 => {
                let sectors = size_of_change(change).div_ceil(SECTOR).max(1);
                let (first, count) = (pick(sectors), pick(sectors) + 1);
                apply(bytes, change, first, count);
            }
            _ => apply(bytes, change, 0, u64::MAX),
        }
    }
}

fn size_of_change(change: &Change) -> u64 {
    match change {
        Change::Write { bytes, .. } => bytes.len() as u64,
        Change::Zero { len, .. } => *len,
        Change::Len(_) | Change::Flush => 0,
    }
}

/// Applies those bytes of a change that lie in `count` sectors of the file from its `first`.
fn apply(bytes: &mut Vec<u8>, change: &Change, first: u64, count: u64) {
    let part = |offset: u64, len: u64| {
        let start = if first == 0 { offset } else { (offset / SECTOR + first) * SECTOR };
        let end = (offset / SECTOR).saturating_add(first).saturating_add(count).saturating_mul(SECTOR);
        (start.min(offset + len), end.min(offset + len).max(start.min(offset + len)))
    };
    let reach = |bytes: &mut Vec<u8>, end: u64| {
        if (bytes.len() as u64) < end {
            bytes.resize(end as usize, 0);
        }
    };
    match change {
        Change::Write { offset, bytes: data } => {
            let (start, end) = part(*offset, data.len() as u64);
            reach(bytes, end);
            let from = (start - offset) as usize..(end - offset) as usize;
            bytes[start as usize..end as usize].copy_from_slice(&data[from]);
        }
        Change::Zero { offset, len, grows } => {
            let (start, end) = part(*offset, *len);
            if *grows {
                reach(bytes, end);
            }
            let have = bytes.len() as u64;
            bytes[start.min(have) as usize..end.min(have) as usize].fill(0);
        }
        Change::Len(len) => bytes.resize(*len as usize, 0),
        Change::Flush => {}
    }
}

impl RecordingStorage {
    fn note(&self, change: Change) -> Result<()> {
        let budget = &self.recorder.budget;
        let left = budget.load(Ordering::Relaxed);
        if left == 0 {
            return Err(Error::io(
                "write to",
                self.inner.info().name,
                std::io::ErrorKind::StorageFull.into(),
            ));
        }
        if left != u64::MAX {
            budget.store(left - 1, Ordering::Relaxed);
        }
        self.recorder.lock().entries.push((self.id, change));
        Ok(())
    }

    /// All bytes as they are now.
    ///
    /// # Errors
    /// None but those of memory.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let len = self.inner.len()?;
        self.inner.read_vec(0, len as usize)
    }
}

impl Storage for RecordingStorage {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        self.inner.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        let mut bytes = Vec::new();
        for src in srcs {
            let start = bytes.len();
            bytes.resize(start + src.len(), 0);
            src.copy_to(&mut bytes[start..]);
        }
        self.note(Change::Write { offset, bytes: bytes.clone() })?;
        self.inner.write_at(offset, &bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.note(Change::Zero { offset, len, grows: true })?;
        self.inner.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.note(Change::Zero { offset, len, grows: false })?;
        self.inner.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        if self.inner.len()? < end {
            self.note(Change::Len(end))?;
        }
        self.inner.allocate(offset, len)
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.note(Change::Len(len))?;
        self.inner.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.note(Change::Flush)?;
        self.inner.flush()
    }

    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        self.inner.run(offset, len)
    }

    fn info(&self) -> StorageInfo {
        self.inner.info()
    }
}
