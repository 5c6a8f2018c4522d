//! Extents of grains: the headers, and what entries of grain tables say.
//!
//! Authority: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents", "ESXi Host Sparse Extents" and "Stream-Optimized
//! Compressed Sparse Extents". VMware has not published seSparse; its layout here is what its images show, and is only read.

use std::sync::{Arc, Mutex, PoisonError};

use umbra_block::{Error, Result, Storage, StorageExt};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::grains::{Directory, Grains, Guard};
use crate::common::{Reserved, Unit};

pub(super) const SECTOR: u64 = 512;
pub(super) const MAGIC: &[u8; 4] = b"KDMV";
const COWD: &[u8; 4] = b"COWD";
const SE_MAGIC: u64 = 0xcafe_babe;
/// Entries of a grain table of a new image, and the most that are read.
pub(super) const ENTRIES: u64 = 512;
/// Entries of a grain table of an early ESX server.
const COWD_ENTRIES: u64 = 4096;
/// Sectors of a grain: 64 KiB in new images.
pub(super) const GRAIN: u64 = 128;
/// Sectors of the largest grain that is read: one is decompressed as a whole.
const GRAIN_MAX: u64 = (2 << 20) / SECTOR;
pub(super) const FLAG_NEWLINE: u32 = 1;
pub(super) const FLAG_SECOND: u32 = 2;
pub(super) const FLAG_ZEROED: u32 = 4;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(super) const FLAG_MARKERS: u32 = 1 << 17;
/// The directory's offset is told by a second header at the file's end.
const AT_END: u64 = u64::MAX;
/// An entry that says "zeroes", where the header allows it.
const ZEROED: u64 = 1;
/// Bytes of the marker before a compressed grain.
pub(super) const MARKER: u64 = 12;

/// The header of hosted sparse extents.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 4],
    pub version: U32,
    pub flags: U32,
    pub capacity: U64,
    pub grain: U64,
    pub descriptor_offset: U64,
    pub descriptor_size: U64,
    pub entries: U32,
    pub second_offset: U64,
    pub directory_offset: U64,
    pub overhead: U64,
    pub unclean: u8,
    pub newlines: [u8; 4],
    pub compression: U16,
    pub padding: [u8; 433],
}

#[derive(Debug, Clone, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CowdHeader {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    sectors: U32,
    grain: U32,
    directory_offset: U32,
    tables: U32,
}

#[derive(Debug, Clone, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SeHeader {
    magic: U64,
    version: U64,
    capacity: U64,
    grain: U64,
    table: U64,
    flags: U64,
    reserved: [U64; 4],
    volatile: [U64; 2],
    journal_header: [U64; 2],
    journal: [U64; 2],
    directory: [U64; 2],
    tables: [U64; 2],
    free: [U64; 2],
    back: [U64; 2],
    grains: [U64; 2],
}

const _: () = assert!(size_of::<Header>() == 512);

/// An extent of grains.
#[derive(Debug)]
pub(super) struct Sparse {
    pub storage: Arc<dyn Storage>,
    pub grains: Grains,
    /// Bytes of a grain.
    pub grain: u64,
    /// Bytes of the extent.
    pub len: u64,
    pub compressed: bool,
    pub zeroed: bool,
    pub writable: bool,
    /// Where the next grain goes.
    pub end: Mutex<u64>,
    /// Where grains of seSparse begin; `None` for other kinds.
    se_base: Option<u64>,
    /// Where its descriptor is within its file, in bytes: offset and length.
    pub descriptor: Option<(u64, u64)>,
}

fn corrupt<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::corrupt(what))
}

fn read_header<T: FromBytes>(storage: &dyn Storage, offset: u64) -> Result<T> {
    let bytes = storage.read_vec(offset, size_of::<T>())?;
    T::read_from_bytes(&bytes).map_err(|_| Error::corrupt("a header of another length"))
}

impl Header {
    /// The header of a new extent.
    pub(super) fn new(version: u32, flags: u32, capacity: u64) -> Header {
        Header {
            magic: *MAGIC,
            version: version.into(),
            flags: flags.into(),
            capacity: capacity.into(),
            grain: GRAIN.into(),
            entries: (ENTRIES as u32).into(),
            newlines: *b"\n \r\n",
            compression: u16::from(flags & FLAG_COMPRESSED != 0).into(),
            ..Header::new_zeroed()
        }
    }
}

impl Sparse {
    /// Opens an extent by its file's header.
    pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Sparse> {
        let magic = storage.read_vec(0, 8)?;
        let mut word = [0; 8];
        word.copy_from_slice(&magic);
        if magic.starts_with(MAGIC) {
            Self::open_hosted(storage)
        } else if magic.starts_with(COWD) {
            Self::open_cowd(storage)
        } else if u64::from_le_bytes(word) == SE_MAGIC {
            Self::open_se(storage)
        } else {
            corrupt("an extent of grains without its header")
        }
    }

    fn open_hosted(storage: Arc<dyn Storage>) -> Result<Sparse> {
        let mut header: Header = read_header(&*storage, 0)?;
        let first = header.clone();
        if header.directory_offset.get() == AT_END {
            let len = storage.len()?;
            let at = len.checked_sub(2 * SECTOR).ok_or_else(|| Error::corrupt("a footer beyond the file"))?;
            header = read_header(&*storage, at)?;
            if &header.magic != MAGIC || header.directory_offset.get() == AT_END {
                return corrupt("it has no footer; was it cut?");
            }
        }
        let flags = header.flags.get();
        if !(1..=3).contains(&header.version.get()) {
            return Err(Error::Unsupported(format!("VMDK version {}", header.version.get())));
        }
        let compressed = flags & FLAG_COMPRESSED != 0;
        if compressed && header.compression.get() != 1 {
            return Err(Error::Unsupported(format!("VMDK compression {}", header.compression.get())));
        }
        if compressed && flags & FLAG_MARKERS == 0 {
            return Err(Error::Unsupported("compressed VMDK grains without markers".into()));
        }
        let (capacity, grain, entries) =
            (header.capacity.get(), header.grain.get(), u64::from(header.entries.get()));
        check_shape(capacity, grain, entries)?;
        let tables = capacity.div_ceil(grain * entries);
        let second = (flags & FLAG_SECOND != 0).then(|| bytes(header.second_offset.get())).transpose()?;
        let directory = bytes(header.directory_offset.get())?;
        let descriptor = match first.descriptor_offset.get() {
            0 => None,
            offset => Some((bytes(offset)?, bytes(first.descriptor_size.get())?)),
        };
        let grains = Grains::new(storage.clone(), (directory, second), tables, Directory::Sectors, entries);
        Self::finish(
            storage,
            grains,
            tables * 4 + directory,
            Shape {
                grain: grain * SECTOR,
                len: capacity * SECTOR,
                compressed,
                zeroed: flags & FLAG_ZEROED != 0,
                // Behind a footer there is no place for another grain.
                writable: first.directory_offset.get() != AT_END,
                se_base: None,
                descriptor,
            },
        )
    }

    fn open_cowd(storage: Arc<dyn Storage>) -> Result<Sparse> {
        let header: CowdHeader = read_header(&*storage, 0)?;
        let (capacity, grain) = (u64::from(header.sectors.get()), u64::from(header.grain.get()));
        check_shape(capacity, grain, COWD_ENTRIES)?;
        let tables = capacity.div_ceil(grain * COWD_ENTRIES);
        let directory = bytes(header.directory_offset.get().into())?;
        let form = Directory::Sectors;
        let grains = Grains::new(storage.clone(), (directory, None), tables, form, COWD_ENTRIES);
        Self::finish(
            storage,
            grains,
            tables * 4 + directory,
            Shape {
                grain: grain * SECTOR,
                len: capacity * SECTOR,
                compressed: false,
                zeroed: false,
                writable: false,
                se_base: None,
                descriptor: None,
            },
        )
    }

    fn open_se(storage: Arc<dyn Storage>) -> Result<Sparse> {
        let header: SeHeader = read_header(&*storage, 0)?;
        if header.version.get() != 0x2_0000_0001 || header.flags.get() != 0 {
            return Err(Error::Unsupported(format!(
                "seSparse version {:#x} with flags {:#x}",
                header.version.get(),
                header.flags.get()
            )));
        }
        let (capacity, grain) = (header.capacity.get(), header.grain.get());
        let entries = header.table.get().saturating_mul(SECTOR / 8);
        check_shape(capacity, grain, entries)?;
        let tables = capacity.div_ceil(grain * entries);
        let directory = bytes(header.directory[0].get())?;
        if bytes(header.directory[1].get())? < tables * 8 {
            return corrupt("its grain directory is too short for its size");
        }
        let form = Directory::Numbers { base: bytes(header.tables[0].get())? };
        let grains = Grains::new(storage.clone(), (directory, None), tables, form, entries);
        let base = bytes(header.grains[0].get())?;
        Self::finish(
            storage,
            grains,
            tables * 8 + directory,
            Shape {
                grain: grain * SECTOR,
                len: capacity * SECTOR,
                compressed: false,
                zeroed: true,
                writable: false,
                se_base: Some(base),
                descriptor: None,
            },
        )
    }

    fn finish(storage: Arc<dyn Storage>, grains: Grains, directory_end: u64, shape: Shape) -> Result<Sparse> {
        let len = storage.len()?;
        if directory_end > len {
            return corrupt("its grain directory lies behind its end; was it cut?");
        }
        Ok(Sparse {
            storage,
            grains,
            grain: shape.grain,
            len: shape.len,
            compressed: shape.compressed,
            zeroed: shape.zeroed,
            writable: shape.writable,
            end: Mutex::new(len.next_multiple_of(SECTOR)),
            se_base: shape.se_base,
            descriptor: shape.descriptor,
        })
    }

    /// Makes it ready for writing: refuses one whose parts lie on each other, and keeps new grains off what is there.
    pub(super) fn begin_writing(&mut self) -> Result<()> {
        let mut reserved = Reserved::default();
        reserved.add("header", 0, SECTOR)?;
        if let Some((offset, len)) = self.descriptor {
            reserved.add("descriptor", offset, len)?;
        }
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.grains.reserve(&mut reserved, *end)?;
        // The last grain may end behind the file. Of one that is compressed only the marker's length is known.
        let grain = if self.compressed { SECTOR } else { self.grain };
        *end = end.next_multiple_of(grain);
        let first = if self.zeroed { ZEROED + 1 } else { 1 };
        self.grains.guard(Guard { reserved, end: *end, grain, first });
        Ok(())
    }

    /// What is at a grain: data as it is, or compressed behind a marker.
    pub(super) fn look(&self, grain: u64) -> Result<Unit> {
        let Some(entry) = self.grains.get(grain)? else { return Ok(Unit::Absent) };
        let Some(base) = self.se_base else {
            return Ok(match entry {
                0 => Unit::Absent,
                ZEROED if self.zeroed => Unit::Zero,
                sector => Unit::At(sector * SECTOR),
            });
        };
        match entry >> 60 {
            0 if entry == 0 => Ok(Unit::Absent),
            1 | 2 => Ok(Unit::Zero),
            3 => {
                let number = (entry & 0x0fff_0000_0000_0000) >> 48 | (entry & 0xffff_ffff_ffff) << 12;
                let place = number.checked_mul(self.grain).and_then(|skip| base.checked_add(skip));
                place.map(Unit::At).ok_or_else(|| Error::corrupt("a grain behind the end of all files"))
            }
            _ => corrupt(format!("entry {entry:#x} of a grain table")),
        }
    }

    /// Length of the compressed data behind a marker, as it says.
    pub(super) fn compressed_len(&self, at: u64) -> Result<u64> {
        let mut marker = [0; MARKER as usize];
        self.storage.read_at(at, &mut marker)?;
        let len = u32::from_le_bytes([marker[8], marker[9], marker[10], marker[11]]);
        // Deflate adds a little to what it cannot make smaller.
        match u64::from(len) <= 2 * self.grain + SECTOR && len > 0 {
            true => Ok(len.into()),
            false => corrupt(format!("a compressed grain of {len} bytes")),
        }
    }
}

struct Shape {
    grain: u64,
    len: u64,
    compressed: bool,
    zeroed: bool,
    writable: bool,
    se_base: Option<u64>,
    descriptor: Option<(u64, u64)>,
}

fn bytes(sectors: u64) -> Result<u64> {
    let bytes = sectors.checked_mul(SECTOR).filter(|bytes| *bytes <= i64::MAX as u64);
    bytes.ok_or_else(|| Error::corrupt("an offset behind the end of all files"))
}

fn check_shape(capacity: u64, grain: u64, entries: u64) -> Result<()> {
    // What is beyond is a lie: directories of 2^40 grains do not fit in the file that has them.
    if capacity == 0 || capacity > 1 << 46 {
        return corrupt(format!("a size of {capacity} sectors"));
    }
    if !grain.is_power_of_two() || !(8..=GRAIN_MAX).contains(&grain) {
        return corrupt(format!("grains of {grain} sectors"));
    }
    match (1..=COWD_ENTRIES).contains(&entries) {
        true => Ok(()),
        false => corrupt(format!("grain tables of {entries} entries")),
    }
}
