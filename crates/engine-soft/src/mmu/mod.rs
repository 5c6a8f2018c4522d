//! Every access to guest memory by linear address.
//!
//! A software TLB of each processor ([`Tlb`]) maps linear pages to host addresses. A hit is one comparison, which also tells an
//! access that crosses a page, and then a plain machine access to the host's mapping of guest memory. Everything else takes a slow path:
//! the page walk, ROM and devices, pages that hold translated code, data breakpoints, alignment checks.
//!
//! Guest memory is shared with other processors and devices, so it is only ever touched by single machine
//! instructions written in assembly: to the Rust compiler such an access is opaque, and to the guest an aligned one of up to
//! eight bytes is atomic, as the architecture promises (SDM volume 3, "Guaranteed Atomic Operations").

mod access;
mod context;
mod modify;
mod physical;
mod tlb;
mod translate;
mod word;

pub use access::Host;
pub(crate) use physical::Tables;
pub use tlb::Tlb;
#[cfg(test)]
pub(crate) use tlb::page_of;
pub(crate) use tlb::{ENTRIES, Entry, NO_CONTEXT, no_tag, tag};
pub(crate) use translate::Fetch;
pub use word::Word;
pub(crate) use word::copy_out;

#[cfg(test)]
mod mmu_test;

/// Which translations an access may use: the index of a part of the TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Class {
    /// User mode.
    User = 0,
    /// Supervisor mode, SMAP in force.
    Supervisor = 1,
    /// Supervisor mode with RFLAGS.AC, which lifts SMAP.
    SupervisorAc = 2,
}

/// What an access did that ends the block after the instruction: bits of `Fast::event`.
pub(crate) mod event {
    /// It wrote over translated code.
    pub const CODE: u32 = 1;
    /// A native instruction is about to write to a page that holds code; see [`crate::cpu::Cpu::host_written`].
    pub const WRITING: u32 = 2;
    /// It made the local APIC want to deliver an interrupt.
    pub const INTERRUPT: u32 = 4;
}
