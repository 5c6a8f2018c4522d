//! Instructions that lie on two pages.
//!
//! A translation is of one page. Where its last instruction goes on in the next, what that instruction is depends on what is mapped there too. So
//! before it comes a look at a record, its border: under which key and at which linear page the bytes after the border were last found to be
//! those that were translated, and of which version the other page was. Where one of the three is another, the bytes are looked at
//! again, and the record is made anew or the interpreter does the instruction.

use std::mem::offset_of;
use std::ptr::null;

use umbra_memory::CodePage;

use super::Jump;
use super::asm::{A, B, at, cond, op, state};
use super::block::{Builder, Stub};
use super::memory::fast;
use super::site::{Kind, Site};
use crate::cpu::Cpu;
use crate::exec::Fast;
use crate::mmu::copy_out;

const PAGE: u64 = 4096;
/// Bytes that an instruction may have after the border: its first is before.
pub(super) const BEYOND_MAX: usize = 14;

/// What is known of the page after a translation's.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Border {
    /// `Fast::key`, or `Fast::global_key`, under which the bytes were found.
    pub key: u64,
    /// The page of the translation then.
    pub page: u64,
    /// The other page's version word, and what it said.
    pub version_at: *const u32,
    pub version: u32,
    /// Both pages must be there in every context.
    global: bool,
    /// What was translated.
    len: u8,
    bytes: [u8; BEYOND_MAX],
}

impl Border {
    /// One that nothing is known of yet.
    pub(super) fn new(beyond: &[u8], global: bool) -> Box<Self> {
        let mut bytes = [0; BEYOND_MAX];
        bytes[..beyond.len()].copy_from_slice(beyond);
        let (key, len) = (Jump::NONE.key, beyond.len() as u8);
        Box::new(Self { key, page: 0, version_at: null(), version: 0, global, len, bytes })
    }

    /// Whether these bytes are those that were translated.
    ///
    /// # Safety
    /// `host` is the start of a page of guest memory.
    unsafe fn is_at(&self, host: *const u8) -> bool {
        let mut now = [0; BEYOND_MAX];
        let len = usize::from(self.len);
        // SAFETY: the caller's promise.
        unsafe { copy_out(host, &mut now[..len]) };
        now == self.bytes
    }
}

impl Builder<'_> {
    /// Makes sure that the instruction at hand, which goes on in the next page, is what was translated. Flags are lost.
    pub(super) fn cross_border(&mut self) -> Option<()> {
        let known = self.border.as_deref()?;
        let (border, retry) = (&raw const *known, self.asm.len());
        let key = if known.global { offset_of!(Fast, global_key) } else { offset_of!(Fast, key) };
        let record = |offset: usize| at(A, offset as i32);
        self.asm.mov_i64(A, border as u64);
        self.asm.rm(op::MOV, B, record(offset_of!(Border, key)));
        self.asm.rm(op::CMP, B, state(fast(key)));
        let other_key = self.asm.jcc(cond::NOT_EQUAL);
        self.asm.rm(op::MOV, B, record(offset_of!(Border, page)));
        self.asm.rm(op::CMP, B, state(fast(offset_of!(Fast, page))));
        let other_page = self.asm.jcc(cond::NOT_EQUAL);
        self.asm.rm(op::MOV, B, record(offset_of!(Border, version_at)));
        self.asm.rm32(op::MOV, B, at(B, 0));
        self.asm.rm32(op::CMP, B, record(offset_of!(Border, version)));
        let other_version = self.asm.jcc(cond::NOT_EQUAL);
        let resume = self.first_border;
        let site = self.site(Site { at: retry as u32, resume, ..Site::new(Kind::Border, self.offset) });
        self.stubs.push(Stub::Border { holes: [other_key, other_page, other_version], site });
        Some(())
    }
}

impl Cpu {
    /// Looks at the bytes after a border. Whether they are what was translated, and the border says so from now on.
    pub(super) fn look_beyond(&mut self, border: usize) -> bool {
        let page = self.fast.page;
        let next = page.wrapping_add(PAGE);
        if next == 0 || next > self.fast.rip_max & !(PAGE - 1) {
            return false;
        }
        let Ok(second) = self.fetch(next) else { return false };
        // SAFETY: `fetch` gives a page of guest memory and its tracking, both of which outlive the processor.
        let is_there = |b: &Border| !second.host.is_null() && unsafe { b.is_at(second.host) };
        let known = &self.translator.borders[border];
        if known.global && !second.global || !is_there(known) {
            return false;
        }
        self.tlb.note_code(next);
        let len = usize::from(known.len);
        // SAFETY: as above.
        let code: &CodePage = unsafe { &*second.code };
        let version = self.mark_code(code, second.gpa, len);
        let key = if self.translator.borders[border].global { self.fast.global_key } else { self.fast.key };
        let border = &mut self.translator.borders[border];
        // They may have been written over until they were marked.
        if !is_there(border) {
            return false;
        }
        let version_at = (&raw const *code).wrapping_byte_add(CodePage::VERSION_OFFSET).cast();
        (border.key, border.page, border.version_at, border.version) = (key, page, version_at, version);
        true
    }
}
