//! Extended attributes (Linux, Documentation/filesystems/ext4/attributes.rst): behind the inode's fields where they fit,
//! else in one block.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::checksum::crc32c;
use crate::error::{Error, Result, shown};
use crate::layout::BLOCK;

const MAGIC: u32 = 0xea02_0000;
/// Bytes behind the fields of an inode.
pub const IN_INODE: usize = 96;
/// Bytes of a block's header.
const HEADER: usize = 32;
/// Bytes of an entry without its name, and of the zeroes that end the entries.
const ENTRY: usize = 16;
const END: usize = 4;

/// Namespaces that are kept by a number. Access control lists are not among them: they have another form on the disk
/// than in archives.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    name_len: u8,
    name_index: u8,
    value_offset: U16,
    value_inode: U32,
    value_size: U32,
    hash: U32,
}

/// Attributes as the disk knows them, in its order. Others than those of known namespaces are left out.
pub fn read(path: &[u8], given: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Xattr>> {
    let mut all: Vec<Xattr> = Vec::new();
    for (name, value) in given {
        let known = PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
        let Some((name, index)) = known.filter(|(name, _)| !name.is_empty()) else { continue };
        if name.len() > 255 || value.len() > BLOCK {
            return Err(too_much(path));
        }
        all.retain(|other| (other.index, other.name.as_slice()) != (index, name));
        all.push(Xattr { index, name: name.into(), value: value.clone() });
    }
    all.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    if !fits(&all, IN_INODE - END) && !fits(&all, BLOCK - HEADER) {
        return Err(too_much(path));
    }
    Ok(all)
}

fn too_much(path: &[u8]) -> Error {
    Error::TooMuch { path: shown(path), what: "more extended attributes than fit into 4 KiB" }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn fits(all: &[Xattr], room: usize) -> bool {
    let len = |xattr: &Xattr| ENTRY + padded(xattr.name.len()) + padded(xattr.value.len());
    all.iter().map(len).sum::<usize>() + END <= room
}

/// What goes behind the inode's fields; `None` if they need a block.
pub fn in_inode(all: &[Xattr]) -> Option<[u8; IN_INODE]> {
    let mut bytes = [0; IN_INODE];
    if all.is_empty() {
        return Some(bytes);
    }
    if !fits(all, IN_INODE - END) {
        return None;
    }
    let (magic, entries) = bytes.split_at_mut(END);
    magic.copy_from_slice(&MAGIC.to_le_bytes());
    // Offsets of values count from the first entry.
    fill(entries, 0, all);
    Some(bytes)
}

/// A block of them, for its place `block` and the file system's checksum seed.
pub fn block(all: &[Xattr], block: u64, seed: u32) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let hash = all.iter().fold(0u32, |hash, xattr| hash.rotate_left(16) ^ xattr.hash());
    // Magic, one reference, one block, the hash of all; the checksum follows.
    for (at, field) in [MAGIC, 1, 1, hash].into_iter().enumerate() {
        put(&mut bytes, at * 4, &field.to_le_bytes());
    }
    // Offsets of values count from the block's beginning.
    fill(&mut bytes, HEADER, all);
    let sum = crc32c(crc32c(seed, &block.to_le_bytes()), &bytes);
    put(&mut bytes, 16, &sum.to_le_bytes());
    bytes
}

/// Entries from `at` on, values from the end downward.
fn fill(bytes: &mut [u8], mut at: usize, all: &[Xattr]) {
    let mut value_at = bytes.len();
    for xattr in all {
        value_at -= padded(xattr.value.len());
        let entry = Entry {
            name_len: xattr.name.len() as u8,
            name_index: xattr.index,
            value_offset: U16::new(value_at as u16),
            value_inode: U32::new(0),
            value_size: U32::new(xattr.value.len() as u32),
            hash: U32::new(xattr.hash()),
        };
        put(bytes, at, entry.as_bytes());
        put(bytes, at + ENTRY, &xattr.name);
        put(bytes, value_at, &xattr.value);
        at += ENTRY + padded(xattr.name.len());
    }
}

fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    bytes.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
}

impl Xattr {
    /// The hash of name and value (`e_hash`).
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, part| {
            let mut word = [0; 4];
            put(&mut word, 0, part);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}
