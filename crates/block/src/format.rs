//! What a format is: it maps a disk's offsets to places in storages, and prepares and commits the mappings of writes.
//!
//! A format does no data I/O. For a write, [`FormatWrite::prepare`] finds or allocates a place, `Disk` writes the data
//! (and what the allocation covers beyond it), and [`FormatWrite::commit`] makes the place reachable: in that order,
//! so that a loss of power leaves at most space that nothing uses.
//!
//! `Disk` keeps the calls apart: between `prepare` and `commit` no other call that changes mappings touches the same
//! units ([`Geometry::unit`]), and no request is in flight to a unit while `zero`, `discard` or an allocating write
//! changes it. Calls for different units come from many threads at once.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::{CheckReport, Error, ImageInfo, Options, Preallocation, Repair, Result, Storage, Task};

/// Which of the format's storages: an index into [`Format::storages`]. 0 is the image file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StorageId(pub usize);

/// A place of data: a storage, and an offset in it in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which storage.
    pub storage: StorageId,
    /// Offset of the first byte.
    pub offset: u64,
    /// Where the data is encrypted: the number of the cipher's sector at `offset`. Both ends of such an extent lie on
    /// the cipher's sectors.
    pub sector: Option<u64>,
}

impl Place {
    /// A place of plain data.
    pub fn plain(storage: StorageId, offset: u64) -> Self {
        Self { storage, offset, sector: None }
    }
}

/// How data is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Raw deflate, RFC 1951 (qcow2).
    Deflate,
    /// Deflate with zlib's header and checksum, RFC 1950 (vmdk).
    Zlib,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// What is at an offset of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Data at a place.
    Data(Place),
    /// Zeroes. The place, where one is reserved all the same.
    Zero(Option<Place>),
    /// Compressed data.
    Compressed {
        /// Which storage.
        storage: StorageId,
        /// Where the compressed bytes begin.
        offset: u64,
        /// At most so many compressed bytes; what follows their end is ignored.
        compressed_len: u64,
        /// How they are compressed.
        codec: Codec,
        /// The offset of the disk at which the uncompressed unit begins.
        unit_start: u64,
        /// The length of the uncompressed unit.
        unit_len: u64,
    },
    /// Nothing here: the backing node's data, and zeroes where there is none or it has ended.
    Backing,
}

/// A run of one mapping. A run of [`Mapping::Compressed`] does not go beyond its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// What is there, at the offset that was asked.
    pub mapping: Mapping,
    /// For how many bytes, at least 1 and at most as many as were asked.
    pub len: u64,
}

/// Compressed writes that a format takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// How.
    pub codec: Codec,
    /// The unit that is compressed as one.
    pub unit: u64,
}

/// Sizes that `Disk` works by. All but the disk's size stay for the life of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The disk's size in bytes.
    pub size: u64,
    /// The unit of mapping: calls that overlap in one of these are kept apart. A power of two, or any size for formats
    /// whose `prepare` never allocates.
    pub unit: u64,
    /// The unit in which `zero` and `discard` work without data I/O (subclusters); divides `unit`.
    pub zero_unit: u64,
    /// Compressed writes, where the format takes them.
    pub compression: Option<Compression>,
}

/// What it means that the file has a hole where the disk has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// There are few, if any: nobody asks the file.
    Rare,
    /// Data that reads as zeroes.
    Zeroes,
    /// Nothing is there: the file is the disk.
    Nothing,
}

/// The backing file that an image names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackingRef {
    /// Its name as the image has it: relative ones are relative to the image.
    pub name: String,
    /// Its format, where the image says so. An image that does not is opened as raw only where the user allows it.
    pub format: Option<String>,
}

/// Encrypts sectors of data. Sector numbers come from [`Place::sector`].
pub trait SectorCipher: Send + Sync + fmt::Debug {
    /// Bytes of a sector.
    fn sector_size(&self) -> u64;
    /// Encrypts whole sectors in place, the first of which has number `sector`.
    fn encrypt(&self, sector: u64, data: &mut [u8]);
    /// Decrypts whole sectors in place, the first of which has number `sector`.
    fn decrypt(&self, sector: u64, data: &mut [u8]);
}

/// Reads an image's structure. See the module's text for the rules.
pub trait Format: Send + Sync + fmt::Debug {
    /// Sizes.
    fn geometry(&self) -> Geometry;

    /// The storages that mappings refer to. They stay the same for the life of the format.
    fn storages(&self) -> &[Arc<dyn Storage>];

    /// What is at `offset`, for up to `len` bytes (`len` ≥ 1, the range lies in the disk).
    ///
    /// # Errors
    /// Metadata that cannot be read or is wrong.
    fn map(&self, offset: u64, len: u64) -> Result<Extent>;

    /// A place that is kept for what `map` says is behind this node, for as far as it is one run; and that run's length.
    ///
    /// # Errors
    /// As `map`.
    fn reserved(&self, _offset: u64, len: u64) -> Result<(Option<Place>, u64)> {
        Ok((None, len))
    }

    /// What holes of the file are where `map` finds data at `offset`.
    fn holes(&self, _offset: u64) -> Holes {
        Holes::Rare
    }

    /// The cipher of data with [`Place::sector`].
    fn cipher(&self) -> Option<&dyn SectorCipher> {
        None
    }

    /// The backing file that the image names.
    fn backing(&self) -> Option<BackingRef> {
        None
    }

    /// The identity by which overlays know what the image held when they were made, where the format has one.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Identities that the backing image may have; none where the format does not say.
    fn parent_identities(&self) -> Vec<String> {
        Vec::new()
    }

    /// How to change it; `None` where it was opened read-only or the format cannot be written.
    fn write(&self) -> Option<&dyn FormatWrite>;

    /// Makes everything committed before durable: metadata in its order, and the storages flushed.
    ///
    /// # Errors
    /// The storage's.
    fn flush(&self) -> Result<()>;

    /// Flushes and leaves the image as one that was closed in order. Nothing is called afterwards but `info`.
    ///
    /// # Errors
    /// The storage's.
    fn close(&self) -> Result<()>;

    /// What the image says of itself.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    fn info(&self) -> Result<ImageInfo>;

    /// Looks at all of the metadata, and mends what `repair` allows (which needs `write`).
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] where the format has nothing to check; a storage that fails.
    fn check(&self, _repair: Repair, _task: &Task<'_>) -> Result<CheckReport> {
        Err(Error::Unsupported("This image format does not support checks".to_owned()))
    }

    /// Internal snapshots, where the format has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Persistent dirty bitmaps, where the format has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }
}

/// How [`FormatWrite::prepare`] may get a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepare {
    /// Only where the data can be written in place and nothing needs to be committed. The caller only shares the unit.
    InPlace,
    /// By allocation where necessary. The caller has the units for itself until it commits.
    Allocate,
    /// A place for so many bytes of one compressed unit. The caller has the unit for itself until it commits.
    Compressed {
        /// Length of the compressed data.
        len: u64,
    },
}

/// What a format wants back with [`FormatWrite::commit`].
pub type Token = Box<dyn Any + Send>;

/// A place for a write.
#[derive(Debug)]
pub struct Prepared {
    /// How many bytes from the offset on it is for, at least 1.
    pub len: u64,
    /// Where the byte at the offset goes.
    pub place: Place,
    /// So many bytes of the disk before the offset have a new place too, just before `place`: `Disk` writes there what
    /// the disk has now.
    pub before: u64,
    /// The same behind the last byte.
    pub after: u64,
    /// What to commit; `None` for data in place.
    pub token: Option<Token>,
}

/// Changes an image's structure. See the module's text for the rules.
pub trait FormatWrite: Send + Sync {
    /// A place for up to `len` bytes at `offset`. `None` only for [`Prepare::InPlace`] (it needs allocation) and
    /// [`Prepare::Compressed`] (the format cannot hold it compressed; write it plain).
    ///
    /// # Errors
    /// No space, or metadata that cannot be read or is wrong.
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>>;

    /// The data is written: makes it reachable. Durable after the next flush.
    ///
    /// # Errors
    /// The storage's. The old mapping stays then.
    fn commit(&self, token: Token) -> Result<()>;

    /// The data could not be written: frees what was allocated. Where only a check could, it stays unused: what was written
    /// to it must not become another unit's.
    fn abort(&self, token: Token) {
        drop(token);
    }

    /// Makes units of [`Geometry::zero_unit`] from `offset` on read as zeroes without data I/O, and frees their places
    /// with `unmap`. How many bytes it did; 0 where the format has no such thing (zeroes are then written). Both ends
    /// are multiples of the unit, or the disk's end.
    ///
    /// # Errors
    /// As `prepare`.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<u64>;

    /// The guest does not need these units any more: frees their places where the format can; they read as zeroes or
    /// as before afterwards, never as something else. Both ends are multiples of [`Geometry::zero_unit`], or the disk's end.
    ///
    /// # Errors
    /// As `prepare`.
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Changes the disk's size. `Disk` has drained and has asked for permission to lose data.
    ///
    /// # Errors
    /// Where the format cannot.
    fn resize(&self, _size: u64, _preallocation: Preallocation, _task: &Task<'_>) -> Result<()> {
        Err(Error::Unsupported("Image format driver does not support resize".to_owned()))
    }

    /// Drops all that the image itself has, so that its backing file shows everywhere: an overlay that was committed.
    /// Snapshots and bitmaps stay as they are. `Disk` has drained.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] where the format cannot.
    fn make_empty(&self) -> Result<()> {
        Err(Error::Unsupported("this image format cannot be emptied".to_owned()))
    }

    /// Takes the backing image as it is now, with this identity, for the one that the image was made over: it was
    /// changed by us, so that the image shows what it did.
    ///
    /// # Errors
    /// The storage's.
    fn follow_parent(&self, _identity: &str) -> Result<()> {
        Ok(())
    }

    /// Changes the backing file that the image names; no data changes.
    ///
    /// # Errors
    /// Where the format has none, or there is no room for the name.
    fn set_backing(&self, backing: Option<&BackingRef>) -> Result<()>;

    /// Changes options of the image; those named only. `Disk` has drained. Secrets that
    /// options name are those of the environment in which the image was opened.
    ///
    /// # Errors
    /// [`crate::Error::InvalidOption`] for what cannot be changed.
    fn amend(&self, options: &Options, task: &Task<'_>) -> Result<()>;
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotInfo {
    /// Its identity in the image: a number as text.
    pub id: String,
    /// The user's name for it.
    pub name: String,
    /// Bytes of VM state kept with it; 0 for a disk-only snapshot.
    pub vm_state_size: u64,
    /// When it was made: seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the VM had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// How many instructions it had run, where they were counted.
    pub icount: Option<u64>,
    /// The disk's size then.
    pub disk_size: u64,
}

/// Which snapshot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotTarget<'a> {
    /// That of this id.
    Id(&'a str),
    /// The first of this name.
    Name(&'a str),
    /// As `qemu-img`: the one of this name, else of this id.
    Either(&'a str),
}

/// Internal snapshots. `Disk` has drained before every change.
pub trait Snapshots: Send + Sync {
    /// All, in the image's order.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    fn list(&self) -> Result<Vec<SnapshotInfo>>;
    /// Keeps the disk as it is now. `id` and `disk_size` of `info` are ignored; `vm_state_size` bytes of the VM state
    /// area (see `vm_state_offset`) are kept with it. Returns the new id.
    ///
    /// # Errors
    /// No space.
    fn create(&self, info: &SnapshotInfo) -> Result<String>;
    /// Makes the disk what it was.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    fn apply(&self, target: SnapshotTarget<'_>) -> Result<()>;
    /// Forgets a snapshot and frees what only it used.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    fn delete(&self, target: SnapshotTarget<'_>) -> Result<()>;
    /// A read-only view of a snapshot (`convert -l`), on the same storages.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    fn view(&self, target: SnapshotTarget<'_>) -> Result<Box<dyn Format>>;
    /// The offset behind the disk's end at which the VM state lies; it is read and written by `Disk::read_vm_state` and
    /// `write_vm_state`.
    fn vm_state_offset(&self) -> u64;
}

/// A persistent dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the disk for one bit.
    pub granularity: u64,
    /// It was not stored when the image was last closed: its content is lost.
    pub in_use: bool,
    /// It records writes.
    pub auto: bool,
    /// Set bits, in bytes of the disk, where the bitmap has been read.
    pub dirty_bytes: Option<u64>,
}

/// Persistent dirty bitmaps. `Disk` has drained before every change.
pub trait Bitmaps: Send + Sync {
    /// All.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    fn list(&self) -> Result<Vec<BitmapInfo>>;
    /// Adds an empty one, recording. `granularity` is a power of two of 512 bytes to 2 GiB.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], or a wrong granularity.
    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()>;
    /// Removes one.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    fn remove(&self, name: &str) -> Result<()>;
    /// Makes all of it clean.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], or a bitmap that is `in_use`.
    fn clear(&self, name: &str) -> Result<()>;
    /// Whether it records.
    ///
    /// # Errors
    /// As `clear`.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()>;
    /// Marks a range as dirty.
    ///
    /// # Errors
    /// As `clear`.
    fn mark(&self, name: &str, offset: u64, len: u64) -> Result<()>;
    /// The dirty run at or behind `offset`: (start, length), in bytes of the disk.
    ///
    /// # Errors
    /// As `clear`.
    fn next_dirty(&self, name: &str, offset: u64) -> Result<Option<(u64, u64)>>;
}
