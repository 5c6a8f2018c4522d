//! The journal's first block (Linux, Documentation/filesystems/ext4/journal.rst); the others are nothing yet.

use zerocopy::big_endian::U32;
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::layout::BLOCK;

const MAGIC: u32 = 0xc03b_3998;
/// A superblock that has fields for features.
const SUPERBLOCK_V2: u32 = 4;

#[derive(FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Superblock {
    magic: U32,
    block_type: U32,
    sequence: U32,
    block_size: U32,
    max_len: U32,
    first: U32,
    first_sequence: U32,
    start: U32,
    errno: U32,
    feature_compat: U32,
    feature_incompat: U32,
    feature_ro_compat: U32,
    uuid: [u8; 16],
    users: U32,
    rest: [u8; 956],
}

const _: () = assert!(size_of::<Superblock>() == 1024);

/// How many blocks the journal of a file system of so many has, as `mke2fs` would choose.
pub fn blocks(all: u64) -> u64 {
    match all {
        0..32_768 => 1024,
        32_768..262_144 => 4096,
        262_144..524_288 => 8192,
        524_288..4_194_304 => 16_384,
        _ => 32_768,
    }
}

/// The first block of an empty journal.
pub fn first_block(blocks: u64, uuid: [u8; 16]) -> [u8; BLOCK] {
    let mut superblock = Superblock::new_zeroed();
    superblock.magic = MAGIC.into();
    superblock.block_type = SUPERBLOCK_V2.into();
    superblock.block_size = U32::new(BLOCK as u32);
    superblock.max_len = U32::new(blocks as u32);
    (superblock.first, superblock.first_sequence) = (1.into(), 1.into());
    superblock.uuid = uuid;
    superblock.users = 1.into();
    let mut block = [0; BLOCK];
    block.iter_mut().zip(superblock.as_bytes()).for_each(|(to, from)| *to = *from);
    block
}
