//! Two levels of tables from grains to places in a file: a directory of tables, and perhaps a second copy of both.
//!
//! Constraints: memory is one [`Table`] for the directory and at most [`TABLES_MAX`] grain tables. Changed tables are
//! written by [`Grains::write_back`] only, when what they point to is durable. For writing, the directories are read as a
//! whole, and a table is looked at when it is first read: nothing may lie on metadata, or where new grains go.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use umbra_block::{Error, Result, Storage, StorageExt};

use crate::common::{Reserved, at_most, hold};
use crate::table::Table;

/// Grain tables of one extent that are kept.
const TABLES_MAX: usize = 256;
/// Entries of a directory that is written: 2 TiB, which is all that an extent can have, need a quarter of it.
const DIRECTORY_MAX: u64 = 4 << 20;

#[derive(Debug)]
struct Kept {
    bytes: Box<[u8]>,
    changed: bool,
    used: u64,
}

#[derive(Debug, Default)]
struct Cache {
    tables: BTreeMap<u64, Kept>,
    clock: u64,
    /// Tables whose entries were looked at.
    seen: HashSet<u64>,
}

/// What the entries of a file that is written are held against.
#[derive(Debug)]
pub(super) struct Guard {
    /// Where its metadata is.
    pub reserved: Reserved,
    /// Where new grains begin.
    pub end: u64,
    /// Bytes of the file that a grain takes, at least.
    pub grain: u64,
    /// The smallest entry that is a place.
    pub first: u64,
}

/// How entries of the directory tell where tables are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Directory {
    /// Sector numbers of 32 bits; 0 for none.
    Sectors,
    /// Numbers of tables with marks, of 64 bits, counted from an offset: seSparse.
    Numbers {
        /// Where table 0 is.
        base: u64,
    },
}

/// The tables of one extent.
#[derive(Debug)]
pub(super) struct Grains {
    storage: Arc<dyn Storage>,
    directory: Table,
    second: Option<Table>,
    form: Directory,
    /// Entries of one grain table.
    entries: u64,
    /// Bytes of one entry.
    entry: u64,
    guard: Option<Guard>,
    cache: Mutex<Cache>,
}

impl Grains {
    /// Tables whose directory of `tables` entries is at `offset`, and a second one at `second` perhaps.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        (offset, second): (u64, Option<u64>),
        tables: u64,
        form: Directory,
        entries: u64,
    ) -> Grains {
        let entry = match form {
            Directory::Sectors => 4,
            Directory::Numbers { .. } => 8,
        };
        let len = tables.saturating_mul(entry);
        Grains {
            directory: Table::new(storage.clone(), offset, len),
            second: second.map(|offset| Table::new(storage.clone(), offset, len)),
            storage,
            form,
            entries,
            entry,
            guard: None,
            cache: Mutex::default(),
        }
    }

    /// Reserves the directories and all tables, which must lie before `end`.
    pub(super) fn reserve(&self, reserved: &mut Reserved, end: u64) -> Result<()> {
        at_most("the length of the grain directory", self.directory.len() / self.entry, DIRECTORY_MAX)?;
        let directories = [Some(&self.directory), self.second.as_ref()];
        for directory in directories.into_iter().flatten() {
            reserved.add("grain directory", directory.offset(), directory.len())?;
            for number in 0..directory.len() / self.entry {
                let Some(place) = self.table(directory, number)? else { continue };
                if place.saturating_add(self.table_len()) > end {
                    return Err(Error::corrupt(format!("grain table {number} lies behind the file's end")));
                }
                reserved.add("grain table", place, self.table_len())?;
            }
        }
        Ok(())
    }

    /// From now on tables are looked at when they are read.
    pub(super) fn guard(&mut self, guard: Guard) {
        self.guard = Some(guard);
        *hold(&self.cache) = Cache::default();
    }

    /// Fails where a table that is read for the first time refers to what is no data.
    fn look_at(&self, seen: &mut HashSet<u64>, number: u64, bytes: &[u8]) -> Result<()> {
        let Some(guard) = self.guard.as_ref().filter(|_| !seen.contains(&number)) else { return Ok(()) };
        // Only hosted extents are written; their entries have 32 bits.
        for (index, entry) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let sector = u64::from(u32::from_le_bytes(*entry));
            if sector < guard.first {
                continue;
            }
            let place = sector * 512;
            if place + guard.grain > guard.end {
                let grain = number * self.entries + index as u64;
                return Err(Error::corrupt(format!("grain {grain} lies behind the file's end; was it cut?")));
            }
            guard.reserved.refuse(place, guard.grain)?;
        }
        seen.insert(number);
        Ok(())
    }

    /// Where table `number` is.
    fn table(&self, directory: &Table, number: u64) -> Result<Option<u64>> {
        match self.form {
            Directory::Sectors => {
                let sector = u32::from_le_bytes(directory.entry(number)?);
                Ok((sector != 0).then(|| u64::from(sector) * 512))
            }
            Directory::Numbers { base } => {
                let entry = u64::from_le_bytes(directory.entry(number)?);
                if entry == 0 {
                    return Ok(None);
                }
                if entry >> 32 != 0x1000_0000 {
                    return Err(Error::corrupt(format!("entry {entry:#x} of the grain directory")));
                }
                let place = (entry & 0xffff_ffff).checked_mul(self.entries * self.entry);
                let place = place.and_then(|skip| base.checked_add(skip));
                place.map(Some).ok_or_else(|| Error::corrupt("a grain table behind the end of all files"))
            }
        }
    }

    /// The first grain of the table behind that of `grain`.
    pub(super) fn next_table(&self, grain: u64) -> u64 {
        (grain / self.entries + 1) * self.entries
    }

    /// The entry of a grain; `None` where its table is not there.
    pub(super) fn get(&self, grain: u64) -> Result<Option<u64>> {
        let (number, index) = (grain / self.entries, grain % self.entries);
        let mut cache = hold(&self.cache);
        let Some(kept) = self.kept(&mut cache, number)? else { return Ok(None) };
        let start = (index * self.entry) as usize;
        let bytes = &kept.bytes[start..start + self.entry as usize];
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        Ok(Some(u64::from_le_bytes(word)))
    }

    /// Changes the entry of a grain whose table is there.
    pub(super) fn set(&self, grain: u64, value: u32) -> Result<()> {
        let (number, index) = (grain / self.entries, grain % self.entries);
        let mut cache = hold(&self.cache);
        let kept = self.kept(&mut cache, number)?;
        let kept = kept.ok_or_else(|| Error::corrupt(format!("grain table {number} is not there")))?;
        let start = (index * self.entry) as usize;
        kept.bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
        kept.changed = true;
        Ok(())
    }

    fn kept<'a>(&self, cache: &'a mut Cache, number: u64) -> Result<Option<&'a mut Kept>> {
        cache.clock += 1;
        let now = cache.clock;
        if !cache.tables.contains_key(&number) {
            let Some(place) = self.table(&self.directory, number)? else { return Ok(None) };
            if cache.tables.len() >= TABLES_MAX {
                let oldest =
                    cache.tables.iter().filter(|(_, kept)| !kept.changed).min_by_key(|(_, kept)| kept.used);
                if let Some(oldest) = oldest.map(|(&number, _)| number) {
                    cache.tables.remove(&oldest);
                }
            }
            let bytes = self.storage.read_vec(place, (self.entries * self.entry) as usize)?;
            self.look_at(&mut cache.seen, number, &bytes)?;
            cache.tables.insert(number, Kept { bytes: bytes.into_boxed_slice(), changed: false, used: now });
        }
        let Some(kept) = cache.tables.get_mut(&number) else { return Ok(None) };
        kept.used = now;
        Ok(Some(kept))
    }

    /// Adds the table of a grain, which is not there, at `place` and, with a second directory, its copy behind it.
    pub(super) fn add_table(&self, grain: u64, place: u64) -> Result<()> {
        let number = grain / self.entries;
        let zeroes = vec![0; self.table_len() as usize];
        self.storage.write_at(place, &zeroes)?;
        self.directory.set(number, sector(place)?)?;
        hold(&self.cache).seen.insert(number);
        if let Some(second) = &self.second {
            let copy = place + self.table_len();
            self.storage.write_at(copy, &zeroes)?;
            second.set(number, sector(copy)?)?;
        }
        Ok(())
    }

    /// Bytes that a new table takes in the file, with its copy.
    pub(super) fn room(&self) -> u64 {
        self.table_len() * if self.second.is_some() { 2 } else { 1 }
    }

    fn table_len(&self) -> u64 {
        (self.entries * self.entry).next_multiple_of(512)
    }

    /// Whether so much is changed that it should be written.
    pub(super) fn is_full(&self) -> bool {
        hold(&self.cache).tables.values().filter(|kept| kept.changed).count() >= TABLES_MAX / 2
            || self.directory.is_full()
    }

    /// Whether anything is changed.
    pub(super) fn is_changed(&self) -> bool {
        hold(&self.cache).tables.values().any(|kept| kept.changed) || self.directory.is_changed()
    }

    /// Writes the changed tables, and the directories when these are durable.
    pub(super) fn write_back(&self) -> Result<()> {
        let mut cache = hold(&self.cache);
        for (&number, kept) in cache.tables.iter_mut().filter(|(_, kept)| kept.changed) {
            if let Some(second) = &self.second
                && let Some(place) = self.table(second, number)?
            {
                self.storage.write_at(place, &kept.bytes)?;
            }
            let place = self.table(&self.directory, number)?;
            let place = place.ok_or_else(|| Error::corrupt(format!("grain table {number} is lost")))?;
            self.storage.write_at(place, &kept.bytes)?;
            kept.changed = false;
        }
        drop(cache);
        let changed = self.directory.changed();
        if !changed.is_empty() {
            let second = self.second.as_ref().map(|second| (second, second.changed()));
            self.storage.flush()?;
            if let Some((second, changed)) = second {
                second.write_back(&changed)?;
            }
            self.directory.write_back(&changed)?;
        }
        Ok(())
    }
}

fn sector(place: u64) -> Result<[u8; 4]> {
    let sector = u32::try_from(place / 512);
    let sector = sector.map_err(|_| {
        Error::Refused("an extent of a VMDK image ends at 2 TiB; convert it to another format".into())
    })?;
    Ok(sector.to_le_bytes())
}
