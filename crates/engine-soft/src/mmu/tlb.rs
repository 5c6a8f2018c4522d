//! The software TLB: a direct-mapped table for each class of access.
//!
//! A context stands for one PCID since it was last flushed; a flush takes a fresh number and leaves the entries to be overwritten. When
//! numbers run out the table is cleared. Global pages belong to the context that filled them, so they are dropped more often than on a
//! processor, which the architecture allows.
//!
//! An entry's tags are the linear address of its page, and the number of the context, never zero, as an exclusive or upon the bits of
//! the address that the entry's own place tells. So the exclusive or of an address, the context and the tag of the address's entry is
//! the address's offset in its page if the entry is its page's in this context, and otherwise no less than a page: one comparison tells that,
//! and that an access ends within the page.

use std::ptr::null;

use umbra_memory::CodePage;
use umbra_x86::paging::Paging;

use super::modify::Modify;

/// Entries of one class.
pub(crate) const ENTRIES: usize = 4096;
/// Entries of one class for instruction fetches.
pub(crate) const FETCH_ENTRIES: usize = 128;
/// A context number that no entry has: accesses then all take the slow path.
pub(crate) const NO_CONTEXT: u64 = 0xfff * CONTEXT;
/// What contexts are multiples of: their number is in the bits that choose an entry.
const CONTEXT: u64 = 4096;
const _: () = assert!(NO_CONTEXT / CONTEXT == ENTRIES as u64 - 1);
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
    /// Where the page is in this process.
    pub host: u64,
}

/// In [`Tlb::frames`]: the page tables allow writes and the dirty flag is set.
pub(crate) const WRITABLE: u64 = 1;
/// In [`Tlb::frames`]: writes have no effect on memory.
pub(crate) const ROM: u64 = 2;

/// The tag of a page in a context.
pub(crate) fn tag(linear: u64, context: u64) -> u64 {
    linear & !0xfff ^ context
}

/// The tag that entry `index` has for no page: that of context number zero.
pub(crate) fn no_tag(index: usize) -> u64 {
    (index % ENTRIES) as u64 * 4096
}

/// The page that a tag of entry `index` is of, in whatever context.
pub(crate) fn page_of(index: usize, tag: u64) -> u64 {
    tag & !NO_CONTEXT | no_tag(index)
}

impl Entry {
    /// Entry `index`, for no page.
    fn none(index: usize) -> Self {
        Self { read: no_tag(index), write: no_tag(index), addend: 0, host: 0 }
    }

    /// Where `len` bytes at `linear`, which it is the entry of, are in this process, if `tag` is one of its tags, theirs in `context`, and they
    /// end in its page.
    #[inline(always)]
    pub(crate) fn at(&self, tag: u64, linear: u64, context: u64, len: u64) -> Option<*mut u8> {
        let offset = linear ^ context ^ tag;
        (len <= 4096 && offset <= 4096 - len).then(|| (self.host + offset) as *mut u8)
    }
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
    /// Guest physical page of each, and [`WRITABLE`] and [`ROM`].
    pub(crate) frames: [u64; ENTRIES * 4],
    pub(crate) fetch: [FetchEntry; FETCH_ENTRIES * 2],
    /// The registers that walks depend on.
    pub(crate) paging: Paging,
    /// The current context, a multiple of [`CONTEXT`].
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
            entries: std::array::from_fn(Entry::none),
            frames: [0; ENTRIES * 4],
            fetch: [FetchEntry::NONE; FETCH_ENTRIES * 2],
            paging: Paging::default(),
            context: CONTEXT,
            generation: 0,
            cs: (0, 0),
            apic_page: u64::MAX,
            modify: Modify::NONE,
            writing: (0, 0),
            pool: [(0, CONTEXT); POOL],
            pool_next: 0,
            context_next: 2 * CONTEXT,
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
            self.entries.iter_mut().enumerate().for_each(|(n, entry)| *entry = Entry::none(n));
            self.fetch.fill(FetchEntry::NONE);
            self.large = [Marks::NONE, Marks::NONE];
            self.pool = [(0, NO_CONTEXT); POOL];
            self.context_next = CONTEXT;
            self.code_moved();
        }
        self.context_next += CONTEXT;
        self.context_next - CONTEXT
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
            for (n, entry) in self.entries.iter_mut().enumerate() {
                if hit(page_of(n, entry.read)) || hit(page_of(n, entry.write)) {
                    *entry = Entry::none(n);
                }
            }
            for entry in self.fetch.iter_mut().filter(|e| hit(e.tag)) {
                *entry = FetchEntry::NONE;
            }
            return;
        }
        let hit = |tag: u64| (tag ^ linear) >> 12 == 0;
        let index = (linear >> 12) as usize;
        for class in 0..3 {
            let n = class * ENTRIES + index % ENTRIES;
            let entry = &mut self.entries[n];
            if hit(page_of(n, entry.read)) || hit(page_of(n, entry.write)) {
                *entry = Entry::none(n);
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
        let frames = self.entries.iter_mut().zip(&self.frames).enumerate();
        for (n, (entry, _)) in frames.filter(|(_, (_, frame))| (*frame ^ gpa) >> 12 == 0) {
            entry.write = no_tag(n);
        }
    }

    /// Sends every write through the slow path, until that allows it anew.
    pub(crate) fn forget_writes(&mut self) {
        for (n, entry) in self.entries.iter_mut().enumerate() {
            entry.write = no_tag(n);
        }
    }
}
