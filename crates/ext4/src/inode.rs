//! Inodes (Linux, Documentation/filesystems/ext4/inodes.rst).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{crc32c, halves};
use crate::extent::ROOT_BYTES;
use crate::layout::INODE;
use crate::tree::Special;
use crate::xattr::IN_INODE;

/// Kinds of files in `mode`.
pub const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
/// A folder.
pub const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
/// A plain file.
pub const S_IFREG: u16 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u16 = 0o120_000;
const S_IFSOCK: u16 = 0o140_000;

/// What an inode's 60 bytes hold is a tree of runs.
pub const EXTENTS: u32 = 0x8_0000;

/// Bytes of the fields beyond the first 128.
const EXTRA: u16 = 32;

/// An inode, as it is on the disk.
#[derive(Debug, Clone, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Inode {
    pub mode: U16,
    uid: U16,
    size_lo: U32,
    atime: U32,
    ctime: U32,
    mtime: U32,
    dtime: U32,
    gid: U16,
    pub links: U16,
    blocks_lo: U32,
    pub flags: U32,
    version: U32,
    /// Runs of blocks, a short link's target, or a device's number.
    pub block: [u8; ROOT_BYTES],
    generation: U32,
    file_acl_lo: U32,
    size_high: U32,
    obsolete_fragment: U32,
    blocks_high: U16,
    file_acl_high: U16,
    uid_high: U16,
    gid_high: U16,
    checksum_lo: U16,
    reserved: U16,
    extra: U16,
    checksum_hi: U16,
    ctime_extra: U32,
    mtime_extra: U32,
    atime_extra: U32,
    created: U32,
    created_extra: U32,
    version_high: U32,
    project: U32,
    /// Extended attributes.
    pub xattrs: [u8; IN_INODE],
}

const _: () = assert!(size_of::<Inode>() == INODE);

impl Inode {
    /// An inode that belongs to somebody and has times.
    pub fn new(mode: u16, (uid, gid): (u32, u32), modified: (i64, u32)) -> Self {
        let mut inode = Self::new_zeroed();
        inode.mode = mode.into();
        (inode.uid, inode.uid_high) = (U16::new(uid as u16), U16::new((uid >> 16) as u16));
        (inode.gid, inode.gid_high) = (U16::new(gid as u16), U16::new((gid >> 16) as u16));
        let (seconds, more) = time(modified);
        (inode.atime, inode.ctime, inode.mtime, inode.created) = (seconds, seconds, seconds, seconds);
        (inode.atime_extra, inode.ctime_extra, inode.mtime_extra, inode.created_extra) =
            (more, more, more, more);
        inode.extra = EXTRA.into();
        inode
    }

    /// Its length in bytes.
    pub fn set_size(&mut self, size: u64) {
        (self.size_lo, self.size_high) = (U32::new(size as u32), U32::new((size >> 32) as u32));
    }

    /// All blocks that it needs, which are counted in units of 512 bytes.
    pub fn set_blocks(&mut self, blocks: u64) {
        let units = blocks * 8;
        (self.blocks_lo, self.blocks_high) = (U32::new(units as u32), U16::new((units >> 32) as u16));
    }

    /// The block of extended attributes.
    pub fn set_xattr_block(&mut self, block: u64) {
        (self.file_acl_lo, self.file_acl_high) = (U32::new(block as u32), U16::new((block >> 32) as u16));
    }

    /// The length's two halves, for the superblock's copy of the journal's inode.
    pub fn size_halves(&self) -> (u32, u32) {
        (self.size_lo.get(), self.size_high.get())
    }

    /// The bytes, with the checksum; `seed` is the inode's.
    pub fn finish(mut self, seed: u32) -> [u8; INODE] {
        let (lo, hi) = halves(crc32c(seed, self.as_bytes()));
        (self.checksum_lo, self.checksum_hi) = (lo.into(), hi.into());
        let mut bytes = [0; INODE];
        bytes.copy_from_slice(self.as_bytes());
        bytes
    }
}

/// The checksum seed of everything that belongs to an inode, whose generation is always 0 here.
pub fn seed(file_system: u32, number: u32) -> u32 {
    crc32c(crc32c(file_system, &number.to_le_bytes()), &[0; 4])
}

/// Seconds, and the two bits that make them reach to 2446 beside the nanoseconds.
fn time((seconds, nanoseconds): (i64, u32)) -> (U32, U32) {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = FIRST + (4 << 32) - 1;
    let seconds = seconds.clamp(FIRST, LAST);
    let epoch = (seconds - FIRST) >> 32;
    (U32::new(seconds as u32), U32::new((nanoseconds.min(999_999_999) << 2) | epoch as u32))
}

/// Kind of a special file, in `mode` and as a folder's entry tells it, and what the inode's 60 bytes begin with.
pub fn special(special: Special) -> (u16, u8, [u32; 2]) {
    match special {
        Special::Character { major, minor } => (S_IFCHR, 3, device(major, minor)),
        Special::Block { major, minor } => (S_IFBLK, 4, device(major, minor)),
        Special::Fifo => (S_IFIFO, 5, [0; 2]),
        Special::Socket => (S_IFSOCK, 6, [0; 2]),
    }
}

/// Small numbers in the first word, others in the second.
fn device(major: u32, minor: u32) -> [u32; 2] {
    match major < 256 && minor < 256 {
        true => [major << 8 | minor, 0],
        false => [0, (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12],
    }
}
