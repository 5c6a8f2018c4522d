//! Descriptors of groups (Linux, Documentation/filesystems/ext4/group_descr.rst).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{crc32c, halves};
use crate::layout::{DESCRIPTOR, GROUP_INODES, Layout};

/// Inode table and bitmap are not there yet.
pub const INODE_UNINIT: u16 = 1;
/// The block bitmap is not there yet.
pub const BLOCK_UNINIT: u16 = 2;
/// The inode table is zero where nothing is in it.
pub const INODE_ZEROED: u16 = 4;

#[derive(FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    block_bitmap_lo: U32,
    inode_bitmap_lo: U32,
    inode_table_lo: U32,
    free_blocks_lo: U16,
    free_inodes_lo: U16,
    folders_lo: U16,
    flags: U16,
    exclude_bitmap_lo: U32,
    block_bitmap_sum_lo: U16,
    inode_bitmap_sum_lo: U16,
    unused_inodes_lo: U16,
    checksum: U16,
    block_bitmap_hi: U32,
    inode_bitmap_hi: U32,
    inode_table_hi: U32,
    free_blocks_hi: U16,
    free_inodes_hi: U16,
    folders_hi: U16,
    unused_inodes_hi: U16,
    exclude_bitmap_hi: U32,
    block_bitmap_sum_hi: U16,
    inode_bitmap_sum_hi: U16,
    reserved: U32,
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR);

/// What a group's descriptor tells.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub flags: u16,
    pub free_blocks: u64,
    /// Inodes from the first on that are in use.
    pub inodes: u32,
    pub folders: u32,
    /// Checksums of its bitmaps.
    pub block_bitmap_sum: u32,
    pub inode_bitmap_sum: u32,
}

impl Group {
    /// The descriptor of group `number`; `seed` is the file system's.
    pub fn descriptor(&self, layout: &Layout, number: u64, seed: u32) -> [u8; DESCRIPTOR] {
        let mut it = Descriptor::new_zeroed();
        let wide = |n: u64| (U32::new(n as u32), U32::new((n >> 32) as u32));
        (it.block_bitmap_lo, it.block_bitmap_hi) = wide(layout.block_bitmap(number));
        (it.inode_bitmap_lo, it.inode_bitmap_hi) = wide(layout.inode_bitmap(number));
        (it.inode_table_lo, it.inode_table_hi) = wide(layout.inode_table(number));
        it.free_blocks_lo = U16::new(self.free_blocks as u16);
        it.free_blocks_hi = U16::new((self.free_blocks >> 16) as u16);
        let free = U16::new((GROUP_INODES - self.inodes) as u16);
        (it.free_inodes_lo, it.unused_inodes_lo) = (free, free);
        it.folders_lo = U16::new(self.folders as u16);
        it.flags = self.flags.into();
        let sum = |sum| {
            let (lo, hi) = halves(sum);
            (U16::new(lo), U16::new(hi))
        };
        (it.block_bitmap_sum_lo, it.block_bitmap_sum_hi) = sum(self.block_bitmap_sum);
        (it.inode_bitmap_sum_lo, it.inode_bitmap_sum_hi) = sum(self.inode_bitmap_sum);
        it.checksum = U16::new(crc32c(crc32c(seed, &(number as u32).to_le_bytes()), it.as_bytes()) as u16);
        let mut bytes = [0; DESCRIPTOR];
        bytes.copy_from_slice(it.as_bytes());
        bytes
    }
}
