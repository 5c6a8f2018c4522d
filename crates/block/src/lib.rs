//! Disk images: bytes at offsets ([`Storage`]), what maps a disk's offsets to them ([`Format`]), and the one loop that
//! moves data ([`Disk`]). Raw, qcow2 and LUKS live here; further formats come through the [`Registry`].
//!
//! Constraints: an image file is hostile, so every value read from one is checked before it is used, and memory is
//! bounded by the file's size and stated constants. Buffers are volatile ([`IoBuf`], [`IoSrc`]): somebody else may
//! write them at any time. A format does no data I/O; it allocates, and makes reachable what `Disk` has written.
//! Nothing here knows of guest memory, engines or virtual devices.
#![deny(unsafe_code)]

mod check;
mod disk;
mod error;
mod format;
mod info;
mod io;
mod job;
mod luks;
mod node;
mod options;
mod qcow2;
mod raw;
mod registry;
mod task;

#[cfg(test)]
mod chain_test;
#[cfg(test)]
mod features_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod interchange_test;
#[cfg(test)]
mod luks_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod power_test;
#[cfg(test)]
mod test_help;

pub use check::{CheckReport, Finding, Repair};
pub use disk::{Aio, BlockStatus, Disk, Done, Drained, Node, Queue, Request};
pub use error::{Error, Result};
pub use format::{
    BackingRef, BitmapInfo, Bitmaps, Codec, Compression, Extent, Format, FormatWrite, Geometry, Holes,
    Mapping, Place, Prepare, Prepared, SectorCipher, SnapshotInfo, SnapshotTarget, Snapshots, StorageId,
    Token,
};
pub use info::{ImageInfo, InfoValue};
pub use io::{
    Access, FileHandle, FileStorage, FileStorageSpec, IoBuf, IoSrc, LockMode, MemoryStorage, Recorder,
    RecordingStorage, Run, Storage, StorageExt, StorageInfo, slice_bufs, slice_srcs,
};
pub use job::{Copy, CopySource, commit, copy_differences};
pub use luks::{LuksDriver, open_secret};
pub use node::{
    BackingSpec, Environment, FileSpec, HostFiles, NodeSpec, Opener, Referenced, Secrets, resolve,
};
pub use options::{
    CreateOptions, DetectZeroes, Discard, OptionKind, OptionSpec, Options, Preallocation, parse_size,
};
pub use qcow2::{Qcow2, Qcow2Driver};
pub use raw::{Raw, RawDriver};
pub use registry::{FormatDriver, OpenRequest, Registry};
pub use task::{Cancel, Task};
