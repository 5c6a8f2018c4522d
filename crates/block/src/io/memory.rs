//! Bytes in memory: for tests, and for images that are not worth a file. Only pages that were written take memory.

use std::collections::BTreeMap;
use std::sync::RwLock;

use super::{IoBuf, IoSrc, Run, Storage, StorageInfo};
use crate::{Error, Result};

const PAGE: u64 = 4096;

#[derive(Debug, Default)]
struct Pages {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

/// Bytes in memory.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    name: String,
    pages: RwLock<Pages>,
}

impl MemoryStorage {
    /// Empty.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), pages: RwLock::default() }
    }

    /// With these bytes.
    pub fn with_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        let new = Self::new(name);
        let mut pages = Pages::default();
        pages.write(0, bytes);
        pages.len = bytes.len() as u64;
        *new.pages.write().unwrap_or_else(|poison| poison.into_inner()) = pages;
        new
    }

    fn write_lock(&self) -> std::sync::RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(|poison| poison.into_inner())
    }

    fn read_lock(&self) -> std::sync::RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(|poison| poison.into_inner())
    }

    fn end(&self, offset: u64, len: u64) -> Result<u64> {
        offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or_else(|| {
            Error::io("write behind the end of", &self.name, std::io::ErrorKind::FileTooLarge.into())
        })
    }
}

impl Pages {
    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = (offset % PAGE) as usize;
            let take = bytes.len().min(PAGE as usize - within);
            let page = self.pages.entry(offset / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            offset += take as u64;
        }
        self.len = self.len.max(offset);
    }

    fn zero(&mut self, start: u64, end: u64) {
        let first_whole = start.div_ceil(PAGE);
        let last_whole = end / PAGE;
        if first_whole < last_whole {
            let inside: Vec<u64> =
                self.pages.range(first_whole..last_whole).map(|(&number, _)| number).collect();
            for number in inside {
                self.pages.remove(&number);
            }
        }
        let edges = [(start, end.min(first_whole * PAGE)), (start.max(last_whole * PAGE), end)];
        for (from, to) in edges {
            if from < to
                && let Some(page) = self.pages.get_mut(&(from / PAGE))
            {
                let within = (from % PAGE) as usize;
                page[within..within + (to - from) as usize].fill(0);
            }
        }
    }
}

impl Storage for MemoryStorage {
    fn readv(&self, mut offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let pages = self.read_lock();
        for &buf in bufs {
            let mut rest = buf;
            while !rest.is_empty() {
                let within = (offset % PAGE) as usize;
                let (part, behind) = rest.split_at(PAGE as usize - within);
                match pages.pages.get(&(offset / PAGE)) {
                    Some(page) => part.copy_from(&page[within..]),
                    None => part.zero(),
                }
                offset = offset.saturating_add(part.len() as u64);
                rest = behind;
            }
        }
        Ok(())
    }

    fn writev(&self, mut offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        let mut pages = self.write_lock();
        for src in srcs {
            self.end(offset, src.len() as u64)?;
            let mut copy = vec![0; src.len()];
            src.copy_to(&mut copy);
            pages.write(offset, &copy);
            offset += copy.len() as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let end = self.end(offset, len)?;
        let mut pages = self.write_lock();
        pages.zero(offset, end);
        pages.len = pages.len.max(end);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.end(offset, len)?;
        self.write_lock().zero(offset, end);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.end(offset, len)?;
        let mut pages = self.write_lock();
        pages.len = pages.len.max(end);
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.read_lock().len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.end(len, 0)?;
        let mut pages = self.write_lock();
        if len < pages.len {
            let old = pages.len;
            pages.zero(len, old.next_multiple_of(PAGE));
        }
        pages.len = len;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        let pages = self.read_lock();
        let end = offset.saturating_add(len);
        let first = offset / PAGE;
        let data = pages.pages.contains_key(&first);
        let mut at = first + 1;
        if data {
            while at.saturating_mul(PAGE) < end && pages.pages.contains_key(&at) {
                at += 1;
            }
        } else {
            at = pages.pages.range(first..).next().map_or(u64::MAX, |(&number, _)| number);
        }
        Ok(Run { data, len: at.saturating_mul(PAGE).min(end) - offset })
    }

    fn info(&self) -> StorageInfo {
        StorageInfo {
            name: self.name.clone(),
            alignment: 1,
            read_only: false,
            allocated: Some(self.read_lock().pages.len() as u64 * PAGE),
            fixed_len: false,
            identity: None,
        }
    }
}
