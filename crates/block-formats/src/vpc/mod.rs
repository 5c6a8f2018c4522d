//! Virtual hard disks of Virtual PC and Hyper-V (VHD, `vpc`): fixed, dynamic, and differencing (read).
//!
//! Constraints: the footer lies at the file's end and moves when a block is added; it is written to its new place before the
//! block takes its old one, and a growing file has a copy at its beginning. Entries of the table are written when their
//! blocks are durable. Authority: Microsoft, "Virtual Hard Disk Image Format Specification" 1.0.

mod driver;
mod header;
mod parent;

use std::sync::{Arc, Mutex};

use umbra_block::{
    BackingRef, CheckReport, Error, Extent, Format, FormatWrite, Geometry, Holes, ImageInfo, Mapping,
    Options, Place, Prepare, Prepared, Repair, Result, Storage, StorageExt, StorageId, Task, Token,
};
use zerocopy::IntoBytes;

use crate::common::{
    Reserved, Unit, absent_run, hex, hold, in_new_unit, in_place, pending, run, unsupported,
};
use crate::table::Table;
pub use driver::Vpc;
use header::{Dynamic, Footer, SECTOR};

/// A block that is not there.
const UNUSED: u32 = u32::MAX;
/// The unit in which a fixed image's requests are kept apart.
const FIXED_UNIT: u64 = 1 << 20;

/// An open image.
#[derive(Debug)]
struct Image {
    storages: [Arc<dyn Storage>; 1],
    name: String,
    size: u64,
    footer: Footer,
    /// `None` for a fixed image.
    blocks: Option<Blocks>,
    backing: Option<BackingRef>,
    /// The identity of the image that this one was made over.
    parent: Option<[u8; 16]>,
    /// Where no block may be.
    reserved: Reserved,
    writable: bool,
}

/// What an image that grows has.
#[derive(Debug)]
struct Blocks {
    table: Table,
    block: u64,
    bitmap: u64,
    /// Where the next block goes; the footer is there now. `None` until somebody allocates.
    end: Mutex<Option<u64>>,
    flushing: Mutex<()>,
    /// The bitmap of one block of a differencing image.
    last_bitmap: Mutex<Option<(u64, Arc<[u8]>)>>,
}

/// A block that waits for its data.
struct Pending {
    block: u64,
    start: u64,
}

impl Blocks {
    fn new(header: &Dynamic, storage: &Arc<dyn Storage>) -> Blocks {
        let len = u64::from(header.entries.get()) * 4;
        Blocks {
            table: Table::new(storage.clone(), header.table_offset.get(), len),
            block: header.block_size.get().into(),
            bitmap: header.bitmap_len(),
            end: Mutex::new(None),
            flushing: Mutex::new(()),
            last_bitmap: Mutex::new(None),
        }
    }

    /// Where a block begins in the file, with its bitmap.
    fn start(&self, block: u64) -> Result<Option<u64>> {
        let entry = u32::from_be_bytes(self.table.entry(block)?);
        Ok((entry != UNUSED).then(|| u64::from(entry) * SECTOR))
    }

    fn look(&self, block: u64) -> Result<Unit> {
        Ok(self.start(block)?.map_or(Unit::Absent, |start| Unit::At(start + self.bitmap)))
    }
}

impl Image {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storages[0]
    }

    /// The bits of a block of a differencing image: which sectors are its own.
    fn bitmap(&self, blocks: &Blocks, start: u64) -> Result<Arc<[u8]>> {
        let mut last = hold(&blocks.last_bitmap);
        if let Some((of, bits)) = &*last
            && *of == start
        {
            return Ok(bits.clone());
        }
        // At most 64 KiB, by the limit of a block.
        let bits: Arc<[u8]> = self.storage().read_vec(start, blocks.bitmap as usize)?.into();
        *last = Some((start, bits.clone()));
        Ok(bits)
    }

    /// A run within one block of a differencing image.
    fn map_differencing(&self, blocks: &Blocks, offset: u64, len: u64) -> Result<Extent> {
        let (block, within) = (offset / blocks.block, offset % blocks.block);
        let len = len.min(blocks.block - within);
        let Some(start) = blocks.start(block)? else { return Ok(Extent { mapping: Mapping::Backing, len }) };
        let bits = self.bitmap(blocks, start)?;
        let own = |sector: u64| {
            bits.get((sector / 8) as usize).is_some_and(|byte| byte << (sector % 8) & 0x80 != 0)
        };
        let first = within / SECTOR;
        let is_own = own(first);
        let last = (within + len).div_ceil(SECTOR);
        let end = (first + 1..last).find(|&sector| own(sector) != is_own).unwrap_or(last);
        let mapping = match is_own {
            true => Mapping::Data(Place::plain(StorageId(0), start + blocks.bitmap + within)),
            false => Mapping::Backing,
        };
        Ok(Extent { mapping, len: (end * SECTOR - within).min(len) })
    }

    /// Finds where the next block goes: behind the last, wherever the table says that is, and not before the footer.
    fn find_end(&self, blocks: &Blocks) -> Result<u64> {
        let len = self.storage().len()?;
        let tail = self.storage().read_vec(len.saturating_sub(SECTOR), SECTOR as usize)?;
        let mut end =
            if tail.starts_with(header::COOKIE) { len - SECTOR } else { len }.next_multiple_of(SECTOR);
        for block in 0..self.size.div_ceil(blocks.block) {
            if let Some(start) = blocks.start(block)? {
                end = end.max(start + blocks.bitmap + blocks.block);
            }
        }
        Ok(end)
    }

    /// Takes the place of a new block: the footer moves behind it first.
    fn allocate(&self, blocks: &Blocks) -> Result<u64> {
        let mut end = hold(&blocks.end);
        let start = match *end {
            Some(end) => end,
            None => self.find_end(blocks)?,
        };
        let next = start + blocks.bitmap + blocks.block;
        if next / SECTOR >= u64::from(UNUSED) {
            return Err(Error::Refused(
                "the image is as large as its format allows; convert it to another".into(),
            ));
        }
        self.storage().write_at(next, self.footer.as_bytes())?;
        *end = Some(next);
        Ok(start)
    }

    fn flush_all(&self) -> Result<()> {
        if let Some(blocks) = &self.blocks {
            let _order = hold(&blocks.flushing);
            let changed = blocks.table.changed();
            if !changed.is_empty() {
                self.storage().flush()?;
                blocks.table.write_back(&changed)?;
            }
        }
        self.storage().flush()
    }
}

impl Format for Image {
    fn geometry(&self) -> Geometry {
        let unit = self.blocks.as_ref().map_or(FIXED_UNIT, |blocks| blocks.block);
        Geometry { size: self.size, unit, zero_unit: unit, compression: None }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        match &self.blocks {
            None => Ok(Extent { mapping: Mapping::Data(Place::plain(StorageId(0), offset)), len }),
            Some(blocks) if self.backing.is_some() => self.map_differencing(blocks, offset, len),
            Some(blocks) => {
                run(StorageId(0), offset, len, blocks.block, &Mapping::Zero(None), |block| blocks.look(block))
            }
        }
    }

    fn holes(&self, _offset: u64) -> Holes {
        if self.blocks.is_none() { Holes::Nothing } else { Holes::Rare }
    }

    fn backing(&self) -> Option<BackingRef> {
        self.backing.clone()
    }

    fn identity(&self) -> Option<String> {
        Some(hex(&self.footer.uuid))
    }

    fn parent_identities(&self) -> Vec<String> {
        self.parent.iter().map(|uuid| hex(uuid)).collect()
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        self.writable.then_some(self)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn close(&self) -> Result<()> {
        match self.writable {
            true => self.flush_all(),
            false => Ok(()),
        }
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            format: "vpc".into(),
            filename: self.name.clone(),
            virtual_size: self.size,
            actual_size: self.storage().info().allocated,
            cluster_size: self.blocks.as_ref().map(|blocks| blocks.block),
            backing: self.backing.clone(),
            ..ImageInfo::default()
        })
    }

    fn check(&self, _repair: Repair, _task: &Task<'_>) -> Result<CheckReport> {
        unsupported("checks of a VHD image")
    }
}

impl FormatWrite for Image {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        if let Prepare::Compressed { .. } = how {
            return Ok(None);
        }
        if let Extent { mapping: Mapping::Data(place), len } = self.map(offset, len)? {
            self.reserved.refuse(place.offset, len)?;
            return Ok(Some(in_place(place, len)));
        }
        let Some(blocks) = self.blocks.as_ref().filter(|_| how == Prepare::Allocate) else { return Ok(None) };
        let (block, within) = (offset / blocks.block, offset % blocks.block);
        let len = len.min(blocks.block - within);
        let start = self.allocate(blocks)?;
        let token = Box::new(Pending { block, start });
        Ok(Some(in_new_unit(&**self.storage(), start + blocks.bitmap, blocks.block, within, len, token)))
    }

    fn commit(&self, token: Token) -> Result<()> {
        let pending: Pending = pending(token)?;
        let Some(blocks) = &self.blocks else { return Err(Error::corrupt("a block of a fixed image")) };
        // Every sector of the block is there.
        self.storage().write_at(pending.start, &vec![0xff; blocks.bitmap as usize])?;
        // Below 2^32, as `allocate` has seen.
        let entry = (pending.start / SECTOR) as u32;
        blocks.table.set(pending.block, entry.to_be_bytes())?;
        if blocks.table.is_full() { self.flush_all() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64> {
        match &self.blocks {
            Some(blocks) => absent_run(offset, len, blocks.block, |block| blocks.look(block)),
            None => Ok(0),
        }
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        unsupported("the parent of a VHD image cannot be changed")
    }

    fn amend(&self, _options: &Options, _task: &Task<'_>) -> Result<()> {
        unsupported("Format driver 'vpc' does not support option amendment")
    }
}
