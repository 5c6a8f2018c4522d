//! The guest physical address space.
//!
//! Guest RAM is process memory: every [`Region`] is a range of a memfd or of anonymous memory, mapped into this process between guard pages.
//! On top stands `vm-memory`, whose volatile slices are the only way in which devices touch guest memory.
//! Each write from the host's side marks the page dirty and tells the translator if it held code
//! ([`Tracker`]). Whoever must know the mappings (KVM's slots, VFIO's DMA maps) is an [`Observer`].

mod region;
mod space;
mod sparse;
mod track;

pub use region::{Backing, Region, RegionKind};
pub use space::{Memory, MemoryError, Observer};
pub use track::{CODE_GRANULE, CodePage, PAGE_SIZE, Tracker};
pub use vm_memory;

#[cfg(test)]
#[path = "memory_test.rs"]
mod memory_test;
