//! Where the disk's bytes are.

use super::Qcow2;
use super::layout::{Entry, Kind, Layout};
use super::meta::Meta;
use crate::{Error, Extent, Mapping, Place, Result, StorageId};

/// A run of subclusters of one kind. Places are those of the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Backing,
    Zero,
    ZeroAt(u64),
    Data(u64),
    Compressed(Entry),
}

impl Meta {
    /// What is at `offset`, for up to `len` bytes.
    pub(super) fn run(&mut self, offset: u64, len: u64) -> Result<(Run, u64)> {
        let layout = self.layout;
        let mut l1_index = layout.l1_index(offset);
        let Some(table) = self.l2_table(l1_index)? else {
            // As far as there are no tables.
            let end = offset.saturating_add(len);
            while l1_index.saturating_mul(layout.l2_span()) < end && self.l2_table(l1_index)?.is_none() {
                if l1_index >= self.l1.len() as u64 {
                    return Ok((Run::Backing, len));
                }
                l1_index += 1;
            }
            return Ok((Run::Backing, len.min(l1_index * layout.l2_span() - offset)));
        };
        let max = layout.clusters(layout.in_cluster(offset).saturating_add(len));
        let mut entries = Vec::new();
        self.entries(table, layout.l2_index(offset), max, &mut entries)?;
        let within = layout.in_cluster(offset);
        let (run, have) = run_of(&entries, within, layout)?;
        Ok((run, have.min(len)))
    }
}

impl Meta {
    /// The place that is kept for subclusters without data of their own, and how far that goes.
    fn reserved(&mut self, offset: u64, len: u64) -> Result<(Option<u64>, u64)> {
        let layout = self.layout;
        let Some(table) = self.l2_table(layout.l1_index(offset))? else {
            return Ok((None, len.min(layout.l2_span() - offset % layout.l2_span())));
        };
        let within = layout.in_cluster(offset);
        let mut entries = Vec::new();
        self.entries(
            table,
            layout.l2_index(offset),
            layout.clusters(within.saturating_add(len)),
            &mut entries,
        )?;
        let (per, sub) = (layout.subclusters(), layout.subcluster());
        // The place of the first byte of the disk's cluster that holds `offset`, were all places in one row.
        let row = |index: u64| -> Result<Option<u64>> {
            match entries[(index / per) as usize].kind(index % per, layout)? {
                Kind::UnallocatedAt(at) => Ok(Some(at.wrapping_sub(index / per * layout.cluster()))),
                _ => Ok(None),
            }
        };
        let start = within / sub;
        if entries.is_empty() {
            return Ok((None, len));
        }
        let first = row(start)?;
        let mut next = start + 1;
        while next < entries.len() as u64 * per && row(next)? == first {
            next += 1;
        }
        Ok((first.map(|at| at.wrapping_add(within)), (next * sub - within).min(len)))
    }
}

/// The run that begins `within` bytes into the first of these clusters, and its length.
pub(super) fn run_of(entries: &[Entry], within: u64, layout: Layout) -> Result<(Run, u64)> {
    let first = entries.first().copied().unwrap_or_default();
    if first.is_compressed() {
        return Ok((Run::Compressed(first), layout.cluster() - within));
    }
    let (per, sub) = (layout.subclusters(), layout.subcluster());
    let start = within / sub;
    // The place of the first byte of the run's first subcluster, so that the others' follow from it.
    let kind_of = |index: u64| entries[(index / per) as usize].kind(index % per, layout);
    let kind = kind_of(start)?;
    let base = |index: u64| index / per * layout.cluster();
    let mut next = start + 1;
    while next < entries.len() as u64 * per {
        let goes_on = match (kind, kind_of(next)?) {
            (Kind::Unallocated | Kind::UnallocatedAt(_), Kind::Unallocated | Kind::UnallocatedAt(_)) => true,
            (Kind::Zero, Kind::Zero) => true,
            (Kind::ZeroAt(at), Kind::ZeroAt(other)) | (Kind::Data(at), Kind::Data(other)) => {
                at + base(next) == other
            }
            _ => false,
        };
        if !goes_on {
            break;
        }
        next += 1;
    }
    let run = match kind {
        Kind::Unallocated | Kind::UnallocatedAt(_) => Run::Backing,
        Kind::Zero => Run::Zero,
        Kind::ZeroAt(at) => Run::ZeroAt(at + within),
        Kind::Data(at) => Run::Data(at + within),
        Kind::Compressed => return Err(Error::corrupt("a compressed cluster in parts")),
    };
    Ok((run, next * sub - within))
}

impl Qcow2 {
    /// The storage of data clusters.
    pub(super) fn data_storage(&self) -> StorageId {
        StorageId(usize::from(self.layout.data_file))
    }

    /// The place of a host offset that holds what is at `guest`.
    pub(super) fn place(&self, host: u64, guest: u64) -> Place {
        let sector = self.encrypted.then_some(if self.sector_by_host { host / 512 } else { guest / 512 });
        Place { storage: self.data_storage(), offset: host, sector }
    }

    pub(super) fn reserved_extent(&self, offset: u64, len: u64) -> Result<(Option<Place>, u64)> {
        if self.layout.subclusters() == 1 || len == 0 {
            return Ok((None, len));
        }
        let (place, len) = self.read_meta(|meta| meta.reserved(offset, len))?;
        Ok((place.map(|host| self.place(host, offset)), len))
    }

    pub(super) fn map_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let (run, len) = self.read_meta(|meta| meta.run(offset, len))?;
        let mapping = match run {
            Run::Backing => Mapping::Backing,
            Run::Zero => Mapping::Zero(None),
            Run::ZeroAt(host) => Mapping::Zero(Some(self.place(host, offset))),
            Run::Data(host) => Mapping::Data(self.place(host, offset)),
            Run::Compressed(entry) => {
                let packed = entry.packed(self.layout);
                Mapping::Compressed {
                    storage: StorageId(0),
                    offset: packed.offset,
                    compressed_len: packed.len,
                    codec: self.codec,
                    unit_start: self.layout.start(offset),
                    unit_len: self.layout.cluster(),
                }
            }
        };
        Ok(Extent { mapping, len })
    }
}
