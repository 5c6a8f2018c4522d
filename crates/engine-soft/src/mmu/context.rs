//! What translation depends on besides the page tables, and forgetting translations.

use umbra_x86::cpuid::feature;
use umbra_x86::paging::{Paging, PagingMode};
use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags};
use umbra_x86::segment::sreg;

use super::tlb::{ENTRIES, NO_CONTEXT, Tlb};
use super::{Class, physical::Tables};
use crate::cpu::{Cpu, Mode};
use crate::fault::{Exec, Fault};
use crate::translate;
use crate::vm::hooks;
use umbra_x86::paging::Physical;

/// IA32_APIC_BASE: enabled, and in x2APIC mode.
const APIC_ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

impl Cpu {
    /// Forgets translations of one linear address in every context (INVLPG, INVPCID of one address).
    pub fn flush_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.update_context();
    }

    /// Forgets translations of one PCID (INVPCID of one context).
    pub fn flush_pcid(&mut self, pcid: u16) {
        if pcid == self.pcid() {
            self.tlb.switch(pcid, false);
        } else {
            self.tlb.drop_pcid(pcid);
        }
        self.update_context();
    }

    /// Forgets all translations.
    pub fn flush_all(&mut self) {
        self.tlb.flush_all(self.pcid());
        self.update_context();
    }

    /// CR3 has been written. `keep` is its bit 63 with CR4.PCIDE set: translations of its PCID stay.
    pub fn cr3_written(&mut self, keep: bool) {
        let pcid = self.pcid();
        self.tlb.paging.cr3 = self.cr3;
        self.tlb.paging.pdptes = self.pdptes;
        self.tlb.switch(pcid, keep && self.cr4.contains(Cr4::PCIDE));
        self.update_context();
    }

    /// CR0, CR4, EFER or IA32_APIC_BASE has been written, or the whole state loaded: forgets all translations. Calls
    /// [`Cpu::update_context`].
    pub fn paging_changed(&mut self) {
        let bits = self.cpuid.answer(0x8000_0008, 0).eax & 0xff;
        let gib_pages = self.cpuid.has(feature::PDPE1GB);
        let bits = if bits == 0 { 36 } else { bits };
        self.tlb.paging = Paging::new(self.cr0, self.cr3, self.cr4, self.efer, bits, gib_pages);
        self.tlb.paging.pdptes = self.pdptes;
        let base = hooks::apic_base(self);
        let xapic = base & (APIC_ENABLED | X2APIC) == APIC_ENABLED;
        self.tlb.apic_page = if xapic { base >> 12 } else { u64::MAX };
        self.flush_all();
    }

    /// Loads the page-directory-pointer entries from where `cr3` says: call it on a write of CR3 in PAE mode (not long mode) and when paging with PAE is
    /// switched on, before anything has changed. Faults with #GP on reserved bits.
    pub fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let table = cr3 & 0xffff_ffe0;
        let tables = Tables(&self.shared.memory);
        let entries: [u64; 4] = std::array::from_fn(|n| tables.read_u64(table + 8 * n as u64));
        if entries.iter().any(|e| self.tlb.paging.pdpte_is_reserved(*e)) {
            return Err(Fault::GP0);
        }
        self.pdptes = entries;
        self.tlb.paging.pdptes = entries;
        Ok(())
    }

    fn pcid(&self) -> u16 {
        if self.cr4.contains(Cr4::PCIDE) { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// Derives what translation depends on besides the page tables: CPL, RFLAGS.AC, CS, data breakpoints. [`Cpu::update_mode`]
    /// calls it; so must whoever changes RFLAGS.AC or DR7.
    pub fn update_context(&mut self) {
        let user = self.mode.cpl == 3;
        let ac = self.flag(Rflags::AC);
        let class = match user {
            true => Class::User,
            false if ac && self.cr4.contains(Cr4::SMAP) => Class::SupervisorAc,
            false => Class::Supervisor,
        };
        let aligned = user && ac && self.cr0.contains(Cr0::AM);
        let slow = aligned || self.has_data_breakpoint();
        self.fast.tlb_base = class as usize * ENTRIES;
        self.fast.tlb = self.tlb.class(self.fast.tlb_base);
        self.fast.keeps_ac = u8::from(user || !self.cr4.contains(Cr4::SMAP));
        self.fast.context = if slow { NO_CONTEXT } else { self.tlb.context };
        let cs = &self.seg[sreg::CS];
        if self.mode.code != 64 && self.tlb.cs != (cs.base, cs.limit) {
            self.tlb.cs = (cs.base, cs.limit);
            self.tlb.code_moved();
        }
        (self.fast.rip_mask, self.fast.rip_max) = match self.mode.code {
            64 => (u64::MAX, u64::MAX),
            32 => (0xffff_ffff, cs.limit.into()),
            _ => (0xffff, cs.limit.into()),
        };
        if self.tlb.generation == u32::MAX {
            // Numbers come round again: nothing may be left that was found under the old ones.
            self.tlb.generation = 0;
            self.cache.clear();
        }
        let key = u64::from(self.tlb.generation) << 32 | self.tlb.context << 4 | u64::from(user) << 8;
        self.fast.key = key | u64::from(self.mode.block_key());
        self.fast.global_key = translate::global_key(self.fast.key);
        self.fast.jump_hash = if user { translate::hash_of(self.fast.key) } else { 0 };
    }

    /// The class of accesses at the current privilege.
    pub(crate) fn class(&self) -> Class {
        match self.fast.tlb_base / ENTRIES {
            0 => Class::User,
            1 => Class::Supervisor,
            _ => Class::SupervisorAc,
        }
    }

    /// Whether alignment is checked at the current privilege.
    pub(crate) fn checks_alignment(&self) -> bool {
        self.mode.cpl == 3 && self.flag(Rflags::AC) && self.cr0.contains(Cr0::AM)
    }

    /// Whether DR7 enables any data breakpoint.
    pub(super) fn has_data_breakpoint(&self) -> bool {
        let is_data = |n: u32| self.dr7 >> (2 * n) & 3 != 0 && self.dr7 >> (16 + 4 * n) & 1 != 0;
        self.dr7 & 0xff != 0 && (0..4).any(is_data)
    }

    /// Whether linear addresses are 64 bits wide.
    pub(super) fn wide(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
}

impl Mode {
    /// What decoding depends on.
    pub(crate) fn block_key(&self) -> u8 {
        let width = |bits: u8| bits >> 5;
        width(self.code) | width(self.stack) << 2 | u8::from(self.flat) << 4
    }
}

impl Tlb {
    /// Whether paging is on.
    pub(super) fn is_paged(&self) -> bool {
        self.paging.mode != PagingMode::Off
    }
}
