//! VirtualBox disk images: a header, a table of blocks of 1 MiB, and the blocks.
//!
//! Constraints: entries of the table are written when what they point to is durable, and after the header, whose count of
//! blocks says where the next one goes. Authority: VirtualBox' `VDICore.h`.

mod check;
mod driver;
mod header;

use std::sync::{Arc, Mutex};

use umbra_block::{
    BackingRef, CheckReport, Error, Extent, Format, FormatWrite, Geometry, Holes, ImageInfo, Mapping,
    Options, Prepare, Prepared, Repair, Result, Storage, StorageExt, StorageId, Task, Token,
};
use zerocopy::IntoBytes;

use crate::common::{Unit, absent_run, hold, in_new_unit, in_place, pending, run, unsupported};
use crate::table::Table;
pub use driver::Vdi;
use header::Header;

/// A block that was never written.
const UNALLOCATED: u32 = 0xffff_ffff;
/// A block that reads as zeroes.
const ZERO: u32 = 0xffff_fffe;

/// An open image.
#[derive(Debug)]
struct Image {
    storages: [Arc<dyn Storage>; 1],
    name: String,
    header: Header,
    blocks: Table,
    writable: bool,
    /// Number of the place that the next new block gets. `None` until somebody allocates.
    next: Mutex<Option<u32>>,
    /// Guards the order of a flush.
    flushing: Mutex<()>,
}

/// A block that waits for its data.
struct Pending {
    block: u64,
    place: u32,
}

impl Image {
    fn unit(&self) -> u64 {
        self.header.block_size.get().into()
    }

    fn look(&self, block: u64) -> Result<Unit> {
        match u32::from_le_bytes(self.blocks.entry(block)?) {
            UNALLOCATED => Ok(Unit::Absent),
            ZERO => Ok(Unit::Zero),
            place => Ok(Unit::At(self.offset_of(place))),
        }
    }

    fn offset_of(&self, place: u32) -> u64 {
        u64::from(self.header.offset_data.get()) + u64::from(place) * self.unit()
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storages[0]
    }

    /// Finds the place behind all blocks, wherever header, table and file say that they are.
    fn find_next(&self) -> Result<u32> {
        let mut next = self.header.blocks_allocated.get();
        if !self.storage().info().fixed_len {
            let data = self.storage().len()?.saturating_sub(self.header.offset_data.get().into());
            next = next.max(u32::try_from(data.div_ceil(self.unit())).unwrap_or(u32::MAX));
        }
        for block in 0..self.header.blocks.get().into() {
            let place = u32::from_le_bytes(self.blocks.entry(block)?);
            if place < ZERO {
                next = next.max(place + 1);
            }
        }
        Ok(next)
    }

    /// Takes the place of a new block.
    fn allocate(&self) -> Result<u32> {
        let mut next = hold(&self.next);
        let place = match *next {
            Some(place) => place,
            None => self.find_next()?,
        };
        if place >= ZERO - 1 {
            return Err(Error::Refused(
                "the image has as many blocks as its format allows; convert it to another".into(),
            ));
        }
        *next = Some(place + 1);
        Ok(place)
    }

    fn flush_all(&self) -> Result<()> {
        let _order = hold(&self.flushing);
        let changed = self.blocks.changed();
        let next = *hold(&self.next);
        if let Some(next) = next.filter(|_| !changed.is_empty()) {
            let mut header = self.header.clone();
            header.blocks_allocated = next.into();
            // Blocks whose end was never written are whole all the same.
            let end = self.offset_of(next);
            if self.storage().len()? < end {
                self.storage().set_len(end)?;
            }
            self.storage().write_at(0, header.as_bytes())?;
            self.storage().flush()?;
            self.blocks.write_back(&changed)?;
        }
        self.storage().flush()
    }
}

impl Format for Image {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.header.size(), unit: self.unit(), zero_unit: self.unit(), compression: None }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        run(StorageId(0), offset, len, self.unit(), &Mapping::Zero(None), |block| self.look(block))
    }

    fn holes(&self, _offset: u64) -> Holes {
        if self.header.image_type.get() == header::STATIC { Holes::Zeroes } else { Holes::Rare }
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
            format: "vdi".into(),
            filename: self.name.clone(),
            virtual_size: self.header.size(),
            actual_size: self.storage().info().allocated,
            cluster_size: Some(self.unit()),
            ..ImageInfo::default()
        })
    }

    fn check(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        self.check_all(repair, task)
    }
}

impl FormatWrite for Image {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        if let Prepare::Compressed { .. } = how {
            return Ok(None);
        }
        if let Extent { mapping: Mapping::Data(place), len } = self.map(offset, len)? {
            return Ok(Some(in_place(place, len)));
        }
        if how == Prepare::InPlace {
            return Ok(None);
        }
        let (block, within) = (offset / self.unit(), offset % self.unit());
        let len = len.min(self.unit() - within);
        let place = self.allocate()?;
        let token = Box::new(Pending { block, place });
        let start = self.offset_of(place);
        Ok(Some(in_new_unit(&**self.storage(), start, self.unit(), within, len, token)))
    }

    fn commit(&self, token: Token) -> Result<()> {
        let pending: Pending = pending(token)?;
        self.blocks.set(pending.block, pending.place.to_le_bytes())?;
        if self.blocks.is_full() { self.flush_all() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64> {
        absent_run(offset, len, self.unit(), |block| self.look(block))
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        unsupported("a VDI image has no backing file")
    }

    fn amend(&self, _options: &Options, _task: &Task<'_>) -> Result<()> {
        unsupported("Format driver 'vdi' does not support option amendment")
    }
}
