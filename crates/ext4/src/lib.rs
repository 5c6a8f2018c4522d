//! A new ext4 file system out of a tree of files, written in one pass.
//!
//! Files come by path, as entries of an archive do; their contents go out as they come, and what describes them follows
//! in [`Builder::finish`]. Nothing is read back, and what is zero is not written, so that the target stays sparse. The file
//! system is what `mke2fs` of today makes, with checksums and a journal, except that folders have no index (Linux makes
//! one where a folder grows) and that nothing is set aside for root.
//!
//! Constraints: a tree may be hostile. Paths never leave it, links in paths are followed inside of it, and memory is
//! bounded by the number of inodes, which follows from the size.
//!
//! Authority: Linux, Documentation/filesystems/ext4.
#![forbid(unsafe_code)]

mod builder;
mod checksum;
mod directory;
mod error;
mod extent;
mod group;
mod inode;
mod journal;
mod layout;
mod output;
mod space;
mod superblock;
pub mod tar;
mod tree;
mod xattr;

#[cfg(test)]
mod builder_test;
#[cfg(test)]
mod tar_test;
#[cfg(test)]
mod tree_test;

pub use builder::{Builder, Spec, Summary};
pub use error::{Error, Result};
pub use tree::{Metadata, Special};
