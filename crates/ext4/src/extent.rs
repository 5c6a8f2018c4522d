//! Where a file's blocks are (Linux, Documentation/filesystems/ext4/ifork.rst): runs of blocks, four of them in the inode,
//! more in a tree of blocks below it.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::checksum::crc32c;
use crate::error::Result;
use crate::layout::BLOCK;

const MAGIC: u16 = 0xf30a;
/// Bytes of a header and of an entry.
const ENTRY: usize = 12;
/// Entries that an inode has room for.
const IN_INODE: usize = 4;
/// Entries of a block, which ends with a checksum.
const IN_BLOCK: usize = (BLOCK - ENTRY - 4) / ENTRY;
/// Blocks of one run.
const RUN_MAX: u64 = 32_768;
/// Where an inode's part of the tree is kept.
pub const ROOT_BYTES: usize = 60;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first block in the file.
    pub logical: u32,
    /// Its first block on the disk.
    pub physical: u64,
    /// Its blocks.
    pub len: u16,
}

impl Extent {
    /// Its blocks on the disk.
    pub fn blocks(&self) -> Range<u64> {
        self.physical..self.physical + u64::from(self.len)
    }
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: U16,
    entries: U16,
    max: U16,
    depth: U16,
    generation: U32,
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Leaf {
    block: U32,
    len: U16,
    start_hi: U16,
    start_lo: U32,
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Index {
    block: U32,
    leaf_lo: U32,
    leaf_hi: U16,
    unused: U16,
}

/// Adds a run to a file's, which end before it.
pub fn push(extents: &mut Vec<Extent>, mut logical: u32, run: Range<u64>) {
    let (mut physical, mut left) = (run.start, run.end - run.start);
    if let Some(last) = extents.last_mut() {
        let follows = last.blocks().end == physical && last.logical + u32::from(last.len) == logical;
        let more = left.min(RUN_MAX - u64::from(last.len));
        if follows {
            last.len += more as u16;
            (logical, physical, left) = (logical + more as u32, physical + more, left - more);
        }
    }
    while left > 0 {
        let len = left.min(RUN_MAX);
        extents.push(Extent { logical, physical, len: len as u16 });
        (logical, physical, left) = (logical + len as u32, physical + len, left - len);
    }
}

fn header(entries: usize, max: usize, depth: u16) -> Header {
    let number = |n: usize| U16::new(n as u16);
    Header {
        magic: U16::new(MAGIC),
        entries: number(entries),
        max: number(max),
        depth: U16::new(depth),
        generation: U32::new(0),
    }
}

/// An entry and the file's block that it begins with.
type Entry = (u32, [u8; ENTRY]);

fn bytes(value: &(impl IntoBytes + Immutable)) -> [u8; ENTRY] {
    let mut all = [0; ENTRY];
    all.iter_mut().zip(value.as_bytes()).for_each(|(to, from)| *to = *from);
    all
}

fn leaf(extent: &Extent) -> Entry {
    let leaf = Leaf {
        block: U32::new(extent.logical),
        len: U16::new(extent.len),
        start_hi: U16::new((extent.physical >> 32) as u16),
        start_lo: U32::new(extent.physical as u32),
    };
    (extent.logical, bytes(&leaf))
}

fn index(block: u32, at: u64) -> Entry {
    let index = Index {
        block: U32::new(block),
        leaf_lo: U32::new(at as u32),
        leaf_hi: U16::new((at >> 32) as u16),
        unused: U16::new(0),
    };
    (block, bytes(&index))
}

/// The tree of a file's runs: what the inode holds of it. `seed` is the inode's checksum seed; `put` finds a place for a
/// block and writes it.
pub fn tree(
    extents: &[Extent],
    seed: u32,
    mut put: impl FnMut(&[u8; BLOCK]) -> Result<u64>,
) -> Result<[u8; ROOT_BYTES]> {
    let mut entries: Vec<Entry> = extents.iter().map(leaf).collect();
    let mut depth = 0;
    while entries.len() > IN_INODE {
        let mut above = Vec::with_capacity(entries.len() / IN_BLOCK + 1);
        for part in entries.chunks(IN_BLOCK) {
            let block = block(part, depth, seed);
            above.push(index(part.first().map_or(0, |entry| entry.0), put(&block)?));
        }
        (entries, depth) = (above, depth + 1);
    }
    let mut root = [0; ROOT_BYTES];
    fill(&mut root, &header(entries.len(), IN_INODE, depth), &entries);
    Ok(root)
}

fn block(entries: &[Entry], depth: u16, seed: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    fill(&mut block, &header(entries.len(), IN_BLOCK, depth), entries);
    let (covered, tail) = block.split_at_mut(ENTRY + IN_BLOCK * ENTRY);
    let sum = crc32c(seed, covered);
    tail.iter_mut().zip(sum.to_le_bytes()).for_each(|(to, from)| *to = from);
    block
}

fn fill(to: &mut [u8], header: &Header, entries: &[Entry]) {
    let all = header.as_bytes().iter().chain(entries.iter().flat_map(|entry| &entry.1));
    to.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
}
