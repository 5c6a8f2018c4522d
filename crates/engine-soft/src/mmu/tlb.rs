//! The software TLB: a direct-mapped table for each class of access.
//!
//! An entry's tags are the linear page number with a small context number, never zero, in the bits below it. A context stands for one
//! PCID since it was last flushed; a flush takes a fresh number and leaves the entries to be overwritten. When numbers run out the
//! table is cleared. Global pages belong to the context that filled them, so they are dropped more often than on a processor, which the
//! architecture allows.

use std::ptr::null;

use umbra_memory::CodePage;
use umbra_x86::paging::Paging;

use super::modify::Modify;

/// Entries of one class.
pub(crate) const ENTRIES: usize = 4096;
/// Entries of one class for instruction fetches.
pub(crate) const FETCH_ENTRIES: usize = 128;
/// A context number that no entry has: accesses then all take the slow path.
pub(crate) const NO_CONTEXT: u64 = 0xfff;
/// PCIDs whose translations are kept at a time.
const POOL: usize = 8;

/// One page.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    /// Tag under which it can be read directly.
    pub read: u64,
    /// Tag under which it can be written directly.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Guest physical page, and [`WRITABLE`] and [`ROM`].
    pub frame: u64,
}

/// In [`Entry::frame`]: the page tables allow writes and the dirty flag is set.
pub(crate) const WRITABLE: u64 = 1;
/// In [`Entry::frame`]: writes have no effect on memory.
pub(crate) const ROM: u64 = 2;

impl Entry {
    const NONE: Self = Self { read: 0, write: 0, addend: 0, frame: 0 };
}

/// One page for instruction fetches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FetchEntry {
    pub tag: u64,
    /// Guest physical page.
    pub gpa: u64,
    /// The page in this process.
    pub host: *const u8,
    /// What is remembered of code on it.
    pub code: *const CodePage,
    /// It is there in every context.
    pub global: bool,
}

impl FetchEntry {
    const NONE: Self = Self { tag: 0, gpa: 0, host: null(), code: null(), global: false };
}

/// The software TLB of one processor.
pub struct Tlb {
    pub(crate) entries: [Entry; ENTRIES * 4],
    pub(crate) fetch: [FetchEntry; FETCH_ENTRIES * 2],
    /// The registers that walks depend on.
    pub(crate) paging: Paging,
    /// The current context.
    pub(crate) context: u64,
    /// Counts whatever makes a linear address of code mean something else.
    pub(crate) generation: u32,
    /// Base and limit of CS when it was last looked at.
    pub(crate) cs: (u64, u32),
    /// The page frame of the local APIC's registers, or all ones.
    pub(crate) apic_page: u64,
    pub(super) modify: Modify,
    /// A write by a native instruction to a page with code: where, how long.
    pub(super) writing: (u64, u64),
    pool: [(u16, u64); POOL],
    pool_next: usize,
    context_next: u64,
    /// Pages of code that have been looked up since `generation` last moved.
    code_pages: Marks,
    /// Regions of 2 MiB and 1 GiB that may have entries cut from large pages.
    large: [Marks; 2],
}

/// A set of numbers, each hashed to a bit: it may hold more than was put in, never less. So large that it seldom does: whatever
/// it holds by mistake makes the flush of a page dear.
struct Marks([u64; 512]);

impl Marks {
    const NONE: Self = Self([0; 512]);

    fn place(number: u64) -> (usize, u64) {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    fn insert(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    fn holds(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }
}

// SAFETY: the pointers lead into guest memory and its tracking, which `Shared::memory` keeps alive and any thread may use.
unsafe impl Send for Tlb {}

/// Shifts of the two sizes of region in `Tlb::large`.
const LARGE: [u32; 2] = [21, 30];

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            entries: [Entry::NONE; ENTRIES * 4],
            fetch: [FetchEntry::NONE; FETCH_ENTRIES * 2],
            paging: Paging::default(),
            context: 1,
            generation: 0,
            cs: (0, 0),
            apic_page: u64::MAX,
            modify: Modify::NONE,
            writing: (0, 0),
            pool: [(0, 1); POOL],
            pool_next: 0,
            context_next: 2,
            code_pages: Marks::NONE,
            large: [Marks::NONE, Marks::NONE],
        })
    }

    /// The first entry of a class, which is the number of its first entry.
    pub(crate) fn class(&self, first: usize) -> *const Entry {
        &raw const self.entries[first]
    }

    /// The entry of a linear address in a class.
    pub(crate) fn entry_of(&self, first: usize, linear: u64) -> *const Entry {
        &raw const self.entries[(first + (linear >> 12) as usize % ENTRIES) % (ENTRIES * 4)]
    }

    /// Makes every address of code be looked up anew.
    pub(crate) fn code_moved(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.code_pages = Marks::NONE;
    }

    /// Notes that code at `linear` has been looked up, so that a flush of its page must make it be looked up anew.
    pub(crate) fn note_code(&mut self, linear: u64) {
        self.code_pages.insert(linear >> 12);
    }

    fn fresh(&mut self) -> u64 {
        if self.context_next >= NO_CONTEXT {
            self.entries.fill(Entry::NONE);
            self.fetch.fill(FetchEntry::NONE);
            self.large = [Marks::NONE, Marks::NONE];
            self.pool = [(0, NO_CONTEXT); POOL];
            self.context_next = 1;
            self.code_moved();
        }
        self.context_next += 1;
        self.context_next - 1
    }

    /// Forgets everything, and goes on with `pcid`.
    pub(super) fn flush_all(&mut self, pcid: u16) {
        let context = self.fresh();
        self.pool = [(pcid, context); POOL];
        self.context = context;
        self.large = [Marks::NONE, Marks::NONE];
        // Global pages of code are found in any context.
        self.code_moved();
    }

    /// Forgets `pcid`; it is not the current one.
    pub(super) fn drop_pcid(&mut self, pcid: u16) {
        let current = self.context;
        self.pool
            .iter_mut()
            .filter(|slot| slot.0 == pcid && slot.1 != current)
            .for_each(|slot| slot.1 = NO_CONTEXT);
    }

    /// Goes on with `pcid`, whose translations are kept or forgotten.
    pub(super) fn switch(&mut self, pcid: u16, keep: bool) {
        let kept = self.pool.iter().find(|slot| keep && slot.0 == pcid && slot.1 != NO_CONTEXT);
        if let Some(slot) = kept {
            self.context = slot.1;
            return;
        }
        let context = self.fresh();
        self.pool.iter_mut().filter(|slot| slot.0 == pcid).for_each(|slot| slot.1 = NO_CONTEXT);
        let free = self.pool.iter().position(|slot| slot.1 == NO_CONTEXT).unwrap_or(self.pool_next % POOL);
        self.pool_next = self.pool_next.wrapping_add(1);
        self.pool[free] = (pcid, context);
        self.context = context;
    }

    /// Notes that the entry of `linear` is cut from a page of `page_len` bytes.
    pub(super) fn note_large(&mut self, linear: u64, page_len: u64) {
        for (marks, shift) in self.large.iter_mut().zip(LARGE) {
            if page_len > 4096 && page_len <= 1 << shift || page_len == 1 << 22 && shift == 30 {
                marks.insert(linear >> shift);
                return;
            }
        }
    }

    /// Forgets the page of `linear` in every context, whatever its size.
    pub(super) fn flush_page(&mut self, linear: u64) {
        let region = LARGE.iter().rev().find(|s| self.large[usize::from(**s == 30)].holds(linear >> **s));
        if region.is_some() || self.code_pages.holds(linear >> 12) {
            self.code_moved();
        }
        if let Some(shift) = region {
            let hit = |tag: u64| (tag ^ linear) >> shift == 0;
            for entry in self.entries.iter_mut().filter(|e| hit(e.read) || hit(e.write)) {
                *entry = Entry::NONE;
            }
            for entry in self.fetch.iter_mut().filter(|e| hit(e.tag)) {
                *entry = FetchEntry::NONE;
            }
            return;
        }
        let hit = |tag: u64| (tag ^ linear) >> 12 == 0;
        let index = (linear >> 12) as usize;
        for class in 0..3 {
            let entry = &mut self.entries[class * ENTRIES + index % ENTRIES];
            if hit(entry.read) || hit(entry.write) {
                *entry = Entry::NONE;
            }
        }
        for class in 0..2 {
            let entry = &mut self.fetch[class * FETCH_ENTRIES + index % FETCH_ENTRIES];
            if hit(entry.tag) {
                *entry = FetchEntry::NONE;
            }
        }
    }

    /// Sends every write to the page at guest physical address `gpa` through the slow path.
    pub(crate) fn forget_writes_of(&mut self, gpa: u64) {
        for entry in self.entries.iter_mut().filter(|e| (e.frame ^ gpa) >> 12 == 0) {
            entry.write = 0;
        }
    }

    /// Sends every write through the slow path, until that allows it anew.
    pub(crate) fn forget_writes(&mut self) {
        for entry in &mut self.entries {
            entry.write = 0;
        }
    }
}
