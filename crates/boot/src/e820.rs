//! The memory map that the kernel is told, in the BIOS' E820 form (ACPI 6.5, section 15.1).
//!
//! Both boot protocols use the same type numbers: Linux' zero page and PVH's memory map.

use std::ops::Range;

use crate::layout::{EBDA, KERNEL_MIN, KVM_PAGES, Layout, PCI_ECAM, RSDP};

/// What a range of addresses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable memory.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// One range of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest physical addresses.
    pub range: Range<u64>,
    /// What is there.
    pub kind: E820Kind,
}

/// The map of a machine: ascending, without overlap.
///
/// The firmware's tables are reserved rather than reclaimable, so that a kernel started by the guest's kernel finds
/// them too.
pub fn map(layout: &Layout) -> Vec<E820Entry> {
    let low = layout.ram_low();
    let mut ranges = vec![
        (0..EBDA.start, E820Kind::Ram),
        (EBDA, E820Kind::Reserved),
        (RSDP..KERNEL_MIN, E820Kind::Reserved),
        (KERNEL_MIN..low.end, E820Kind::Ram),
        (PCI_ECAM, E820Kind::Reserved),
        (KVM_PAGES, E820Kind::Reserved),
    ];
    ranges.extend(layout.ram_high().map(|high| (high, E820Kind::Ram)));
    ranges.into_iter().map(|(range, kind)| E820Entry { range, kind }).collect()
}
