//! Base address registers: what they ask for, and the address space that answers.

use std::sync::{Arc, Mutex};

use umbra_device::{Mmio, PortIo};

use crate::{PciDevice, lock};

/// What a base address register asks for. The length is a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// 4 to 256 ports.
    Io {
        /// How many.
        len: u32,
    },
    /// 16 bytes to 2 GiB of memory below 4 GiB.
    Memory32 {
        /// How many bytes.
        len: u32,
    },
    /// 16 bytes to 2^47 bytes of memory anywhere. It takes two registers.
    Memory64 {
        /// How many bytes.
        len: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl Bar {
    /// Whether there can be such a register.
    pub(crate) fn is_possible(self) -> bool {
        match self {
            Self::Io { len } => len.is_power_of_two() && (4..=256).contains(&len),
            Self::Memory32 { len } => len.is_power_of_two() && len >= 16,
            Self::Memory64 { len, .. } => len.is_power_of_two() && (16..=1 << 47).contains(&len),
        }
    }

    /// Which address space it decodes in.
    pub fn space(self) -> BarSpace {
        match self {
            Self::Io { .. } => BarSpace::Io,
            Self::Memory32 { .. } | Self::Memory64 { .. } => BarSpace::Memory,
        }
    }

    /// How many bytes or ports.
    pub fn size(self) -> u64 {
        match self {
            Self::Io { len } | Self::Memory32 { len } => len.into(),
            Self::Memory64 { len, .. } => len,
        }
    }

    /// The read-only low bits of the register (PCI 3.0, section 6.2.5.1).
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Io { .. } => 0b1,
            Self::Memory32 { .. } => 0b0000,
            Self::Memory64 { prefetchable, .. } => 0b0100 | u32::from(prefetchable) << 3,
        }
    }

    /// Which address bits a guest can write. A guest learns the size from those that it cannot.
    pub(crate) fn address_bits(self) -> u64 {
        let aligned = !(self.size() - 1);
        match self {
            // A PC has 16 bits of port address.
            Self::Io { .. } => aligned & 0xffff,
            Self::Memory32 { .. } => aligned & 0xffff_ffff,
            Self::Memory64 { .. } => aligned,
        }
    }
}

/// An address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarSpace {
    /// The I/O ports.
    Io,
    /// Guest physical addresses.
    Memory,
}

/// Where a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarRegion {
    /// In which address space.
    pub space: BarSpace,
    /// From which address, a multiple of `len`.
    pub base: u64,
    /// How many bytes or ports, a power of two.
    pub len: u64,
}

impl BarRegion {
    /// The last address, which exists also where the end does not.
    pub fn last(&self) -> u64 {
        self.base | (self.len - 1)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space && self.base <= other.last() && other.base <= self.last()
    }
}

/// The machine's address spaces, as the bus sees them.
///
/// It is called with the bus locked and must not call into the bus or a function. Guests choose the addresses.
pub trait BarMapper: Send {
    /// From now on accesses to `region` go to `target`. Regions that are mapped never overlap each other.
    /// Returns `false`, and changes nothing, where the machine has something else there or lets no function be there
    /// (memory, another device's ports, outside of the windows for PCI): the function is then not to be seen until
    /// a guest moves it. The bus asks again when base addresses change.
    fn map(&mut self, region: BarRegion, target: BarTarget) -> bool;
    /// Accesses to `region`, which was mapped, go nowhere from now on.
    fn unmap(&mut self, region: BarRegion);
}

/// A function's registers behind one of its base address registers. Clones are the same registers.
#[derive(Clone)]
pub struct BarTarget {
    device: Arc<Mutex<dyn PciDevice>>,
    bar: u8,
}

impl BarTarget {
    pub(crate) fn new(device: Arc<Mutex<dyn PciDevice>>, bar: u8) -> Self {
        Self { device, bar }
    }
}

impl Mmio for BarTarget {
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.device).bar_read(self.bar, offset, data);
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.device).bar_write(self.bar, offset, data);
    }
}

impl PortIo for BarTarget {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        lock(&self.device).bar_read(self.bar, offset.into(), data);
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        lock(&self.device).bar_write(self.bar, offset.into(), data);
    }
}
