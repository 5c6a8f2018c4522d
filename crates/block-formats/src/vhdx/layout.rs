//! What is where in a VHDX file: identifiers, headers, regions and metadata items.
//!
//! Authority: Microsoft, [MS-VHDX], section 2; all numbers are little-endian.

use umbra_block::{Error, Result, Storage, StorageExt};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// 1 MiB, in which regions and blocks are placed.
pub(super) const MIB: u64 = 1 << 20;
/// Sectors of the log, pages of the BAT.
pub(super) const PAGE: u64 = 4096;
pub(super) const FILE_ID: &[u8; 8] = b"vhdxfile";
/// Where the two headers are.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables are, and their length.
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const TABLE_LEN: usize = 64 << 10;
/// Entries that a region or metadata table has room for.
const ENTRIES_MAX: usize = 2047;
/// Bytes of the log that are read: they are held in memory.
pub(super) const LOG_MAX: u64 = 64 << 20;
/// The largest disk.
pub(super) const SIZE_MAX: u64 = 64 << 40;

/// A GUID as it is stored.
pub(super) type Guid = [u8; 16];

const fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> Guid {
    let [a, b, c, d] = first.to_le_bytes();
    let [e, f] = second.to_le_bytes();
    let [g, h] = third.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = rest;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

pub(super) const BAT: Guid =
    guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
pub(super) const METADATA: Guid =
    guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
pub(super) const FILE_PARAMETERS: Guid =
    guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
pub(super) const DISK_SIZE: Guid =
    guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
pub(super) const DISK_ID: Guid =
    guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
pub(super) const LOGICAL_SECTOR: Guid =
    guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
pub(super) const PHYSICAL_SECTOR: Guid =
    guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
pub(super) const PARENT_LOCATOR: Guid =
    guid(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);
/// The type of a parent locator that names a VHDX file.
pub(super) const LOCATOR_VHDX: Guid =
    guid(0xb04a_efb7, 0xd19e, 0x4a81, [0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13]);

/// A header of the file.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub signature: [u8; 4],
    pub checksum: U32,
    pub sequence: U64,
    pub file_write: Guid,
    pub data_write: Guid,
    pub log: Guid,
    pub log_version: U16,
    pub version: U16,
    pub log_len: U32,
    pub log_offset: U64,
    pub reserved: [u8; 4016],
}

/// The head of a region table.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RegionTable {
    pub signature: [u8; 4],
    pub checksum: U32,
    pub entries: U32,
    pub reserved: U32,
}

/// A region.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RegionEntry {
    pub kind: Guid,
    pub offset: U64,
    pub len: U32,
    pub required: U32,
}

/// The head of the metadata table.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct MetadataTable {
    pub signature: [u8; 8],
    pub reserved: U16,
    pub entries: U16,
    pub unused: [u8; 20],
}

/// A metadata item.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct MetadataEntry {
    pub kind: Guid,
    /// From the beginning of the region.
    pub offset: U32,
    pub len: U32,
    /// Bit 0 user, bit 1 of the disk, bit 2 required.
    pub flags: U32,
    pub reserved: U32,
}

const _: () = assert!(
    size_of::<Header>() == 4096 && size_of::<RegionEntry>() == 32 && size_of::<MetadataEntry>() == 32
);

const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut word = index as u32;
        let mut bit = 0;
        while bit < 8 {
            word = if word & 1 != 0 { word >> 1 ^ 0x82f6_3b78 } else { word >> 1 };
            bit += 1;
        }
        table[index] = word;
        index += 1;
    }
    table
};

/// CRC-32C of `bytes`, of which the four from `at` on count as zeroes.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    !bytes.iter().enumerate().fold(!0, |crc: u32, (index, &byte)| {
        let byte = if own.contains(&index) { 0 } else { byte };
        crc >> 8 ^ CRC[usize::from(crc as u8 ^ byte)]
    })
}

impl Header {
    /// The header in use: the newer one that is whole. With its place.
    pub(super) fn read(storage: &dyn Storage) -> Result<(usize, Header), String> {
        let mut best: Option<(usize, Header)> = None;
        for (index, &offset) in HEADERS.iter().enumerate() {
            let bytes = storage.read_vec(offset, size_of::<Header>()).map_err(|error| error.to_string())?;
            let Ok(header) = Header::read_from_bytes(&bytes) else { continue };
            let whole = &header.signature == b"head" && checksum(&bytes, 4) == header.checksum.get();
            if whole && best.as_ref().is_none_or(|(_, other)| header.sequence.get() > other.sequence.get()) {
                best = Some((index, header));
            }
        }
        let (index, header) = best.ok_or("neither of its headers is whole")?;
        if header.version.get() != 1 || header.log_version.get() != 0 {
            return Err(format!("its version is {}", header.version.get()));
        }
        let (offset, len) = (header.log_offset.get(), u64::from(header.log_len.get()));
        if !offset.is_multiple_of(MIB) || offset < MIB || !len.is_multiple_of(MIB) || len > LOG_MAX {
            return Err(format!("its log has {len} bytes at {offset}"));
        }
        Ok((index, header))
    }

    /// With its checksum.
    pub(super) fn sealed(mut self) -> Header {
        self.checksum = checksum(self.as_bytes(), 4).into();
        self
    }

    /// A new file's.
    pub(super) fn new(log_offset: u64, log_len: u32, file_write: Guid, data_write: Guid) -> Header {
        Header {
            signature: *b"head",
            version: 1.into(),
            log_len: log_len.into(),
            log_offset: log_offset.into(),
            file_write,
            data_write,
            ..Header::new_zeroed()
        }
    }
}

/// A range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub offset: u64,
    pub len: u64,
}

/// The regions of BAT and metadata.
pub(super) fn regions(storage: &dyn Storage) -> Result<(Range, Range), String> {
    let mut problem = String::from("neither of its region tables is whole");
    for offset in REGION_TABLES {
        let bytes = storage.read_vec(offset, TABLE_LEN).map_err(|error| error.to_string())?;
        let Ok((head, rest)) = RegionTable::read_from_prefix(&bytes) else { continue };
        let count = head.entries.get() as usize;
        if &head.signature != b"regi" || checksum(&bytes, 4) != head.checksum.get() || count > ENTRIES_MAX {
            continue;
        }
        match regions_of(rest, count) {
            Ok(found) => return Ok(found),
            Err(what) => problem = what,
        }
    }
    Err(problem)
}

fn regions_of(bytes: &[u8], count: usize) -> Result<(Range, Range), String> {
    let (mut bat, mut metadata) = (None, None);
    for bytes in bytes.chunks_exact(size_of::<RegionEntry>()).take(count) {
        let Ok(entry) = RegionEntry::read_from_bytes(bytes) else { continue };
        let range = Range { offset: entry.offset.get(), len: entry.len.get().into() };
        if range.offset < MIB || !range.offset.is_multiple_of(MIB) || range.offset > i64::MAX as u64 / 2 {
            return Err(format!("a region lies at {}", range.offset));
        }
        if !range.len.is_multiple_of(MIB) {
            return Err(format!("a region has {} bytes", range.len));
        }
        match entry.kind {
            BAT => bat = Some(range),
            METADATA => metadata = Some(range),
            _ if entry.required.get() & 1 != 0 => {
                return Err("it has a region that is not known here and required".into());
            }
            _ => {}
        }
    }
    bat.zip(metadata).ok_or_else(|| "it lacks a region".into())
}

/// What the metadata says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub block: u64,
    pub fixed: bool,
    pub has_parent: bool,
    pub size: u64,
    pub sector: u64,
    /// Where the parent locator is.
    pub locator: Option<(u64, u64)>,
}

/// Reads the metadata of a region.
pub(super) fn metadata(storage: &dyn Storage, region: Range) -> Result<Metadata, String> {
    let bytes = storage.read_vec(region.offset, TABLE_LEN).map_err(|error| error.to_string())?;
    let (head, rest) = MetadataTable::read_from_prefix(&bytes).map_err(|_| "its metadata is too short")?;
    let count = usize::from(head.entries.get());
    if &head.signature != b"metadata" || count > ENTRIES_MAX {
        return Err("it has no metadata table".into());
    }
    let mut metadata = Metadata::default();
    for bytes in rest.chunks_exact(size_of::<MetadataEntry>()).take(count) {
        let Ok(entry) = MetadataEntry::read_from_bytes(bytes) else { continue };
        let (offset, len) = (u64::from(entry.offset.get()), u64::from(entry.len.get()));
        if offset + len > region.len {
            return Err("a metadata item lies beyond its region".into());
        }
        let at = region.offset + offset;
        let number = |index: u64, bytes: usize| -> Result<u64, String> {
            let mut word = [0; 8];
            storage.read_at(at + index, &mut word[..bytes]).map_err(|error| error.to_string())?;
            Ok(u64::from_le_bytes(word))
        };
        match entry.kind {
            FILE_PARAMETERS => {
                metadata.block = number(0, 4)?;
                let flags = number(4, 4)?;
                (metadata.fixed, metadata.has_parent) = (flags & 1 != 0, flags & 2 != 0);
            }
            DISK_SIZE => metadata.size = number(0, 8)?,
            LOGICAL_SECTOR => metadata.sector = number(0, 4)?,
            PARENT_LOCATOR => metadata.locator = Some((at, len)),
            DISK_ID | PHYSICAL_SECTOR => {}
            _ if entry.flags.get() & 4 != 0 => {
                return Err("it has metadata that is not known here and required".into());
            }
            _ => {}
        }
    }
    metadata.check()?;
    Ok(metadata)
}

impl Metadata {
    fn check(&self) -> Result<(), String> {
        if !self.block.is_power_of_two() || !(MIB..=256 * MIB).contains(&self.block) {
            return Err(format!("its block size is {}", self.block));
        }
        if self.sector != 512 && self.sector != 4096 {
            return Err(format!("its logical sector size is {}", self.sector));
        }
        if self.size > SIZE_MAX || !self.size.is_multiple_of(self.sector) {
            return Err(format!("its disk size is {}", self.size));
        }
        Ok(())
    }

    /// Blocks for which one bitmap block stands.
    pub(super) fn chunk(&self) -> u64 {
        (1 << 23) * self.sector / self.block
    }

    /// Blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// Entries of the BAT, bitmap blocks included.
    pub(super) fn entries(&self) -> u64 {
        let (blocks, chunk) = (self.blocks(), self.chunk());
        match self.has_parent {
            true => blocks.div_ceil(chunk) * (chunk + 1),
            false => blocks + blocks.saturating_sub(1) / chunk,
        }
    }
}

/// An error for a file that is not of this format.
pub(super) fn wrong(name: &str, reason: String) -> Error {
    Error::not_this_format(name, "vhdx", reason)
}
