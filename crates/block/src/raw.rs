//! Raw images: the file's bytes are the disk's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    BackingRef, CreateOptions, Environment, Error, Extent, Format, FormatDriver, FormatWrite, Geometry,
    Holes, ImageInfo, Mapping, OpenRequest, OptionKind, OptionSpec, Options, Place, Preallocation, Prepare,
    Prepared, Result, Storage, StorageId, Task, Token,
};

/// The grain of locks: there is nothing to allocate.
const UNIT: u64 = 4096;
/// Bytes that are written at once when everything is to be written.
const FULL_STEP: u64 = 4 << 20;

/// A raw image.
#[derive(Debug)]
pub struct Raw {
    storages: [Arc<dyn Storage>; 1],
    name: String,
    /// Where the disk begins in the file, and whether it ends before the file does (`offset`, `size` of `--image-opts`).
    offset: u64,
    fixed: bool,
    size: AtomicU64,
    read_only: bool,
}

impl Raw {
    /// A disk that is all of a storage.
    ///
    /// # Errors
    /// The storage's.
    pub fn over(storage: Arc<dyn Storage>) -> Result<Self> {
        let info = storage.info();
        let size = storage.len()?;
        Ok(Self {
            name: info.name,
            storages: [storage],
            offset: 0,
            fixed: false,
            size: AtomicU64::new(size.next_multiple_of(512)),
            read_only: info.read_only,
        })
    }

    fn open(request: OpenRequest<'_>) -> Result<Self> {
        let mut options = request.options;
        let offset = options.take_size("offset")?.unwrap_or(0);
        let size = options.take_size("size")?;
        options.finish()?;
        let mut raw = Self::over(request.storage)?;
        let have = raw.size.load(Ordering::Relaxed);
        if size.is_some_and(|size| size % 512 != 0) {
            return Err(Error::option("Specified size is not multiple of 512"));
        }
        if offset > have {
            return Err(Error::option(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({have})"
            )));
        }
        if let Some(size) = size.filter(|&size| size > have - offset) {
            return Err(Error::option(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the containing file ({have})"
            )));
        }
        raw.fixed = offset != 0 || size.is_some();
        raw.offset = offset;
        raw.size.store(size.unwrap_or((have - offset).next_multiple_of(512)), Ordering::Relaxed);
        raw.read_only |= request.read_only;
        Ok(raw)
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn storage(&self) -> &dyn Storage {
        &*self.storages[0]
    }

    fn place(&self, offset: u64) -> Place {
        Place::plain(StorageId(0), self.offset.saturating_add(offset))
    }
}

impl Format for Raw {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size(), unit: UNIT, zero_unit: 1, compression: None }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent { mapping: Mapping::Data(self.place(offset)), len })
    }

    fn holes(&self, _offset: u64) -> Holes {
        Holes::Nothing
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        (!self.read_only).then_some(self)
    }

    fn flush(&self) -> Result<()> {
        self.storage().flush()
    }

    fn close(&self) -> Result<()> {
        self.flush()
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            format: "raw".to_owned(),
            filename: self.name.clone(),
            virtual_size: self.size(),
            actual_size: self.storage().info().allocated,
            ..ImageInfo::default()
        })
    }
}

impl FormatWrite for Raw {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        if matches!(how, Prepare::Compressed { .. }) {
            return Ok(None);
        }
        Ok(Some(Prepared { len, place: self.place(offset), before: 0, after: 0, token: None }))
    }

    fn commit(&self, _token: Token) -> Result<()> {
        Err(Error::Refused("a raw image has nothing to commit".to_owned()))
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<u64> {
        self.storage().write_zeroes(self.place(offset).offset, len, unmap)?;
        Ok(len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.storage().discard(self.place(offset).offset, len)
    }

    fn resize(&self, size: u64, preallocation: Preallocation, task: &Task<'_>) -> Result<()> {
        if self.fixed {
            return Err(Error::Refused("a part of a file cannot be resized".to_owned()));
        }
        let old = self.size();
        if size < old && preallocation != Preallocation::Off {
            return Err(Error::option("Preallocation can only be used for growing images"));
        }
        self.storage().set_len(size)?;
        preallocate(self.storage(), old, size, preallocation, task)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        Err(Error::Unsupported("format 'raw' has no backing files".to_owned()))
    }

    fn amend(&self, _options: &Options, _task: &Task<'_>) -> Result<()> {
        Err(Error::Unsupported("Format driver 'raw' does not support option amendment".to_owned()))
    }
}

/// Takes the host's space for `start..end`.
pub(crate) fn preallocate(
    storage: &dyn Storage,
    start: u64,
    end: u64,
    preallocation: Preallocation,
    task: &Task<'_>,
) -> Result<()> {
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.allocate(start, end.saturating_sub(start)),
        Preallocation::Full => {
            let zeroes = vec![0; FULL_STEP as usize];
            let mut at = start;
            while at < end {
                let part = (end - at).min(FULL_STEP);
                storage.writev(at, &[crate::IoSrc::new(&zeroes[..part as usize])])?;
                at += part;
                task.at(at - start, end - start)?;
            }
            storage.flush()
        }
    }
}

/// Opens and creates raw images.
#[derive(Debug, Clone, Copy)]
pub struct RawDriver;

impl FormatDriver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn probe(&self, _head: &[u8], _len: u64, _name: &str) -> u8 {
        // Everything is raw if it is nothing else.
        1
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        Ok(Box::new(Raw::open(request)?))
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        const OPTIONS: &[OptionSpec] = &[OptionSpec::new(
            "preallocation",
            OptionKind::Text,
            "Preallocation mode (allowed values: off, falloc, full)",
            Some("off"),
        )];
        OPTIONS
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        _name: &str,
        create: &CreateOptions,
        _environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()> {
        let mut options = create.options.clone();
        let preallocation = options.take_preallocation()?;
        if preallocation == Preallocation::Metadata {
            return Err(Error::option("Unsupported preallocation mode: metadata"));
        }
        options.finish()?;
        create.refuse_backing("raw")?;
        storage.set_len(create.size)?;
        preallocate(&*storage, 0, create.size, preallocation, task)
    }

    fn measure(&self, create: &CreateOptions, _data: u64) -> Result<Option<(u64, u64)>> {
        // A file ends with a sector.
        let size = create.size.checked_next_multiple_of(512).unwrap_or(create.size);
        Ok(Some((size, size)))
    }
}
