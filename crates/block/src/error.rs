//! What can go wrong with an image, said so that the reader knows what to do next.

use std::io;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused an operation on a file.
    #[error("cannot {doing} '{name}': {source}")]
    Io {
        /// What was tried: "open", "read 4096 bytes at 65536 of".
        doing: String,
        /// The file.
        name: String,
        /// The host's reason.
        source: io::Error,
    },
    /// Another process uses the image in a way that excludes this one.
    #[error(
        "'{name}' is in use: another process holds its {permission} lock{holder}; stop that process, or open \
         read-only without locks (-U, --force-share)"
    )]
    Locked {
        /// The file.
        name: String,
        /// Which right is contended, in QEMU's words: "write", "consistent read".
        permission: String,
        /// ` (process 123, qemu-system-x86)`, or empty where it cannot be seen.
        holder: String,
    },
    /// This process itself uses the image in a way that excludes a second use: it was given twice.
    #[error(
        "'{name}' is open here already, with a {permission} lock: the same image was given twice; two overlays of it can be \
         written at once"
    )]
    LockedHere {
        /// The file.
        name: String,
        /// Which right is contended, as in [`Error::Locked`].
        permission: String,
    },
    /// The file is not an image of the format that it was opened as.
    #[error("'{name}' is not a {format} image: {reason}")]
    NotThisFormat {
        /// The file.
        name: String,
        /// The format that it was opened as.
        format: String,
        /// Why not.
        reason: String,
    },
    /// The image contradicts itself or its format's specification.
    #[error("image is corrupt: {0}; `umbra image check` says what can be mended")]
    Corrupt(String),
    /// A feature that this version cannot serve.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An option's name or value is wrong.
    #[error("{0}")]
    InvalidOption(String),
    /// A write to what was opened read-only.
    #[error("cannot {0}: the image was opened read-only")]
    ReadOnly(String),
    /// A request beyond the end of the disk.
    #[error("{what} at {offset}, {len} bytes, is beyond the end of the disk ({size} bytes)")]
    OutOfRange {
        /// What was asked.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// A number that an image or a user chose is above a limit.
    #[error("{what} is {value}, and the limit is {limit}")]
    TooLarge {
        /// Which number.
        what: String,
        /// Its value.
        value: u64,
        /// The greatest allowed.
        limit: u64,
    },
    /// A backing chain that comes back to itself.
    #[error(
        "backing chain of '{0}' is a loop: the same file is already in it; `rebase -u` sets another backing file"
    )]
    BackingLoop(String),
    /// A backing file was changed since the image was made over it: together they would show what was never written.
    #[error(
        "'{parent}' is not what '{image}' was made over, or was changed since (its identity is {found}, not {wanted}); restore the \
         parent, or open each image alone"
    )]
    OtherParent {
        /// The image.
        image: String,
        /// Its backing file.
        parent: String,
        /// The backing file's identity.
        found: String,
        /// What the image says that it is.
        wanted: String,
    },
    /// An image names a file by itself, and policy does not allow that.
    #[error(
        "'{image}' names '{named}' as its {role}, and files that an image names are not opened here; name it explicitly"
    )]
    ReferenceRefused {
        /// The image.
        image: String,
        /// The file that it names.
        named: String,
        /// "backing file", "data file", "extent".
        role: &'static str,
    },
    /// Something that is needed to open the image failed.
    #[error("cannot open {role} '{name}': {source}")]
    Reference {
        /// "backing file", "data file", "extent".
        role: &'static str,
        /// The file.
        name: String,
        /// Why.
        source: Box<Error>,
    },
    /// A copy failed.
    #[error("error while {doing} at byte {at}: {source}")]
    Copy {
        /// "reading", "writing".
        doing: &'static str,
        /// Where on the disk.
        at: u64,
        /// Why.
        source: Box<Error>,
    },
    /// An encrypted image and no secret.
    #[error("'{0}' is encrypted: give its secret (encrypt.key-secret=ID with --object secret,id=ID,...)")]
    NeedsSecret(String),
    /// No key slot opens with the secret.
    #[error("invalid password, cannot unlock any keyslot")]
    WrongSecret,
    /// There is no snapshot, bitmap or format of that name.
    #[error("there is no {kind} '{name}'")]
    NotFound {
        /// "snapshot", "bitmap", "format".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A snapshot or bitmap of that name is there already.
    #[error("{kind} '{name}' exists already")]
    Exists {
        /// "snapshot", "bitmap".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The operation does not fit the image's state.
    #[error("{0}")]
    Refused(String),
    /// The user has stopped it.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// An I/O error with what was tried.
    pub fn io(doing: impl Into<String>, name: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), name: name.into(), source }
    }

    /// A file that is no image of the format that it was opened as.
    pub fn not_this_format(
        name: impl Into<String>,
        format: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::NotThisFormat { name: name.into(), format: format.into(), reason: reason.into() }
    }

    /// A corrupt image.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    /// A wrong option.
    pub fn option(what: impl Into<String>) -> Self {
        Self::InvalidOption(what.into())
    }
}
