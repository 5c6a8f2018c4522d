//! A file with its log replayed in memory: what is opened for reading only is not changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use umbra_block::{Error, IoBuf, IoSrc, Result, Run, Storage, StorageInfo};

use super::layout::PAGE;

/// A storage with pages that take the place of its own.
#[derive(Debug)]
pub(super) struct Replayed {
    pub storage: Arc<dyn Storage>,
    pub pages: BTreeMap<u64, Box<[u8]>>,
    pub file_len: u64,
}

impl Replayed {
    fn refuse<T>(&self) -> Result<T> {
        Err(Error::ReadOnly("write".into()))
    }

    fn next_page(&self, from: u64) -> Option<u64> {
        self.pages.range(from / PAGE * PAGE..).next().map(|(&page, _)| page)
    }
}

impl Storage for Replayed {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        self.storage.readv(offset, bufs)?;
        let mut start = offset;
        for buf in bufs {
            let end = start.saturating_add(buf.len() as u64);
            let mut at = start;
            while let Some(page) = self.next_page(at).filter(|page| *page < end) {
                let from = page.max(start);
                let until = (page + PAGE).min(end);
                if let Some(bytes) = self.pages.get(&page) {
                    let (_, rest) = buf.split_at((from - start) as usize);
                    rest.copy_from(&bytes[(from - page) as usize..(until - page) as usize]);
                }
                at = page + PAGE;
            }
            start = end;
        }
        Ok(())
    }

    fn writev(&self, _offset: u64, _srcs: &[IoSrc<'_>]) -> Result<()> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        self.refuse()
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.storage.len()?.max(self.file_len))
    }

    fn set_len(&self, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush()
    }

    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        match self.next_page(offset) {
            Some(page) if page <= offset => Ok(Run { data: true, len: (page + PAGE - offset).min(len) }),
            Some(page) => self.storage.run(offset, len.min(page - offset)),
            None => self.storage.run(offset, len),
        }
    }

    fn info(&self) -> StorageInfo {
        self.storage.info()
    }
}
