//! The header of a VDI file.
//!
//! Authority: VirtualBox' `VDICore.h` (structure `VDIHEADER1PLUS` behind `VDIPREHEADER`); all numbers are little-endian.

use umbra_block::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::common::at_most;

/// What stands in the file's first line.
pub(super) const TEXT: &[u8] = b"<<< Umbra VDI disk image >>>\n";
/// The signature at offset 64.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// Version 1.1, the only one in use.
const VERSION: u32 = 0x0001_0001;
/// An image that grows.
pub(super) const DYNAMIC: u32 = 1;
/// An image whose blocks are all allocated.
pub(super) const STATIC: u32 = 2;
/// Bytes of a block in images that this crate makes, and in all that VirtualBox makes.
pub(super) const BLOCK: u32 = 1 << 20;
/// Blocks that a table may have: its entries below the two special ones, as other programs limit them.
pub(super) const BLOCKS_MAX: u64 = 0x3fff_ffff;

/// The header.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub text: [u8; 64],
    pub signature: U32,
    pub version: U32,
    pub header_size: U32,
    pub image_type: U32,
    pub flags: U32,
    pub description: [u8; 256],
    pub offset_blocks: U32,
    pub offset_data: U32,
    pub cylinders: U32,
    pub heads: U32,
    pub sectors: U32,
    pub sector_size: U32,
    pub unused: U32,
    pub disk_size: U64,
    pub block_size: U32,
    pub block_extra: U32,
    pub blocks: U32,
    pub blocks_allocated: U32,
    pub uuid_image: [u8; 16],
    pub uuid_modified: [u8; 16],
    pub uuid_parent: [u8; 16],
    pub uuid_parent_modified: [u8; 16],
    pub reserved: [u8; 56],
}

const _: () = assert!(size_of::<Header>() == 512);

impl Header {
    /// The header of a new image.
    pub(super) fn new(size: u64, fixed: bool, uuid: [u8; 16]) -> Result<Header> {
        let blocks = size.div_ceil(BLOCK.into());
        at_most("the disk's size in MiB", blocks, BLOCKS_MAX)?;
        let table = (blocks * 4).next_multiple_of(512);
        let mut text = [0; 64];
        text[..TEXT.len()].copy_from_slice(TEXT);
        // Below 2^32, because of the limit above.
        let number = |value: u64| U32::new(value as u32);
        Ok(Header {
            text,
            signature: SIGNATURE.into(),
            version: VERSION.into(),
            // What follows the first 72 bytes.
            header_size: 400.into(),
            image_type: if fixed { STATIC } else { DYNAMIC }.into(),
            flags: 0.into(),
            description: [0; 256],
            offset_blocks: 512.into(),
            offset_data: number(512 + table),
            cylinders: 0.into(),
            heads: 0.into(),
            sectors: 0.into(),
            sector_size: 512.into(),
            unused: 0.into(),
            disk_size: size.into(),
            block_size: BLOCK.into(),
            block_extra: 0.into(),
            blocks: number(blocks),
            blocks_allocated: if fixed { number(blocks) } else { 0.into() },
            uuid_image: uuid,
            uuid_modified: uuid,
            uuid_parent: [0; 16],
            uuid_parent_modified: [0; 16],
            reserved: [0; 56],
        })
    }

    /// Checks what was read.
    pub(super) fn check(&self) -> Result<(), String> {
        let refuse = |what: &str, value: u64| Err(format!("its {what} is {value:#x}"));
        if self.signature.get() != SIGNATURE {
            return refuse("signature", self.signature.get().into());
        }
        if self.version.get() != VERSION {
            return refuse("version", self.version.get().into());
        }
        if ![DYNAMIC, STATIC].contains(&self.image_type.get()) {
            return refuse("type", self.image_type.get().into());
        }
        if self.sector_size.get() != 512 {
            return refuse("sector size", self.sector_size.get().into());
        }
        if !self.block_size.get().is_power_of_two() || !(4096..=256 << 20).contains(&self.block_size.get()) {
            return refuse("block size", self.block_size.get().into());
        }
        if self.block_extra.get() != 0 {
            return refuse("extra block data", self.block_extra.get().into());
        }
        if !self.offset_blocks.get().is_multiple_of(512) || self.offset_blocks.get() < 512 {
            return refuse("table's offset", self.offset_blocks.get().into());
        }
        if !self.offset_data.get().is_multiple_of(512) || self.offset_data.get() < 512 {
            return refuse("data's offset", self.offset_data.get().into());
        }
        if u64::from(self.blocks.get()) > BLOCKS_MAX {
            return refuse("number of blocks", self.blocks.get().into());
        }
        let table_end = u64::from(self.offset_blocks.get()) + u64::from(self.blocks.get()) * 4;
        if u64::from(self.offset_data.get()) < table_end {
            return refuse("data's offset, in its table,", self.offset_data.get().into());
        }
        if self.disk_size.get() > u64::from(self.blocks.get()) * u64::from(self.block_size.get()) {
            return refuse("size beyond that of its blocks", self.disk_size.get());
        }
        Ok(())
    }

    /// The disk's size. Other programs write such that end within a sector, and mean all of it.
    pub(super) fn size(&self) -> u64 {
        // It is no greater than that of the blocks, which are whole sectors.
        self.disk_size.get().next_multiple_of(512)
    }

    /// An image with a parent is one of a chain that only VirtualBox can put together: its members name each other by
    /// identity, not by file.
    pub(super) fn refuse_parent(&self) -> Result<()> {
        match self.uuid_parent == [0; 16] || self.uuid_parent == [0xff; 16] {
            true => Ok(()),
            false => Err(Error::Unsupported("a VDI image with a parent (a differencing image)".into())),
        }
    }
}
