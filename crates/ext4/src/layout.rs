//! Where everything is (Linux, Documentation/filesystems/ext4/blockgroup.rst): groups of 128 MiB, the bitmaps and inode
//! tables of sixteen of them together in the first of these ("flexible groups"), copies of the superblock and of the
//! descriptors in groups 0, 1 and those whose number is a power of 3, 5 or 7.

use std::ops::Range;

use crate::error::{Error, Result};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of a group: as many as a bitmap of one block has bits.
pub const GROUP_BLOCKS: u64 = 8 * BLOCK as u64;
/// Inodes of a group: one for each 16 KiB, as `mke2fs` has it.
pub const GROUP_INODES: u32 = 8192;
/// Bytes of an inode.
pub const INODE: usize = 256;
/// Blocks of a group's inode table.
pub const TABLE_BLOCKS: u64 = (GROUP_INODES as usize * INODE / BLOCK) as u64;
/// Bytes of a group's descriptor.
pub const DESCRIPTOR: usize = 64;
/// Binary logarithm of the groups of a flexible group.
pub const LOG_FLEX: u8 = 4;
/// Groups of a flexible group.
const FLEX: u64 = 1 << LOG_FLEX;

/// Below this nothing of use fits, beside the journal.
const SIZE_MIN: u64 = 16 << 20;
/// Above this block numbers have more than 32 bits, which nobody has asked for.
const SIZE_MAX: u64 = 16 << 40;
/// A last group with fewer blocks than it needs for itself and these is left out.
const LAST_MIN: u64 = 64;

/// The places of a file system of some size.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Its blocks.
    pub blocks: u64,
    /// Its groups.
    pub groups: u64,
    /// Blocks of the descriptors of all groups.
    pub descriptor_blocks: u64,
}

impl Layout {
    /// A file system of at most `size` bytes.
    pub fn new(size: u64) -> Result<Self> {
        if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
            return Err(Error::Size(size));
        }
        let mut blocks = size / BLOCK as u64;
        let descriptors = |blocks: u64| {
            let groups = blocks.div_ceil(GROUP_BLOCKS);
            (groups, (groups * DESCRIPTOR as u64).div_ceil(BLOCK as u64))
        };
        let last = blocks % GROUP_BLOCKS;
        if blocks > GROUP_BLOCKS && last < 1 + descriptors(blocks).1 + 2 + TABLE_BLOCKS + LAST_MIN {
            blocks -= last;
        }
        let (groups, descriptor_blocks) = descriptors(blocks);
        Ok(Self { blocks, groups, descriptor_blocks })
    }

    /// All inodes.
    pub fn inodes(&self) -> u32 {
        (self.groups as u32).saturating_mul(GROUP_INODES)
    }

    /// The blocks of a group.
    pub fn group(&self, group: u64) -> Range<u64> {
        let start = group * GROUP_BLOCKS;
        start..(start + GROUP_BLOCKS).min(self.blocks)
    }

    /// Whether a group begins with a superblock and descriptors.
    pub fn has_super(group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || is_power(3) || is_power(5) || is_power(7)
    }

    /// Blocks of superblock and descriptors at a group's beginning.
    pub fn super_blocks(&self, group: u64) -> Range<u64> {
        let start = group * GROUP_BLOCKS;
        start..start + if Self::has_super(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    /// Whether the bitmaps and inode tables of others are in this group.
    pub fn is_leader(group: u64) -> bool {
        group.is_multiple_of(FLEX)
    }

    /// The groups whose bitmaps and tables are where those of `group` are.
    fn flex(&self, group: u64) -> Range<u64> {
        let leader = group - group % FLEX;
        leader..(leader + FLEX).min(self.groups)
    }

    /// The block of a group's block bitmap.
    pub fn block_bitmap(&self, group: u64) -> u64 {
        let flex = self.flex(group);
        self.super_blocks(flex.start).end + (group - flex.start)
    }

    /// The block of a group's inode bitmap.
    pub fn inode_bitmap(&self, group: u64) -> u64 {
        let flex = self.flex(group);
        self.block_bitmap(group) + (flex.end - flex.start)
    }

    /// The first block of a group's inode table.
    pub fn inode_table(&self, group: u64) -> u64 {
        let flex = self.flex(group);
        let count = flex.end - flex.start;
        self.super_blocks(flex.start).end + 2 * count + (group - flex.start) * TABLE_BLOCKS
    }

    /// Blocks at a group's beginning that hold no files.
    pub fn reserved(&self, group: u64) -> Range<u64> {
        let own = self.super_blocks(group);
        if !Self::is_leader(group) {
            return own;
        }
        let flex = self.flex(group);
        own.start..own.end + (flex.end - flex.start) * (2 + TABLE_BLOCKS)
    }
}
