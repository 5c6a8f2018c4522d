//! Entries of L1 and L2 tables, and the sizes that follow from a cluster's.
//!
//! Authority: the qcow2 specification (docs/interop/qcow2.txt of QEMU), "Cluster mapping" and "Extended L2 entries".

use crate::{Error, Result};

/// Bit 63 of a table's entry: the cluster's refcount is exactly one, so it can be written in place.
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: the cluster is compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry (version 3): it reads as zeroes.
pub(super) const ZERO: u64 = 1;
/// Bits of an offset in L1 and L2 entries: 9 to 55.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an offset in the refcount table: 9 to 63.
pub(super) const REFTABLE_MASK: u64 = 0xffff_ffff_ffff_fe00;
/// Entries of an L1 or refcount table in one sector.
pub(super) const PER_SECTOR: u64 = 64;
/// Subclusters of a cluster with extended L2 entries.
pub(super) const SUBCLUSTERS: u64 = 32;
/// All subclusters of an extended entry are allocated.
pub(super) const ALL_ALLOCATED: u64 = 0xffff_ffff;

/// Sizes that stay for the life of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub cluster_bits: u32,
    /// L2 entries have 128 bits.
    pub extended: bool,
    /// Data is in a file of its own, each cluster at its offset on the disk.
    pub data_file: bool,
}

impl Layout {
    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn in_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }

    pub(super) fn start(self, offset: u64) -> u64 {
        offset & !(self.cluster() - 1)
    }

    /// Clusters that `bytes` take.
    pub(super) fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }

    pub(super) fn entry_len(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster() / self.entry_len()
    }

    /// Bytes of the disk that an L2 table maps.
    pub(super) fn l2_span(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    pub(super) fn l1_index(self, offset: u64) -> u64 {
        offset / self.l2_span()
    }

    pub(super) fn l2_index(self, offset: u64) -> u64 {
        (offset >> self.cluster_bits) % self.l2_entries()
    }

    /// L1 entries for a disk of `size` bytes.
    pub(super) fn l1_len(self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    /// The unit that an entry says something about.
    pub(super) fn subcluster(self) -> u64 {
        if self.extended { self.cluster() / SUBCLUSTERS } else { self.cluster() }
    }

    pub(super) fn subclusters(self) -> u64 {
        if self.extended { SUBCLUSTERS } else { 1 }
    }
}

/// One entry of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub word: u64,
    /// Extended entries: bits 0 to 31 allocated, 32 to 63 zero.
    pub bitmap: u64,
}

/// What an entry says of one subcluster (of the cluster where there are none). With a place: that of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unallocated,
    /// The cluster has a place, but this part of it is the backing file's.
    UnallocatedAt(u64),
    Zero,
    ZeroAt(u64),
    Data(u64),
    Compressed,
}

/// A compressed cluster's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub offset: u64,
    /// Bytes up to the end of the last sector.
    pub len: u64,
}

impl Entry {
    pub(super) fn data(offset: u64, layout: Layout) -> Self {
        Self { word: offset | COPIED, bitmap: if layout.extended { ALL_ALLOCATED } else { 0 } }
    }

    pub(super) fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    pub(super) fn copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// The place of a cluster that is not compressed. With a data file, offset 0 is a place if the copied bit is set.
    pub(super) fn host(self, layout: Layout) -> Result<Option<u64>> {
        if self.is_compressed() {
            return Ok(None);
        }
        let offset = self.word & OFFSET_MASK;
        if layout.in_cluster(offset) != 0 {
            return Err(Error::corrupt(format!("an L2 entry points into a cluster, to {offset:#x}")));
        }
        Ok((offset != 0 || layout.data_file && self.copied()).then_some(offset))
    }

    /// What it says of a subcluster.
    pub(super) fn kind(self, subcluster: u64, layout: Layout) -> Result<Kind> {
        if self.is_compressed() {
            return Ok(Kind::Compressed);
        }
        let host = self.host(layout)?;
        let (allocated, zero) = if layout.extended {
            (self.bitmap >> subcluster & 1 != 0, self.bitmap >> (32 + subcluster) & 1 != 0)
        } else {
            let zero = self.word & ZERO != 0;
            (host.is_some() && !zero, zero)
        };
        match (host, allocated, zero) {
            (_, true, true) => Err(Error::corrupt("a subcluster is both allocated and zero")),
            (None, true, _) => Err(Error::corrupt("a subcluster of no place is marked as allocated")),
            (None, false, true) => Ok(Kind::Zero),
            (None, false, false) => Ok(Kind::Unallocated),
            (Some(at), false, true) => Ok(Kind::ZeroAt(at)),
            (Some(at), false, false) => Ok(Kind::UnallocatedAt(at)),
            (Some(at), true, false) => Ok(Kind::Data(at)),
        }
    }

    /// The place of compressed data.
    pub(super) fn packed(self, layout: Layout) -> Packed {
        let bits = 62 - (layout.cluster_bits - 8);
        let offset = self.word & ((1 << bits) - 1);
        let sectors = ((self.word & !(COPIED | COMPRESSED)) >> bits) + 1;
        Packed { offset, len: sectors * 512 - offset % 512 }
    }

    /// An entry for compressed data, if the place can be said in one.
    pub(super) fn compressed(offset: u64, len: u64, layout: Layout) -> Option<Self> {
        let bits = 62 - (layout.cluster_bits - 8);
        let sectors = (offset + len - 1) / 512 - offset / 512;
        let fits = offset < 1 << bits && sectors < 1 << (62 - bits);
        fits.then_some(Self { word: COMPRESSED | sectors << bits | offset, bitmap: 0 })
    }
}
