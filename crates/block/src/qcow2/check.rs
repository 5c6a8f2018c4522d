//! Looking at all of the metadata, and mending what can be mended.
//!
//! Everything that the header reaches is counted; what the refcounts say is held against that. A table that is
//! referred to often is walked once, so that the time is bounded by the file's size. Refcount blocks that are damaged
//! are not written again: new ones are made behind the end of the file, and the header is pointed to them last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::counts::{CHUNK, Counts};
use super::header::{CORRUPT, DIRTY};
use super::layout::{ALL_ALLOCATED, COPIED, Entry, Layout, OFFSET_MASK, REFTABLE_MASK, ZERO};
use super::meta::{Meta, Runs, word_bytes};
use super::refcount::{self, refcount_max};
use crate::{CheckReport, Error, Finding, Repair, Result, StorageExt, Task};

/// Rounds of mending and looking again.
const REPAIRS_MAX: u32 = 3;

/// What a walk over the tables has found.
struct Walk<'a> {
    report: CheckReport,
    counts: Counts,
    repair: Repair,
    task: &'a Task<'a>,
    /// Clusters of the file, and one more: no reference goes further.
    limit: u64,
    file_len: u64,
    /// Refcount blocks cannot be trusted.
    bad_blocks: bool,
    /// They are to be made anew.
    rebuild: bool,
}

impl<'a> Walk<'a> {
    fn new(repair: Repair, task: &'a Task<'a>, layout: Layout, file_len: u64) -> Self {
        Self {
            report: CheckReport::default(),
            counts: Counts::new(layout.clusters(file_len) + 1),
            repair,
            task,
            limit: layout.clusters(file_len) + 1,
            file_len,
            bad_blocks: false,
            rebuild: false,
        }
    }

    fn corruption(&mut self, what: String, fixable: bool, loses_data: bool) -> bool {
        let fixed = fixable && self.repair == Repair::All;
        if fixed {
            self.report.corruptions_fixed += 1;
        } else {
            self.report.corruptions += 1;
        }
        self.report.note(Finding { corruption: true, fixed, loses_data, what });
        fixed
    }

    /// Counts a reference to `len` bytes at `offset`. Whether they lie in the file.
    fn refer(&mut self, offset: u64, len: u64, times: u32, bits: u32) -> bool {
        if len == 0 {
            return true;
        }
        let first = offset >> bits;
        let end = offset.saturating_add(len).div_ceil(1 << bits);
        if end > self.limit {
            return false;
        }
        self.counts.add(first, end - first, times);
        true
    }
}

impl Meta {
    /// Looks at everything; mends what `repair` allows, and looks again whether that has mended it: tables that overlap
    /// change each other when they are written.
    pub(super) fn check(&mut self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        let mut report = self.check_once(repair, task)?;
        for _ in 0..REPAIRS_MAX {
            if report.corruptions_fixed + report.leaks_fixed == 0 {
                break;
            }
            let left = self.check_once(Repair::None, task)?;
            (report.corruptions, report.leaks) = (left.corruptions, left.leaks);
            report.image_end_offset = left.image_end_offset;
            if left.is_clean() || repair == Repair::Leaks && left.leaks == 0 {
                break;
            }
            let more = self.check_once(repair, task)?;
            report.corruptions_fixed += more.corruptions_fixed;
            report.leaks_fixed += more.leaks_fixed;
            if more.corruptions_fixed + more.leaks_fixed == 0 {
                break;
            }
        }
        if repair != Repair::None {
            self.clear_marks(repair, &report)?;
        }
        Ok(report)
    }

    /// Looks at everything once; mends what `repair` allows.
    fn check_once(&mut self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        if self.writable && !self.broken {
            self.write_back()?;
        }
        let file_len = self.file.len()?;
        let mut walk = Walk::new(repair, task, self.layout, file_len);
        walk.report.total_clusters = self.layout.clusters(self.header.size);
        self.count_all(&mut walk)?;
        self.count_refblocks(&mut walk)?;
        let bad_copied = self.compare(&mut walk)?;
        if repair == Repair::All && walk.rebuild {
            self.flush_storages()?;
            let order = self.header.refcount_order;
            self.rebuild_refcounts(order, task)?;
        }
        if repair != Repair::None {
            let lazy = std::mem::take(&mut self.lazy);
            if bad_copied || walk.report.corruptions_fixed + walk.report.leaks_fixed > 0 {
                self.flush()?;
                self.refresh_copied()?;
            }
            self.flush_frees()?;
            self.lazy = lazy;
        }
        Ok(walk.report)
    }

    /// An image that is in order again is marked so.
    fn clear_marks(&mut self, repair: Repair, report: &CheckReport) -> Result<()> {
        if repair != Repair::All || !report.is_clean() || self.lazy {
            return Ok(());
        }
        if self.header.has(DIRTY | CORRUPT) {
            self.header.incompatible &= !(DIRTY | CORRUPT);
            self.write_header()?;
            self.file.flush()?;
        }
        self.broken = false;
        if self.writable {
            self.own_all();
        }
        Ok(())
    }

    /// Counts all references but those to refcounts.
    fn count_all(&mut self, walk: &mut Walk<'_>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        walk.refer(0, 1, 1, bits);
        let mut tables: BTreeMap<u64, u32> = BTreeMap::new();
        let mut places = vec![(self.header.snapshots_offset, self.snapshots_bytes, "snapshot table")];
        if let Some((offset, len)) = self.header.crypto {
            places.push((offset, len, "LUKS header"));
        }
        places.push((self.header.l1_offset, u64::from(self.header.l1_len) * 8, "L1 table"));
        let mut l1_bytes = u64::from(self.header.l1_len) * 8;
        for snapshot in self.snapshots.clone() {
            let len = u64::from(snapshot.l1_len) * 8;
            places.push((snapshot.l1_offset, len, "snapshot's L1 table"));
            l1_bytes += len;
            if l1_bytes > walk.file_len.saturating_add(super::header::L1_BYTES_MAX) {
                return Err(Error::corrupt(
                    "the L1 tables together are larger than the file, so they overlap",
                ));
            }
            walk.task.at(0, 1)?;
            for entry in self.snapshot_l1(&snapshot)? {
                *tables.entry(entry & OFFSET_MASK).or_default() += 1;
            }
        }
        places.extend(self.bitmap_places()?.into_iter().map(|(offset, len)| (offset, len, "bitmap")));
        for (offset, len, what) in places {
            if !walk.refer(offset, len, 1, bits) {
                walk.corruption(
                    format!("ERROR {what} at {offset:#x} lies behind the end of the file"),
                    false,
                    false,
                );
            }
        }
        self.count_active(walk, &mut tables)?;
        tables.remove(&0);
        for (table, times) in tables {
            if self.layout.in_cluster(table) != 0 || !walk.refer(table, self.layout.cluster(), times, bits) {
                walk.corruption(
                    format!("ERROR snapshot's L2 table at {table:#x} is not in the file"),
                    false,
                    true,
                );
                continue;
            }
            self.count_entries(walk, table, times, false)?;
        }
        Ok(())
    }

    /// Counts the active tables, in their order; those of snapshots that are active too are taken from `tables`.
    fn count_active(&mut self, walk: &mut Walk<'_>, tables: &mut BTreeMap<u64, u32>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let mut active: HashMap<u64, u32> = HashMap::new();
        for entry in &self.l1 {
            *active.entry(entry & OFFSET_MASK).or_default() += 1;
        }
        for index in 0..self.l1.len() as u64 {
            walk.task.at(index, self.l1.len() as u64)?;
            let table = self.l1[index as usize] & OFFSET_MASK;
            let Some(times) = active.remove(&table).filter(|_| table != 0) else { continue };
            let times = times.saturating_add(tables.remove(&table).unwrap_or(0));
            let sound =
                self.layout.in_cluster(table) == 0 && walk.refer(table, self.layout.cluster(), times, bits);
            if !sound {
                let what = format!("ERROR L1 entry {index}: L2 table at {table:#x} is not in the file");
                if walk.corruption(what, true, true) {
                    self.set_l1(index, 0);
                }
                continue;
            }
            self.count_entries(walk, table, times, true)?;
        }
        Ok(())
    }

    /// Counts what one L2 table refers to. Its first cluster is not held to go on from the table before.
    fn count_entries(&mut self, walk: &mut Walk<'_>, table: u64, times: u32, active: bool) -> Result<()> {
        let mut next = 0;
        let mut broken = Vec::new();
        let version = self.header.version;
        self.for_entries(table, |layout, index, entry| {
            let bits = layout.cluster_bits;
            if entry.is_compressed() {
                let packed = entry.packed(layout);
                if layout.data_file || entry.copied() {
                    broken.push((index, "a compressed cluster that must not be"));
                } else if !walk.refer(packed.offset, packed.len, times, bits) {
                    broken.push((index, "compressed data behind the end of the file"));
                }
                if active {
                    walk.report.allocated_clusters += 1;
                    walk.report.compressed_clusters += 1;
                    walk.report.fragmented_clusters += 1;
                }
                return Ok(());
            }
            let reserved = if layout.extended { 0x3f00_0000_0000_01ff } else { 0x3f00_0000_0000_01fe };
            let both = entry.bitmap & entry.bitmap >> 32 & ALL_ALLOCATED != 0;
            let Ok(host) = entry.host(layout) else {
                broken.push((index, "an entry that points into a cluster"));
                return Ok(());
            };
            if both || host.is_none() && entry.bitmap & ALL_ALLOCATED != 0 {
                broken.push((index, "subclusters that contradict each other"));
            } else if entry.word & reserved != 0 || version < 3 && entry.word & ZERO != 0 {
                broken.push((index, "reserved bits that are set"));
            }
            let Some(host) = host else { return Ok(()) };
            if active {
                walk.report.allocated_clusters += 1;
                walk.report.fragmented_clusters += u64::from(next != 0 && host != next);
                next = host + layout.cluster();
            }
            if !layout.data_file && !walk.refer(host, layout.cluster(), times, bits) {
                broken.push((index, "data behind the end of the file"));
            }
            Ok(())
        })?;
        for (index, what) in broken {
            let what = format!("ERROR L2 table at {table:#x}, entry {index}: {what}");
            if walk.corruption(what, true, true) {
                self.mend_entry(table, index)?;
            }
        }
        Ok(())
    }

    /// Makes an entry one that can be read: what can be kept is kept.
    fn mend_entry(&mut self, table: u64, index: u64) -> Result<()> {
        let layout = self.layout;
        let old = self.entry(table, index)?;
        let lost = if self.header.version >= 3 && !layout.extended { ZERO } else { 0 };
        let mut new = Entry { word: lost, bitmap: if layout.extended { ALL_ALLOCATED << 32 } else { 0 } };
        let file_end = self.layout.start(self.file.len()?.saturating_add(layout.cluster()));
        if !old.is_compressed()
            && let Ok(Some(host)) = old.host(layout)
            && (layout.data_file || host < file_end)
        {
            let zero = if layout.extended || self.header.version < 3 { 0 } else { old.word & ZERO };
            let bitmap = if layout.extended { old.bitmap & !((old.bitmap & ALL_ALLOCATED) << 32) } else { 0 };
            new = Entry { word: host | old.word & COPIED | zero, bitmap };
        }
        self.set_entry(table, index, new)
    }

    /// Counts the refcount table and its blocks.
    fn count_refblocks(&mut self, walk: &mut Walk<'_>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let table_len = u64::from(self.header.reftable_clusters) << bits;
        if !walk.refer(self.header.reftable_offset, table_len, 1, bits) {
            walk.bad_blocks = true;
            walk.rebuild |=
                walk.corruption("ERROR the refcount table is not in the file".to_owned(), true, false);
        }
        for (index, entry) in self.reftable.clone().into_iter().enumerate() {
            let block = entry & REFTABLE_MASK;
            if block == 0 {
                continue;
            }
            let sound =
                self.layout.in_cluster(block) == 0 && walk.refer(block, self.layout.cluster(), 1, bits);
            let shared = sound && walk.counts.get(block >> bits) > 1;
            if !sound || shared {
                let why = if shared { "is used for something else as well" } else { "is not in the file" };
                let what = format!("ERROR refcount block {index} at {block:#x} {why}");
                walk.bad_blocks = true;
                walk.rebuild |= walk.corruption(what, true, false);
                if !sound {
                    // It cannot be read: whatever it counts is counted as nothing.
                    if let Some(entry) = self.reftable.get_mut(index) {
                        *entry = 0;
                    }
                }
            }
        }
        Ok(())
    }

    /// Holds the refcounts against what was counted; whether marks of sole owners are wrong.
    fn compare(&mut self, walk: &mut Walk<'_>) -> Result<bool> {
        let mut wrong = Vec::new();
        let mut last = 0;
        // First what no block counts, because to mend that new blocks are made for everything.
        self.compare_uncounted(walk, &mut wrong, &mut last);
        self.take_wrong(walk, &mut wrong)?;
        if !walk.bad_blocks {
            self.compare_blocks(walk, &mut wrong, &mut last)?;
        }
        walk.report.image_end_offset = last << self.layout.cluster_bits;
        self.check_copied(walk)
    }

    /// Tells and mends refcounts that are wrong.
    fn take_wrong(&mut self, walk: &mut Walk<'_>, wrong: &mut Vec<(u64, u64, u64)>) -> Result<()> {
        let (mut leaks, mut low) = (0u64, 0u64);
        for &(cluster, has, should) in &*wrong {
            leaks += u64::from(has > should);
            low += u64::from(has < should);
            self.note_refcount(walk, cluster, has, should);
        }
        self.mend_refcounts(walk, wrong)?;
        wrong.clear();
        let (fix_leaks, fix_low) = (walk.repair != Repair::None, walk.repair == Repair::All);
        *(if fix_leaks { &mut walk.report.leaks_fixed } else { &mut walk.report.leaks }) += leaks;
        *(if fix_low { &mut walk.report.corruptions_fixed } else { &mut walk.report.corruptions }) += low;
        Ok(())
    }

    /// Every refcount that there is.
    fn compare_blocks(
        &mut self,
        walk: &mut Walk<'_>,
        wrong: &mut Vec<(u64, u64, u64)>,
        last: &mut u64,
    ) -> Result<()> {
        let order = self.header.refcount_order;
        let (per_block, per_piece) = (self.per_block(), self.per_piece());
        let piece_len = self.refs.piece_len();
        let (mut have, mut wanted) = (Vec::new(), Vec::new());
        for (index, block) in self.reftable.clone().into_iter().enumerate() {
            let block = block & REFTABLE_MASK;
            if block == 0 {
                continue;
            }
            walk.task.at(index as u64, self.reftable.len() as u64)?;
            for piece in 0..self.layout.cluster() / piece_len {
                let file = self.file.clone();
                let bytes = &self.refs.get(&*file, block + piece * piece_len)?.bytes;
                let first = index as u64 * per_block + piece * per_piece;
                refcount::unpack(bytes, order, &mut have);
                wanted.resize(have.len(), 0);
                walk.counts.fill(first, &mut wanted);
                for (cluster, (&has, &should)) in (first..).zip(have.iter().zip(&wanted)) {
                    if has | should != 0 {
                        *last = (*last).max(cluster + 1);
                        if has != should {
                            wrong.push((cluster, has, should));
                        }
                    }
                }
                self.take_wrong(walk, wrong)?;
            }
        }
        Ok(())
    }

    /// Clusters in use that no refcount block counts.
    fn compare_uncounted(&self, walk: &Walk<'_>, wrong: &mut Vec<(u64, u64, u64)>, last: &mut u64) {
        for chunk in walk.counts.used() {
            let clusters = chunk * CHUNK..(chunk + 1) * CHUNK;
            let ends = [clusters.start, clusters.end - 1];
            if !walk.bad_blocks && !ends.iter().any(|&cluster| self.has_no_refblock(cluster)) {
                continue;
            }
            for cluster in clusters {
                let should = walk.counts.get(cluster);
                if should > 0 && (walk.bad_blocks || self.has_no_refblock(cluster)) {
                    *last = (*last).max(cluster + 1);
                    if !walk.bad_blocks {
                        wrong.push((cluster, 0, should));
                    }
                }
            }
        }
    }

    fn has_no_refblock(&self, cluster: u64) -> bool {
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        self.reftable.get(index).is_none_or(|entry| entry & REFTABLE_MASK == 0)
    }

    fn note_refcount(&self, walk: &mut Walk<'_>, cluster: u64, has: u64, should: u64) {
        if walk.report.findings.len() >= CheckReport::MAX_FINDINGS {
            return;
        }
        let corruption = has < should;
        let word = if corruption { "ERROR" } else { "Leaked" };
        let fixed = walk.repair == Repair::All || !corruption && walk.repair == Repair::Leaks;
        walk.report.note(Finding {
            corruption,
            fixed,
            loses_data: false,
            what: format!("{word} cluster {cluster} refcount={has} reference={should}"),
        });
    }

    fn mend_refcounts(&mut self, walk: &mut Walk<'_>, wrong: &[(u64, u64, u64)]) -> Result<()> {
        if walk.repair == Repair::None || walk.rebuild {
            return Ok(());
        }
        // A missing block would need a cluster, and which are free is not known while counts are too low.
        let low = walk.repair == Repair::All;
        if low && wrong.iter().any(|&(cluster, has, should)| has < should && self.has_no_refblock(cluster)) {
            walk.rebuild = true;
            return Ok(());
        }
        for &(cluster, has, should) in wrong {
            if should > has && low || should < has {
                let delta = should.wrapping_sub(has) as i64;
                if has.max(should) > i64::MAX as u64 {
                    walk.rebuild |= low;
                    continue;
                }
                self.change_refcounts(cluster, 1, delta)?;
            }
        }
        Ok(())
    }

    /// Whether the marks of sole owners agree with the refcounts; whether one does not. A mark that should not be is
    /// dangerous: data of others would be written. One that is missing costs a copy, so it counts as a leak; a loss of
    /// power leaves such when a snapshot is deleted.
    fn check_copied(&mut self, walk: &mut Walk<'_>) -> Result<bool> {
        let (mut wrong, mut missing) = (0u64, 0u64);
        let mut seen = HashSet::new();
        let bits = self.layout.cluster_bits;
        for index in 0..self.l1.len() as u64 {
            let entry = self.l1[index as usize];
            let table = entry & OFFSET_MASK;
            if table == 0 || self.layout.in_cluster(table) != 0 || (table >> bits) >= walk.limit {
                continue;
            }
            let mut marks = vec![(table, entry & COPIED != 0, u64::MAX)];
            if !self.layout.data_file && seen.insert(table) {
                let limit = walk.limit;
                self.for_entries(table, |layout, index, entry| {
                    if let Ok(Some(host)) = entry.host(layout)
                        && (host >> bits) < limit
                    {
                        marks.push((host, entry.copied(), index));
                    }
                    Ok(())
                })?;
            }
            for (host, marked, place) in marks {
                let owners = walk.counts.get(host >> bits);
                if (owners == 1) == marked {
                    continue;
                }
                // A block that is damaged says nothing. A count that is too high is a leak, which is told already.
                let count = if walk.bad_blocks { owners } else { self.refcount(host >> bits)? };
                if !marked && count != 1 {
                    continue;
                }
                wrong += u64::from(marked);
                missing += u64::from(!marked);
                let what = if place == u64::MAX {
                    format!("OFLAG_COPIED L2 cluster: L1 entry {index}, refcount={count}")
                } else {
                    format!("OFLAG_COPIED data cluster: L1 entry {index}, L2 entry {place}, refcount={count}")
                };
                let word = if marked { "ERROR" } else { "Missing" };
                let fixed = walk.repair == Repair::All || !marked && walk.repair == Repair::Leaks;
                walk.report.note(Finding {
                    corruption: marked,
                    fixed,
                    loses_data: false,
                    what: format!("{word} {what}"),
                });
            }
        }
        let (fix_leaks, fix_all) = (walk.repair != Repair::None, walk.repair == Repair::All);
        *(if fix_all { &mut walk.report.corruptions_fixed } else { &mut walk.report.corruptions }) += wrong;
        *(if fix_leaks { &mut walk.report.leaks_fixed } else { &mut walk.report.leaks }) += missing;
        Ok(wrong + missing > 0)
    }

    /// Counts everything into new refcount blocks of the given width, and points the header to them.
    pub(super) fn rebuild_refcounts(&mut self, order: u32, task: &Task<'_>) -> Result<()> {
        let file_len = self.file.len()?;
        let cluster = self.layout.cluster();
        let mut walk = Walk::new(Repair::None, task, self.layout, file_len);
        self.l2.write_dirty(&*self.file)?;
        self.count_all(&mut walk)?;
        let start = self.layout.clusters(file_len).max(walk.counts.end);
        let (table, blocks) = place_blocks(&walk.counts, start, cluster, order)?;
        walk.counts.add(start, table + blocks.len() as u64, 1);
        let mut entries = vec![0u64; (table * cluster / 8) as usize];
        for (place, &block) in blocks.iter().enumerate() {
            task.at(place as u64, blocks.len() as u64)?;
            let offset = (start + table + place as u64) * cluster;
            self.file.write_at(offset, &block_bytes(&walk.counts, block, cluster, order)?)?;
            if let Some(entry) = entries.get_mut(block as usize) {
                *entry = offset;
            }
        }
        self.file.write_at(start * cluster, &word_bytes(&entries))?;
        self.file.flush()?;
        let old = (self.header.reftable_offset, self.header.reftable_clusters, self.header.refcount_order);
        (self.header.reftable_offset, self.header.reftable_clusters) = (start * cluster, table as u32);
        self.header.refcount_order = order;
        if let Err(error) = self.write_header() {
            (self.header.reftable_offset, self.header.reftable_clusters, self.header.refcount_order) = old;
            return Err(error);
        }
        self.file.flush()?;
        self.reftable = entries;
        self.reftable_dirty.clear();
        self.refs.clear();
        self.frees = Runs::default();
        (self.free_hint, self.packed_at) = (0, 0);
        self.own_all();
        Ok(())
    }
}

/// Clusters of a new refcount table at `start`, and which blocks there have to be: those that count something, the table
/// and the blocks themselves among it.
fn place_blocks(counts: &Counts, start: u64, cluster: u64, order: u32) -> Result<(u64, BTreeSet<u64>)> {
    let per_block = (cluster * 8) >> order;
    let used = |chunk: &u64| [*chunk * CHUNK / per_block, ((*chunk + 1) * CHUNK - 1) / per_block];
    let mut blocks: BTreeSet<u64> = counts.used().iter().flat_map(used).collect();
    let mut table = 1;
    loop {
        let end = start + table + blocks.len() as u64;
        let before = (blocks.len(), table);
        blocks.extend(start / per_block..end.div_ceil(per_block));
        table = blocks.last().map_or(1, |last| ((last + 1) * 8).div_ceil(cluster));
        if table * cluster > super::header::REFTABLE_BYTES_MAX {
            return Err(Error::Refused(
                "the file is too large for refcounts of this width and cluster size".into(),
            ));
        }
        if before == (blocks.len(), table) {
            return Ok((table, blocks));
        }
    }
}

/// One refcount block's bytes.
fn block_bytes(counts: &Counts, block: u64, cluster: u64, order: u32) -> Result<Vec<u8>> {
    let per_block = (cluster * 8) >> order;
    let max = refcount_max(order);
    let mut bytes = vec![0; cluster as usize];
    for index in 0..per_block {
        let count = counts.get(block * per_block + index);
        if count > max {
            return Err(Error::Refused(format!(
                "a cluster has {count} references, and a refcount is at most {max}"
            )));
        }
        if count > 0 {
            refcount::set(&mut bytes, index, order, count);
        }
    }
    Ok(bytes)
}
