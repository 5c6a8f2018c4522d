//! What is remembered of each guest page: whether it was written, and whether a translator has code of it.
//!
//! The order of things between a writer and a translator, on any threads:
//! the translator marks a granule as code, then reads the page's version, then the bytes; a writer writes the bytes, then looks at the mark, and
//! raises the version if it is set. With a full fence on both sides, either the translator reads the new bytes or the version
//! that it noted is old and its block is never entered again.

use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::sparse::{Sparse, Zeroed};

/// The size of a guest page frame, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// Code is remembered in granules of this many bytes: 64 a page.
pub const CODE_GRANULE: u64 = 64;

/// What a translator remembers of one guest page.
#[derive(Debug, Default)]
#[repr(C)]
pub struct CodePage {
    granules: AtomicU64,
    version: AtomicU32,
}

// SAFETY: integers, of which zero is a value.
unsafe impl Zeroed for CodePage {}

/// One bit for each granule that `len` bytes at `offset` within a page touch.
fn granule_mask(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = (offset % PAGE_SIZE) / CODE_GRANULE;
    let last = ((offset % PAGE_SIZE + len - 1) / CODE_GRANULE).min(63);
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl CodePage {
    /// Where in the structure the version is, in bytes: translated code compares it by itself.
    pub const VERSION_OFFSET: usize = offset_of!(CodePage, version);

    /// Says that the bytes at `offset` within this page have been, or are about to be, translated; returns the version that a translation of
    /// them is good for. Call it before reading the bytes. Whether the page held no code before comes second: then stores that go past
    /// [`CodePage::written`] must be stopped before the bytes are read.
    pub fn mark(&self, offset: u64, len: u64) -> (u32, bool) {
        let before = self.granules.fetch_or(granule_mask(offset, len), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        (self.version(), before == 0)
    }

    /// Whether a translator has code of this page.
    #[inline]
    pub fn has_code(&self) -> bool {
        self.granules.load(Ordering::SeqCst) != 0
    }

    /// The version of the page's code: a translation noted under another one is void.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Says that `len` bytes at `offset` within this page have been written. Returns whether code was hit: then
    /// all translations of the page are void, and no granule is marked any more.
    pub fn written(&self, offset: u64, len: u64) -> bool {
        fence(Ordering::SeqCst);
        let hit = self.granules.load(Ordering::SeqCst) & granule_mask(offset, len) != 0;
        if hit {
            self.void();
        }
        hit
    }

    /// Makes all translations of this page void.
    pub fn void(&self) {
        self.granules.store(0, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Pages {
    dirty: Sparse<AtomicU64>,
    code: Sparse<CodePage>,
    tracking: AtomicBool,
}

/// The tracking of one region, from `base` bytes into it. Clones share it.
#[derive(Debug, Clone)]
pub struct Tracker {
    pages: Arc<Pages>,
    base: usize,
}

impl Tracker {
    /// Tracks a region of `len` bytes.
    ///
    /// # Errors
    /// The host has no address space left.
    pub fn new(len: u64) -> io::Result<Self> {
        let pages = len.div_ceil(PAGE_SIZE) as usize;
        let (dirty, code) = (Sparse::new(pages.div_ceil(64))?, Sparse::new(pages)?);
        Ok(Self { pages: Arc::new(Pages { dirty, code, tracking: AtomicBool::new(false) }), base: 0 })
    }

    /// What the translator remembers of the page at `offset` into the region.
    pub fn code_page(&self, offset: u64) -> Option<&CodePage> {
        self.pages.code.as_slice().get((offset / PAGE_SIZE) as usize)
    }

    /// Starts or stops the tracking of dirty pages.
    pub fn set_tracking(&self, on: bool) {
        self.pages.tracking.store(on, Ordering::SeqCst);
    }

    /// Whether dirty pages are tracked.
    pub fn is_tracking(&self) -> bool {
        self.pages.tracking.load(Ordering::Relaxed)
    }

    /// Marks the page at `offset` dirty, if dirty pages are tracked.
    pub fn set_dirty(&self, offset: u64) {
        if self.is_tracking() {
            let page = (offset / PAGE_SIZE) as usize;
            if let Some(word) = self.pages.dirty.as_slice().get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::SeqCst);
            }
        }
    }

    /// Takes the dirty bits, 64 pages a word, and clears them.
    pub fn take_dirty(&self) -> Vec<u64> {
        self.pages.dirty.as_slice().iter().map(|w| w.swap(0, Ordering::SeqCst)).collect()
    }

    /// Notes a write of `len` bytes at `offset` into the region from the host's side.
    pub fn host_wrote(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let next = (at / PAGE_SIZE + 1) * PAGE_SIZE;
            self.set_dirty(at);
            if let Some(page) = self.code_page(at) {
                page.written(at, next.min(end) - at);
            }
            at = next;
        }
    }
}

impl WithBitmapSlice<'_> for Tracker {
    type S = Tracker;
}

impl BitmapSlice for Tracker {}

impl Bitmap for Tracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.host_wrote((self.base + offset) as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.base + offset) / PAGE_SIZE as usize;
        self.pages
            .dirty
            .as_slice()
            .get(page / 64)
            .is_some_and(|w| w.load(Ordering::SeqCst) >> (page % 64) & 1 != 0)
    }

    fn slice_at(&self, offset: usize) -> Tracker {
        Tracker { pages: self.pages.clone(), base: self.base + offset }
    }
}
