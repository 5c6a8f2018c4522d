//! Address lookup: from a guest's memory operand to the host's.
//!
//! In line, two scratch registers: the address's TLB entry, and the exclusive or of the address, the context and the entry's tag, which is the offset in
//! the page if the entry is the right one, and more than that if not (see `mmu::tlb`); one comparison. So an access that crosses a page misses, as does
//! one to a device, to a page that must be told of writes, or without permission. The tag is compared, never assumed: whatever address a guest
//! makes, what is accessed is what the TLB gave out for that very page.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};
use umbra_x86::segment::{Segment, sreg};

use super::asm::{A, B, Hole, Mem, Reg, at, cond, group, op, state};
use super::block::Builder;
use super::copy::{host_of, is_resident};
use super::site::Kind;
use crate::cpu::Cpu;
use crate::exec::Fast;
use crate::mmu::{ENTRIES, Entry};
use crate::operand::segment_number;

/// Bytes of a page.
pub(super) const PAGE: i32 = 4096;

/// How an effective address is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// A register and a displacement.
    Near { base: Reg, disp: i32 },
    /// Relative to the page of the code.
    Page { disp: i32 },
    /// What one LEA computes, 32 bits wide if narrow.
    Direct { mem: Mem, narrow: bool },
    /// Anything else: with registers in the state block, or a segment.
    Kept { base: Base, index: Option<(u8, u8)>, disp: i32, narrow: bool, segment: Option<usize> },
}

/// What an address starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    None,
    /// A guest's register.
    Register(u8),
    /// The page of the code.
    Page,
}

/// An operand of host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostOperand {
    pub base: Reg,
    pub index: Option<Reg>,
    pub disp: i32,
}

/// A word of [`Fast`].
pub(super) const fn fast(offset: usize) -> usize {
    offset_of!(Cpu, fast) + offset
}

impl Address {
    /// `more` bytes further.
    pub(super) fn plus(mut self, more: i32) -> Self {
        match &mut self {
            Self::Direct { mem, .. } => mem.disp = mem.disp.wrapping_add(more),
            Self::Near { disp, .. } | Self::Page { disp } | Self::Kept { disp, .. } => {
                *disp = disp.wrapping_add(more);
            }
        }
        self
    }

    /// The address of the memory operand of `i`, which starts `offset` bytes into its page; with `plain`, without its segment. `None` if
    /// it is none that a translation computes.
    pub(super) fn of(i: &Instruction, wide: bool, offset: u16, plain: bool) -> Option<Self> {
        let segment = match segment_number(i.memory_segment()).filter(|_| !plain) {
            Some(n @ (sreg::FS | sreg::GS)) if wide => Some(n),
            Some(sreg::FS | sreg::GS) => return None,
            Some(sreg::CS) if !wide => return None,
            _ => None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if base == Register::RIP {
            // Instructions are decoded at address zero.
            let disp = (i.ip_rel_memory_address() as i64).checked_add(offset.into())?;
            let disp = i32::try_from(disp).ok()?;
            return Some(match segment {
                None => Self::Page { disp },
                _ => Self::Kept { base: Base::Page, index: None, disp, narrow: false, segment },
            });
        }
        let is = |r: Register, kind: fn(Register) -> bool| r == Register::None || kind(r);
        let bare = base == Register::None && index == Register::None;
        let (disp, narrow) = if wide
            && is(base, Register::is_gpr64)
            && is(index, Register::is_gpr64)
            && (!bare || i.memory_displ_size() == 8)
        {
            (i32::try_from(i.memory_displacement64() as i64).ok()?, false)
        } else if is(base, Register::is_gpr32)
            && is(index, Register::is_gpr32)
            && (!bare || i.memory_displ_size() == 4)
        {
            (i.memory_displacement64() as u32 as i32, true)
        } else {
            return None;
        };
        let number = |r: Register| (r != Register::None).then(|| r.full_register().number() as u8);
        let (base, index) = (number(base), number(index));
        let index = index.map(|n| (n, i.memory_index_scale().trailing_zeros() as u8));
        let kept =
            segment.is_some() || base.is_some_and(is_resident) || index.is_some_and(|n| is_resident(n.0));
        Some(match (base, index) {
            _ if kept => {
                let base = base.map_or(Base::None, Base::Register);
                Self::Kept { base, index, disp, narrow, segment }
            }
            (Some(base), None) if !narrow => Self::Near { base: host_of(base), disp },
            _ => {
                let index = index.map(|(n, shift)| (host_of(n), shift));
                Self::Direct { mem: Mem { gs: false, base: base.map(host_of), index, disp }, narrow }
            }
        })
    }
}

impl Builder<'_> {
    /// `lea to, [mem]`, 32 bits wide if narrow.
    fn lea(&mut self, to: Reg, mem: Mem, narrow: bool) {
        if narrow { self.asm.rm32(op::LEA, to, mem) } else { self.asm.rm(op::LEA, to, mem) }
    }

    /// The effective address, `beyond` bytes further, into `to`. Status flags stay, but with a segment.
    pub(super) fn effective(&mut self, to: Reg, address: Address) {
        match address {
            Address::Near { base, disp } => self.asm.rm(op::LEA, to, at(base, disp)),
            Address::Page { disp } => {
                self.asm.rm(op::MOV, to, state(fast(offset_of!(Fast, page))));
                self.asm.rm(op::LEA, to, at(to, disp));
            }
            Address::Direct { mem, narrow } => self.lea(to, mem, narrow),
            Address::Kept { base, index, disp, narrow, segment } => {
                let base = match base {
                    Base::None => None,
                    Base::Register(n) => Some(self.in_register(n, A)),
                    Base::Page => {
                        self.asm.rm(op::MOV, A, state(fast(offset_of!(Fast, page))));
                        Some(A)
                    }
                };
                // The second scratch register may be taken.
                let spare = if base == Some(A) { B } else { A };
                let index = index.map(|(n, shift)| (self.in_register(n, spare), shift));
                self.lea(to, Mem { gs: false, base, index, disp }, narrow);
                if let Some(n) = segment {
                    let base = offset_of!(Cpu, seg) + n * size_of::<Segment>() + offset_of!(Segment, base);
                    self.asm.rm(op::ADD, to, state(base));
                }
            }
        }
    }

    /// Looks up `len` bytes for the instruction at hand; afterwards the operand is where this says, B is free and flags are
    /// lost. What the slow path does is in the site of this kind that is made.
    pub(super) fn lookup(&mut self, address: Address, len: u8, write: bool) -> HostOperand {
        self.lookup_or(address, len, write, Kind::Access { write })
    }

    /// The same, with another slow path.
    pub(super) fn lookup_or(&mut self, address: Address, len: u8, write: bool, slow: Kind) -> HostOperand {
        if let Some(found) = self.windowed(address, len, write) {
            return found;
        }
        let retry = self.asm.len();
        let hole = self.compare(address, i32::from(len) - 1, write);
        self.slow_at(hole, slow, retry);
        self.asm.rm(op::ADD, A, at(B, offset_of!(Entry, host) as i32));
        HostOperand { base: A, index: None, disp: 0 }
    }

    /// Leaves the TLB entry of an address in B, and the offset in its page in A, if the entry is that of its page and the byte `beyond` further lies
    /// in it too; if not it takes the branch that it gives, with what [`Builder::linear`] makes the address of in A.
    pub(super) fn compare(&mut self, address: Address, beyond: i32, write: bool) -> Hole {
        const INDEX: i32 = ((ENTRIES - 1) << 5) as i32;
        const _: () = assert!(size_of::<Entry>() == 1 << 5);
        self.effective(A, address);
        self.asm.rotated(B, A, 7);
        self.asm.ri32(group::AND, B, INDEX);
        self.asm.rm(op::ADD, B, state(fast(offset_of!(Fast, tlb))));
        self.linear(write);
        self.asm.ri(group::CMP, A, PAGE - 1 - beyond);
        self.asm.jcc(cond::ABOVE)
    }

    /// Of the address in A, whose TLB entry is at B, makes the offset in its page if they belong to each other; and the address again.
    pub(super) fn linear(&mut self, write: bool) {
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) };
        self.asm.rm(op::XOR, A, state(fast(offset_of!(Fast, context))));
        self.asm.rm(op::XOR, A, at(B, tag as i32));
    }
}

impl HostOperand {
    /// As the assembler has it.
    pub(super) fn mem(self) -> Mem {
        Mem { gs: false, base: Some(self.base), index: self.index.map(|r| (r, 0)), disp: self.disp }
    }
}
