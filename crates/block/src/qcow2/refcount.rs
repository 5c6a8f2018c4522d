//! Refcounts: how many tables refer to each cluster of the file, and finding clusters that nobody refers to.
//!
//! Widths are 1 to 64 bits. Widths below a byte are packed from the lowest bits up. The refcount table in memory may be
//! longer than its place in the file; it moves when metadata is written back.
//!
//! Authority: the qcow2 specification, "Host cluster management".

use super::layout::{PER_SECTOR, REFTABLE_MASK};
use super::meta::{Meta, word_bytes};
use super::owned;
use crate::{Error, Result, StorageExt};

/// The greatest table: what the header allows.
const REFTABLE_ENTRIES_MAX: u64 = super::header::REFTABLE_BYTES_MAX / 8;

/// One refcount of a block's bytes.
pub(super) fn get(bytes: &[u8], index: u64, order: u32) -> u64 {
    let i = index as usize;
    let take = |at: usize, len: usize| {
        bytes
            .get(at..at + len)
            .map_or(0, |bytes| bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    };
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let shift = (i % per_byte) << order;
            take(i / per_byte, 1) >> shift & ((1 << (1 << order)) - 1)
        }
        3 => take(i, 1),
        4 => take(i * 2, 2),
        5 => take(i * 4, 4),
        _ => take(i * 8, 8),
    }
}

/// All refcounts of a block's bytes, in place of what `out` holds.
pub(super) fn unpack(bytes: &[u8], order: u32, out: &mut Vec<u64>) {
    out.clear();
    if order == 4 {
        // The usual width, and so the one that is worth a way of its own.
        out.extend(bytes.as_chunks::<2>().0.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))));
    } else {
        let count = ((bytes.len() as u64) << 3) >> order;
        out.extend((0..count).map(|index| get(bytes, index, order)));
    }
}

/// Sets one refcount in a block's bytes. The value fits.
pub(super) fn set(bytes: &mut [u8], index: u64, order: u32, value: u64) {
    let i = index as usize;
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (i % per_byte) << order;
        let mask = ((1u16 << (1 << order)) - 1) as u8;
        if let Some(byte) = bytes.get_mut(i / per_byte) {
            *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
        }
        return;
    }
    let len = 1 << (order - 3);
    if let Some(place) = bytes.get_mut(i * len..(i + 1) * len) {
        place.copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
}

/// The greatest refcount of a width.
pub(super) fn refcount_max(order: u32) -> u64 {
    if order >= 6 { u64::MAX } else { (1 << (1 << order)) - 1 }
}

/// A run of clusters within one piece of one block.
struct Span {
    piece: u64,
    index: u64,
    len: u64,
}

impl Meta {
    /// Refcounts of a block.
    pub(super) fn per_block(&self) -> u64 {
        (self.layout.cluster() * 8) >> self.header.refcount_order
    }

    /// Refcounts of a block's piece in memory.
    pub(super) fn per_piece(&self) -> u64 {
        (self.refs.piece_len() * 8) >> self.header.refcount_order
    }

    /// The refcount block for a cluster; `None` where there is none.
    fn refblock(&self, cluster: u64) -> Result<Option<u64>> {
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        let block = self.reftable.get(index).copied().unwrap_or(0) & REFTABLE_MASK;
        if self.layout.in_cluster(block) != 0 || block >= 1 << 56 {
            return Err(Error::corrupt(format!(
                "refcount block {index} lies at {block:#x}, within a cluster"
            )));
        }
        Ok((block != 0).then_some(block))
    }

    /// Where the refcount of `cluster` is, and of up to `max` that follow it.
    fn span(&self, block: u64, cluster: u64, max: u64) -> Span {
        let within = cluster % self.per_block();
        let per_piece = self.per_piece();
        Span {
            piece: block + within / per_piece * self.refs.piece_len(),
            index: within % per_piece,
            len: max.min(per_piece - within % per_piece),
        }
    }

    /// The refcount of a cluster.
    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let Some(block) = self.refblock(cluster)? else { return Ok(0) };
        let span = self.span(block, cluster, 1);
        let order = self.header.refcount_order;
        let file = &*self.file;
        Ok(get(&self.refs.get(file, span.piece)?.bytes, span.index, order))
    }

    /// Whether notably more clusters are in use than the host has space for.
    pub(super) fn is_preallocated(&mut self) -> Result<bool> {
        let Some(allocated) = self.file.info().allocated else { return Ok(false) };
        let clusters = allocated >> self.layout.cluster_bits;
        // As QEMU draws the line, so that both tell the same of an image.
        let many = (clusters + clusters / 9).max(clusters + 2);
        let end = self.layout.clusters(self.file.len()?);
        if end < many {
            return Ok(false);
        }
        // Behind the table nothing is counted; and of blocks there are no more than the host has space for, whatever the
        // table says.
        let end = end.min((self.reftable.len() as u64).saturating_mul(self.per_block()));
        let mut pieces = many.saturating_mul(self.layout.cluster() / self.refs.piece_len());
        let (mut used, mut at) = (0, 0);
        while at < end && used < many && pieces > 0 {
            let Some(block) = self.refblock(at)? else {
                at = (at / self.per_block() + 1) * self.per_block();
                continue;
            };
            pieces -= 1;
            let span = self.span(block, at, end - at);
            let order = self.header.refcount_order;
            let file = &*self.file;
            let bytes = &self.refs.get(file, span.piece)?.bytes;
            used += (span.index..span.index + span.len).filter(|&index| get(bytes, index, order) != 0).count()
                as u64;
            at += span.len;
        }
        Ok(used >= many)
    }

    /// Adds `delta` to the refcounts of `count` clusters. Where one cannot be, none changes.
    pub(super) fn change_refcounts(&mut self, first: u64, count: u64, delta: i64) -> Result<()> {
        let mut at = first;
        let end = first + count;
        while at < end {
            match self.change_span(at, end - at, delta) {
                Ok(done) => at += done,
                Err(error) => {
                    let mut undo = first;
                    while undo < at {
                        undo += self.change_span(undo, at - undo, -delta)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// As `change_refcounts`, for as many clusters as one piece has; how many.
    fn change_span(&mut self, first: u64, count: u64, delta: i64) -> Result<u64> {
        let block = match self.refblock(first)? {
            Some(block) => block,
            None => self.new_refblock(first)?,
        };
        if self.refs.is_full_of_dirt() {
            // A block that the table does not refer to yet is harmless, and counts only ever count too much.
            self.refs.write_dirty(&*self.file)?;
        }
        let span = self.span(block, first, count);
        let order = self.header.refcount_order;
        let max = refcount_max(order);
        let mut freed = Vec::new();
        let file = self.file.clone();
        let failed = self.refs.change(&*file, span.piece, |piece| {
            for i in 0..span.len {
                let old = get(&piece.bytes, span.index + i, order);
                let Some(new) = old.checked_add_signed(delta).filter(|&new| new <= max) else {
                    for undo in 0..i {
                        let changed = get(&piece.bytes, span.index + undo, order);
                        set(&mut piece.bytes, span.index + undo, order, changed.wrapping_add_signed(-delta));
                    }
                    return Some(first + i);
                };
                set(&mut piece.bytes, span.index + i, order, new);
                if new == 0 {
                    freed.push(first + i);
                }
            }
            piece.dirty = true;
            None
        })?;
        if let Some(cluster) = failed {
            return Err(if delta < 0 {
                Error::corrupt(format!("cluster {cluster} is used, and its refcount is 0"))
            } else {
                Error::Refused(format!(
                    "cluster {cluster} has as many references as {} refcount bits can count; `umbra image amend -o refcount_bits=` \
                     widens them",
                    1 << order
                ))
            });
        }
        for cluster in freed {
            self.is_free_now(cluster);
        }
        Ok(span.len)
    }

    /// Nobody refers to a cluster any more: what we knew of it is void.
    fn is_free_now(&mut self, cluster: u64) {
        let offset = cluster << self.layout.cluster_bits;
        self.free_hint = self.free_hint.min(cluster);
        self.l2.forget(offset, offset + self.layout.cluster());
        self.refs.forget(offset, offset + self.layout.cluster());
        self.owned.remove_cluster(cluster);
        if self.layout.start(self.packed_at) == offset {
            self.packed_at = 0;
        }
    }

    /// Whether a cluster can be taken. One that is metadata, whatever its refcount says, cannot: the image is corrupt.
    fn is_free(&mut self, cluster: u64) -> Result<bool> {
        if self.refcount(cluster)? != 0 {
            return Ok(false);
        }
        self.owned.refuse(cluster, 1)?;
        Ok(true)
    }

    /// The first free run of `count` clusters.
    fn find_free(&mut self, count: u64) -> Result<u64> {
        let limit = (1u64 << 56 >> self.layout.cluster_bits)
            .min(REFTABLE_ENTRIES_MAX.saturating_mul(self.per_block()));
        let mut start = self.free_hint;
        let mut at = start;
        while at < start + count {
            if at >= limit {
                return Err(Error::Refused(
                    "the image file cannot grow further at its cluster size".to_owned(),
                ));
            }
            if !self.is_free(at)? {
                if start == self.free_hint && at == start && count == 1 {
                    self.free_hint = at + 1;
                }
                start = at + 1;
            }
            at += 1;
        }
        Ok(start)
    }

    /// A new refcount block for a cluster. It lies in a free cluster: one whose refcount another block has, or the
    /// first free one of those that it counts itself.
    fn new_refblock(&mut self, cluster: u64) -> Result<u64> {
        let index = cluster / self.per_block();
        for _ in 0..3 {
            if let Some(block) = self.refblock(cluster)? {
                return Ok(block);
            }
            let place = self.find_free(1)?;
            let counts = place / self.per_block();
            if counts != index && self.refblock(place)?.is_none() {
                self.install_refblock(counts, place)?;
                continue;
            }
            self.install_refblock(index, place)?;
        }
        self.refblock(cluster)?.ok_or_else(|| Error::corrupt("no place for a refcount block"))
    }

    fn install_refblock(&mut self, index: u64, place: u64) -> Result<()> {
        if index >= REFTABLE_ENTRIES_MAX {
            return Err(Error::Refused(
                "the image file cannot grow further: its refcount table is full".to_owned(),
            ));
        }
        let offset = place << self.layout.cluster_bits;
        self.file.write_zeroes(offset, self.layout.cluster(), true)?;
        self.refs.forget(offset, offset + self.layout.cluster());
        let entries = index as usize + 1;
        if self.reftable.len() < entries {
            self.reftable.resize(entries, 0);
        }
        self.reftable[index as usize] = offset;
        self.reftable_dirty.insert(index / PER_SECTOR);
        self.owned.add(offset, 1, owned::REFCOUNT_BLOCK);
        self.change_refcounts(place, 1, 1)
    }

    /// Takes `count` clusters that follow each other; their offset.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u64> {
        loop {
            let first = self.find_free(count)?;
            // Blocks first: each may take a cluster, perhaps one of these.
            if self.make_refblocks(first, count)? {
                continue;
            }
            self.change_refcounts(first, count, 1)?;
            if first == self.free_hint {
                self.free_hint = first + count;
            }
            return Ok(first << self.layout.cluster_bits);
        }
    }

    /// Makes the blocks that count these clusters; whether one was missing.
    fn make_refblocks(&mut self, first: u64, count: u64) -> Result<bool> {
        let mut made = false;
        let mut at = first;
        while at < first + count {
            if self.refblock(at)?.is_none() {
                self.new_refblock(at)?;
                made = true;
            }
            at = (at / self.per_block() + 1) * self.per_block();
        }
        Ok(made)
    }

    /// Takes up to `count` clusters from `offset` on, where they are free; how many.
    pub(super) fn allocate_at(&mut self, offset: u64, count: u64) -> Result<u64> {
        let first = offset >> self.layout.cluster_bits;
        let mut free = 0;
        while free < count && self.refblock(first + free)?.is_some() && self.is_free(first + free)? {
            free += 1;
        }
        self.change_refcounts(first, free, 1)?;
        if first == self.free_hint {
            self.free_hint += free;
        }
        Ok(free)
    }

    /// Takes `len` bytes for compressed data, less than a cluster; they may share clusters with others' data.
    pub(super) fn allocate_bytes(&mut self, len: u64) -> Result<u64> {
        let cluster = self.layout.cluster();
        let used = self.layout.in_cluster(self.packed_at);
        if used != 0 {
            let first = self.packed_at >> self.layout.cluster_bits;
            let room = cluster - used;
            let count = self.refcount(first)?;
            if count > 0 && count < refcount_max(self.header.refcount_order) {
                let next = (first + 1) << self.layout.cluster_bits;
                if len <= room || self.allocate_at(next, 1)? == 1 {
                    self.change_refcounts(first, 1, 1)?;
                    let offset = self.packed_at;
                    self.packed_at += len;
                    return Ok(offset);
                }
            }
        }
        let offset = self.allocate(1)?;
        self.packed_at = offset + len;
        Ok(offset)
    }

    /// Refcount blocks, then the table that refers to them.
    pub(super) fn write_refcounts(&mut self) -> Result<()> {
        let capacity = u64::from(self.header.reftable_clusters) * self.layout.cluster() / 8;
        if self.reftable.len() as u64 > capacity {
            return self.move_reftable();
        }
        self.refs.write_dirty(&*self.file)?;
        if self.reftable_dirty.is_empty() {
            return Ok(());
        }
        self.file.flush()?;
        while let Some(&sector) = self.reftable_dirty.first() {
            let bytes = self.reftable_sector(sector);
            self.file.write_at(self.header.reftable_offset + sector * 512, &bytes)?;
            self.reftable_dirty.remove(&sector);
        }
        self.file.flush()
    }

    fn reftable_sector(&self, sector: u64) -> Vec<u8> {
        let entries = (sector * PER_SECTOR..(sector + 1) * PER_SECTOR)
            .map(|index| self.reftable.get(index as usize).copied().unwrap_or(0));
        entries.flat_map(u64::to_be_bytes).collect()
    }

    /// Gives the refcount table a longer place.
    fn move_reftable(&mut self) -> Result<()> {
        let cluster = self.layout.cluster();
        let old = (self.header.reftable_offset, u64::from(self.header.reftable_clusters));
        let wanted = |len: usize| {
            let entries = (len as u64 + len as u64 / 2 + 1).min(REFTABLE_ENTRIES_MAX.max(len as u64));
            (entries * 8).div_ceil(cluster)
        };
        let clusters = wanted(self.reftable.len());
        let offset = self.allocate(clusters)?;
        if self.reftable.len() as u64 > clusters * cluster / 8 {
            self.free_now(offset, clusters)?;
            return Err(Error::Refused(
                "the image file cannot grow further: its refcount table is full".to_owned(),
            ));
        }
        let mut bytes = word_bytes(&self.reftable);
        bytes.resize((clusters * cluster) as usize, 0);
        self.refs.write_dirty(&*self.file)?;
        self.file.write_at(offset, &bytes)?;
        self.file.flush()?;
        let limit = u32::MAX as u64;
        self.header.reftable_offset = offset;
        self.header.reftable_clusters = clusters.min(limit) as u32;
        if let Err(error) = self.write_header() {
            (self.header.reftable_offset, self.header.reftable_clusters) = (old.0, old.1 as u32);
            return Err(error);
        }
        self.reftable_dirty.clear();
        self.file.flush()?;
        self.owned.add(offset, clusters * cluster, owned::REFCOUNT_TABLE);
        self.owned.remove(old.0, old.1 * cluster);
        self.free_later(old.0, old.1);
        Ok(())
    }
}
