//! Hyper-V's virtual hard disks (VHDX): dynamic, fixed, and differencing (read).
//!
//! Constraints: entries of the block allocation table go through the log, so that a loss of power leaves either the old
//! ones or the new ones; what they point to is durable before. A log that was left behind is replayed: into the file where it
//! may be written, in memory where not. Authority: Microsoft, [MS-VHDX].

mod check;
mod driver;
mod layout;
mod log;
mod parent;
mod replayed;
mod write;

use std::sync::{Arc, Mutex};

use umbra_block::{
    BackingRef, CheckReport, Error, Extent, Format, FormatWrite, Geometry, ImageInfo, Mapping, Place, Repair,
    Result, Storage, StorageExt, StorageId, Task,
};

use crate::common::{Unit, hold, run};
use crate::table::Table;
pub use driver::Vhdx;
use layout::{MIB, Metadata, PAGE};

/// States of a block, [MS-VHDX] 2.5.1.1.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// The same in files of a draft of the format.
const UNMAPPED_DRAFT: u64 = 5;
const PRESENT: u64 = 6;
const PARTIAL: u64 = 7;
/// Bits of an entry that are its place.
const PLACE: u64 = !(MIB - 1);

/// An open image.
#[derive(Debug)]
struct Image {
    storages: [Arc<dyn Storage>; 1],
    name: String,
    metadata: Metadata,
    table: Table,
    backing: Option<BackingRef>,
    /// Identities that the image below may have.
    parents: Vec<String>,
    /// The identity of what the file held when it was opened.
    data_write: layout::Guid,
    session: Option<write::Session>,
    /// A page of a bitmap: where, and its bytes.
    bits: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Image {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storages[0]
    }

    /// The number of a block's entry in the table, in which bitmap blocks stand between.
    fn index(&self, block: u64) -> u64 {
        block + block / self.metadata.chunk()
    }

    fn entry(&self, block: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.table.entry(self.index(block))?))
    }

    fn place(entry: u64) -> Result<u64> {
        let place = entry & PLACE;
        match (MIB..=i64::MAX as u64).contains(&place) {
            true => Ok(place),
            false => Err(Error::corrupt(format!("a block lies at {place}"))),
        }
    }

    fn look(&self, block: u64) -> Result<Unit> {
        let entry = self.entry(block)?;
        match entry & 7 {
            NOT_PRESENT => Ok(Unit::Absent),
            UNDEFINED | ZERO | UNMAPPED | UNMAPPED_DRAFT => Ok(Unit::Zero),
            PRESENT => Ok(Unit::At(Self::place(entry)?)),
            state => Err(Error::corrupt(format!("block {block} has state {state}"))),
        }
    }

    /// A run within one block of which only some sectors are this image's.
    fn map_partial(&self, offset: u64, len: u64) -> Result<Extent> {
        let (block, within) = (offset / self.metadata.block, offset % self.metadata.block);
        let chunk = self.metadata.chunk();
        let entry = self.entry(block)?;
        let bitmap = u64::from_le_bytes(self.table.entry((block / chunk + 1) * chunk + block / chunk)?);
        if bitmap & 7 != PRESENT {
            return Err(Error::corrupt(format!("block {block} has no bitmap")));
        }
        let bitmap = Self::place(bitmap)?;
        let sector = self.metadata.sector;
        // The number of the sector within what the bitmap stands for.
        let base = block % chunk * (self.metadata.block / sector);
        let first = base + within / sector;
        // To the end of the page of bits.
        let page_bits = PAGE * 8;
        let limit = (base + (within + len).div_ceil(sector)).min((first / page_bits + 1) * page_bits);
        let bits = self.page_of_bits(bitmap + first / page_bits * PAGE)?;
        let own = |number: u64| {
            let bit = number % page_bits;
            bits.get((bit / 8) as usize).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
        };
        let is_own = own(first);
        let end = (first + 1..limit).find(|&number| own(number) != is_own).unwrap_or(limit);
        let run = ((end - base) * sector).saturating_sub(within).min(len);
        let mapping = match is_own {
            true => Mapping::Data(Place::plain(StorageId(0), Self::place(entry)? + within)),
            false => Mapping::Backing,
        };
        Ok(Extent { mapping, len: run.max(1) })
    }

    fn page_of_bits(&self, at: u64) -> Result<Arc<[u8]>> {
        let mut kept = hold(&self.bits);
        if let Some((of, bits)) = &*kept
            && *of == at
        {
            return Ok(bits.clone());
        }
        let bits: Arc<[u8]> = self.storage().read_vec(at, PAGE as usize)?.into();
        *kept = Some((at, bits.clone()));
        Ok(bits)
    }
}

impl Format for Image {
    fn geometry(&self) -> Geometry {
        let unit = self.metadata.block;
        Geometry { size: self.metadata.size, unit, zero_unit: unit, compression: None }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let block = self.metadata.block;
        if self.backing.is_none() {
            return run(StorageId(0), offset, len, block, &Mapping::Zero(None), |block| self.look(block));
        }
        let len = len.min(block - offset % block);
        match self.entry(offset / block)? & 7 {
            PARTIAL => self.map_partial(offset, len),
            _ => run(StorageId(0), offset, len, block, &Mapping::Backing, |block| self.look(block)),
        }
    }

    fn backing(&self) -> Option<BackingRef> {
        self.backing.clone()
    }

    fn identity(&self) -> Option<String> {
        Some(parent::of_guid(&self.data_write))
    }

    fn parent_identities(&self) -> Vec<String> {
        self.parents.clone()
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        self.session.is_some().then_some(self)
    }

    fn flush(&self) -> Result<()> {
        match &self.session {
            Some(session) => self.flush_all(session),
            None => Ok(()),
        }
    }

    fn close(&self) -> Result<()> {
        match &self.session {
            Some(session) => self.close_session(session),
            None => Ok(()),
        }
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            format: "vhdx".into(),
            filename: self.name.clone(),
            virtual_size: self.metadata.size,
            actual_size: self.storage().info().allocated,
            cluster_size: Some(self.metadata.block),
            backing: self.backing.clone(),
            ..ImageInfo::default()
        })
    }

    fn check(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        self.check_all(repair, task)
    }
}
