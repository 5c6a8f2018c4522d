//! What can go wrong.

use std::io;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target cannot be written.
    #[error("cannot write the file system: {0}")]
    Write(#[source] io::Error),
    /// What a file holds cannot be read.
    #[error("cannot read what is in '{path}': {source}")]
    Content {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be read.
    #[error("cannot read the archive: {0}")]
    Archive(#[source] io::Error),
    /// The archive is none, or one of a kind that is not known.
    #[error("the archive is not in order: {0}")]
    Malformed(String),
    /// A size that no file system can have here.
    #[error("a file system has between 16 MiB and 16 TiB, not {0} bytes")]
    Size(u64),
    /// A name that no file can have.
    #[error("'{path}' cannot be the name of a file: {why}")]
    Name {
        /// The whole path.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// A link to nothing that it could be to.
    #[error("'{path}' is a hard link to '{target}', {why}")]
    Link {
        /// The link.
        path: String,
        /// What it names.
        target: String,
        /// Why.
        why: &'static str,
    },
    /// A file has more of something than ext4 can keep.
    #[error("'{path}' has {what}")]
    TooMuch {
        /// The file.
        path: String,
        /// What there is too much of.
        what: &'static str,
    },
    /// All blocks are used.
    #[error("the file system is full; make it larger")]
    Full,
    /// All inodes are used.
    #[error("there are more files than the file system has inodes ({0}); make it larger")]
    TooManyFiles(u32),
}

/// A path, for a message.
pub(crate) fn shown(path: &[u8]) -> String {
    const MAX: usize = 200;
    let text = String::from_utf8_lossy(path.get(..MAX).unwrap_or(path));
    text.escape_debug().collect()
}
