//! Places for writes: in place, in a cluster that is reserved already, or in new clusters.

use super::Qcow2;
use super::layout::{ALL_ALLOCATED, Entry, Kind};
use super::map::{Run, run_of};
use super::meta::Meta;
use crate::{Error, Prepare, Prepared, Result, Token};

/// Clusters that one allocation takes.
const CLUSTERS_MAX: u64 = 4096;

/// A write whose data is on its way.
#[derive(Debug)]
enum Pending {
    /// Clusters at a place: new ones, or the one that was reserved.
    Clusters {
        /// Of the first cluster.
        guest: u64,
        host: u64,
        count: u64,
        fresh: bool,
        /// Subclusters that get data in the first cluster, and in the last.
        first_mask: u64,
        last_mask: u64,
    },
    Compressed {
        guest: u64,
        host: u64,
        len: u64,
    },
}

/// Which part of one cluster is written, and what has to be copied with it.
struct Part {
    mask: u64,
    before: u64,
    after: u64,
}

impl Qcow2 {
    pub(super) fn prepare_write(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        self.change_meta(|meta| {
            meta.relieve()?;
            let prepared = match how {
                Prepare::InPlace => self.in_place(meta, offset, len),
                Prepare::Allocate => match self.in_place(meta, offset, len)? {
                    None => self.allocate(meta, offset, len).map(Some),
                    found => Ok(found),
                },
                Prepare::Compressed { len } => self.place_for_packed(meta, offset, len),
            }?;
            if let Some(prepared) = &prepared {
                meta.mark_bitmaps(offset, prepared.len)?;
            }
            Ok(prepared)
        })
    }

    /// A place that needs no change of a table.
    fn in_place(&self, meta: &mut Meta, offset: u64, len: u64) -> Result<Option<Prepared>> {
        let layout = self.layout;
        let l1_index = layout.l1_index(offset);
        let Some(table) = meta.l2_table(l1_index)? else { return Ok(None) };
        if meta.l1[l1_index as usize] & super::layout::COPIED == 0 {
            return Ok(None);
        }
        let within = layout.in_cluster(offset);
        let mut entries = Vec::new();
        let clusters = layout.clusters(within.saturating_add(len));
        meta.entries(table, layout.l2_index(offset), clusters, &mut entries)?;
        // As far as nobody else refers to the clusters.
        let own = entries.iter().take_while(|entry| entry.copied()).count();
        if own == 0 {
            return Ok(None);
        }
        let (Run::Data(host), run) = run_of(&entries[..own], within, layout)? else { return Ok(None) };
        let len = run.min(len);
        if !layout.data_file {
            meta.not_metadata(host - within, layout.clusters(within + len))?;
        }
        Ok(Some(Prepared { len, place: self.place(host, offset), before: 0, after: 0, token: None }))
    }

    /// The part of a cluster from `from` to `to`. `Data` subclusters at its ends need no copy where it has its place
    /// already.
    fn part(&self, entry: Entry, from: u64, to: u64, fresh: bool) -> Result<Part> {
        let layout = self.layout;
        let (sub, per) = (layout.subcluster(), layout.subclusters());
        let whole = !layout.extended || fresh && !holds_nothing(entry, per, layout)?;
        if whole {
            return Ok(Part { mask: ALL_ALLOCATED, before: from, after: layout.cluster() - to });
        }
        let (first, last) = (from / sub, (to - 1) / sub);
        let has_data = |index| Ok::<_, Error>(!fresh && matches!(entry.kind(index, layout)?, Kind::Data(_)));
        let before = if has_data(first)? { 0 } else { from - first * sub };
        let after = if has_data(last)? { 0 } else { (last + 1) * sub - to };
        Ok(Part { mask: (ALL_ALLOCATED >> (31 - (last - first))) << first & ALL_ALLOCATED, before, after })
    }

    /// A place in a reserved cluster, or in new ones.
    fn allocate(&self, meta: &mut Meta, offset: u64, len: u64) -> Result<Prepared> {
        let layout = self.layout;
        let cluster = layout.cluster();
        meta.begin_lazy()?;
        let table = meta.l2_table_for_change(layout.l1_index(offset))?;
        let (index, within) = (layout.l2_index(offset), layout.in_cluster(offset));
        let guest = offset - within;
        let mut entries = Vec::new();
        meta.entries(table, index, layout.clusters(within + len).min(CLUSTERS_MAX), &mut entries)?;
        let first = entries.first().copied().unwrap_or_default();
        if let Some(host) = first.host(layout)?.filter(|_| first.copied()) {
            let end = cluster.min(within + len);
            let part = self.part(first, within, end, false)?;
            if !layout.data_file {
                meta.not_metadata(host, 1)?;
            }
            let pending = Pending::Clusters {
                guest,
                host,
                count: 1,
                fresh: false,
                first_mask: part.mask,
                last_mask: part.mask,
            };
            return Ok(Prepared {
                len: end - within,
                place: self.place(host + within, offset),
                before: part.before,
                after: part.after,
                token: Some(Box::new(pending)),
            });
        }
        let mut count = 1;
        for entry in entries.iter().skip(1) {
            if entry.host(layout)?.is_some() && entry.copied() {
                break;
            }
            count += 1;
        }
        let end = (within + len).min(count * cluster);
        let last_start = (count - 1) * cluster;
        let head = self.part(first, within, end.min(cluster), true)?;
        let last = entries.get(count as usize - 1).copied().unwrap_or_default();
        let tail_from = if count == 1 { within } else { 0 };
        let tail = self.part(last, tail_from, end - last_start, true)?;
        let host = if layout.data_file { guest } else { meta.allocate(count)? };
        let pending = Pending::Clusters {
            guest,
            host,
            count,
            fresh: true,
            first_mask: head.mask,
            last_mask: tail.mask,
        };
        Ok(Prepared {
            len: end - within,
            place: self.place(host + within, offset),
            before: head.before,
            after: tail.after,
            token: Some(Box::new(pending)),
        })
    }

    fn place_for_packed(&self, meta: &mut Meta, offset: u64, len: u64) -> Result<Option<Prepared>> {
        if self.layout.data_file || self.encrypted || len >= self.layout.cluster() {
            return Ok(None);
        }
        meta.begin_lazy()?;
        meta.l2_table_for_change(self.layout.l1_index(offset))?;
        let host = meta.allocate_bytes(len)?;
        if Entry::compressed(host, len, self.layout).is_none() {
            meta.free_packed(host, len)?;
            return Ok(None);
        }
        let place = crate::Place::plain(crate::StorageId(0), host);
        let token: Token = Box::new(Pending::Compressed { guest: offset, host, len });
        Ok(Some(Prepared { len: self.layout.cluster(), place, before: 0, after: 0, token: Some(token) }))
    }

    pub(super) fn commit_write(&self, token: Token) -> Result<()> {
        let pending = pending(token)?;
        self.change_meta(|meta| {
            meta.relieve()?;
            match pending {
                Pending::Compressed { guest, host, len } => {
                    let entry = Entry::compressed(host, len, self.layout)
                        .ok_or_else(|| Error::corrupt("a place that no L2 entry can say"))?;
                    meta.replace_entry(guest, entry)
                }
                Pending::Clusters { guest, host, count, fresh, first_mask, last_mask } => {
                    for i in 0..count {
                        let mut mask = ALL_ALLOCATED;
                        if i == 0 {
                            mask &= first_mask;
                        }
                        if i == count - 1 {
                            mask &= last_mask;
                        }
                        let step = i << self.layout.cluster_bits;
                        meta.link(guest + step, host + step, mask, fresh)?;
                    }
                    Ok(())
                }
            }
        })
    }

    pub(super) fn abort_write(&self, token: Token) {
        let Ok(pending) = pending(token) else { return };
        // What cannot be freed is a leak, which a check mends; the write has failed for a reason that is told already.
        let _ = self.change_meta(|meta| match pending {
            Pending::Clusters { host, count, fresh: true, .. } if !self.layout.data_file => {
                meta.free_now(host, count)
            }
            Pending::Clusters { .. } => Ok(()),
            Pending::Compressed { host, len, .. } => meta.free_packed(host, len),
        });
    }
}

fn pending(token: Token) -> Result<Pending> {
    let pending = token.downcast::<Pending>();
    pending.map(|pending| *pending).map_err(|_| Error::Refused("a token of another format".to_owned()))
}

/// Whether a cluster has no data of its own in any part.
fn holds_nothing(entry: Entry, per: u64, layout: super::layout::Layout) -> Result<bool> {
    for index in 0..per {
        if matches!(entry.kind(index, layout)?, Kind::Data(_) | Kind::Compressed) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Meta {
    /// Fails where clusters to be written hold metadata.
    fn not_metadata(&self, host: u64, count: u64) -> Result<()> {
        self.owned.refuse(host >> self.layout.cluster_bits, count)
    }

    /// Puts data clusters into the table.
    fn link(&mut self, guest: u64, host: u64, mask: u64, fresh: bool) -> Result<()> {
        let layout = self.layout;
        let table = self.l2_table_for_change(layout.l1_index(guest))?;
        let index = layout.l2_index(guest);
        let old = self.entry(table, index)?;
        let mut new = Entry::data(host, layout);
        if layout.extended {
            let kept = if fresh || old.is_compressed() { 0 } else { old.bitmap & ALL_ALLOCATED };
            let zero = if old.is_compressed() { 0 } else { old.bitmap & ALL_ALLOCATED << 32 };
            new.bitmap = kept | mask | zero & !(mask << 32);
        }
        self.set_entry(table, index, new)?;
        if fresh { self.free_entry(old) } else { Ok(()) }
    }

    /// Puts another entry into the table and frees what the old one referred to.
    pub(super) fn replace_entry(&mut self, guest: u64, new: Entry) -> Result<()> {
        let table = self.l2_table_for_change(self.layout.l1_index(guest))?;
        let index = self.layout.l2_index(guest);
        let old = self.entry(table, index)?;
        self.set_entry(table, index, new)?;
        self.free_entry(old)
    }

    /// What an entry referred to is referred to once less.
    pub(super) fn free_entry(&mut self, entry: Entry) -> Result<()> {
        if entry.is_compressed() {
            let packed = entry.packed(self.layout);
            let first = self.layout.start(packed.offset);
            let end = packed.offset + packed.len;
            self.free_later(first, self.layout.clusters(end - first));
        } else if let Some(host) = entry.host(self.layout)?
            && !self.layout.data_file
        {
            self.free_later(host, 1);
        }
        Ok(())
    }

    /// Frees a place for compressed data that no table refers to.
    fn free_packed(&mut self, host: u64, len: u64) -> Result<()> {
        let first = self.layout.start(host);
        self.free_now(first, self.layout.clusters(host + len - first))
    }
}
