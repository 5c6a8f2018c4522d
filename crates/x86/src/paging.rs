//! The page walk: from a linear to a guest physical address (SDM volume 3, chapter "Paging").
//!
//! Pure but for the memory it reads, which is a trait. It knows 32-bit paging with 4 MiB pages (PSE, PSE-36), PAE paging and 4-level
//! paging with 2 MiB and 1 GiB pages; NX, WP, SMEP and SMAP; reserved bits. Accessed and dirty flags are set by
//! compare-and-exchange, as processors do, and only when the access is allowed. Protection keys, 5-level paging and
//! control-flow enforcement are absent: no guest is shown them.
//!
//! A paging structure where no memory is reads as zero, so its entries are not present.

use crate::reg::{Cr0, Cr4, Efer};

/// Bits of a page fault's error code.
pub mod error {
    /// The translation is present; the fault is one of protection.
    pub const P: u32 = 1;
    /// The access was a write.
    pub const W: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const U: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RSVD: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const I: u32 = 1 << 4;
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// How often a walk starts anew because another processor changed an entry under it.
const RETRIES_MAX: u32 = 64;

/// Physical memory as the walk sees it. Addresses are aligned to the entry.
pub trait Physical {
    /// Reads a 4-byte entry; zero where no memory is.
    fn read_u32(&self, gpa: u64) -> u32;
    /// Reads an 8-byte entry; zero where no memory is.
    fn read_u64(&self, gpa: u64) -> u64;
    /// Atomically replaces a 4-byte entry if it still is `old`; whether it was. Where writes have no effect (ROM), says yes.
    fn replace_u32(&self, gpa: u64, old: u32, new: u32) -> bool;
    /// As [`Physical::replace_u32`] for 8 bytes.
    fn replace_u64(&self, gpa: u64, old: u64, new: u64) -> bool;
}

/// Which paging is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PagingMode {
    /// None: linear addresses are physical ones.
    #[default]
    Off,
    /// 32-bit paging.
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    Level4,
}

/// All registers that a walk depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paging {
    /// Which paging.
    pub mode: PagingMode,
    /// CR3.
    pub cr3: u64,
    /// The page-directory-pointer entries of PAE paging, as loaded with CR3.
    pub pdptes: [u64; 4],
    /// 4 MiB pages (32-bit paging).
    pub pse: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// CR0.WP.
    pub wp: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// Width of physical addresses in bits, 36 to 52.
    pub physical_bits: u32,
}

/// What is done at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// An access to be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: Kind,
    /// It is a user-mode access: CPL 3, and not one that the processor itself makes to a descriptor table or task state.
    pub user: bool,
    /// SMAP does not apply: RFLAGS.AC is set and the access is explicit.
    pub ac: bool,
}

/// What a walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest physical address.
    pub gpa: u64,
    /// The size of the page in bytes.
    pub page_len: u64,
    /// User-mode accesses are allowed.
    pub user: bool,
    /// Every entry allows writes.
    pub writable: bool,
    /// No entry forbids execution.
    pub executable: bool,
    /// The translation is the same in all contexts.
    pub global: bool,
    /// The dirty flag is set.
    pub dirty: bool,
}

/// An entry that the walk went through: where, and its value.
type Entry = (u64, u64);

impl Paging {
    /// From the registers. `gib_pages` is what CPUID shows.
    pub fn new(cr0: Cr0, cr3: u64, cr4: Cr4, efer: Efer, physical_bits: u32, gib_pages: bool) -> Self {
        let mode = match (cr0.contains(Cr0::PG), efer.contains(Efer::LMA), cr4.contains(Cr4::PAE)) {
            (false, ..) => PagingMode::Off,
            (_, true, _) => PagingMode::Level4,
            (.., true) => PagingMode::Pae,
            _ => PagingMode::Bits32,
        };
        Self {
            mode,
            cr3,
            pdptes: [0; 4],
            pse: cr4.contains(Cr4::PSE),
            gib_pages,
            wp: cr0.contains(Cr0::WP),
            nxe: efer.contains(Efer::NXE),
            smep: cr4.contains(Cr4::SMEP),
            smap: cr4.contains(Cr4::SMAP),
            pge: cr4.contains(Cr4::PGE),
            physical_bits: physical_bits.clamp(32, 52),
        }
    }

    /// Bits of an 8-byte entry above the physical address width, up to `top`.
    fn above(&self, top: u32) -> u64 {
        u64::MAX.checked_shl(self.physical_bits).unwrap_or(0) & (u64::MAX >> (63 - top))
    }

    /// Reserved bits that are set in a page-directory-pointer entry of PAE paging: its load into the processor then raises #GP.
    pub fn pdpte_is_reserved(&self, entry: u64) -> bool {
        entry & P != 0 && entry & (self.above(63) | 0x1e6) != 0
    }

    /// Translates.
    ///
    /// # Errors
    /// The error code of the page fault.
    pub fn walk(&self, memory: &impl Physical, linear: u64, access: Access) -> Result<Translation, u32> {
        if self.mode == PagingMode::Off {
            return Ok(Translation {
                gpa: linear,
                page_len: 4096,
                user: true,
                writable: true,
                executable: true,
                global: false,
                dirty: true,
            });
        }
        let mut retries = 0;
        loop {
            let mut entries = [(0, 0); 4];
            let (mut found, depth) = self.look(memory, linear, access, &mut entries)?;
            if !self.allows(&found, access) {
                return Err(self.code(access, error::P));
            }
            let done = self.mark(memory, &entries[..depth], access.kind == Kind::Write);
            if done || retries == RETRIES_MAX {
                found.dirty |= access.kind == Kind::Write;
                return Ok(found);
            }
            retries += 1;
        }
    }

    /// Whether an access is allowed by a translation (SDM volume 3, "Determination of Access Rights").
    pub fn allows(&self, t: &Translation, access: Access) -> bool {
        if self.mode == PagingMode::Off {
            return true;
        }
        if access.user {
            return t.user
                && match access.kind {
                    Kind::Read => true,
                    Kind::Write => t.writable,
                    Kind::Fetch => t.executable,
                };
        }
        let reachable = !(t.user && self.smap && !access.ac);
        match access.kind {
            Kind::Read => reachable,
            Kind::Write => reachable && (t.writable || !self.wp),
            Kind::Fetch => t.executable && !(t.user && self.smep),
        }
    }

    fn code(&self, access: Access, bits: u32) -> u32 {
        let fetch = access.kind == Kind::Fetch && (self.smep || self.nxe && self.mode != PagingMode::Bits32);
        let write = access.kind == Kind::Write;
        bits | if write { error::W } else { 0 }
            | if access.user { error::U } else { 0 }
            | if fetch { error::I } else { 0 }
    }

    fn look(
        &self,
        memory: &impl Physical,
        linear: u64,
        access: Access,
        entries: &mut [Entry; 4],
    ) -> Result<(Translation, usize), u32> {
        if self.mode == PagingMode::Bits32 {
            return self.look_32(memory, linear, access, entries);
        }
        let long = self.mode == PagingMode::Level4;
        let address = u64::MAX >> (64 - self.physical_bits) & !0xfff;
        let nx_reserved = if self.nxe { 0 } else { NX };
        let reserved = if long { self.above(51) } else { self.above(62) } | nx_reserved;
        let mut table = self.cr3 & address;
        let mut top = 4;
        if !long {
            let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(self.code(access, 0));
            }
            table = pdpte & address;
            top = 2;
        }
        let mut all = u64::MAX;
        let mut any = 0;
        for (depth, level) in (1..=top).rev().enumerate() {
            let shift = 3 + 9 * level;
            let gpa = table + (linear >> shift & 0x1ff) * 8;
            let entry = memory.read_u64(gpa);
            if entry & P == 0 {
                return Err(self.code(access, 0));
            }
            let leaf = level == 1 || entry & PS != 0 && level <= 3;
            let large = match level {
                4 => PS,
                3 if !self.gib_pages => PS,
                2 | 3 if leaf => ((1 << shift) - 1) & !0x1fff,
                _ => 0,
            };
            if entry & (reserved | large) != 0 {
                return Err(self.code(access, error::P | error::RSVD));
            }
            all &= entry;
            any |= entry;
            entries[depth] = (gpa, entry);
            if leaf {
                let page_len = 1u64 << shift;
                let base = entry & address & !(page_len - 1);
                let found = self.found(base | linear & (page_len - 1), page_len, all, any, entry);
                return Ok((found, depth + 1));
            }
            table = entry & address;
        }
        unreachable!("level 1 is always a leaf")
    }

    fn look_32(
        &self,
        memory: &impl Physical,
        linear: u64,
        access: Access,
        entries: &mut [Entry; 4],
    ) -> Result<(Translation, usize), u32> {
        let gpa = (self.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let pde = u64::from(memory.read_u32(gpa));
        if pde & P == 0 {
            return Err(self.code(access, 0));
        }
        entries[0] = (gpa, pde);
        if pde & PS != 0 && self.pse {
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
            let base = pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32;
            if pde & 1 << 21 != 0 || base & self.above(63) != 0 {
                return Err(self.code(access, error::P | error::RSVD));
            }
            return Ok((self.found(base | linear & 0x3f_ffff, 1 << 22, pde, 0, pde), 1));
        }
        let gpa = (pde & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
        let pte = u64::from(memory.read_u32(gpa));
        if pte & P == 0 {
            return Err(self.code(access, 0));
        }
        entries[1] = (gpa, pte);
        Ok((self.found(pte & 0xffff_f000 | linear & 0xfff, 4096, pde & pte, 0, pte), 2))
    }

    fn found(&self, gpa: u64, page_len: u64, all: u64, any: u64, leaf: u64) -> Translation {
        Translation {
            gpa,
            page_len,
            user: all & US != 0,
            writable: all & RW != 0,
            executable: any & NX == 0,
            global: self.pge && leaf & G != 0,
            dirty: leaf & D != 0,
        }
    }

    /// Sets accessed flags and, for a write, the dirty flag; false if an entry has changed meanwhile.
    fn mark(&self, memory: &impl Physical, entries: &[Entry], write: bool) -> bool {
        let last = entries.len() - 1;
        entries.iter().enumerate().all(|(depth, &(gpa, old))| {
            let new = old | A | if write && depth == last { D } else { 0 };
            match self.mode {
                _ if new == old => true,
                PagingMode::Bits32 => memory.replace_u32(gpa, old as u32, new as u32),
                _ => memory.replace_u64(gpa, old, new),
            }
        })
    }
}

#[cfg(test)]
#[path = "paging_test.rs"]
mod paging_test;
