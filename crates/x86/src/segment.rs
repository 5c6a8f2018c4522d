//! Segment registers with their hidden parts, and descriptor-table registers (SDM volume 3, chapter 3).

/// Numbers of the segment registers as instructions encode them.
pub mod sreg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// Bits of [`Segment::access`].
pub mod access {
    /// Type, four bits; for code and data: accessed, writable or readable, expand-down or conforming, code.
    pub const TYPE: u16 = 0xf;
    /// Accessed.
    pub const ACCESSED: u16 = 1;
    /// Data: writable. Code: readable.
    pub const RW: u16 = 2;
    /// Data: expands down. Code: conforming.
    pub const DC: u16 = 4;
    /// Code.
    pub const CODE: u16 = 8;
    /// Code or data, not a system segment.
    pub const S: u16 = 1 << 4;
    /// Descriptor privilege level, two bits.
    pub const DPL: u16 = 3 << 5;
    /// Where DPL begins.
    pub const DPL_SHIFT: u16 = 5;
    /// Present.
    pub const P: u16 = 1 << 7;
    /// Available to software.
    pub const AVL: u16 = 1 << 12;
    /// 64-bit code.
    pub const L: u16 = 1 << 13;
    /// Default operand size, or big stack.
    pub const DB: u16 = 1 << 14;
    /// Granularity of 4 KiB.
    pub const G: u16 = 1 << 15;
}

/// A segment register: what software sees and what the processor caches of the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (already scaled by the granularity): the last valid offset.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Bits 8 to 15 of the descriptor's second word in bits 0 to 7, bits 20 to 23 in bits 12 to 15; see [`access`].
    pub access: u16,
    /// The register holds a null selector or was made unusable.
    pub unusable: bool,
}

impl Segment {
    /// A real-mode segment at `selector`.
    pub const fn real(selector: u16, code: bool) -> Self {
        let kind = if code { access::CODE | access::RW } else { access::RW };
        Self {
            base: (selector as u64) << 4,
            limit: 0xffff,
            selector,
            access: kind | access::ACCESSED | access::S | access::P,
            unusable: false,
        }
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.access & access::DPL) >> access::DPL_SHIFT) as u8
    }

    /// The segment that an eight-byte code, data or short system descriptor describes, as `selector`.
    pub const fn from_descriptor(selector: u16, raw: u64) -> Self {
        let access = ((raw >> 40) & 0xff) as u16 | (((raw >> 52) & 0xf) as u16) << 12;
        let limit = (raw & 0xffff) as u32 | (((raw >> 48) & 0xf) as u32) << 16;
        let base = (raw >> 16) & 0xff_ffff | ((raw >> 56) & 0xff) << 24;
        let limit = if access & access::G != 0 { limit << 12 | 0xfff } else { limit };
        Self { base, limit, selector, access, unusable: false }
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// The last valid offset.
    pub limit: u16,
}
