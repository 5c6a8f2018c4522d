//! A folder's blocks: a list of names (Linux, Documentation/filesystems/ext4/directory.rst, "Linear (Classic) Directories").

use crate::checksum::crc32c;
use crate::layout::BLOCK;

/// Bytes of an entry before its name.
const HEAD: usize = 8;
/// Bytes at a block's end that look like an entry without a name and hold the block's checksum.
const TAIL: usize = 12;
/// The kind of entry that the checksum looks like.
const TAIL_KIND: u8 = 0xde;

/// One name.
#[derive(Debug)]
pub struct Name<'a> {
    pub name: &'a [u8],
    pub inode: u32,
    /// What it names, as `EXT4_FT_*` numbers it.
    pub kind: u8,
}

/// The blocks that hold `names`; `seed` is the folder's checksum seed.
pub fn blocks<'a>(names: impl Iterator<Item = Name<'a>>, seed: u32) -> Vec<[u8; BLOCK]> {
    let mut blocks = Vec::new();
    let mut block = Vec::with_capacity(BLOCK);
    // Where the last entry begins, which reaches to the end.
    let mut last = 0;
    for name in names {
        let len = (HEAD + name.name.len()).next_multiple_of(4);
        if block.len() + len > BLOCK - TAIL {
            blocks.push(close(&mut block, last, seed));
        }
        last = block.len();
        block.extend(name.inode.to_le_bytes());
        block.extend((len as u16).to_le_bytes());
        block.extend([name.name.len() as u8, name.kind]);
        block.extend(name.name);
        block.resize(last + len, 0);
    }
    blocks.push(close(&mut block, last, seed));
    blocks
}

fn close(block: &mut Vec<u8>, last: usize, seed: u32) -> [u8; BLOCK] {
    let mut all = [0; BLOCK];
    all.iter_mut().zip(block.drain(..)).for_each(|(to, from)| *to = from);
    let len = (BLOCK - TAIL - last) as u16;
    put(&mut all, last + 4, &len.to_le_bytes());
    put(&mut all, BLOCK - TAIL + 4, &[TAIL as u8, 0, 0, TAIL_KIND]);
    let sum = crc32c(seed, &all[..BLOCK - TAIL]);
    put(&mut all, BLOCK - 4, &sum.to_le_bytes());
    all
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}
