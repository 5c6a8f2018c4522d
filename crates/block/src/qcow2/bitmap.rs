//! Persistent dirty bitmaps: which parts of the disk were written since the bitmap was cleared.
//!
//! A bitmap that records is read when the disk is first written, and marked `in use` in the file: what the file has is
//! void from then on. It is stored when the image is closed, as new clusters that the header names last, so that a loss
//! of power leaves either the mark or the whole bitmap.
//!
//! Authority: the qcow2 specification, "Bitmaps".

use std::collections::BTreeMap;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::header::{BITMAPS_VALID, BitmapExtension, NAME_MAX};
use super::meta::{Meta, read_words, word_bytes};
use super::owned;
use crate::{BitmapInfo, Error, Result, StorageExt};

const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
const DIRTY_TRACKING: u8 = 1;
const ALL_ONES: u64 = 1;
/// Limits of other programs, which ours keeps so that they read what it writes.
const COUNT_MAX: u32 = 65535;
const DIRECTORY_MAX: u64 = 64 << 20;
const TABLE_ENTRIES_MAX: u64 = 1 << 22;
const BYTES_MAX: u64 = 512 << 20;
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;

/// The fixed part of a directory entry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEntry {
    table_offset: U64,
    table_len: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_len: U16,
    extra_len: U32,
}

/// The bits of one cluster of a bitmap.
#[derive(Debug, Clone)]
enum Chunk {
    Ones,
    Bits(Box<[u8]>),
}

/// One bitmap.
#[derive(Debug, Clone)]
struct Bitmap {
    name: String,
    granularity_bits: u8,
    flags: u32,
    kind: u8,
    extra: Vec<u8>,
    table_offset: u64,
    table_len: u32,
    /// Its bits, once read. What is not here is clear.
    bits: Option<BTreeMap<u64, Chunk>>,
    /// The file's bits are void: marked as in use by us.
    ours: bool,
}

/// All bitmaps.
#[derive(Debug, Default)]
pub(super) struct State {
    list: Vec<Bitmap>,
    /// Those that record have been read.
    recording: bool,
}

impl Bitmap {
    fn records(&self) -> bool {
        self.flags & AUTO != 0 && (self.flags & IN_USE == 0 || self.ours)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let entry = RawEntry {
            table_offset: self.table_offset.into(),
            table_len: self.table_len.into(),
            flags: self.flags.into(),
            kind: self.kind,
            granularity_bits: self.granularity_bits,
            name_len: (self.name.len() as u16).into(),
            extra_len: (self.extra.len() as u32).into(),
        };
        let mut bytes = entry.as_bytes().to_vec();
        bytes.extend_from_slice(&self.extra);
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// Sets bits `first..end`.
    fn set(&mut self, first: u64, end: u64, cluster: u64) {
        let Some(bits) = &mut self.bits else { return };
        let per = cluster * 8;
        let mut at = first;
        while at < end {
            let until = end.min((at / per + 1) * per);
            let chunk = bits.entry(at / per).or_insert_with(|| Chunk::Bits(vec![0; cluster as usize].into()));
            if let Chunk::Bits(bytes) = chunk {
                set_bits(bytes, at % per, until - at / per * per);
            }
            at = until;
        }
    }

    fn get(&self, bit: u64, cluster: u64) -> bool {
        let per = cluster * 8;
        match self.bits.as_ref().and_then(|bits| bits.get(&(bit / per))) {
            None => false,
            Some(Chunk::Ones) => true,
            Some(Chunk::Bits(bytes)) => bytes[(bit % per / 8) as usize] >> (bit % 8) & 1 != 0,
        }
    }
}

fn set_bits(bytes: &mut [u8], first: u64, end: u64) {
    let mut at = first;
    while at < end {
        if at.is_multiple_of(8) && end - at >= 8 {
            let last = end / 8;
            bytes[(at / 8) as usize..last as usize].fill(0xff);
            at = last * 8;
        } else {
            bytes[(at / 8) as usize] |= 1 << (at % 8);
            at += 1;
        }
    }
}

impl Meta {
    /// Reads the directory. Where its feature bit is clear, another program has written the disk without keeping the
    /// bitmaps: they are void.
    pub(super) fn load_bitmaps(&mut self) -> Result<()> {
        let Some(extension) = self.header.bitmaps else { return Ok(()) };
        if self.header.autoclear & BITMAPS_VALID == 0 {
            if self.writable {
                self.header.bitmaps = None;
            }
            return Ok(());
        }
        if extension.count == 0 || extension.count > COUNT_MAX || extension.directory_len > DIRECTORY_MAX {
            return Err(Error::corrupt("the bitmap directory has an impossible size"));
        }
        if self.layout.in_cluster(extension.directory_offset) != 0 || extension.directory_offset >= 1 << 56 {
            return Err(Error::corrupt("the bitmap directory begins within a cluster"));
        }
        let directory = self.file.read_vec(extension.directory_offset, extension.directory_len as usize)?;
        let mut rest = directory.as_slice();
        for _ in 0..extension.count {
            let (bitmap, behind) = parse_entry(rest, self.layout.cluster())?;
            self.bitmaps.list.push(bitmap);
            rest = behind;
        }
        let entries: u64 = self.bitmaps.list.iter().map(|bitmap| u64::from(bitmap.table_len)).sum();
        if entries > TABLE_ENTRIES_MAX {
            return Err(Error::TooLarge {
                what: "length of all bitmap tables".to_owned(),
                value: entries,
                limit: TABLE_ENTRIES_MAX,
            });
        }
        Ok(())
    }

    /// Notes the directory and the tables that it names as metadata.
    pub(super) fn own_bitmaps(&mut self) {
        let Some(extension) = self.header.bitmaps else { return };
        self.own_in_file(extension.directory_offset, extension.directory_len, owned::BITMAPS);
        let places = |bitmap: &Bitmap| (bitmap.table_offset, u64::from(bitmap.table_len));
        let tables: Vec<_> = self.bitmaps.list.iter().map(places).collect();
        for (offset, len) in tables {
            self.own_in_file(offset, len * 8, owned::BITMAPS);
        }
    }

    fn bits_of(&self, granularity_bits: u8) -> u64 {
        self.header.size.div_ceil(1 << granularity_bits)
    }

    fn table_entries(&self, granularity_bits: u8) -> u64 {
        self.bits_of(granularity_bits).div_ceil(self.layout.cluster() * 8)
    }

    /// Reads a bitmap's bits.
    fn load_bits(&mut self, index: usize) -> Result<()> {
        let bitmap = &self.bitmaps.list[index];
        if bitmap.bits.is_some() {
            return Ok(());
        }
        if u64::from(bitmap.table_len) != self.table_entries(bitmap.granularity_bits) {
            return Err(Error::corrupt(format!("bitmap '{}' has a table of the wrong length", bitmap.name)));
        }
        let cluster = self.layout.cluster();
        let table = read_words(&*self.file, bitmap.table_offset, u64::from(bitmap.table_len))?;
        let mut bits = BTreeMap::new();
        let mut bytes = 0;
        let bytes_max = BYTES_MAX.min(self.file.len()?);
        for (chunk, entry) in table.into_iter().enumerate() {
            let offset = entry & super::layout::OFFSET_MASK;
            if offset == 0 {
                if entry & ALL_ONES != 0 {
                    bits.insert(chunk as u64, Chunk::Ones);
                }
                continue;
            }
            bytes += cluster;
            if self.layout.in_cluster(offset) != 0 || bytes > bytes_max {
                return Err(Error::corrupt(format!("bitmap '{}' is damaged", self.bitmaps.list[index].name)));
            }
            bits.insert(chunk as u64, Chunk::Bits(self.file.read_vec(offset, cluster as usize)?.into()));
        }
        self.bitmaps.list[index].bits = Some(bits);
        Ok(())
    }

    /// Notes a change of the disk in every bitmap that records.
    pub(super) fn mark_bitmaps(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.bitmaps.list.is_empty() || len == 0 || offset >= self.header.size {
            return Ok(());
        }
        self.begin_recording()?;
        let cluster = self.layout.cluster();
        let end = offset.saturating_add(len).min(self.header.size);
        for bitmap in self.bitmaps.list.iter_mut().filter(|bitmap| bitmap.records()) {
            let bits = u32::from(bitmap.granularity_bits);
            bitmap.set(offset >> bits, end.div_ceil(1 << bits), cluster);
        }
        Ok(())
    }

    fn begin_recording(&mut self) -> Result<()> {
        if self.bitmaps.recording {
            return Ok(());
        }
        let indices: Vec<usize> =
            (0..self.bitmaps.list.len()).filter(|&i| self.bitmaps.list[i].records()).collect();
        self.take_over(&indices)?;
        self.bitmaps.recording = true;
        Ok(())
    }

    /// Reads bitmaps and marks them in the file as in use.
    fn take_over(&mut self, indices: &[usize]) -> Result<()> {
        let mut changed = false;
        for &index in indices {
            self.load_bits(index)?;
            let bitmap = &mut self.bitmaps.list[index];
            changed |= !bitmap.ours;
            bitmap.ours = true;
            bitmap.flags |= IN_USE;
        }
        let Some(extension) = self.header.bitmaps.filter(|_| changed) else { return Ok(()) };
        // Only flags change, in place.
        let bytes: Vec<u8> = self.bitmaps.list.iter().flat_map(Bitmap::to_bytes).collect();
        if bytes.len() as u64 != extension.directory_len {
            return Err(Error::corrupt("the bitmap directory's length is wrong"));
        }
        self.file.write_at(extension.directory_offset, &bytes)?;
        self.file.flush()
    }

    /// Stores all bitmaps that were changed here.
    pub(super) fn save_bitmaps(&mut self) -> Result<()> {
        if self.bitmaps.list.iter().any(|bitmap| bitmap.ours) {
            self.rewrite_bitmaps()?;
        }
        self.bitmaps.recording = false;
        Ok(())
    }

    /// Writes the directory anew, and those bitmaps whose bits are ours.
    fn rewrite_bitmaps(&mut self) -> Result<()> {
        let old_extension = self.header.bitmaps;
        let mut old_tables = Vec::new();
        for index in 0..self.bitmaps.list.len() {
            if self.bitmaps.list[index].ours {
                let bitmap = &self.bitmaps.list[index];
                old_tables.push((bitmap.table_offset, u64::from(bitmap.table_len)));
                self.store_bits(index)?;
            }
        }
        self.install_directory()?;
        for (offset, len) in old_tables {
            self.free_bitmap_table(offset, len)?;
        }
        if let Some(old) = old_extension {
            self.owned.remove(old.directory_offset, old.directory_len);
            self.free_later(old.directory_offset, self.layout.clusters(old.directory_len));
        }
        self.flush_frees()
    }

    /// Writes one bitmap's bits to new clusters.
    fn store_bits(&mut self, index: usize) -> Result<()> {
        let granularity_bits = self.bitmaps.list[index].granularity_bits;
        let entries = self.table_entries(granularity_bits);
        let bits = self.bitmaps.list[index].bits.take().unwrap_or_default();
        let mut table = vec![0; entries as usize];
        for (&chunk, content) in &bits {
            let Some(entry) = table.get_mut(chunk as usize) else { continue };
            *entry = match content {
                Chunk::Ones => ALL_ONES,
                Chunk::Bits(bytes) if bytes.iter().all(|&byte| byte == 0) => 0,
                Chunk::Bits(bytes) => self.store(bytes)?,
            };
        }
        let bytes = word_bytes(&table);
        let offset = if table.is_empty() { 0 } else { self.store(&bytes)? };
        self.owned.add(offset, bytes.len() as u64, owned::BITMAPS);
        let bitmap = &mut self.bitmaps.list[index];
        bitmap.bits = Some(bits);
        bitmap.table_offset = offset;
        bitmap.table_len = table.len() as u32;
        bitmap.flags &= !IN_USE;
        bitmap.ours = false;
        Ok(())
    }

    /// Writes a new directory, and the header that names it.
    fn install_directory(&mut self) -> Result<()> {
        let old = (self.header.bitmaps, self.header.autoclear);
        let bytes: Vec<u8> = self.bitmaps.list.iter().flat_map(Bitmap::to_bytes).collect();
        self.header.bitmaps = if self.bitmaps.list.is_empty() {
            self.header.autoclear &= !BITMAPS_VALID;
            None
        } else {
            let directory_offset = self.store(&bytes)?;
            self.owned.add(directory_offset, bytes.len() as u64, owned::BITMAPS);
            self.header.autoclear |= BITMAPS_VALID;
            let count = self.bitmaps.list.len() as u32;
            Some(BitmapExtension { count, directory_len: bytes.len() as u64, directory_offset })
        };
        self.flush()?;
        if let Err(error) = self.write_header() {
            (self.header.bitmaps, self.header.autoclear) = old;
            return Err(error);
        }
        self.file.flush()
    }

    fn free_bitmap_table(&mut self, offset: u64, len: u64) -> Result<()> {
        if offset == 0 || len == 0 {
            return Ok(());
        }
        for entry in read_words(&*self.file, offset, len)? {
            let data = entry & super::layout::OFFSET_MASK;
            if data != 0 {
                self.free_later(data, 1);
            }
        }
        self.owned.remove(offset, len * 8);
        self.free_later(offset, self.layout.clusters(len * 8));
        Ok(())
    }

    /// The disk's size has changed: the bitmaps' has to.
    pub(super) fn resize_bitmaps(&mut self) -> Result<()> {
        if self.bitmaps.list.is_empty() {
            return Ok(());
        }
        let per = self.layout.cluster() * 8;
        for index in 0..self.bitmaps.list.len() {
            let entries = self.table_entries(self.bitmaps.list[index].granularity_bits);
            let bits_max = self.bits_of(self.bitmaps.list[index].granularity_bits);
            let bitmap = &mut self.bitmaps.list[index];
            if bitmap.bits.is_none() {
                // One that cannot be read is as void afterwards as before.
                continue;
            }
            bitmap.ours = true;
            bitmap.flags |= IN_USE;
            if let Some(bits) = &mut bitmap.bits {
                bits.retain(|&chunk, _| chunk < entries);
                if let Some(Chunk::Bits(bytes)) = bits.get_mut(&(bits_max / per)) {
                    clear_from(bytes, bits_max % per);
                }
            }
        }
        self.save_bitmaps()
    }

    /// Reads all bitmaps that can be read, before the disk's size changes.
    pub(super) fn load_all_bitmaps(&mut self) -> Result<()> {
        for index in 0..self.bitmaps.list.len() {
            let bitmap = &self.bitmaps.list[index];
            if bitmap.flags & IN_USE != 0 && !bitmap.ours {
                return Err(Error::Refused(format!(
                    "bitmap '{}' was not stored when the image was last used; remove it first (bitmap --remove)",
                    bitmap.name
                )));
            }
            self.load_bits(index)?;
        }
        Ok(())
    }

    pub(super) fn bitmap_infos(&self) -> Vec<BitmapInfo> {
        let info = |bitmap: &Bitmap| BitmapInfo {
            name: bitmap.name.clone(),
            granularity: 1 << bitmap.granularity_bits,
            in_use: bitmap.flags & IN_USE != 0 && !bitmap.ours,
            auto: bitmap.flags & AUTO != 0,
            dirty_bytes: bitmap
                .bits
                .as_ref()
                .map(|bits| count(bits, self.layout.cluster()) << bitmap.granularity_bits),
        };
        self.bitmaps.list.iter().map(info).collect()
    }

    fn find_bitmap(&self, name: &str) -> Result<usize> {
        let found = self.bitmaps.list.iter().position(|bitmap| bitmap.name == name);
        found.ok_or_else(|| Error::NotFound { kind: "bitmap", name: name.to_owned() })
    }

    /// A bitmap whose bits can be trusted.
    fn usable_bitmap(&mut self, name: &str) -> Result<usize> {
        let index = self.find_bitmap(name)?;
        let bitmap = &self.bitmaps.list[index];
        if bitmap.flags & IN_USE != 0 && !bitmap.ours {
            return Err(Error::Refused(format!(
                "Bitmap '{name}' is inconsistent and cannot be used: it was not stored when the image was last used; \
                 it can only be removed"
            )));
        }
        self.load_bits(index)?;
        Ok(index)
    }

    pub(super) fn add_bitmap(&mut self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        if self.header.version < 3 {
            return Err(Error::Unsupported("Cannot store dirty bitmaps in qcow2 v2 files".to_owned()));
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::option(match name {
                "" => "Bitmap name cannot be empty".to_owned(),
                _ => format!("Bitmap name is too long: it has up to {NAME_MAX} bytes"),
            }));
        }
        if self.find_bitmap(name).is_ok() {
            return Err(Error::Exists { kind: "bitmap", name: name.to_owned() });
        }
        let bits = granularity.checked_ilog2().unwrap_or(0) as u8;
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&bits) {
            return Err(Error::option("Granularity must be power of 2 and at least 512"));
        }
        let entries = self.table_entries(bits);
        if self.bitmaps.list.len() >= COUNT_MAX as usize || entries * self.layout.cluster() > BYTES_MAX {
            return Err(Error::option("too many bitmaps, or the granularity is too small for this disk"));
        }
        self.bitmaps.list.push(Bitmap {
            name: name.to_owned(),
            granularity_bits: bits,
            flags: IN_USE | if enabled { AUTO } else { 0 },
            kind: DIRTY_TRACKING,
            extra: Vec::new(),
            table_offset: 0,
            table_len: 0,
            bits: Some(BTreeMap::new()),
            ours: true,
        });
        self.rewrite_bitmaps()?;
        self.bitmaps.recording = false;
        Ok(())
    }

    pub(super) fn remove_bitmap(&mut self, name: &str) -> Result<()> {
        let index = self.find_bitmap(name)?;
        let bitmap = self.bitmaps.list.remove(index);
        self.rewrite_bitmaps()?;
        self.free_bitmap_table(bitmap.table_offset, u64::from(bitmap.table_len))?;
        self.bitmaps.recording = false;
        self.flush()
    }

    pub(super) fn clear_bitmap(&mut self, name: &str) -> Result<()> {
        let index = self.usable_bitmap(name)?;
        self.take_over(&[index])?;
        self.bitmaps.list[index].bits = Some(BTreeMap::new());
        self.save_bitmaps()
    }

    pub(super) fn enable_bitmap(&mut self, name: &str, enabled: bool) -> Result<()> {
        let index = self.usable_bitmap(name)?;
        self.take_over(&[index])?;
        let bitmap = &mut self.bitmaps.list[index];
        bitmap.flags = bitmap.flags & !AUTO | if enabled { AUTO } else { 0 };
        self.save_bitmaps()
    }

    pub(super) fn mark_bitmap(&mut self, name: &str, offset: u64, len: u64) -> Result<()> {
        let index = self.usable_bitmap(name)?;
        self.take_over(&[index])?;
        let (cluster, size) = (self.layout.cluster(), self.header.size);
        let end = offset.saturating_add(len).min(size);
        let bitmap = &mut self.bitmaps.list[index];
        let bits = u32::from(bitmap.granularity_bits);
        bitmap.set(offset >> bits, end.div_ceil(1 << bits), cluster);
        Ok(())
    }

    /// The dirty run at or behind `offset`.
    pub(super) fn next_dirty(&mut self, name: &str, offset: u64) -> Result<Option<(u64, u64)>> {
        let index = self.usable_bitmap(name)?;
        let cluster = self.layout.cluster();
        let size = self.header.size;
        let bitmap = &self.bitmaps.list[index];
        let shift = u32::from(bitmap.granularity_bits);
        let end = self.bits_of(bitmap.granularity_bits);
        let per = cluster * 8;
        let has = |bit: u64| bitmap.bits.as_ref().is_some_and(|bits| bits.contains_key(&(bit / per)));
        let mut bit = offset >> shift;
        while bit < end && !bitmap.get(bit, cluster) {
            bit = if has(bit) { bit + 1 } else { (bit / per + 1) * per };
        }
        if bit >= end {
            return Ok(None);
        }
        let start = bit;
        while bit < end && bitmap.get(bit, cluster) {
            bit += 1;
        }
        let from = (start << shift).max(offset);
        Ok(Some((from, (bit << shift).min(size) - from)))
    }

    /// Where bitmaps keep clusters, for a check: the directory and tables, and data.
    pub(super) fn bitmap_places(&self) -> Result<Vec<(u64, u64)>> {
        let mut places = Vec::new();
        let Some(extension) = self.header.bitmaps.filter(|_| self.header.autoclear & BITMAPS_VALID != 0)
        else {
            return Ok(places);
        };
        places.push((extension.directory_offset, extension.directory_len));
        for bitmap in &self.bitmaps.list {
            if bitmap.table_offset == 0 {
                continue;
            }
            places.push((bitmap.table_offset, u64::from(bitmap.table_len) * 8));
            for entry in read_words(&*self.file, bitmap.table_offset, u64::from(bitmap.table_len))? {
                let data = entry & super::layout::OFFSET_MASK;
                if data != 0 {
                    places.push((data, self.layout.cluster()));
                }
            }
        }
        Ok(places)
    }
}

fn parse_entry(bytes: &[u8], cluster: u64) -> Result<(Bitmap, &[u8])> {
    let damaged = || Error::corrupt("the bitmap directory is damaged");
    let mut entry = RawEntry::new_zeroed();
    let head = size_of::<RawEntry>();
    entry.as_mut_bytes().copy_from_slice(bytes.get(..head).ok_or_else(damaged)?);
    let (extra_len, name_len) = (entry.extra_len.get() as usize, usize::from(entry.name_len.get()));
    let name_at = head.checked_add(extra_len).ok_or_else(damaged)?;
    let end = name_at.checked_add(name_len).ok_or_else(damaged)?;
    let extra = bytes.get(head..name_at).ok_or_else(damaged)?.to_vec();
    let name = bytes.get(name_at..end).ok_or_else(damaged)?;
    let name = String::from_utf8(name.to_vec()).map_err(|_| damaged())?;
    let table_offset = entry.table_offset.get();
    let sound = table_offset.is_multiple_of(cluster)
        && table_offset < 1 << 56
        && u64::from(entry.table_len.get()) <= TABLE_ENTRIES_MAX
        && GRANULARITY_BITS.contains(&entry.granularity_bits)
        && entry.kind == DIRTY_TRACKING
        && (extra.is_empty() || entry.flags.get() & EXTRA_COMPATIBLE != 0)
        && entry.flags.get() & !(IN_USE | AUTO | EXTRA_COMPATIBLE) == 0
        && !name.is_empty()
        && name.len() <= NAME_MAX;
    if !sound {
        return Err(damaged());
    }
    let bitmap = Bitmap {
        name,
        granularity_bits: entry.granularity_bits,
        flags: entry.flags.get(),
        kind: entry.kind,
        extra,
        table_offset,
        table_len: entry.table_len.get(),
        bits: None,
        ours: false,
    };
    let next = end.next_multiple_of(8).min(bytes.len());
    Ok((bitmap, &bytes[next..]))
}

fn clear_from(bytes: &mut [u8], first: u64) {
    for bit in first..bytes.len() as u64 * 8 {
        if bit.is_multiple_of(8) {
            bytes[(bit / 8) as usize..].fill(0);
            return;
        }
        bytes[(bit / 8) as usize] &= !(1 << (bit % 8));
    }
}

fn count(bits: &BTreeMap<u64, Chunk>, cluster: u64) -> u64 {
    let of = |chunk: &Chunk| match chunk {
        Chunk::Ones => cluster * 8,
        Chunk::Bits(bytes) => bytes.iter().map(|byte| u64::from(byte.count_ones())).sum(),
    };
    bits.values().map(of).sum()
}
