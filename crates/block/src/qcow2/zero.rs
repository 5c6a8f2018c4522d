//! Zeroes and discards without data I/O, and changes of size.

use super::Qcow2;
use super::header::{Crypt, DATA_FILE_RAW};
use super::layout::{ALL_ALLOCATED, Entry, ZERO};
use super::meta::Meta;
use crate::raw::preallocate;
use crate::{Error, Preallocation, Result, StorageExt, Task};

/// All subclusters of an extended entry read as zeroes.
const ALL_ZERO: u64 = ALL_ALLOCATED << 32;
/// Clusters that preallocation maps in one step.
const STEP: u64 = 1024;

impl Qcow2 {
    /// Makes units read as zeroes; how many bytes.
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<u64> {
        let layout = self.layout;
        self.change_meta(|meta| {
            if meta.header.version < 3 {
                return Ok(0);
            }
            meta.begin_lazy()?;
            meta.mark_bitmaps(offset, len)?;
            let size = meta.header.size;
            if let Some(data) = meta.data.clone().filter(|_| meta.header.autoclear & DATA_FILE_RAW != 0) {
                data.write_zeroes(offset, len.min(size.saturating_sub(offset)), unmap)?;
            }
            let end = offset.saturating_add(len);
            let mut at = offset;
            while at < end {
                meta.relieve()?;
                let within = layout.in_cluster(at);
                let part = (layout.cluster() - within).min(end - at);
                let whole = within == 0 && (part == layout.cluster() || at + part >= size);
                let done =
                    if whole { meta.zero_cluster(at, unmap)? } else { meta.zero_subclusters(at, part)? };
                if !done {
                    break;
                }
                at += part;
            }
            Ok(at - offset)
        })
    }

    /// Frees whole clusters.
    pub(super) fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        let layout = self.layout;
        self.change_meta(|meta| {
            let size = meta.header.size;
            let end = offset.saturating_add(len);
            let mut at = offset.next_multiple_of(layout.cluster());
            while at < end && (at + layout.cluster() <= end || end >= size) {
                meta.relieve()?;
                let Some(table) = meta.l2_table(layout.l1_index(at))? else {
                    at = (layout.l1_index(at) + 1).saturating_mul(layout.l2_span());
                    continue;
                };
                let entry = meta.entry(table, layout.l2_index(at))?;
                meta.discard_cluster(at, entry)?;
                at += layout.cluster();
            }
            meta.mark_bitmaps(offset, len)
        })
    }

    /// Changes the disk's size.
    pub(super) fn change_size(&self, size: u64, preallocation: Preallocation, task: &Task<'_>) -> Result<()> {
        if !size.is_multiple_of(512) {
            return Err(Error::option("The new size must be a multiple of 512"));
        }
        self.change_meta(|meta| {
            let old = meta.header.size;
            meta.load_all_bitmaps()?;
            if meta.header.version < 3 && !meta.snapshots.is_empty() {
                return Err(Error::Unsupported(
                    "Can't resize a version 2 image which has snapshots".to_owned(),
                ));
            }
            if size < old && preallocation != Preallocation::Off {
                return Err(Error::option("Preallocation can't be used for shrinking an image"));
            }
            if preallocation != Preallocation::Off
                && meta.header.crypt != Crypt::None
                && meta.header.version < 3
            {
                return Err(Error::Unsupported(
                    "preallocation of an encrypted image of version 2".to_owned(),
                ));
            }
            if size > old {
                // A VM state that an applied snapshot has left there must not become a part of the disk.
                meta.free_behind(old, size)?;
                meta.resize_raw_data(size)?;
            }
            meta.grow_l1(meta.layout.l1_len(size))?;
            meta.flush()?;
            meta.header.size = size;
            if let Err(error) = meta.write_header() {
                meta.header.size = old;
                return Err(error);
            }
            meta.file.flush()?;
            self.size.store(size, std::sync::atomic::Ordering::Release);
            if size < old {
                // Only now: a disk of the old size would have lost its end.
                meta.free_behind(size, old)?;
                meta.resize_raw_data(size)?;
            }
            meta.resize_bitmaps()?;
            meta.limit_caches();
            meta.flush()?;
            let raw = meta.header.autoclear & DATA_FILE_RAW != 0;
            let preallocation = match preallocation {
                Preallocation::Off if raw && size > old => Preallocation::Metadata,
                other => other,
            };
            if preallocation != Preallocation::Off {
                let done = meta.preallocate(old, size, preallocation, task);
                if done.is_err() {
                    // No room, or the user has had enough: the disk is what it was. What cannot be undone is a leak.
                    let _ = self.undo_growth(meta, old, size);
                }
                return done;
            }
            Ok(())
        })
    }
}

impl Qcow2 {
    /// Gives a disk that could not grow from `old` to `size` bytes its old size again.
    fn undo_growth(&self, meta: &mut Meta, old: u64, size: u64) -> Result<()> {
        meta.flush()?;
        meta.header.size = old;
        self.size.store(old, std::sync::atomic::Ordering::Release);
        meta.write_header()?;
        meta.file.flush()?;
        meta.free_behind(old, size)?;
        meta.resize_raw_data(old)?;
        meta.resize_bitmaps()?;
        meta.flush_frees()
    }
}

impl Meta {
    /// A data file that is the disk is as long as the disk.
    fn resize_raw_data(&self, size: u64) -> Result<()> {
        match &self.data {
            Some(data) if self.header.autoclear & DATA_FILE_RAW != 0 => data.set_len(size),
            _ => Ok(()),
        }
    }

    /// Makes a whole cluster read as zeroes.
    fn zero_cluster(&mut self, guest: u64, unmap: bool) -> Result<bool> {
        let layout = self.layout;
        let table = self.l2_table_for_change(layout.l1_index(guest))?;
        let index = layout.l2_index(guest);
        let old = self.entry(table, index)?;
        let free = old.is_compressed() || unmap && old.host(layout)?.is_some();
        let kept = if free { 0 } else { old.word };
        let new = if layout.extended {
            Entry { word: kept, bitmap: ALL_ZERO }
        } else {
            Entry { word: kept | ZERO, bitmap: 0 }
        };
        if new != old {
            self.set_entry(table, index, new)?;
            if free {
                self.free_data(old)?;
            }
        }
        Ok(true)
    }

    /// Makes a part of a cluster read as zeroes, by subclusters.
    fn zero_subclusters(&mut self, guest: u64, len: u64) -> Result<bool> {
        let layout = self.layout;
        let sub = layout.subcluster();
        if !layout.extended || !guest.is_multiple_of(sub) || !len.is_multiple_of(sub) {
            return Ok(false);
        }
        let table = self.l2_table_for_change(layout.l1_index(guest))?;
        let index = layout.l2_index(guest);
        let mut entry = self.entry(table, index)?;
        if entry.is_compressed() {
            return Ok(false);
        }
        let first = layout.in_cluster(guest) / sub;
        let mask = ALL_ALLOCATED >> (32 - len / sub) << first;
        entry.bitmap = entry.bitmap & !mask | mask << 32;
        self.set_entry(table, index, entry)?;
        Ok(true)
    }

    /// Frees a cluster's place. It reads as zeroes afterwards where version 3 can say so; a version 2 image keeps the
    /// place, and only the host's space goes, because the backing file would show otherwise.
    fn discard_cluster(&mut self, guest: u64, entry: Entry) -> Result<()> {
        let layout = self.layout;
        let host = entry.host(layout)?;
        if host.is_none() && !entry.is_compressed() {
            return Ok(());
        }
        if self.header.version < 3 {
            // Where the file's zeroes are no zeroes of the disk, it stays as it is.
            return match host.filter(|_| entry.copied() && self.header.crypt == Crypt::None) {
                Some(host) => self.file.discard(host, layout.cluster()),
                None => Ok(()),
            };
        }
        if self.header.autoclear & DATA_FILE_RAW != 0 {
            // The raw file is the disk: it is given back there, and stays mapped.
            let len = layout.cluster().min(self.header.size.saturating_sub(guest));
            return self.data.as_ref().map_or(Ok(()), |data| data.discard(guest, len));
        }
        self.begin_lazy()?;
        let new = if layout.extended {
            Entry { word: 0, bitmap: ALL_ZERO }
        } else {
            Entry { word: ZERO, bitmap: 0 }
        };
        let table = self.l2_table_for_change(layout.l1_index(guest))?;
        self.set_entry(table, layout.l2_index(guest), new)?;
        self.free_data(entry)
    }

    /// Frees what an entry referred to, in the data file too.
    fn free_data(&mut self, entry: Entry) -> Result<()> {
        if let (Some(data), Some(host)) = (&self.data, entry.host(self.layout)?)
            && self.header.autoclear & DATA_FILE_RAW == 0
        {
            // The place is this cluster's for ever, so it reads as zeroes whatever the table says.
            data.discard(host, self.layout.cluster())?;
        }
        self.free_entry(entry)
    }

    /// Drops all that lies behind the new end.
    fn free_behind(&mut self, size: u64, old: u64) -> Result<()> {
        let layout = self.layout;
        let mut guest = size.next_multiple_of(layout.cluster());
        let end = old.next_multiple_of(layout.cluster());
        while guest < end {
            self.relieve()?;
            let l1_index = layout.l1_index(guest);
            if l1_index >= self.l1.len() as u64 {
                break;
            }
            let Some(table) = self.l2_table(l1_index)? else {
                guest = (l1_index + 1).saturating_mul(layout.l2_span());
                continue;
            };
            let entry = self.entry(table, layout.l2_index(guest))?;
            if entry != Entry::default() {
                self.replace_entry(guest, Entry::default())?;
            }
            guest += layout.cluster();
        }
        Ok(())
    }

    /// Gives `start..end`, all of it, places: clusters of zeroes, or of nothing where entries have subclusters.
    pub(super) fn preallocate(
        &mut self,
        start: u64,
        end: u64,
        preallocation: Preallocation,
        task: &Task<'_>,
    ) -> Result<()> {
        let layout = self.layout;
        let encrypted = self.header.crypt != Crypt::None;
        // A cluster that is begun may show the backing file.
        let start = start.next_multiple_of(layout.cluster());
        let mut guest = start;
        while guest < end {
            self.relieve()?;
            task.at(guest - start, end - start)?;
            let in_table = layout.l2_entries() - layout.l2_index(guest);
            let mut count = layout.clusters(end - guest).min(in_table).min(STEP);
            let table = self.l2_table_for_change(layout.l1_index(guest))?;
            let mut fresh = 0;
            for i in 0..count {
                if self.entry(table, layout.l2_index(guest) + i)? != Entry::default() {
                    break;
                }
                fresh += 1;
            }
            if fresh == 0 {
                guest += layout.cluster();
                continue;
            }
            count = fresh;
            let len = count * layout.cluster();
            let host = if layout.data_file { guest } else { self.allocate(count)? };
            let storage = self.data.clone().unwrap_or_else(|| self.file.clone());
            let until = if layout.data_file { (host + len).min(end) } else { host + len };
            // Also in a data file: what a disk that was once larger held there is still there.
            let filled = storage
                .write_zeroes(host, until - host, true)
                .and_then(|()| preallocate(&*storage, host, until, preallocation, &Task::quiet()));
            if let Err(error) = filled {
                if !layout.data_file {
                    self.free_now(host, count)?;
                }
                return Err(error);
            }
            for i in 0..count {
                let mut entry = Entry::data(host + i * layout.cluster(), layout);
                // With subclusters the cluster has a place, and none of them is in use: a backing file shows through.
                entry.bitmap = 0;
                if encrypted && !layout.extended {
                    // The file's zeroes are no zeroes of the disk.
                    entry.word |= ZERO;
                }
                self.set_entry(table, layout.l2_index(guest) + i, entry)?;
            }
            guest += len;
        }
        self.flush()
    }

    /// A cluster-aligned copy of bytes in new clusters; their offset.
    pub(super) fn store(&mut self, bytes: &[u8]) -> Result<u64> {
        let clusters = self.layout.clusters(bytes.len() as u64).max(1);
        let offset = self.allocate(clusters)?;
        let mut padded = bytes.to_vec();
        padded.resize((clusters * self.layout.cluster()) as usize, 0);
        self.file.write_at(offset, &padded)?;
        Ok(offset)
    }
}
