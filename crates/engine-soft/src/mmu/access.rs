//! Loads and stores: the fast path in line, and everything else.

use super::tlb::ENTRIES;
use super::translate::Page;
use super::word::{copy_in, copy_out};
use super::{Class, Word, event};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::operand::is_canonical;
use crate::sys;
use crate::vm::{count, hooks};

/// Bytes that a device is asked for at once at most.
const MMIO_MAX: usize = 64;

/// Where a checked memory operand is.
#[derive(Debug, Clone, Copy)]
pub enum Host {
    /// In guest RAM, in one piece: `len` bytes readable (and, if asked for, writable) at this host address, until the next access to
    /// memory through [`Cpu`]. For a write, dirty tracking and code on the page are seen to.
    Direct(*mut u8),
    /// Device memory, or across a page: the caller copies through a buffer with `load_bytes` and `store_bytes`. Accesses and permissions have been checked.
    Bounce,
}

/// Bytes from `linear` to the end of its page.
pub(super) fn to_page_end(linear: u64) -> usize {
    4096 - (linear & 0xfff) as usize
}

impl Cpu {
    /// Where `len` bytes can be read directly at the current privilege, if the TLB says so.
    #[inline(always)]
    pub(crate) fn readable(&self, linear: u64, len: u64) -> Option<*mut u8> {
        let entry =
            &self.tlb.entries[(self.fast.tlb_base + (linear >> 12) as usize % ENTRIES) % (ENTRIES * 4)];
        entry.at(entry.read, linear, self.fast.context, len)
    }

    /// Where `len` bytes can be written directly at the current privilege, if the TLB says so. They can be read too.
    #[inline(always)]
    pub(crate) fn writable(&self, linear: u64, len: u64) -> Option<*mut u8> {
        let entry =
            &self.tlb.entries[(self.fast.tlb_base + (linear >> 12) as usize % ENTRIES) % (ENTRIES * 4)];
        entry.at(entry.write, linear, self.fast.context, len)
    }

    /// Loads at the current privilege.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, linear: u64) -> Exec<T> {
        match self.readable(linear, size_of::<T>() as u64) {
            // SAFETY: the TLB gives out addresses within guest memory; the comparison has shown that the word ends on the same page.
            Some(p) => Ok(unsafe { T::read(p) }),
            None => self.load_slow(linear, self.class()),
        }
    }

    /// Stores at the current privilege.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        match self.writable(linear, size_of::<T>() as u64) {
            // SAFETY: as in `load`; an entry that can be written is of RAM.
            Some(p) => unsafe { value.write(p) },
            None => self.store_slow(linear, value, self.class())?,
        }
        Ok(())
    }

    /// Loads as the processor does for descriptor tables and task state: as supervisor, whatever the CPL.
    pub fn load_system<T: Word>(&mut self, linear: u64) -> Exec<T> {
        self.load_slow(linear, Class::Supervisor)
    }

    /// Stores as supervisor.
    pub fn store_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        self.store_slow(linear, value, Class::Supervisor)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Word>(&mut self, linear: u64, class: Class) -> Exec<T> {
        let mut bytes = [0; 16];
        self.check_word(linear, size_of::<T>(), false, class)?;
        self.load_pages(linear, &mut bytes[..size_of::<T>()], class)?;
        Ok(T::from_bytes(&bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Word>(&mut self, linear: u64, value: T, class: Class) -> Exec {
        self.check_word(linear, size_of::<T>(), true, class)?;
        self.store_pages(linear, &value.to_bytes()[..size_of::<T>()], class)
    }

    /// Loads bytes at the current privilege; may cross pages. Faults before anything with a side effect is read.
    pub fn load_bytes(&mut self, linear: u64, data: &mut [u8]) -> Exec {
        self.check_range(linear, data.len(), false)?;
        self.load_pages(linear, data, self.class())
    }

    /// Stores bytes at the current privilege; may cross pages. Faults before anything is written.
    pub fn store_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        self.check_range(linear, data.len(), true)?;
        self.store_pages(linear, data, self.class())
    }

    /// Checks an access of `len` bytes at the current privilege and says where the bytes are.
    pub fn host(&mut self, linear: u64, len: u64, write: bool) -> Exec<Host> {
        self.host_written();
        let direct =
            if write { self.writable(linear, len.max(1)) } else { self.readable(linear, len.max(1)) };
        if let Some(p) = direct {
            return Ok(Host::Direct(p));
        }
        self.check_range(linear, len as usize, write)?;
        let linear = self.wrap(linear);
        let page = self.page(linear, self.class(), write)?;
        if len as usize > to_page_end(linear) {
            self.check_pages(linear, len as usize, self.class(), write)?;
            return Ok(Host::Bounce);
        }
        if page.host.is_null() || write && page.rom {
            return Ok(Host::Bounce);
        }
        if write && self.writable(linear, len.max(1)).is_none() {
            self.tlb.writing = (page.gpa, len);
            self.fast.event |= event::WRITING;
        }
        Ok(Host::Direct(page.host))
    }

    /// Completes what [`Cpu::host`] promised of the latest write: the bytes are there now.
    pub(crate) fn host_written(&mut self) {
        if self.fast.event & event::WRITING != 0 {
            self.fast.event &= !event::WRITING;
            let (gpa, len) = self.tlb.writing;
            self.after_write(gpa, len);
        }
    }

    /// Checks a word before it is accessed: canonical, aligned where that is asked for, breakpoints.
    pub(super) fn check_word(&mut self, linear: u64, len: usize, write: bool, class: Class) -> Exec {
        self.check_range(linear, len, write)?;
        if class == Class::User && self.checks_alignment() && linear & (len as u64 - 1) != 0 {
            return Err(Fault::AC);
        }
        Ok(())
    }

    fn check_range(&mut self, linear: u64, len: usize, write: bool) -> Exec {
        let last = linear.wrapping_add((len as u64).max(1) - 1);
        if self.wide() && !(is_canonical(linear) && is_canonical(last)) {
            return Err(Fault::GP0);
        }
        if self.mode.code != 64 && self.mode.flat && linear <= 0xffff_ffff && last > 0xffff_ffff {
            return Err(Fault::GP0);
        }
        if self.has_data_breakpoint() {
            sys::debug::data_access(self, linear, len as u64, write);
        }
        Ok(())
    }

    /// Outside of long mode linear addresses wrap at 4 GiB.
    pub(super) fn wrap(&self, linear: u64) -> u64 {
        if self.wide() { linear } else { linear & 0xffff_ffff }
    }

    /// Checks all pages of an access.
    pub(super) fn check_pages(&mut self, linear: u64, len: usize, class: Class, write: bool) -> Exec {
        let mut at = linear;
        let mut left = len;
        while left > 0 {
            at = self.wrap(at);
            let _ = self.page(at, class, write)?;
            let piece = left.min(to_page_end(at));
            at = at.wrapping_add(piece as u64);
            left -= piece;
        }
        Ok(())
    }

    pub(super) fn load_pages(&mut self, linear: u64, data: &mut [u8], class: Class) -> Exec {
        if data.len() > to_page_end(linear) {
            self.check_pages(linear, data.len(), class, false)?;
        }
        let (mut at, mut rest) = (linear, data);
        while !rest.is_empty() {
            at = self.wrap(at);
            let page = self.page(at, class, false)?;
            let (piece, tail) = rest.split_at_mut(rest.len().min(to_page_end(at)));
            self.read_page(page, piece);
            at = at.wrapping_add(piece.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn store_pages(&mut self, linear: u64, data: &[u8], class: Class) -> Exec {
        if data.len() > to_page_end(linear) {
            self.check_pages(linear, data.len(), class, true)?;
        }
        let (mut at, mut rest) = (linear, data);
        while !rest.is_empty() {
            at = self.wrap(at);
            let page = self.page(at, class, true)?;
            let (piece, tail) = rest.split_at(rest.len().min(to_page_end(at)));
            self.write_page(page, piece);
            at = at.wrapping_add(piece.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    fn read_page(&mut self, page: Page, data: &mut [u8]) {
        if !page.host.is_null() {
            // SAFETY: `page` gives an address within guest memory, and the caller keeps to its page.
            unsafe { copy_out(page.host, data) };
        } else if page.gpa >> 12 == self.tlb.apic_page {
            hooks::apic_mmio_read(self, (page.gpa & 0xfff) as u32, data);
        } else {
            self.counters.add(count::MMIO, 1);
            let gpas = (page.gpa..).step_by(MMIO_MAX);
            gpas.zip(data.chunks_mut(MMIO_MAX))
                .for_each(|(gpa, piece)| self.with_io(|io| io.mmio_read(gpa, piece)));
        }
    }

    fn write_page(&mut self, page: Page, data: &[u8]) {
        if !page.host.is_null() && !page.rom {
            // SAFETY: as in `read_page`, and it is RAM.
            unsafe { copy_in(page.host, data) };
            self.after_write(page.gpa, data.len() as u64);
        } else if page.gpa >> 12 == self.tlb.apic_page {
            hooks::apic_mmio_write(self, (page.gpa & 0xfff) as u32, data);
        } else {
            self.counters.add(count::MMIO, 1);
            let gpas = (page.gpa..).step_by(MMIO_MAX);
            gpas.zip(data.chunks(MMIO_MAX))
                .for_each(|(gpa, piece)| self.with_io(|io| io.mmio_write(gpa, piece)));
        }
    }

    /// Tells of a write to RAM that has been made past the fast path.
    pub(super) fn after_write(&mut self, gpa: u64, len: u64) {
        let Some((region, tracker)) = self.shared.memory.region(gpa) else { return };
        let offset = gpa - region.gpa();
        tracker.set_dirty(offset);
        if tracker.code_page(offset).is_some_and(|code| code.written(offset, len)) {
            self.fast.event |= event::CODE;
            self.counters.add(count::CODE_INVALIDATIONS, 1);
        }
    }
}
