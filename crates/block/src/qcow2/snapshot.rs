//! Internal snapshots: each has an L1 table of its own, and every cluster counts the tables that refer to it.
//!
//! Order, so that a loss of power leaves leaks only: refcounts rise and are durable; then nothing is marked as written in
//! place that is shared; then the snapshot table, then the header. For deletion the reverse: the header no longer names
//! the snapshot; then refcounts fall; then clusters that have one owner left are marked so.
//!
//! Authority: the qcow2 specification, "Snapshots".

use std::collections::{BTreeMap, HashSet};

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::header::{DATA_FILE_RAW, L1_BYTES_MAX, SNAPSHOTS_MAX};
use super::layout::{COPIED, Entry, OFFSET_MASK};
use super::meta::{Meta, Runs, read_words};
use super::owned;
use crate::{Error, Result, SnapshotInfo, SnapshotTarget, StorageExt};

/// Bytes of extra data that an entry may have, as other programs limit it.
const EXTRA_MAX: u32 = 1024;
/// Bytes of the whole table.
const TABLE_MAX: u64 = 64 << 20;
const EXTRA_KNOWN: usize = 24;

/// The fixed part of an entry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEntry {
    l1_offset: U64,
    l1_len: U32,
    id_len: U16,
    name_len: U16,
    date_sec: U32,
    date_nsec: U32,
    vm_clock_nsec: U64,
    vm_state_len: U32,
    extra_len: U32,
}

/// A snapshot, as the table has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub info: SnapshotInfo,
    pub l1_offset: u64,
    pub l1_len: u32,
    /// Extra data that is not known here.
    unknown: Vec<u8>,
}

impl Snapshot {
    fn to_bytes(&self) -> Vec<u8> {
        let info = &self.info;
        let entry = RawEntry {
            l1_offset: self.l1_offset.into(),
            l1_len: self.l1_len.into(),
            id_len: (info.id.len() as u16).into(),
            name_len: (info.name.len() as u16).into(),
            date_sec: info.date_sec.into(),
            date_nsec: info.date_nsec.into(),
            vm_clock_nsec: info.vm_clock_nsec.into(),
            vm_state_len: u32::try_from(info.vm_state_size).unwrap_or(0).into(),
            extra_len: ((EXTRA_KNOWN + self.unknown.len()) as u32).into(),
        };
        let mut bytes = entry.as_bytes().to_vec();
        for word in [info.vm_state_size, info.disk_size, info.icount.unwrap_or(u64::MAX)] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(&self.unknown);
        bytes.extend_from_slice(info.id.as_bytes());
        bytes.extend_from_slice(info.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

impl Meta {
    /// Reads the snapshot table.
    pub(super) fn load_snapshots(&mut self) -> Result<()> {
        let start = self.header.snapshots_offset;
        let mut at = start;
        let mut l1_bytes = 0;
        let file_len = self.file.len()?;
        for _ in 0..self.header.snapshots {
            let (snapshot, next) = self.read_snapshot(at)?;
            l1_bytes += u64::from(snapshot.l1_len) * 8;
            if l1_bytes > file_len.saturating_add(L1_BYTES_MAX) {
                return Err(Error::corrupt("the snapshots' L1 tables together are larger than the file"));
            }
            if next - start > TABLE_MAX {
                return Err(Error::TooLarge {
                    what: "snapshot table (bytes)".to_owned(),
                    value: next - start,
                    limit: TABLE_MAX,
                });
            }
            self.snapshots.push(snapshot);
            at = next;
        }
        self.snapshots_bytes = at - start;
        Ok(())
    }

    fn read_snapshot(&self, at: u64) -> Result<(Snapshot, u64)> {
        let mut entry = RawEntry::new_zeroed();
        self.file.read_at(at, entry.as_mut_bytes())?;
        let extra_len = entry.extra_len.get();
        if extra_len > EXTRA_MAX {
            return Err(Error::corrupt(format!("a snapshot has {extra_len} bytes of extra data")));
        }
        let (id_len, name_len) = (usize::from(entry.id_len.get()), usize::from(entry.name_len.get()));
        let head = size_of::<RawEntry>() as u64;
        let rest = self.file.read_vec(at + head, extra_len as usize + id_len + name_len)?;
        let (extra, names) = rest.split_at(extra_len as usize);
        let (id, name) = names.split_at(id_len);
        let word = |index: usize| {
            let bytes = extra.get(index * 8..index * 8 + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let l1_len = entry.l1_len.get();
        let l1_offset = entry.l1_offset.get();
        if u64::from(l1_len) * 8 > L1_BYTES_MAX
            || self.layout.in_cluster(l1_offset) != 0
            || l1_offset >= 1 << 56
        {
            return Err(Error::corrupt("a snapshot's L1 table is too long or begins within a cluster"));
        }
        let info = SnapshotInfo {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            vm_state_size: word(0).unwrap_or_else(|| u64::from(entry.vm_state_len.get())),
            date_sec: entry.date_sec.get(),
            date_nsec: entry.date_nsec.get(),
            vm_clock_nsec: entry.vm_clock_nsec.get(),
            icount: word(2).filter(|&count| count != u64::MAX),
            disk_size: word(1).unwrap_or(self.header.size),
        };
        let unknown = extra.get(EXTRA_KNOWN..).unwrap_or_default().to_vec();
        let next = (at + head + rest.len() as u64).next_multiple_of(8);
        Ok((Snapshot { info, l1_offset, l1_len, unknown }, next))
    }

    /// Puts another snapshot table in the place of the one that the header names, durably.
    fn write_snapshots(&mut self, snapshots: Vec<Snapshot>) -> Result<()> {
        let old = (self.header.snapshots_offset, self.header.snapshots);
        let old_len = self.snapshots_bytes;
        let bytes: Vec<u8> = snapshots.iter().flat_map(Snapshot::to_bytes).collect();
        let offset = if snapshots.is_empty() { 0 } else { self.store(&bytes)? };
        self.flush()?;
        (self.header.snapshots_offset, self.header.snapshots) = (offset, snapshots.len() as u32);
        if let Err(error) = self.write_header() {
            (self.header.snapshots_offset, self.header.snapshots) = old;
            return Err(error);
        }
        self.file.flush()?;
        if old.0 != 0 {
            self.owned.remove(old.0, old_len);
            self.free_later(old.0, self.layout.clusters(old_len));
        }
        self.snapshots = snapshots;
        self.snapshots_bytes = bytes.len() as u64;
        self.own_snapshots();
        Ok(())
    }

    pub(super) fn find_snapshot(&self, target: SnapshotTarget<'_>) -> Result<usize> {
        let by_id = |id: &str| self.snapshots.iter().position(|snapshot| snapshot.info.id == id);
        let by_name = |name: &str| self.snapshots.iter().position(|snapshot| snapshot.info.name == name);
        let (found, name) = match target {
            SnapshotTarget::Id(id) => (by_id(id), id),
            SnapshotTarget::Name(name) => (by_name(name), name),
            SnapshotTarget::Either(name) => (by_name(name).or_else(|| by_id(name)), name),
        };
        found.ok_or_else(|| Error::NotFound { kind: "snapshot", name: name.to_owned() })
    }

    /// A snapshot's L1 table.
    pub(super) fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        read_words(&*self.file, snapshot.l1_offset, u64::from(snapshot.l1_len))
    }

    /// Adds `delta` to the refcounts of all that an L1 table refers to, through its L2 tables. Where one cannot be,
    /// none changes.
    fn count_tables(&mut self, l1: &[u64], delta: i64) -> Result<()> {
        // A table that is referred to often is read once.
        let mut tables: BTreeMap<u64, i64> = BTreeMap::new();
        for entry in l1 {
            *tables.entry(entry & OFFSET_MASK).or_default() += delta;
        }
        let tables: Vec<(u64, i64)> = tables.into_iter().collect();
        for (index, &(table, delta)) in tables.iter().enumerate() {
            if let Err(error) = self.count_table(table, delta) {
                if delta > 0 {
                    for &(table, delta) in &tables[..index] {
                        self.count_table(table, -delta)?;
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn count_table(&mut self, table: u64, delta: i64) -> Result<()> {
        if table == 0 {
            return Ok(());
        }
        if self.layout.in_cluster(table) != 0 {
            return Err(Error::corrupt(format!("an L1 entry points into a cluster, to {table:#x}")));
        }
        let mut runs = Runs::default();
        runs.add(table >> self.layout.cluster_bits, 1);
        self.for_entries(table, |layout, _, entry| {
            if entry.is_compressed() {
                let packed = entry.packed(layout);
                let first = layout.start(packed.offset);
                runs.add(first >> layout.cluster_bits, layout.clusters(packed.offset + packed.len - first));
            } else if !layout.data_file
                && let Some(host) = entry.host(layout)?
            {
                runs.add(host >> layout.cluster_bits, 1);
            }
            Ok(())
        })?;
        for (index, &(first, count)) in runs.0.iter().enumerate() {
            if let Err(error) = self.change_refcounts(first, count, delta) {
                for &(first, count) in &runs.0[..index] {
                    self.change_refcounts(first, count, -delta)?;
                }
                return Err(error);
            }
        }
        if delta < 0 {
            runs.0.iter().try_for_each(|&(first, count)| self.discard_unused(first, count))?;
        }
        Ok(())
    }

    /// Calls for every entry of a table.
    pub(super) fn for_entries(
        &mut self,
        table: u64,
        mut work: impl FnMut(super::layout::Layout, u64, Entry) -> Result<()>,
    ) -> Result<()> {
        if !self.l2.has_dirty() {
            // The file has everything: the table is read as a whole, past the cache.
            let layout = self.layout;
            let bytes = self.file.read_vec(table, layout.cluster() as usize)?;
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
            let step = (layout.entry_len() / 8) as usize;
            let mut bitmaps = words.clone().skip(1).step_by(2);
            for (index, word) in (0..).zip(words.step_by(step)) {
                let bitmap = if layout.extended { bitmaps.next().unwrap_or(0) } else { 0 };
                work(layout, index, Entry { word, bitmap })?;
            }
            return Ok(());
        }
        let mut entries = Vec::new();
        let mut index = 0;
        while index < self.layout.l2_entries() {
            self.entries(table, index, self.layout.l2_entries() - index, &mut entries)?;
            for (i, &entry) in entries.iter().enumerate() {
                work(self.layout, index + i as u64, entry)?;
            }
            index += entries.len().max(1) as u64;
        }
        Ok(())
    }

    /// Marks what has one owner as such in the active tables, and nothing else.
    pub(super) fn refresh_copied(&mut self) -> Result<()> {
        let mut seen = HashSet::new();
        for l1_index in 0..self.l1.len() as u64 {
            let Some(table) = self.l2_table(l1_index)? else { continue };
            self.relieve()?;
            let own = self.refcount(table >> self.layout.cluster_bits)? == 1;
            let entry = if own { table | COPIED } else { table };
            if entry != self.l1[l1_index as usize] {
                self.set_l1(l1_index, entry);
            }
            if self.layout.data_file || !seen.insert(table) {
                continue;
            }
            let mut places = Vec::new();
            self.for_entries(table, |layout, index, entry| {
                if let Some(host) = entry.host(layout)? {
                    places.push((index, entry, host));
                }
                Ok(())
            })?;
            for (index, entry, host) in places {
                let own = self.refcount(host >> self.layout.cluster_bits)? == 1;
                if own != entry.copied() {
                    self.set_entry(table, index, Entry { word: entry.word ^ COPIED, ..entry })?;
                }
            }
        }
        Ok(())
    }

    fn new_snapshot_id(&self) -> String {
        let ids = self.snapshots.iter().filter_map(|snapshot| snapshot.info.id.parse::<u64>().ok());
        (ids.max().unwrap_or(0).saturating_add(1)).to_string()
    }

    /// Keeps the disk as it is.
    pub(super) fn create_snapshot(&mut self, info: &SnapshotInfo) -> Result<String> {
        self.snapshots_possible()?;
        if self.snapshots.len() as u64 >= SNAPSHOTS_MAX {
            return Err(Error::TooLarge {
                what: "number of snapshots".to_owned(),
                value: SNAPSHOTS_MAX + 1,
                limit: SNAPSHOTS_MAX,
            });
        }
        let id = self.new_snapshot_id();
        if info.name.len() > usize::from(u16::MAX) {
            return Err(Error::option("a snapshot's name has at most 65535 bytes"));
        }
        self.flush()?;
        let l1 = self.l1.clone();
        let bytes: Vec<u8> = l1.iter().flat_map(|entry| (entry & !COPIED).to_be_bytes()).collect();
        let l1_offset = self.store(&bytes)?;
        if let Err(error) = self.count_tables(&l1, 1) {
            self.free_now(l1_offset, self.layout.clusters(bytes.len() as u64).max(1))?;
            return Err(error);
        }
        self.write_refcounts()?;
        self.file.flush()?;
        self.refresh_copied()?;
        let snapshot = Snapshot {
            info: SnapshotInfo { id: id.clone(), disk_size: self.header.size, ..info.clone() },
            l1_offset,
            l1_len: l1.len() as u32,
            unknown: Vec::new(),
        };
        let mut snapshots = self.snapshots.clone();
        snapshots.push(snapshot);
        self.write_snapshots(snapshots)?;
        self.drop_vm_state(info.vm_state_size)?;
        self.flush_frees()?;
        Ok(id)
    }

    /// The VM state is the snapshot's now, and the active disk's no more.
    fn drop_vm_state(&mut self, len: u64) -> Result<()> {
        let start = self.vm_state_offset();
        let mut at = start;
        while at < start.saturating_add(len) {
            self.relieve()?;
            if self.l2_table(self.layout.l1_index(at))?.is_some() {
                self.replace_entry(at, Entry::default())?;
            }
            at += self.layout.cluster();
        }
        Ok(())
    }

    /// Where the VM state lies: behind the last L2 table that the disk may need.
    pub(super) fn vm_state_offset(&self) -> u64 {
        self.layout.l1_len(self.header.size).saturating_mul(self.layout.l2_span())
    }

    fn snapshots_possible(&self) -> Result<()> {
        self.writable()?;
        if self.layout.data_file {
            return Err(Error::Unsupported(
                "internal snapshots of an image with an external data file".to_owned(),
            ));
        }
        Ok(())
    }

    /// Forgets a snapshot.
    pub(super) fn delete_snapshot(&mut self, target: SnapshotTarget<'_>) -> Result<()> {
        self.snapshots_possible()?;
        let mut snapshots = self.snapshots.clone();
        let index = self.find_snapshot(target)?;
        let snapshot = snapshots.remove(index);
        let l1 = self.snapshot_l1(&snapshot)?;
        self.flush()?;
        self.write_snapshots(snapshots)?;
        self.count_tables(&l1, -1)?;
        let clusters = self.layout.clusters(u64::from(snapshot.l1_len) * 8).max(1);
        if snapshot.l1_offset != 0 {
            self.owned.remove(snapshot.l1_offset, clusters * self.layout.cluster());
            self.free_now(snapshot.l1_offset, clusters)?;
        }
        self.settle()
    }

    /// Makes the disk what it was.
    pub(super) fn apply_snapshot(&mut self, target: SnapshotTarget<'_>) -> Result<()> {
        self.snapshots_possible()?;
        let snapshot = self.snapshots[self.find_snapshot(target)?].clone();
        if self.header.version < 3 && snapshot.info.disk_size != self.header.size {
            return Err(Error::Unsupported(
                "the snapshot has another disk size, and version 2 cannot change it".into(),
            ));
        }
        let needed = self.layout.l1_len(snapshot.info.disk_size);
        if snapshot.info.disk_size > i64::MAX as u64 || needed * 8 > L1_BYTES_MAX {
            return Err(Error::corrupt("the snapshot's disk size is too large"));
        }
        if snapshot.info.disk_size != self.header.size {
            self.load_all_bitmaps()?;
        }
        let mut l1: Vec<u64> = self.snapshot_l1(&snapshot)?.iter().map(|entry| entry & !COPIED).collect();
        l1.resize(l1.len().max(needed as usize).max(1), 0);
        self.flush()?;
        self.count_tables(&l1, 1)?;
        let old_l1 = self.l1.clone();
        let old_size = std::mem::replace(&mut self.header.size, snapshot.info.disk_size);
        if let Err(error) = self.replace_l1(l1.clone()) {
            self.header.size = old_size;
            self.count_tables(&l1, -1)?;
            return Err(error);
        }
        // The file no longer refers to the old tables.
        self.count_tables(&old_l1, -1)?;
        self.own_tables();
        if self.header.size != old_size {
            self.resize_bitmaps()?;
        }
        self.settle()
    }

    /// Drops all mappings of the active disk, VM state behind it included: an empty L1 table takes the place of the one
    /// that there is, so that a loss of power leaves either the whole disk or nothing of it.
    pub(super) fn make_empty(&mut self) -> Result<()> {
        if self.header.autoclear & DATA_FILE_RAW != 0 {
            return Err(Error::Unsupported(
                "an image whose data file is the disk cannot be emptied".to_owned(),
            ));
        }
        self.flush()?;
        let old_l1 = self.l1.clone();
        self.replace_l1(vec![0; old_l1.len()])?;
        // The file no longer refers to the old tables.
        self.count_tables(&old_l1, -1)?;
        if let Some(data) = &self.data {
            data.discard(0, data.len()?)?;
        }
        self.settle()
    }

    /// Refcounts have fallen: makes that durable, then marks what has one owner.
    fn settle(&mut self) -> Result<()> {
        self.flush_frees()?;
        self.refresh_copied()?;
        self.flush()
    }

    /// Notes the L2 tables that the active L1 table refers to.
    fn own_tables(&mut self) {
        for table in self.l1.iter().map(|entry| entry & OFFSET_MASK).filter(|&table| table != 0) {
            self.owned.add(table, 1, owned::ACTIVE_L2);
        }
    }

    /// Notes the snapshot table and what it names.
    pub(super) fn own_snapshots(&mut self) {
        self.own_in_file(self.header.snapshots_offset, self.snapshots_bytes, owned::SNAPSHOT_TABLE);
        for snapshot in self.snapshots.clone() {
            self.own_in_file(snapshot.l1_offset, u64::from(snapshot.l1_len) * 8, owned::INACTIVE_L1);
        }
        if !self.owned.checks(owned::INACTIVE_L2) {
            return;
        }
        self.owned.forget_kind(owned::INACTIVE_L2);
        for snapshot in self.snapshots.clone() {
            // One that cannot be read has no tables that could be hit.
            for entry in self.snapshot_l1(&snapshot).unwrap_or_default() {
                let table = entry & OFFSET_MASK;
                if table != 0 {
                    self.own_in_file(table, 1, owned::INACTIVE_L2);
                }
            }
        }
    }
}
