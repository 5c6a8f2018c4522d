//! Pages that a segment writes: how they were, how the translation left them, how the interpreter did.

use std::arch::asm;
use std::cell::RefCell;

use umbra_x86::paging::Physical;

use crate::mmu::{Tables, Word};

const SIZE: usize = 4096;
/// Words are written back in pieces of this many bytes that differ.
const PIECE: usize = 64;

type Bytes = Box<[u8; SIZE]>;

/// A page in guest memory.
struct Page {
    gpa: u64,
    host: *mut u8,
    before: Bytes,
    translated: Bytes,
}

/// All pages of a segment.
#[derive(Default)]
pub(super) struct Pages {
    /// The first `used` of them are in use; the others are kept for their buffers.
    all: Vec<Page>,
    used: usize,
    /// The translation's part is over.
    rewound: bool,
}

/// A word that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Differing {
    pub gpa: u64,
    pub before: u64,
    pub translated: u64,
    pub interpreted: u64,
}

fn word(bytes: &[u8; SIZE], offset: usize) -> u64 {
    bytes[offset..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

impl Page {
    fn new() -> Self {
        let bytes = || Box::new([0; SIZE]);
        Self { gpa: 0, host: std::ptr::null_mut(), before: bytes(), translated: bytes() }
    }

    /// Writes back what has changed since `before`, or what `translated` has otherwise than the page now has.
    fn put(&self, now: &[u8; SIZE], wanted: &[u8; SIZE]) {
        let pieces = now.chunks_exact(PIECE).zip(wanted.chunks_exact(PIECE)).enumerate();
        for (n, _) in pieces.filter(|(_, (now, wanted))| now != wanted) {
            for offset in (n * PIECE..(n + 1) * PIECE).step_by(8) {
                let value = word(wanted, offset);
                if value != word(now, offset) {
                    // SAFETY: the word lies in a page of guest memory, which is mapped writable.
                    unsafe { value.write(self.host.wrapping_add(offset)) };
                }
            }
        }
    }
}

impl Pages {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        (self.used, self.rewound) = (0, false);
    }

    /// Keeps the page at `host`, which is about to be written.
    pub(super) fn note(&mut self, gpa: u64, host: *mut u8) {
        if self.all[..self.used].iter().any(|p| p.host == host) {
            return;
        }
        if self.used == self.all.len() {
            self.all.push(Page::new());
        }
        let page = &mut self.all[self.used];
        (page.gpa, page.host) = (gpa, host);
        // SAFETY: a page of guest memory.
        unsafe { copy_page(host, &mut page.before) };
        if self.rewound {
            page.translated.clone_from(&page.before);
        }
        self.used += 1;
    }

    /// Takes what the translation wrote, and puts memory back to what it was before.
    pub(super) fn rewind(&mut self) {
        self.rewound = true;
        for page in &mut self.all[..self.used] {
            // SAFETY: a page of guest memory.
            unsafe { copy_page(page.host, &mut page.translated) };
            page.put(&page.translated, &page.before);
        }
    }

    /// The first word in which what the interpreter has written since differs, but for `walked` ones.
    pub(super) fn difference(&self, walked: &Walked) -> Option<Differing> {
        let mut now = [0; SIZE];
        self.all[..self.used].iter().find_map(|page| {
            // SAFETY: a page of guest memory.
            unsafe { copy_page(page.host, &mut now) };
            if now == *page.translated {
                return None;
            }
            let differs = |o: &usize| word(&now, *o) != word(&page.translated, *o);
            let mut offsets = (0..SIZE).step_by(8).filter(differs);
            let offset = offsets.find(|o| !walked.holds(page.gpa + *o as u64))?;
            Some(Differing {
                gpa: page.gpa + offset as u64,
                before: word(&page.before, offset),
                translated: word(&page.translated, offset),
                interpreted: word(&now, offset),
            })
        })
    }

    /// Leaves memory as the translation did: of what is the same, only accessed and dirty bits can differ.
    pub(super) fn settle(&self, walked: &Walked) {
        if walked.is_empty() {
            return;
        }
        let mut now = [0; SIZE];
        for page in &self.all[..self.used] {
            // SAFETY: a page of guest memory.
            unsafe { copy_page(page.host, &mut now) };
            page.put(&now, &page.translated);
        }
    }
}

/// Copies a page out, by one instruction.
///
/// # Safety
/// `from` is readable for a page.
unsafe fn copy_page(from: *const u8, to: &mut [u8; SIZE]) {
    // SAFETY: the caller vouches for `from`; the count is that of the words of `to`.
    unsafe {
        asm!("rep movsq", inout("rsi") from => _, inout("rdi") to.as_mut_ptr() => _, inout("rcx") SIZE / 8 => _,
            options(nostack, preserves_flags));
    }
}

/// Page-table entries that walks have changed, by the address of their eight bytes.
#[derive(Default)]
pub(crate) struct Walked(RefCell<Vec<u64>>);

impl Walked {
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    fn holds(&self, gpa: u64) -> bool {
        self.0.borrow().contains(&gpa)
    }
}

/// Page tables whose changes are noted.
pub(crate) struct Noting<'a> {
    pub tables: Tables<'a>,
    pub walked: &'a Walked,
}

impl Physical for Noting<'_> {
    fn read_u32(&self, gpa: u64) -> u32 {
        self.tables.read_u32(gpa)
    }

    fn read_u64(&self, gpa: u64) -> u64 {
        self.tables.read_u64(gpa)
    }

    fn replace_u32(&self, gpa: u64, old: u32, new: u32) -> bool {
        self.walked.0.borrow_mut().push(gpa & !7);
        self.tables.replace_u32(gpa, old, new)
    }

    fn replace_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        self.walked.0.borrow_mut().push(gpa);
        self.tables.replace_u64(gpa, old, new)
    }
}
