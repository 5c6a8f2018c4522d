//! All regions of a machine as one address space.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::region::{PROTECTION, Region, RegionKind};
use crate::track::{CodePage, PAGE_SIZE, Tracker};

/// Why memory could not be made or reached.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused.
    #[error(
        "cannot map guest memory: {0}; check `ulimit -v`, /proc/sys/vm/overcommit_memory and the cgroup's memory limit"
    )]
    Map(#[source] io::Error),
    /// Regions overlap.
    #[error("two regions of guest memory overlap at {0:#x}")]
    Overlap(u64),
    /// An access to addresses where no memory is.
    #[error("no guest memory at {gpa:#x}..{:#x}", gpa.saturating_add(*len))]
    OutOfRange {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
}

/// Who is told of every region: KVM's memory slots, DMA maps, translation tables.
pub trait Observer: Send + Sync {
    /// `region` has been added; `slot` is its number, unique for the life of the machine.
    ///
    /// # Errors
    /// The observer cannot take it; the region is then not added.
    fn mapped(&self, slot: u32, region: &Region) -> io::Result<()>;
    /// `region` is about to go.
    fn unmapped(&self, slot: u32, region: &Region);
}

/// The guest physical address space.
pub struct Memory {
    guest: GuestMemoryMmap<Tracker>,
    regions: Vec<(Region, Tracker)>,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Memory {
    /// An address space of these regions.
    ///
    /// # Errors
    /// Overlapping regions; what the host says.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(Region::gpa);
        if let Some(w) = regions.windows(2).find(|w| w[0].gpa() + w[0].len() > w[1].gpa()) {
            return Err(MemoryError::Overlap(w[1].gpa()));
        }
        let mut tracked = Vec::with_capacity(regions.len());
        let mut maps = Vec::with_capacity(regions.len());
        for region in regions {
            let tracker = Tracker::new(region.len()).map_err(MemoryError::Map)?;
            let builder = MmapRegionBuilder::new_with_bitmap(region.len() as usize, tracker.clone())
                .with_mmap_prot(PROTECTION)
                .with_mmap_flags(region.flags());
            // SAFETY: `host` is a live mapping of `len` bytes with these protections; `Memory` drops `guest` before `regions`.
            let builder = unsafe { builder.with_raw_mmap_pointer(region.host()) };
            let map = builder.build().map_err(|e| MemoryError::Map(io::Error::other(e)))?;
            let map = GuestRegionMmap::new(map, GuestAddress(region.gpa()));
            maps.push(map.ok_or(MemoryError::Overlap(region.gpa()))?);
            tracked.push((region, tracker));
        }
        let guest = GuestMemoryMmap::from_regions(maps).map_err(|e| MemoryError::Map(io::Error::other(e)))?;
        Ok(Self { guest, regions: tracked, observers: Mutex::default() })
    }

    /// The `vm-memory` view, for devices.
    pub fn guest(&self) -> &GuestMemoryMmap<Tracker> {
        &self.guest
    }

    /// All regions with their tracking, ascending.
    pub fn regions(&self) -> impl Iterator<Item = (&Region, &Tracker)> {
        self.regions.iter().map(|(r, t)| (r, t))
    }

    /// The region that holds `gpa`, and its tracking.
    pub fn region(&self, gpa: u64) -> Option<(&Region, &Tracker)> {
        self.regions.iter().find(|(r, _)| r.contains(gpa)).map(|(r, t)| (r, t))
    }

    /// Bytes of RAM in all.
    pub fn ram_len(&self) -> u64 {
        self.regions.iter().filter(|(r, _)| r.kind() == RegionKind::Ram).map(|(r, _)| r.len()).sum()
    }

    /// Where guest physical address `gpa` is in this process, if `len` bytes from it lie in one region. The bytes are shared with the guest: read and
    /// write them only volatile, atomic or by one machine instruction, and tell the tracker of writes.
    pub fn host_address(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let (region, _) = self.region(gpa)?;
        let offset = gpa - region.gpa();
        (len <= region.len() - offset).then(|| region.host().wrapping_add(offset as usize))
    }

    /// What the translator remembers of the page at `gpa`.
    pub fn code_page(&self, gpa: u64) -> Option<&CodePage> {
        let (region, tracker) = self.region(gpa)?;
        tracker.code_page(gpa - region.gpa())
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// Addresses without memory.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let len = data.len() as u64;
        self.guest.read_slice(data, GuestAddress(gpa)).map_err(|_| MemoryError::OutOfRange { gpa, len })
    }

    /// Copies into guest memory, ROM included, and marks the pages.
    ///
    /// # Errors
    /// Addresses without memory; nothing is written then.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let len = data.len() as u64;
        if !self.guest.check_range(GuestAddress(gpa), data.len()) {
            return Err(MemoryError::OutOfRange { gpa, len });
        }
        self.guest.write_slice(data, GuestAddress(gpa)).map_err(|_| MemoryError::OutOfRange { gpa, len })
    }

    /// Lets `observer` know all regions, those that exist and those that come.
    ///
    /// # Errors
    /// The observer refuses one.
    pub fn observe(&self, observer: Arc<dyn Observer>) -> io::Result<()> {
        for (slot, (region, _)) in self.regions.iter().enumerate() {
            observer.mapped(slot as u32, region)?;
        }
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).push(observer);
        Ok(())
    }

    /// The standard layout of `len` bytes of RAM: up to `hole_start`, and the rest from 4 GiB.
    pub fn ram_ranges(len: u64, hole_start: u64) -> Vec<(u64, u64)> {
        let low = len.min(hole_start) & !(PAGE_SIZE - 1);
        let high = len.saturating_sub(low) & !(PAGE_SIZE - 1);
        [(0, low), (1 << 32, high)].into_iter().filter(|r| r.1 > 0).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for observer in self.observers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.regions
                .iter()
                .enumerate()
                .for_each(|(slot, (region, _))| observer.unmapped(slot as u32, region));
        }
    }
}
