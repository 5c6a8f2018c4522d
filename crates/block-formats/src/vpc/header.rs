//! The footer of a VHD file and the header of those that grow.
//!
//! Authority: Microsoft, "Virtual Hard Disk Image Format Specification" 1.0: hard disk footer format, dynamic disk header
//! format, and the appendix on CHS geometry. All numbers are big-endian.

use std::time::{SystemTime, UNIX_EPOCH};

use umbra_block::{Error, Result};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

pub(super) const SECTOR: u64 = 512;
pub(super) const COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
/// All data, then the footer.
pub(super) const FIXED: u32 = 2;
/// Blocks as they are needed.
pub(super) const DYNAMIC: u32 = 3;
/// The same, over a parent.
pub(super) const DIFFERENCING: u32 = 4;
/// Seconds from 1970 to the format's beginning of time, the year 2000.
const EPOCH: u64 = 946_684_800;
/// Bytes of a block in new images.
pub(super) const BLOCK: u32 = 2 << 20;
/// Bytes that a block may have: what is kept in memory of one is a 4096th of it.
const BLOCK_MAX: u32 = 256 << 20;
/// Sectors of the largest disk: table entries are numbers of sectors in 32 bits, and other programs stop here.
const SECTORS_MAX: u64 = 0xff00_0000;
/// Sectors of the largest geometry.
const CHS_MAX: u64 = 65535 * 16 * 255;

/// The footer, of which growing files have a copy at their beginning.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Footer {
    pub cookie: [u8; 8],
    pub features: U32,
    pub version: U32,
    pub data_offset: U64,
    pub time: U32,
    pub creator: [u8; 4],
    pub creator_version: U32,
    pub creator_system: [u8; 4],
    pub original_size: U64,
    pub current_size: U64,
    pub cylinders: U16,
    pub heads: u8,
    pub sectors: u8,
    pub kind: U32,
    pub checksum: U32,
    pub uuid: [u8; 16],
    pub saved_state: u8,
    pub reserved: [u8; 427],
}

/// Where a differencing image's parent is, in the words of one system.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Locator {
    pub platform: [u8; 4],
    pub space: U32,
    pub len: U32,
    pub reserved: U32,
    pub offset: U64,
}

/// The header of a file that grows.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Dynamic {
    pub cookie: [u8; 8],
    pub data_offset: U64,
    pub table_offset: U64,
    pub version: U32,
    pub entries: U32,
    pub block_size: U32,
    pub checksum: U32,
    pub parent_uuid: [u8; 16],
    pub parent_time: U32,
    pub reserved: U32,
    pub parent_name: [u8; 512],
    pub locators: [Locator; 8],
    pub reserved_end: [u8; 256],
}

const _: () = assert!(size_of::<Footer>() == 512 && size_of::<Dynamic>() == 1024);

/// The one's complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], own: u32) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
    !sum(bytes).wrapping_sub(sum(&own.to_be_bytes()))
}

/// A geometry: cylinders, heads, sectors.
fn geometry(sectors: u64) -> (u64, u64, u64) {
    let total = sectors.min(CHS_MAX);
    let (track, heads, tracks) = if total >= 65535 * 16 * 63 {
        (255, 16, total / 255)
    } else {
        let (mut track, mut tracks) = (17, total / 17);
        let mut heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (track, heads, tracks) = (31, 16, total / 31);
        }
        if tracks >= heads * 1024 {
            (track, heads, tracks) = (63, 16, total / 63);
        }
        (track, heads, tracks)
    };
    (tracks / heads, heads, track)
}

impl Footer {
    /// The footer of a new image. Unless `exact`, the disk gets as large as its geometry says.
    pub(super) fn new(size: u64, exact: bool, kind: u32, uuid: [u8; 16]) -> Result<Footer> {
        let wanted = size.div_ceil(SECTOR);
        let (mut shape, mut sectors) = (geometry(wanted), wanted);
        let product = |(cylinders, heads, track): (u64, u64, u64)| cylinders * heads * track;
        if exact {
            shape = (65535, 16, 255);
        } else if wanted < CHS_MAX {
            // The smallest geometry that holds it.
            while product(shape) < wanted {
                sectors += 1;
                shape = geometry(sectors);
            }
            sectors = product(shape);
        }
        if sectors > SECTORS_MAX {
            return Err(Error::option("The image size is too large for file format 'vpc'"));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut footer = Footer {
            cookie: *COOKIE,
            features: 2.into(),
            version: 0x0001_0000.into(),
            data_offset: if kind == FIXED { u64::MAX } else { SECTOR }.into(),
            time: (since.saturating_sub(EPOCH) as u32).into(),
            // These names tell others whether the geometry or the size counts.
            creator: if exact { *b"qem2" } else { *b"qemu" },
            creator_version: 0x0005_0003.into(),
            creator_system: *b"Wi2k",
            original_size: (sectors * SECTOR).into(),
            current_size: (sectors * SECTOR).into(),
            cylinders: (shape.0 as u16).into(),
            heads: shape.1 as u8,
            sectors: shape.2 as u8,
            kind: kind.into(),
            checksum: 0.into(),
            uuid,
            ..Footer::new_zeroed()
        };
        footer.checksum = checksum(footer.as_bytes(), 0).into();
        Ok(footer)
    }

    /// Checks what was read.
    pub(super) fn check(&self) -> Result<(), String> {
        if &self.cookie != COOKIE {
            return Err("it has no VHD footer".into());
        }
        if checksum(self.as_bytes(), self.checksum.get()) != self.checksum.get() {
            return Err("the checksum of its footer is wrong".into());
        }
        if self.version.get() >> 16 != 1 {
            return Err(format!("its version is {:#x}", self.version));
        }
        match self.kind.get() {
            FIXED | DYNAMIC | DIFFERENCING => Ok(()),
            other => Err(format!("its type is {other}")),
        }
    }

    /// The disk's size in bytes. Which of the two numbers counts is told by the name of the program that made it, where
    /// the user does not say it: by cylinders, heads and sectors, or not.
    pub(super) fn size(&self, by_geometry: Option<bool>) -> Result<u64, String> {
        let by_size = [*b"win ", *b"qem2", *b"d2v ", *b"CTXS", *b"tap\0", *b"wa\0\0"];
        let product = u64::from(self.cylinders.get()) * u64::from(self.heads) * u64::from(self.sectors);
        let by_geometry = by_geometry.unwrap_or(!by_size.contains(&self.creator));
        let sectors = match by_geometry && product != CHS_MAX {
            true => product,
            false => self.current_size.get() / SECTOR,
        };
        match sectors <= SECTORS_MAX {
            true => Ok(sectors * SECTOR),
            false => Err(format!("its disk has {sectors} sectors, and the limit is {SECTORS_MAX}")),
        }
    }
}

impl Dynamic {
    /// The header of a new image.
    pub(super) fn new(entries: u32) -> Dynamic {
        let mut header = Dynamic {
            cookie: *DYNAMIC_COOKIE,
            data_offset: u64::MAX.into(),
            table_offset: (SECTOR + size_of::<Dynamic>() as u64).into(),
            version: 0x0001_0000.into(),
            entries: entries.into(),
            block_size: BLOCK.into(),
            ..Dynamic::new_zeroed()
        };
        header.checksum = checksum(header.as_bytes(), 0).into();
        header
    }

    /// Checks what was read from a file of `len` bytes, for a disk of `size` bytes.
    pub(super) fn check(&self, size: u64, len: u64) -> Result<(), String> {
        if &self.cookie != DYNAMIC_COOKIE {
            return Err("it has no header of a dynamic disk".into());
        }
        if checksum(self.as_bytes(), self.checksum.get()) != self.checksum.get() {
            return Err("the checksum of its dynamic header is wrong".into());
        }
        let block = self.block_size.get();
        if !block.is_power_of_two() || !(4096..=BLOCK_MAX).contains(&block) {
            return Err(format!("its block size is {block}"));
        }
        let entries = u64::from(self.entries.get());
        if entries * u64::from(block) < size {
            return Err("its table is too short for its size".into());
        }
        let offset = self.table_offset.get();
        if !offset.is_multiple_of(SECTOR) || offset.checked_add(entries * 4).is_none_or(|end| end > len) {
            return Err("its table lies beyond its end".into());
        }
        Ok(())
    }

    /// Bytes of the bitmap before each block.
    pub(super) fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size.get()) / SECTOR / 8).next_multiple_of(SECTOR)
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod header_test;
