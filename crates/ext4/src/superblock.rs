//! The superblock (Linux, Documentation/filesystems/ext4/super.rst).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{START, crc32c};
use crate::layout::{BLOCK, DESCRIPTOR, GROUP_BLOCKS, GROUP_INODES, INODE, LOG_FLEX, Layout};

/// Its bytes.
pub const BYTES: usize = 1024;
/// Where the first one is, in bytes.
pub const OFFSET: u64 = 1024;
/// The first inode that is nobody's by number: `lost+found`.
pub const FIRST_INODE: u32 = 11;
/// The journal's inode.
pub const JOURNAL_INODE: u32 = 8;

const MAGIC: u16 = 0xef53;
/// has_journal, ext_attr, dir_index.
const COMPAT: u32 = 0x4 | 0x8 | 0x20;
/// filetype, extents, 64bit, flex_bg.
const INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// user_xattr and acl.
const MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// Hashes of names are made of signed characters, as on x86.
const SIGNED_HASH: u32 = 1;
/// Half MD4, the usual one.
const HASH_VERSION: u8 = 1;
const CRC32C: u8 = 1;

/// A superblock, as it is on the disk. Fields that are zero in a new file system and of no interest here are not named one by one.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    inodes: U32,
    blocks_lo: U32,
    reserved_blocks_lo: U32,
    free_blocks_lo: U32,
    free_inodes: U32,
    first_data_block: U32,
    log_block_size: U32,
    log_cluster_size: U32,
    group_blocks: U32,
    group_clusters: U32,
    group_inodes: U32,
    mounted: U32,
    written: U32,
    mounts: U16,
    mounts_max: U16,
    magic: U16,
    state: U16,
    on_error: U16,
    minor_revision: U16,
    checked: U32,
    check_interval: U32,
    creator: U32,
    revision: U32,
    reserved_uid: U16,
    reserved_gid: U16,
    first_inode: U32,
    inode_size: U16,
    group: U16,
    compat: U32,
    incompat: U32,
    ro_compat: U32,
    uuid: [u8; 16],
    label: [u8; 16],
    last_mounted: [u8; 64],
    compression: U32,
    preallocated: [u8; 2],
    reserved_descriptors: U16,
    journal_uuid: [u8; 16],
    journal_inode: U32,
    journal_device: U32,
    last_orphan: U32,
    hash_seed: [u8; 16],
    hash_version: u8,
    journal_backup_type: u8,
    descriptor_size: U16,
    mount_options: U32,
    first_meta_group: U32,
    made: U32,
    journal_blocks: [u8; 68],
    blocks_hi: U32,
    reserved_blocks_hi: U32,
    free_blocks_hi: U32,
    min_extra: U16,
    want_extra: U16,
    flags: U32,
    raid_stride: U16,
    mmp_interval: U16,
    mmp_block: U64,
    raid_stripe: U32,
    log_flex: u8,
    checksum_type: u8,
    padding: U16,
    written_kib: U64,
    /// Snapshots, errors that were found, quotas, encryption: 0x180 to 0x3fc.
    rest: [u8; 0x3fc - 0x180],
    checksum: U32,
}

const _: () = assert!(size_of::<Superblock>() == BYTES);

/// What a file system is called.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub uuid: [u8; 16],
    pub label: [u8; 16],
    /// Seconds since 1970.
    pub made: i64,
}

/// What is free.
#[derive(Debug, Clone, Copy)]
pub struct Free {
    pub blocks: u64,
    pub inodes: u32,
}

impl Superblock {
    /// `journal` are the 60 bytes of the journal's inode and the halves of its size.
    pub fn new(layout: &Layout, identity: &Identity, free: Free, journal: ([u8; 60], (u32, u32))) -> Self {
        let mut it = Self::new_zeroed();
        let made = U32::new(identity.made.clamp(0, i64::from(u32::MAX)) as u32);
        it.inodes = layout.inodes().into();
        (it.blocks_lo, it.blocks_hi) = halves(layout.blocks);
        (it.free_blocks_lo, it.free_blocks_hi) = halves(free.blocks);
        it.free_inodes = free.inodes.into();
        (it.log_block_size, it.log_cluster_size) = (2.into(), 2.into());
        (it.group_blocks, it.group_clusters) = (U32::new(GROUP_BLOCKS as u32), U32::new(GROUP_BLOCKS as u32));
        it.group_inodes = GROUP_INODES.into();
        (it.written, it.checked, it.made) = (made, made, made);
        it.mounts_max = U16::MAX_VALUE;
        (it.magic, it.state, it.on_error) = (MAGIC.into(), 1.into(), 1.into());
        (it.revision, it.first_inode) = (1.into(), FIRST_INODE.into());
        it.inode_size = U16::new(INODE as u16);
        (it.compat, it.incompat, it.ro_compat) = (COMPAT.into(), INCOMPAT.into(), RO_COMPAT.into());
        (it.uuid, it.label, it.hash_seed) = (identity.uuid, identity.label, identity.uuid);
        (it.journal_inode, it.journal_backup_type) = (JOURNAL_INODE.into(), 1);
        let (blocks, (size_lo, size_hi)) = journal;
        let copy = blocks.into_iter().chain(size_hi.to_le_bytes()).chain(size_lo.to_le_bytes());
        it.journal_blocks.iter_mut().zip(copy).for_each(|(to, from)| *to = from);
        (it.hash_version, it.flags) = (HASH_VERSION, SIGNED_HASH.into());
        it.descriptor_size = U16::new(DESCRIPTOR as u16);
        it.mount_options = MOUNT_OPTIONS.into();
        (it.min_extra, it.want_extra) = (32.into(), 32.into());
        (it.log_flex, it.checksum_type) = (LOG_FLEX, CRC32C);
        it
    }

    /// The first block of a group that has a copy: the superblock is 1024 bytes into the first, at the beginning of others.
    pub fn block(&self, group: u64) -> [u8; BLOCK] {
        let mut it = self.clone();
        it.group = U16::new(group as u16);
        it.checksum = crc32c(START, &it.as_bytes()[..BYTES - 4]).into();
        let mut block = [0; BLOCK];
        let at = if group == 0 { OFFSET as usize } else { 0 };
        block.iter_mut().skip(at).zip(it.as_bytes()).for_each(|(to, from)| *to = *from);
        block
    }
}

fn halves(number: u64) -> (U32, U32) {
    (U32::new(number as u32), U32::new((number >> 32) as u32))
}
