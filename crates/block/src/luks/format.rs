//! LUKS as a format of its own: the header, and the disk's sectors behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{HEADER_BYTES, Header, MAGIC, SECTOR, format_header};
use crate::raw::preallocate;
use crate::{
    Access, BackingRef, CreateOptions, Environment, Error, Extent, FileSpec, FileStorageSpec, Format,
    FormatDriver, FormatWrite, Geometry, ImageInfo, InfoValue, Mapping, OpenRequest, OptionKind, OptionSpec,
    Options, Place, Preallocation, Prepare, Prepared, Result, Secrets, SectorCipher, Storage, StorageId,
    Task, Token,
};

/// The grain of locks: there is nothing to allocate.
const UNIT: u64 = 4096;

/// A LUKS image.
#[derive(Debug)]
struct Luks {
    storages: [Arc<dyn Storage>; 1],
    name: String,
    header: Mutex<Header>,
    /// The file that has the header, where it is not that of the data.
    detached: Option<Arc<dyn Storage>>,
    cipher: Option<Arc<dyn SectorCipher>>,
    secret_id: Option<String>,
    secrets: Secrets,
    payload: u64,
    size: AtomicU64,
    read_only: bool,
}

impl Luks {
    fn open(mut request: OpenRequest<'_>) -> Result<Self> {
        let detached = open_detached(&mut request)?;
        let place = detached.as_ref().unwrap_or(&request.storage).clone();
        let header_len = detached.as_ref().map(|file| file.len()).transpose()?;
        let header = Header::read(&*place, 0, header_len)?;
        let secret_id = request.options.take("key-secret");
        request.options.finish()?;
        let cipher = if request.metadata_only {
            None
        } else {
            let id = secret_id.as_ref().ok_or_else(|| Error::NeedsSecret(request.name.to_owned()))?;
            let key = header.unlock(&*place, 0, request.environment.secrets.passphrase(id)?)?;
            Some(header.cipher(&key)?)
        };
        let payload = if detached.is_some() { 0 } else { header.payload_offset() };
        if payload == 0 && detached.is_none() && !request.metadata_only {
            return Err(Error::option(
                "it is a header without data: open the data with driver=luks,header.filename=HEADER,file.filename=DATA",
            ));
        }
        let size = request.storage.len()?.saturating_sub(payload);
        Ok(Self {
            name: request.name.to_owned(),
            storages: [request.storage],
            header: Mutex::new(header),
            detached,
            cipher,
            secret_id,
            secrets: request.environment.secrets.clone(),
            payload,
            size: AtomicU64::new(size - size % SECTOR),
            read_only: request.read_only,
        })
    }

    fn place(&self, offset: u64) -> Place {
        Place {
            storage: StorageId(0),
            offset: self.payload.saturating_add(offset),
            sector: Some(offset / SECTOR),
        }
    }

    fn header(&self) -> std::sync::MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// The file that `header.filename` names.
fn open_detached(request: &mut OpenRequest<'_>) -> Result<Option<Arc<dyn Storage>>> {
    request.options.take("header.driver");
    let name = request.options.take("header").or_else(|| request.options.take("header.filename"));
    let Some(name) = name else { return Ok(None) };
    let access = if request.read_only { Access::Read } else { Access::ReadWrite };
    let how = FileStorageSpec { access, direct: false, lock: request.spec.lock };
    request.environment.opener.open(&FileSpec::file(name), &how).map(Some)
}

impl Format for Luks {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size.load(Ordering::Acquire), unit: UNIT, zero_unit: UNIT, compression: None }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent { mapping: Mapping::Data(self.place(offset)), len })
    }

    fn cipher(&self) -> Option<&dyn SectorCipher> {
        self.cipher.as_deref()
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        (!self.read_only).then_some(self)
    }

    fn flush(&self) -> Result<()> {
        self.storages[0].flush()
    }

    fn close(&self) -> Result<()> {
        self.flush()
    }

    fn info(&self) -> Result<ImageInfo> {
        let InfoValue::Map(mut specific) = self.header().info(self.detached.is_some()) else {
            return Err(Error::corrupt("a LUKS header that says nothing"));
        };
        specific.retain(|(name, _)| name != "format");
        Ok(ImageInfo {
            format: "luks".to_owned(),
            filename: self.name.clone(),
            virtual_size: self.size.load(Ordering::Acquire),
            actual_size: self.storages[0].info().allocated,
            encrypted: true,
            specific,
            specific_type: "luks".to_owned(),
            ..ImageInfo::default()
        })
    }
}

impl FormatWrite for Luks {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        if matches!(how, Prepare::Compressed { .. }) {
            return Ok(None);
        }
        Ok(Some(Prepared { len, place: self.place(offset), before: 0, after: 0, token: None }))
    }

    fn commit(&self, _token: Token) -> Result<()> {
        Err(Error::Refused("a LUKS image has nothing to commit".to_owned()))
    }

    fn zero(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<u64> {
        // Zeroes of the disk are no zeroes in the file.
        Ok(0)
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        // A hole would read as noise.
        Ok(())
    }

    fn resize(&self, size: u64, preallocation: Preallocation, task: &Task<'_>) -> Result<()> {
        let end = size.checked_add(self.payload).ok_or_else(|| Error::option("the new size is too large"))?;
        let old = self.size.load(Ordering::Acquire) + self.payload;
        self.storages[0].set_len(end)?;
        preallocate(&*self.storages[0], old, end, preallocation, task)?;
        self.size.store(size - size % SECTOR, Ordering::Release);
        Ok(())
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        Err(Error::Unsupported("format 'luks' has no backing files".to_owned()))
    }

    fn amend(&self, options: &Options, _task: &Task<'_>) -> Result<()> {
        let unlocking = self.secret_id.as_ref().map(|id| self.secrets.passphrase(id)).transpose()?;
        let place = self.detached.as_ref().unwrap_or(&self.storages[0]);
        self.header().amend(&**place, 0, options.clone(), &self.secrets, unlocking)
    }
}

/// Opens and creates LUKS images.
#[derive(Debug, Clone, Copy)]
pub struct LuksDriver;

const OPTIONS: [OptionSpec; 13] = [
    OptionSpec::new("cipher-alg", OptionKind::Text, "Name of encryption cipher algorithm", None),
    OptionSpec::new("cipher-mode", OptionKind::Text, "Name of encryption cipher mode", None),
    OptionSpec::new("detached-header", OptionKind::Bool, "Create a detached LUKS header", None),
    OptionSpec::new("hash-alg", OptionKind::Text, "Name of encryption hash algorithm", None),
    OptionSpec::new("iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds", None)
        .amendable(),
    OptionSpec::new("ivgen-alg", OptionKind::Text, "Name of IV generator algorithm", None),
    OptionSpec::new("ivgen-hash-alg", OptionKind::Text, "Name of IV generator hash algorithm", None),
    OptionSpec::new(
        "key-secret",
        OptionKind::Text,
        "ID of the secret that provides the keyslot passphrase",
        None,
    ),
    OptionSpec::new("keyslot", OptionKind::Number, "Select a single keyslot to modify explicitly", None)
        .amendable(),
    OptionSpec::new("new-secret", OptionKind::Text, "New secret to set in the matching keyslots", None)
        .amendable(),
    OptionSpec::new("old-secret", OptionKind::Text, "Select all keyslots that match this password", None)
        .amendable(),
    OptionSpec::new(
        "preallocation",
        OptionKind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
        None,
    ),
    OptionSpec::new(
        "state",
        OptionKind::Text,
        "Select new state of affected keyslots (active/inactive)",
        None,
    )
    .amendable(),
];

impl FormatDriver for LuksDriver {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        if head.starts_with(&MAGIC) && head.get(6..8) == Some(&[0, 1]) { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        Ok(Box::new(Luks::open(request)?))
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        &OPTIONS
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        _name: &str,
        create: &CreateOptions,
        environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()> {
        let mut options = create.options.clone();
        let preallocation = options.take_preallocation()?;
        create.refuse_backing("luks")?;
        let detached = options.take_bool("detached-header")?.unwrap_or(false);
        let header = format_header(options, &environment.secrets, detached)?;
        if detached {
            // The data is somebody's file already, or will be.
            storage.writev(0, &[crate::IoSrc::new(&header)])?;
            return storage.flush();
        }
        let size = create.size.next_multiple_of(SECTOR);
        let payload = header.len() as u64;
        let end = payload.checked_add(size).ok_or_else(|| Error::option("the size is too large"))?;
        storage.set_len(end)?;
        preallocate(&*storage, payload, end, preallocation, task)?;
        storage.writev(0, &[crate::IoSrc::new(&header)])?;
        storage.flush()
    }

    fn measure(&self, create: &CreateOptions, _data: u64) -> Result<Option<(u64, u64)>> {
        let bytes = create.size.saturating_add(HEADER_BYTES);
        Ok(Some((bytes, bytes)))
    }
}
