//! From a linear page to where its bytes are: the slow path's first half.

use std::ptr::null_mut;

use umbra_memory::{CodePage, RegionKind};
use umbra_x86::paging::{Access, Kind, Translation};

use super::Class;
use super::physical::Tables;
use super::tlb::{ENTRIES, Entry, FETCH_ENTRIES, FetchEntry, ROM, WRITABLE, no_tag, tag};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::translate::lockstep::Noting;
use crate::vm::count;

/// Where one linear address is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Its guest physical address.
    pub gpa: u64,
    /// Its address in this process; null for devices.
    pub host: *mut u8,
    /// Writes have no effect on memory.
    pub rom: bool,
}

/// Where code at a linear address is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetch {
    /// Its guest physical address.
    pub gpa: u64,
    /// Its address in this process; null for devices.
    pub host: *const u8,
    /// What is remembered of code on its page; null for devices.
    pub code: *const CodePage,
    /// It is there in every context.
    pub global: bool,
}

/// The number of the TLB entry of a linear address in a class.
fn index_of(class: Class, linear: u64) -> usize {
    class as usize * ENTRIES + (linear >> 12) as usize % ENTRIES
}

impl Cpu {
    /// Translates one address for a data access of a class.
    pub(crate) fn page(&mut self, linear: u64, class: Class, write: bool) -> Exec<Page> {
        let index = index_of(class, linear);
        let tag = tag(linear, self.tlb.context);
        let (entry, frame) = (&self.tlb.entries[index], self.tlb.frames[index]);
        if entry.read == tag && (!write || frame & WRITABLE != 0) {
            let host = linear.wrapping_add(entry.addend) as *mut u8;
            let page = Page { gpa: frame & !0xfff | linear & 0xfff, host, rom: frame & ROM != 0 };
            if write && entry.write != tag {
                self.allow_writes(index, tag, page);
            }
            return Ok(page);
        }
        let kind = if write { Kind::Write } else { Kind::Read };
        let t = self.walk(linear, class, kind)?;
        let host = self.host_of(t.gpa);
        let Some((host, rom)) = host else { return Ok(Page { gpa: t.gpa, host: null_mut(), rom: false }) };
        let page = Page { gpa: t.gpa, host, rom };
        let access =
            Access { kind: Kind::Write, user: class == Class::User, ac: class == Class::SupervisorAc };
        let writable = t.dirty && self.tlb.paging.allows(&t, access);
        let frame = t.gpa & !0xfff | if writable { WRITABLE } else { 0 } | if rom { ROM } else { 0 };
        let addend = (host as u64).wrapping_sub(linear);
        self.counters.add(count::TLB_FILLS, 1);
        let host = (host as u64) & !0xfff;
        self.tlb.entries[index] = Entry { read: tag, write: no_tag(index), addend, host };
        self.tlb.frames[index] = frame;
        if write {
            self.allow_writes(index, tag, page);
        }
        if self.tlb.is_paged() {
            self.tlb.note_large(linear, t.page_len);
        }
        Ok(page)
    }

    /// Whether writes to a page are allowed and need set no flag in the page tables.
    pub(crate) fn is_dirty(&mut self, linear: u64, class: Class) -> bool {
        self.page(linear, class, false).is_ok() && self.tlb.frames[index_of(class, linear)] & WRITABLE != 0
    }

    /// Lets writes to a page go past the slow path, if nobody must be told of them.
    fn allow_writes(&mut self, index: usize, tag: u64, page: Page) {
        if page.rom {
            return;
        }
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.note_write(index, page.gpa, page.host);
        }
        let Some((region, tracker)) = self.shared.memory.region(page.gpa) else { return };
        let offset = page.gpa - region.gpa();
        tracker.set_dirty(offset);
        if tracker.code_page(offset).is_some_and(|code| !code.has_code()) {
            self.tlb.entries[index].write = tag;
        }
    }

    fn walk(&mut self, linear: u64, class: Class, kind: Kind) -> Exec<Translation> {
        let access = Access { kind, user: class == Class::User, ac: class == Class::SupervisorAc };
        let tables = Tables(&self.shared.memory);
        let result = match self.lockstep.as_ref().and_then(|l| l.walked()) {
            None => self.tlb.paging.walk(&tables, linear, access),
            Some(walked) => self.tlb.paging.walk(&Noting { tables, walked }, linear, access),
        };
        result.map_err(|code| {
            self.fault_address = linear;
            Fault::pf(code)
        })
    }

    /// Where a guest physical address is in this process, and whether it is ROM; `None` for devices.
    fn host_of(&self, gpa: u64) -> Option<(*mut u8, bool)> {
        let (region, _) = self.shared.memory.region(gpa).filter(|_| gpa >> 12 != self.tlb.apic_page)?;
        let host = region.host().wrapping_add((gpa - region.gpa()) as usize);
        Some((host, region.kind() == RegionKind::Rom))
    }

    /// Translates an address of code at the current privilege.
    pub(crate) fn fetch(&mut self, linear: u64) -> Exec<Fetch> {
        let user = self.mode.cpl == 3;
        let index = usize::from(user) * FETCH_ENTRIES + (linear >> 12) as usize % FETCH_ENTRIES;
        let tag = linear & !0xfff | self.tlb.context >> 12;
        let entry = &self.tlb.fetch[index];
        let offset = linear & 0xfff;
        if entry.tag == tag {
            let host = entry.host.wrapping_add(offset as usize);
            return Ok(Fetch { gpa: entry.gpa | offset, host, code: entry.code, global: entry.global });
        }
        let class = if user { Class::User } else { Class::Supervisor };
        let t = self.walk(linear, class, Kind::Fetch)?;
        let none = Fetch { gpa: t.gpa, host: null_mut(), code: null_mut(), global: false };
        let Some((host, _)) = self.host_of(t.gpa) else { return Ok(none) };
        let Some(code) = self.shared.memory.code_page(t.gpa) else { return Ok(none) };
        let page = host.wrapping_sub(offset as usize);
        let global = t.global;
        self.tlb.fetch[index] = FetchEntry { tag, gpa: t.gpa & !0xfff, host: page, code, global };
        if self.tlb.is_paged() {
            self.tlb.note_large(linear, t.page_len);
        }
        Ok(Fetch { gpa: t.gpa, host, code, global })
    }
}
