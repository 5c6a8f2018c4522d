//! Descriptors and the tables they are in.
//!
//! SDM volume 3, "Segment Descriptors", "System Descriptor Types", "System Descriptors in IA-32e Mode".

use umbra_x86::segment::{Segment, access};

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::operand::is_canonical;

/// Types of system descriptors.
pub(super) mod kind {
    pub const TSS16: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const INTERRUPT16: u16 = 6;
    pub const TRAP16: u16 = 7;
    /// Also the 64-bit TSS.
    pub const TSS32: u16 = 9;
    pub const TSS32_BUSY: u16 = 0xb;
    /// Also the 64-bit call gate.
    pub const CALL32: u16 = 0xc;
    pub const INTERRUPT32: u16 = 0xe;
    pub const TRAP32: u16 = 0xf;
    /// The bit that makes an available TSS a busy one.
    pub const BUSY: u16 = 2;
}

/// How a missing or unfit descriptor is reported: [`Fault::gp`], [`Fault::ts`], ...
pub(super) type Report = fn(u16) -> Fault;

/// Whether a selector is null.
pub(super) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// The requested privilege level of a selector.
pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A selector with another requested privilege level.
pub(super) fn with_rpl(selector: u16, rpl: u8) -> u16 {
    selector & 0xfffc | u16::from(rpl)
}

/// A descriptor as it is in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The eight bytes.
    pub raw: u64,
    /// Their linear address.
    pub address: u64,
    /// What selected it.
    pub selector: u16,
}

impl Descriptor {
    /// Access byte and flags, as [`Segment::access`] has them.
    pub fn access(&self) -> u16 {
        self.segment().access
    }

    pub fn is_present(&self) -> bool {
        self.access() & access::P != 0
    }

    /// Code or data.
    pub fn is_segment(&self) -> bool {
        self.access() & access::S != 0
    }

    pub fn is_code(&self) -> bool {
        self.access() & (access::S | access::CODE) == access::S | access::CODE
    }

    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.access() & access::DC != 0
    }

    pub fn is_writable_data(&self) -> bool {
        self.access() & (access::S | access::CODE | access::RW) == access::S | access::RW
    }

    pub fn is_readable(&self) -> bool {
        self.is_segment() && (!self.is_code() || self.access() & access::RW != 0)
    }

    pub fn is_long_code(&self) -> bool {
        self.is_code() && self.access() & access::L != 0
    }

    pub fn dpl(&self) -> u8 {
        self.segment().dpl()
    }

    /// The type of a system descriptor; `None` for code and data.
    pub fn system_kind(&self) -> Option<u16> {
        (!self.is_segment()).then(|| self.access() & access::TYPE)
    }

    /// What a segment register that is loaded with it caches.
    pub fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw)
    }

    /// Sets the accessed bit in the table, unless it is set, and here.
    pub fn mark_accessed(&mut self, cpu: &mut Cpu) -> Exec {
        const ACCESSED: u64 = (access::ACCESSED as u64) << 40;
        if self.raw & ACCESSED == 0 {
            self.raw |= ACCESSED;
            cpu.store_system(self.address.wrapping_add(5), (self.raw >> 40) as u8)?;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of a TSS in the table and here.
    pub fn mark_busy(&mut self, cpu: &mut Cpu, busy: bool) -> Exec {
        let bit = u64::from(kind::BUSY) << 40;
        self.raw = if busy { self.raw | bit } else { self.raw & !bit };
        cpu.store_system(self.address.wrapping_add(5), (self.raw >> 40) as u8)
    }
}

impl Cpu {
    /// A linear address of a system structure: 32 bits wide outside of long mode.
    pub(super) fn system_address(&self, base: u64, offset: u64) -> u64 {
        let address = base.wrapping_add(offset);
        if self.mode.long { address } else { address & 0xffff_ffff }
    }

    /// Where in its table the descriptor of `selector` is, if its `len` bytes are inside.
    fn descriptor_address(&self, selector: u16, len: u64) -> Option<u64> {
        let (base, limit) = match selector & 4 {
            0 => (self.gdtr.base, u64::from(self.gdtr.limit)),
            _ if self.ldtr.unusable => return None,
            _ => (self.ldtr.base, u64::from(self.ldtr.limit)),
        };
        let offset = u64::from(selector & 0xfff8);
        let address = self.system_address(base, offset);
        let fits = offset + len - 1 <= limit && (!self.mode.long || is_canonical(address));
        fits.then_some(address)
    }

    /// The descriptor that `selector` names; `None` outside of the table. Faults only by paging.
    pub(super) fn find_descriptor(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        let Some(address) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let raw = self.load_system(address)?;
        Ok(Some(Descriptor { raw, address, selector }))
    }

    /// The descriptor that `selector` names; outside of the table is a fault.
    pub(super) fn fetch_descriptor(&mut self, selector: u16, report: Report) -> Exec<Descriptor> {
        self.find_descriptor(selector)?.ok_or(report(selector))
    }

    /// In long mode, the upper half of a 16-byte system descriptor, which must have type 0; else 0.
    pub(super) fn fetch_upper_half(&mut self, d: &Descriptor, report: Report) -> Exec<u64> {
        if !self.mode.long {
            return Ok(0);
        }
        let address = self.descriptor_address(d.selector, 16).ok_or(report(d.selector))?;
        let upper: u64 = self.load_system(address.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(report(d.selector));
        }
        Ok(upper)
    }

    /// The segment of an LDT or TSS descriptor, whose base has 64 bits in long mode.
    pub(super) fn system_segment(&mut self, d: &Descriptor, report: Report) -> Exec<Segment> {
        let upper = self.fetch_upper_half(d, report)?;
        let mut segment = d.segment();
        segment.base |= upper << 32;
        if self.mode.long && !is_canonical(segment.base) {
            return Err(report(d.selector));
        }
        Ok(segment)
    }
}
