//! A table of an image, kept in memory by the page, as much of it as a limit allows.
//!
//! Written pages stay in memory until [`Table::write_back`]: the format decides when what an entry points to is durable,
//! and writes the table only then. So a loss of power leaves entries that point to nothing only if the format lets it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use umbra_block::{Error, Result, Storage, StorageExt};

use crate::common::hold;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Pages of one table that are kept: 4 MiB.
const PAGES_MAX: usize = 1024;
/// Changed pages from which on [`Table::is_full`] asks for a flush.
const CHANGED_MAX: usize = PAGES_MAX / 2;

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    changed: bool,
    used: u64,
}

#[derive(Debug, Default)]
struct Pages {
    pages: BTreeMap<u64, Page>,
    changed: usize,
    clock: u64,
}

/// A table of little or big words in a storage.
#[derive(Debug)]
pub(crate) struct Table {
    storage: Arc<dyn Storage>,
    offset: u64,
    len: u64,
    pages: Mutex<Pages>,
}

impl Table {
    /// The `len` bytes at `offset`.
    pub(crate) fn new(storage: Arc<dyn Storage>, offset: u64, len: u64) -> Self {
        Self { storage, offset, len, pages: Mutex::default() }
    }

    /// Where it is.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The `N` bytes of entry `index`.
    pub(crate) fn entry<const N: usize>(&self, index: u64) -> Result<[u8; N]> {
        let at = self.place(index, N as u64)?;
        let mut pages = hold(&self.pages);
        let page = self.page(&mut pages, at / PAGE)?;
        let mut bytes = [0; N];
        // An entry's size divides the page's, so it never crosses one.
        let start = (at % PAGE) as usize;
        bytes.copy_from_slice(&page.bytes[start..start + N]);
        Ok(bytes)
    }

    /// Changes entry `index`.
    pub(crate) fn set<const N: usize>(&self, index: u64, bytes: [u8; N]) -> Result<()> {
        let at = self.place(index, N as u64)?;
        let mut pages = hold(&self.pages);
        let page = self.page(&mut pages, at / PAGE)?;
        let start = (at % PAGE) as usize;
        page.bytes[start..start + N].copy_from_slice(&bytes);
        if !page.changed {
            page.changed = true;
            pages.changed += 1;
        }
        Ok(())
    }

    fn place(&self, index: u64, size: u64) -> Result<u64> {
        let at = index.checked_mul(size).filter(|at| at.checked_add(size).is_some_and(|end| end <= self.len));
        at.ok_or_else(|| Error::corrupt(format!("entry {index} is behind the end of its table")))
    }

    /// Where a page lies in the storage, and how much of it is the table's.
    fn extent(&self, number: u64) -> (u64, usize) {
        let start = number * PAGE;
        (self.offset.saturating_add(start), PAGE.min(self.len.saturating_sub(start)) as usize)
    }

    fn page<'a>(&self, pages: &'a mut Pages, number: u64) -> Result<&'a mut Page> {
        pages.clock += 1;
        let now = pages.clock;
        if !pages.pages.contains_key(&number) {
            if pages.pages.len() >= PAGES_MAX {
                pages.drop_old();
            }
            let (offset, len) = self.extent(number);
            let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
            self.storage.read_at(offset, &mut bytes[..len])?;
            pages.pages.insert(number, Page { bytes, changed: false, used: now });
        }
        let page = pages.pages.get_mut(&number);
        let page = page.ok_or_else(|| Error::corrupt("a page of a table is lost"))?;
        page.used = now;
        Ok(page)
    }

    /// Whether so much is changed that it should be written before more is.
    pub(crate) fn is_full(&self) -> bool {
        hold(&self.pages).changed >= CHANGED_MAX
    }

    /// Whether anything is changed.
    pub(crate) fn is_changed(&self) -> bool {
        hold(&self.pages).changed > 0
    }

    /// The changed pages: offset in the storage, and bytes. They stay changed. What they point to is made durable now, and
    /// then they are written by [`Table::write_back`].
    pub(crate) fn changed(&self) -> Vec<(u64, Vec<u8>)> {
        let pages = hold(&self.pages);
        let changed = pages.pages.iter().filter(|(_, page)| page.changed);
        changed
            .map(|(&number, page)| {
                let (offset, len) = self.extent(number);
                (offset, page.bytes[..len].to_vec())
            })
            .collect()
    }

    /// Writes pages as [`Table::changed`] gave them. One that others have changed since stays changed: what it points to may
    /// not be durable yet.
    pub(crate) fn write_back(&self, changed: &[(u64, Vec<u8>)]) -> Result<()> {
        for (offset, bytes) in changed {
            self.storage.write_at(*offset, bytes)?;
            let mut pages = hold(&self.pages);
            let page = pages.pages.get_mut(&(offset.saturating_sub(self.offset) / PAGE));
            if let Some(page) = page.filter(|page| page.changed && page.bytes.starts_with(bytes)) {
                page.changed = false;
                pages.changed -= 1;
            }
        }
        Ok(())
    }
}

impl Pages {
    /// Drops the half of the unchanged pages that was used longest ago.
    fn drop_old(&mut self) {
        let mut used: Vec<u64> =
            self.pages.values().filter(|page| !page.changed).map(|page| page.used).collect();
        if used.is_empty() {
            return;
        }
        let middle = used.len() / 2;
        let limit = *used.select_nth_unstable(middle).1;
        self.pages.retain(|_, page| page.changed || page.used > limit);
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod table_test;
