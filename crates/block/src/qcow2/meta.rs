//! An image's metadata in memory, and the order in which it reaches the file.
//!
//! Invariant: whatever the power does, each cluster that a table in the file refers to has a refcount in the file that
//! counts this reference. So refcounts rise and are durable before an L2 table refers to a cluster; a new L2 table and
//! the data are durable before an entry refers to them; and a refcount falls only when the tables that referred to the
//! cluster no longer do so in the file. A loss of power leaves clusters that count too much: leaks. With lazy refcounts
//! the dirty bit takes the place of the first rule.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::cache::Cache;
use super::header::{CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2, Header};
use super::layout::{COPIED, Entry, Layout, OFFSET_MASK, PER_SECTOR, REFTABLE_MASK};
use super::owned::{self, Kinds, Owned};
use super::snapshot::Snapshot;
use crate::{Error, Options, Result, Storage, StorageExt};

/// L2 tables that are kept in memory, at most: enough for 256 GiB of disk in clusters of 64 KiB.
const L2_CACHE_BYTES: u64 = 32 << 20;
/// Refcount blocks that are kept in memory, at most: enough for 256 GiB of file.
const REF_CACHE_BYTES: u64 = 8 << 20;
/// The most that a user can ask for.
const CACHE_BYTES_MAX: u64 = 4 << 30;
/// Clusters that wait to be freed until the file no longer refers to them.
const FREES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Meta {
    pub file: Arc<dyn Storage>,
    pub data: Option<Arc<dyn Storage>>,
    pub layout: Layout,
    pub header: Header,
    pub l1: Vec<u64>,
    /// Sectors of the L1 table that differ from the file's.
    pub l1_dirty: BTreeSet<u64>,
    pub l2: Cache,
    /// What the user has chosen.
    pub cache_sizes: CacheSizes,
    pub reftable: Vec<u64>,
    pub reftable_dirty: BTreeSet<u64>,
    pub refs: Cache,
    /// No cluster below this is free.
    pub free_hint: u64,
    /// Runs of clusters whose refcounts fall by one when the file no longer refers to them.
    pub frees: Runs,
    /// Where the next compressed data goes; 0 where it needs a new cluster.
    pub packed_at: u64,
    /// Clusters that hold metadata.
    pub owned: Owned,
    /// Clusters from here on were not in the file when it was opened.
    owned_end: u64,
    pub snapshots: Vec<Snapshot>,
    /// Length of the snapshot table in the file.
    pub snapshots_bytes: u64,
    pub bitmaps: super::bitmap::State,
    /// The dirty bit is set by us: refcounts may be late.
    pub lazy: bool,
    /// Refcounts may be late if the image says so.
    pub lazy_wanted: bool,
    pub writable: bool,
    /// Damage was found while writing: nothing is written any more.
    pub broken: bool,
}

impl Meta {
    /// Reads the tables that are always in memory.
    pub(super) fn load(
        file: Arc<dyn Storage>,
        data: Option<Arc<dyn Storage>>,
        header: Header,
        writable: bool,
    ) -> Result<Self> {
        let layout = Layout {
            cluster_bits: header.cluster_bits,
            extended: header.has(EXTENDED_L2),
            data_file: header.has(DATA_FILE),
        };
        let owned_end = layout.clusters(file.len()?);
        let l1 = read_words(&*file, header.l1_offset, u64::from(header.l1_len))?;
        let entries = u64::from(header.reftable_clusters) * layout.cluster() / 8;
        let mut reftable = read_words(&*file, header.reftable_offset, entries)?;
        while reftable.last() == Some(&0) {
            reftable.pop();
        }
        let mut meta = Self {
            l2: Cache::new(layout.cluster(), L2_CACHE_BYTES),
            refs: Cache::new(layout.cluster(), REF_CACHE_BYTES),
            file,
            data,
            layout,
            header,
            l1,
            l1_dirty: BTreeSet::new(),
            cache_sizes: CacheSizes::default(),
            reftable,
            reftable_dirty: BTreeSet::new(),
            free_hint: 0,
            frees: Runs::default(),
            packed_at: 0,
            owned: Owned::new(layout),
            owned_end,
            snapshots: Vec::new(),
            snapshots_bytes: 0,
            bitmaps: super::bitmap::State::default(),
            lazy: false,
            lazy_wanted: false,
            writable,
            broken: false,
        };
        if writable {
            // Refcount blocks that are several at once would make the search for a free cluster endless.
            let mut seen = HashSet::new();
            meta.broken = meta.reftable.iter().any(|&block| block != 0 && !seen.insert(block));
        }
        Ok(meta)
    }

    /// Notes a range that the image names as metadata. What lies behind the end of the file is not there, so that the file
    /// bounds what is kept.
    pub(super) fn own_in_file(&mut self, offset: u64, len: u64, kind: Kinds) {
        let file_end = self.owned_end << self.layout.cluster_bits;
        let end = offset.saturating_add(len).min(file_end);
        self.owned.add(offset, end.saturating_sub(offset), kind);
    }

    /// Notes what the tables in memory show to be metadata.
    pub(super) fn own_all(&mut self) {
        self.owned.clear();
        self.owned_end = self.owned_end.max(self.file.len().map_or(0, |len| self.layout.clusters(len)));
        let header = self.header.clone();
        let cluster = self.layout.cluster();
        self.owned.add(0, 1, owned::HEADER);
        self.own_in_file(header.l1_offset, u64::from(header.l1_len) * 8, owned::ACTIVE_L1);
        let reftable_len = u64::from(header.reftable_clusters) * cluster;
        self.own_in_file(header.reftable_offset, reftable_len, owned::REFCOUNT_TABLE);
        if let Some((offset, len)) = header.crypto {
            self.own_in_file(offset, len, owned::ENCRYPTION);
        }
        let tables = self.l1.iter().map(|entry| (entry & OFFSET_MASK, owned::ACTIVE_L2));
        let blocks = self.reftable.iter().map(|entry| (entry & REFTABLE_MASK, owned::REFCOUNT_BLOCK));
        for (offset, kind) in tables.chain(blocks).filter(|&(offset, _)| offset != 0) {
            self.owned.add(offset, 1, kind);
        }
        self.own_snapshots();
        self.own_bitmaps();
    }

    /// Sizes the caches by the image: none needs more than all of its tables, twice, so that they are never full.
    pub(super) fn limit_caches(&mut self) {
        let cluster = self.layout.cluster();
        let tables = self.layout.l1_len(self.header.size).saturating_mul(2 * cluster);
        let CacheSizes { l2, refcounts } = self.cache_sizes;
        self.l2.set_limit(l2.unwrap_or(L2_CACHE_BYTES).min(CACHE_BYTES_MAX).min(tables));
        self.refs.set_limit(refcounts.unwrap_or(REF_CACHE_BYTES).min(CACHE_BYTES_MAX));
    }

    /// Fails where nothing may be written any more.
    pub(super) fn writable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly("write".to_owned()));
        }
        if self.broken {
            return Err(Error::corrupt("damage was found, so nothing more is written"));
        }
        self.owned.refuse_conflict()
    }

    /// Marks the image as corrupt, so that nobody writes to it before it has been checked.
    pub(super) fn mark_corrupt(&mut self) {
        self.broken = true;
        if self.writable && self.header.version >= 3 && !self.header.has(CORRUPT) {
            self.header.incompatible |= CORRUPT;
            // The damage is told to the caller already; the mark is an additional safeguard.
            let _ = self.write_header().and_then(|()| self.file.flush());
        }
    }

    /// Writes the header as it is in memory.
    pub(super) fn write_header(&mut self) -> Result<()> {
        let mut bytes = self.header.to_bytes()?;
        let used = bytes.len();
        // Whatever lay behind it, up to the next sector, is not a part of it.
        bytes.resize(used.next_multiple_of(512).min(self.layout.cluster() as usize), 0);
        self.file.write_at(0, &bytes)
    }

    /// The L2 table of an L1 entry.
    pub(super) fn l2_table(&self, l1_index: u64) -> Result<Option<u64>> {
        let entry = usize::try_from(l1_index).ok().and_then(|index| self.l1.get(index)).copied().unwrap_or(0);
        let offset = entry & OFFSET_MASK;
        if self.layout.in_cluster(offset) != 0 {
            return Err(Error::corrupt(format!("L1 entry {l1_index} points into a cluster, to {offset:#x}")));
        }
        Ok((offset != 0).then_some(offset))
    }

    fn piece_of(&self, table: u64, index: u64) -> (u64, u64) {
        let byte = index * self.layout.entry_len();
        let piece = byte - byte % self.l2.piece_len();
        (table + piece, (byte - piece) / 8)
    }

    /// Entries of a table from `index` on: up to `max`, and to the end of a piece in memory.
    pub(super) fn entries(&mut self, table: u64, index: u64, max: u64, out: &mut Vec<Entry>) -> Result<()> {
        let (offset, word) = self.piece_of(table, index);
        let words = self.layout.entry_len() / 8;
        let in_piece = (self.l2.piece_len() / 8 - word) / words;
        let file = &*self.file;
        let piece = self.l2.get(file, offset)?;
        out.clear();
        out.extend((0..max.min(in_piece)).map(|i| {
            let at = word + i * words;
            Entry { word: piece.word(at), bitmap: if words == 2 { piece.word(at + 1) } else { 0 } }
        }));
        Ok(())
    }

    pub(super) fn entry(&mut self, table: u64, index: u64) -> Result<Entry> {
        let (offset, word) = self.piece_of(table, index);
        let extended = self.layout.extended;
        let file = &*self.file;
        let piece = self.l2.get(file, offset)?;
        Ok(Entry { word: piece.word(word), bitmap: if extended { piece.word(word + 1) } else { 0 } })
    }

    pub(super) fn set_entry(&mut self, table: u64, index: u64, entry: Entry) -> Result<()> {
        let (offset, word) = self.piece_of(table, index);
        let extended = self.layout.extended;
        let file = self.file.clone();
        self.l2.change(&*file, offset, |piece| {
            piece.set_word(word, entry.word);
            if extended {
                piece.set_word(word + 1, entry.bitmap);
            }
        })
    }

    pub(super) fn set_l1(&mut self, index: u64, entry: u64) {
        if let Some(place) = self.l1.get_mut(index as usize) {
            *place = entry;
            self.l1_dirty.insert(index / PER_SECTOR);
        }
    }

    /// The L2 table of an L1 entry, to be changed: made where there is none, copied where a snapshot has it too.
    pub(super) fn l2_table_for_change(&mut self, l1_index: u64) -> Result<u64> {
        let cluster = self.layout.cluster();
        let old = self.l2_table(l1_index)?;
        if l1_index >= self.l1.len() as u64 {
            self.grow_l1(l1_index + 1)?;
        }
        let Some(table) = old else {
            let new = self.allocate(1)?;
            self.file.write_zeroes(new, cluster, true)?;
            self.l2.forget(new, new + cluster);
            self.owned.add(new, cluster, owned::ACTIVE_L2);
            self.set_l1(l1_index, new | COPIED);
            return Ok(new);
        };
        if self.l1[l1_index as usize] & COPIED != 0 {
            return Ok(table);
        }
        let new = self.allocate(1)?;
        let mut piece = 0;
        while piece < cluster {
            let file = self.file.clone();
            let bytes = self.l2.get(&*file, table + piece)?.bytes.to_vec();
            self.file.write_at(new + piece, &bytes)?;
            piece += self.l2.piece_len();
        }
        self.l2.forget(new, new + cluster);
        self.owned.add(new, cluster, owned::ACTIVE_L2);
        self.set_l1(l1_index, new | COPIED);
        self.free_later(table, 1);
        Ok(new)
    }

    /// Gives the L1 table room for `len` entries at least.
    pub(super) fn grow_l1(&mut self, len: u64) -> Result<()> {
        if len <= self.l1.len() as u64 {
            return Ok(());
        }
        let bytes_max = super::header::L1_BYTES_MAX;
        let per_cluster = self.layout.cluster() / 8;
        let len = len.next_multiple_of(per_cluster).min(bytes_max / 8).max(len);
        if len * 8 > bytes_max {
            return Err(Error::TooLarge {
                what: "L1 table (bytes)".to_owned(),
                value: len * 8,
                limit: bytes_max,
            });
        }
        let mut l1 = self.l1.clone();
        l1.resize(len as usize, 0);
        self.replace_l1(l1)
    }

    /// Puts another L1 table in the place of the active one, durably.
    pub(super) fn replace_l1(&mut self, l1: Vec<u64>) -> Result<()> {
        let mut bytes = word_bytes(&l1);
        let clusters = self.layout.clusters(bytes.len() as u64).max(1);
        let offset = self.allocate(clusters)?;
        bytes.resize((clusters * self.layout.cluster()) as usize, 0);
        // The new table refers to what the old one does, some of which may not be in the file yet.
        let len = l1.len();
        self.l1_dirty.clear();
        self.write_refcounts()?;
        self.flush_storages()?;
        self.l2.write_dirty(&*self.file)?;
        self.file.write_at(offset, &bytes)?;
        self.file.flush()?;
        let old = (self.header.l1_offset, self.header.l1_len);
        self.header.l1_offset = offset;
        self.header.l1_len = u32::try_from(len).map_err(|_| Error::corrupt("an L1 table of 2^32 entries"))?;
        if let Err(error) = self.write_header() {
            (self.header.l1_offset, self.header.l1_len) = old;
            return Err(error);
        }
        self.file.flush()?;
        self.l1 = l1;
        self.owned.add(offset, clusters * self.layout.cluster(), owned::ACTIVE_L1);
        let old_clusters = self.layout.clusters(u64::from(old.1) * 8);
        if old.0 != 0 && old_clusters != 0 {
            self.owned.remove(old.0, old_clusters * self.layout.cluster());
            self.free_later(old.0, old_clusters);
        }
        Ok(())
    }

    /// Clusters that memory no longer refers to: their refcounts fall when the file does not either.
    pub(super) fn free_later(&mut self, offset: u64, clusters: u64) {
        self.frees.add(offset >> self.layout.cluster_bits, clusters);
    }

    /// Clusters that neither memory nor file refers to.
    pub(super) fn free_now(&mut self, offset: u64, clusters: u64) -> Result<()> {
        self.change_refcounts(offset >> self.layout.cluster_bits, clusters, -1)
    }

    /// Writes back before memory runs out of room. Called before each change.
    pub(super) fn relieve(&mut self) -> Result<()> {
        if self.l2.is_full_of_dirt() || self.frees.0.len() > FREES_MAX {
            return self.write_back();
        }
        Ok(())
    }

    pub(super) fn flush_storages(&self) -> Result<()> {
        if let Some(data) = &self.data {
            data.flush()?;
        }
        self.file.flush()
    }

    /// Writes all metadata to the file in its order. What is written last may not be durable yet.
    pub(super) fn write_back(&mut self) -> Result<()> {
        if !self.lazy {
            self.write_refcounts()?;
        }
        let tables = self.l2.has_dirty();
        if tables || !self.l1_dirty.is_empty() {
            self.flush_storages()?;
            self.l2.write_dirty(&*self.file)?;
        }
        if !self.l1_dirty.is_empty() {
            if tables {
                self.file.flush()?;
            }
            self.write_l1()?;
        }
        if !self.frees.0.is_empty() {
            self.flush_storages()?;
            self.apply_frees()?;
        }
        Ok(())
    }

    fn write_l1(&mut self) -> Result<()> {
        while let Some(&sector) = self.l1_dirty.first() {
            let entries =
                (sector * PER_SECTOR..(sector + 1) * PER_SECTOR).map_while(|i| self.l1.get(i as usize));
            let bytes: Vec<u8> = entries.flat_map(|entry| entry.to_be_bytes()).collect();
            self.file.write_at(self.header.l1_offset + sector * 512, &bytes)?;
            self.l1_dirty.remove(&sector);
        }
        Ok(())
    }

    fn apply_frees(&mut self) -> Result<()> {
        let mut frees = std::mem::take(&mut self.frees).0;
        frees.sort_unstable();
        for (first, count) in frees {
            self.change_refcounts(first, count, -1)?;
            self.discard_unused(first, count)?;
        }
        Ok(())
    }

    /// Gives the host's space of those clusters back that nobody refers to.
    pub(super) fn discard_unused(&mut self, first: u64, count: u64) -> Result<()> {
        let cluster = self.layout.cluster();
        let mut at = first;
        while at < first + count {
            let start = at;
            while at < first + count && self.refcount(at)? == 0 {
                at += 1;
            }
            if at > start {
                self.file.discard(start * cluster, (at - start) * cluster)?;
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.write_back()?;
        self.flush_storages()
    }

    /// Makes everything durable, and then the refcounts of what that has freed.
    pub(super) fn flush_frees(&mut self) -> Result<()> {
        self.flush()?;
        self.flush()
    }

    /// Begins to defer refcounts: from now on the image says that they may be wrong.
    pub(super) fn begin_lazy(&mut self) -> Result<()> {
        let wanted = self.header.version >= 3 && self.lazy_wanted;
        if !wanted || self.lazy {
            return Ok(());
        }
        self.header.incompatible |= DIRTY;
        self.write_header()?;
        self.file.flush()?;
        self.lazy = true;
        Ok(())
    }

    /// Writes everything and says that refcounts are right.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.lazy = false;
        self.flush_frees()?;
        if self.header.has(DIRTY) && !self.broken {
            self.header.incompatible &= !DIRTY;
            self.write_header()?;
            self.file.flush()?;
        }
        Ok(())
    }
}

/// Bytes that caches may take, where the user says so.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CacheSizes {
    l2: Option<u64>,
    refcounts: Option<u64>,
}

impl CacheSizes {
    /// `cache-size`, `l2-cache-size` and `refcount-cache-size`.
    pub(super) fn take(options: &mut Options) -> Result<Self> {
        let whole = options.take_size("cache-size")?;
        let mut sizes = Self {
            l2: options.take_size("l2-cache-size")?,
            refcounts: options.take_size("refcount-cache-size")?,
        };
        let Some(whole) = whole else { return Ok(sizes) };
        let wrong = match (sizes.l2, sizes.refcounts) {
            (Some(_), Some(_)) => {
                Some("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
            }
            (Some(l2), None) if l2 > whole => Some("l2-cache-size may not exceed cache-size"),
            (None, Some(refcounts)) if refcounts > whole => {
                Some("refcount-cache-size may not exceed cache-size")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Error::option(wrong));
        }
        let l2 = sizes.l2.unwrap_or_else(|| whole - sizes.refcounts.unwrap_or(whole / 5));
        (sizes.l2, sizes.refcounts) = (Some(l2), Some(sizes.refcounts.unwrap_or(whole - l2)));
        Ok(sizes)
    }
}

/// Runs of clusters: first and count.
#[derive(Debug, Default)]
pub(super) struct Runs(pub Vec<(u64, u64)>);

impl Runs {
    /// Adds clusters; those that follow the last ones make one run with them.
    pub(super) fn add(&mut self, first: u64, count: u64) {
        match self.0.last_mut() {
            Some(last) if last.0 + last.1 == first => last.1 += count,
            _ => self.0.push((first, count)),
        }
    }
}

/// The bytes of a table of big-endian words.
pub(super) fn word_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A table of big-endian words. Its length is bounded by the header's limits.
pub(super) fn read_words(file: &dyn Storage, offset: u64, count: u64) -> Result<Vec<u64>> {
    let bytes = file.read_vec(offset, (count * 8) as usize)?;
    Ok(bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap_or_default())).collect())
}
