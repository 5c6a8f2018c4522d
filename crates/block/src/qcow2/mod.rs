//! qcow2, versions 2 and 3: copy-on-write images with backing files, snapshots, compression, encryption and bitmaps.
//!
//! Authority: the qcow2 specification (docs/interop/qcow2.txt of QEMU). Layout of the modules: `header` and `layout` are
//! what lies in the file; `meta` holds an image's tables and the order in which they reach the file, with `cache`,
//! `refcount`, `map`, `write`, `zero`, `snapshot`, `bitmap` and `check` (with `counts`) as its parts; this file is the format's face.

mod amend;
mod bitmap;
mod cache;
mod check;
mod counts;
mod create;
mod header;
mod info;
mod layout;
mod map;
mod meta;
mod owned;
mod refcount;
mod snapshot;
mod write;
mod zero;

#[cfg(test)]
mod parts_test;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

pub use create::Qcow2Driver;
use header::{CORRUPT, Crypt, DATA_FILE, DIRTY, Header, LAZY_REFCOUNTS};
use layout::Layout;
use meta::{CacheSizes, Meta};

use crate::{
    Access, BackingRef, BitmapInfo, Bitmaps, CheckReport, Codec, Compression, Error, Extent, Format,
    FormatWrite, Geometry, Holes, ImageInfo, MemoryStorage, OpenRequest, Options, Place, Preallocation,
    Prepare, Prepared, Referenced, Repair, Result, Secrets, SectorCipher, SnapshotInfo, SnapshotTarget,
    Snapshots, Storage, Task, Token,
};

/// Options that tune how other programs keep their caches and pass discards on; ours need none.
const IGNORED: [&str; 4] =
    ["discard-no-unref", "pass-discard-other", "pass-discard-request", "pass-discard-snapshot"];

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2 {
    name: String,
    storages: Vec<Arc<dyn Storage>>,
    meta: Mutex<Meta>,
    size: AtomicU64,
    layout: Layout,
    codec: Codec,
    compresses: bool,
    encrypted: bool,
    /// Sectors are numbered by their place in the file (LUKS), not on the disk (the legacy scheme).
    sector_by_host: bool,
    cipher: Option<Arc<dyn SectorCipher>>,
    /// The secret that opened the image.
    secret_id: Option<String>,
    /// Those that `amend` may name.
    secrets: Secrets,
    writable: bool,
    /// Its clusters were taken before there was data, once that is known.
    preallocated: OnceLock<bool>,
}

impl Qcow2 {
    fn open(mut request: OpenRequest<'_>) -> Result<Self> {
        let mut header = Header::read(&*request.storage, request.name)?;
        let writable = !request.read_only;
        if writable && header.has(CORRUPT) && !request.for_check {
            return Err(Error::Refused(format!(
                "qcow2: Image '{}' is corrupt; cannot be opened read/write. `umbra image check -r all` mends what can be mended",
                request.name
            )));
        }
        let lazy = request.options.take_bool("lazy-refcounts")?;
        let checks = owned::take_checks(&mut request.options)?;
        let cache_sizes = CacheSizes::take(&mut request.options)?;
        let data = open_data_file(&mut request, &header)?;
        let secret_id = request.options.take("encrypt.key-secret");
        let cipher = open_cipher(&mut request, &header, secret_id.as_deref())?;
        take_ignored(&mut request.options, 1 << header.cluster_bits)?;
        request.options.finish()?;
        let cleared = writable && header.clear_unknown_autoclear();
        let mut meta = Meta::load(request.storage.clone(), data, header, writable)?;
        meta.load_snapshots()?;
        meta.load_bitmaps()?;
        meta.cache_sizes = cache_sizes;
        meta.limit_caches();
        meta.owned.set_checks(checks);
        if writable {
            meta.own_all();
        }
        if lazy == Some(true) && meta.header.version < 3 {
            return Err(Error::option(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
            ));
        }
        meta.lazy_wanted = lazy.unwrap_or(meta.header.compatible & LAZY_REFCOUNTS != 0);
        if cleared {
            meta.write_header()?;
        }
        if writable && meta.header.has(DIRTY) && !request.for_check {
            // Refcounts were late when the last writer ended: they are counted anew.
            meta.check(Repair::All, &Task::quiet())?;
        }
        let mut image = Self::with(meta, request.name.to_owned(), cipher);
        image.secret_id = secret_id;
        image.secrets = request.environment.secrets.clone();
        Ok(image)
    }

    fn with(meta: Meta, name: String, cipher: Option<Arc<dyn SectorCipher>>) -> Self {
        let mut storages = vec![meta.file.clone()];
        storages.extend(meta.data.clone());
        Self {
            name,
            storages,
            size: AtomicU64::new(meta.header.size),
            layout: meta.layout,
            codec: meta.header.codec,
            compresses: !meta.layout.data_file && meta.header.crypt == Crypt::None,
            encrypted: meta.header.crypt != Crypt::None,
            sector_by_host: meta.header.crypt == Crypt::Luks,
            cipher,
            secret_id: None,
            secrets: Secrets::default(),
            writable: meta.writable,
            preallocated: OnceLock::new(),
            meta: Mutex::new(meta),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Looks at metadata.
    fn read_meta<T>(&self, work: impl FnOnce(&mut Meta) -> Result<T>) -> Result<T> {
        work(&mut self.lock())
    }

    /// Changes metadata. Where that finds damage, the image is marked as corrupt, and nothing is written any more.
    fn change_meta<T>(&self, work: impl FnOnce(&mut Meta) -> Result<T>) -> Result<T> {
        let mut meta = self.lock();
        let done = meta.writable().and_then(|()| work(&mut meta));
        if matches!(done, Err(Error::Corrupt(_))) {
            meta.mark_corrupt();
        }
        done
    }
}

/// Options of how QEMU goes about its work: they have to be right, and change nothing here.
fn take_ignored(options: &mut Options, cluster: u64) -> Result<()> {
    for name in IGNORED {
        options.take_bool(name)?;
    }
    let entry = options.take_size("l2-cache-entry-size")?.unwrap_or(cluster);
    if !entry.is_power_of_two() || !(512..=cluster).contains(&entry) {
        return Err(Error::option(format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
        )));
    }
    if options.take_number("cache-clean-interval")?.is_some_and(|seconds| seconds > u32::MAX.into()) {
        return Err(Error::option("Cache clean interval too big"));
    }
    options.take("driver");
    Ok(())
}

/// Fails where the options speak of another encryption than the header.
fn check_encryption(options: &mut Options, crypt: Crypt) -> Result<()> {
    let format = options.take("encrypt.format");
    let found = match crypt {
        Crypt::None => None,
        Crypt::Luks => Some("luks"),
        Crypt::Aes => Some("aes"),
    };
    let wrong = match (format, found) {
        (Some(format), None) => {
            format!("No encryption in image header, but options specified format '{format}'")
        }
        (Some(format), Some(found)) if format != found => {
            format!("Header reported '{found}' encryption format but options specify '{format}'")
        }
        _ => match options.iter().find_map(|(name, _)| name.strip_prefix("encrypt.")) {
            Some(name) if found.is_some() => format!("Parameter '{name}' is unexpected"),
            _ => return Ok(()),
        },
    };
    Err(Error::option(wrong))
}

/// The external data file, where the image has one.
fn open_data_file(request: &mut OpenRequest<'_>, header: &Header) -> Result<Option<Arc<dyn Storage>>> {
    let given = request.options.take("data-file").or_else(|| request.options.take("data-file.filename"));
    request.options.take("data-file.driver");
    if !header.has(DATA_FILE) {
        return if given.is_some() {
            Err(Error::option("'data-file' can only be set for images with an external data file"))
        } else {
            Ok(None)
        };
    }
    let access = if request.read_only { Access::Read } else { Access::ReadWrite };
    let opened = match (&given, &header.data_file) {
        (Some(name), _) => {
            let how = crate::FileStorageSpec { access, direct: request.spec.direct, lock: request.spec.lock };
            request.environment.opener.open(&crate::FileSpec::file(name), &how)
        }
        (None, Some(name)) => {
            request.environment.open_referenced(request.spec, name, Referenced::Data, access)
        }
        (None, None) => Err(Error::option("'data-file' is required for this image")),
    };
    match opened {
        Ok(storage) => Ok(Some(storage)),
        Err(_) if request.metadata_only => Ok(Some(Arc::new(MemoryStorage::new("missing data file")))),
        Err(error) => Err(error),
    }
}

/// The cipher of an encrypted image.
fn open_cipher(
    request: &mut OpenRequest<'_>,
    header: &Header,
    id: Option<&str>,
) -> Result<Option<Arc<dyn SectorCipher>>> {
    check_encryption(&mut request.options, header.crypt)?;
    if header.crypt == Crypt::None || request.metadata_only || request.for_check && id.is_none() {
        return Ok(None);
    }
    let id = id.ok_or_else(|| Error::NeedsSecret(request.name.to_owned()))?;
    let secret = request.environment.secrets.passphrase(id)?;
    match header.crypt {
        Crypt::Luks => {
            let (offset, len) = header.crypto.ok_or_else(|| Error::corrupt("the LUKS header is missing"))?;
            let luks = crate::luks::Header::read(&*request.storage, offset, Some(len))?;
            let key = luks.unlock(&*request.storage, offset, secret)?;
            Ok(Some(luks.cipher(&key)?))
        }
        Crypt::Aes => Ok(Some(crate::luks::legacy_cipher(secret)?)),
        Crypt::None => Ok(None),
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.writable {
            // Whoever wants to know whether it worked calls `close`.
            let _ = self.close();
        }
    }
}

impl Format for Qcow2 {
    fn geometry(&self) -> Geometry {
        let zero_unit = self.layout.subcluster();
        let cluster = self.layout.cluster();
        Geometry {
            size: self.size.load(Ordering::Acquire),
            unit: cluster,
            zero_unit,
            compression: self.compresses.then_some(Compression { codec: self.codec, unit: cluster }),
        }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.map_extent(offset, len)
    }

    fn reserved(&self, offset: u64, len: u64) -> Result<(Option<Place>, u64)> {
        self.reserved_extent(offset, len)
    }

    fn holes(&self, _offset: u64) -> Holes {
        let preallocated = *self.preallocated.get_or_init(|| {
            // What cannot be found out is not asked for.
            self.read_meta(Meta::is_preallocated).unwrap_or(false)
        });
        if preallocated { Holes::Zeroes } else { Holes::Rare }
    }

    fn cipher(&self) -> Option<&dyn SectorCipher> {
        self.cipher.as_deref()
    }

    fn backing(&self) -> Option<BackingRef> {
        let meta = self.lock();
        let name = meta.header.backing_name.clone()?;
        Some(BackingRef { name, format: meta.header.backing_format.clone() })
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        self.writable.then_some(self)
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.change_meta(Meta::write_back)?;
        // Nobody who looks for a mapping waits for this. It makes durable what was written before, and the order of what
        // others write meanwhile is kept by their own flushes. What the data is in comes first.
        self.storages.iter().rev().try_for_each(|storage| storage.flush())
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        let mut meta = self.lock();
        if meta.broken {
            return meta.flush_storages();
        }
        meta.save_bitmaps()?;
        meta.finish()
    }

    fn info(&self) -> Result<ImageInfo> {
        self.read_meta(|meta| info::of(meta, &self.name))
    }

    fn check(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        let mut meta = self.lock();
        if repair != Repair::None && !meta.writable {
            return Err(Error::ReadOnly("repair".to_owned()));
        }
        meta.check(repair, task)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }
}

impl FormatWrite for Qcow2 {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        self.prepare_write(offset, len, how)
    }

    fn commit(&self, token: Token) -> Result<()> {
        self.commit_write(token)
    }

    fn abort(&self, token: Token) {
        self.abort_write(token);
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<u64> {
        self.zero_range(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discard_range(offset, len)
    }

    fn resize(&self, size: u64, preallocation: Preallocation, task: &Task<'_>) -> Result<()> {
        self.change_size(size, preallocation, task)
    }

    fn make_empty(&self) -> Result<()> {
        self.change_meta(Meta::make_empty)
    }

    fn set_backing(&self, backing: Option<&BackingRef>) -> Result<()> {
        self.change_meta(|meta| meta.set_backing(backing))
    }

    fn amend(&self, options: &Options, task: &Task<'_>) -> Result<()> {
        let unlocking = self.secret_id.as_ref().map(|id| self.secrets.passphrase(id)).transpose()?;
        let cipher = self.cipher.as_deref();
        self.change_meta(|meta| meta.amend(options.clone(), &self.secrets, unlocking, cipher, task))
    }
}

impl Snapshots for Qcow2 {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.lock().snapshots.iter().map(|snapshot| snapshot.info.clone()).collect())
    }

    fn create(&self, info: &SnapshotInfo) -> Result<String> {
        self.change_meta(|meta| meta.create_snapshot(info))
    }

    fn apply(&self, target: SnapshotTarget<'_>) -> Result<()> {
        self.change_meta(|meta| {
            meta.apply_snapshot(target)?;
            self.size.store(meta.header.size, Ordering::Release);
            Ok(())
        })
    }

    fn delete(&self, target: SnapshotTarget<'_>) -> Result<()> {
        self.change_meta(|meta| meta.delete_snapshot(target))
    }

    fn view(&self, target: SnapshotTarget<'_>) -> Result<Box<dyn Format>> {
        if self.writable {
            self.flush()?;
        }
        let meta = self.lock();
        let snapshot = &meta.snapshots[meta.find_snapshot(target)?];
        let mut header = meta.header.clone();
        header.l1_offset = snapshot.l1_offset;
        header.l1_len = snapshot.l1_len;
        header.size = snapshot.info.disk_size.min(i64::MAX as u64);
        header.snapshots = 0;
        let view = Meta::load(meta.file.clone(), meta.data.clone(), header, false)?;
        Ok(Box::new(Self::with(view, self.name.clone(), self.cipher.clone())))
    }

    fn vm_state_offset(&self) -> u64 {
        self.lock().vm_state_offset()
    }
}

impl Bitmaps for Qcow2 {
    fn list(&self) -> Result<Vec<BitmapInfo>> {
        Ok(self.lock().bitmap_infos())
    }

    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        self.change_meta(|meta| meta.add_bitmap(name, granularity, enabled))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change_meta(|meta| meta.remove_bitmap(name))
    }

    fn clear(&self, name: &str) -> Result<()> {
        self.change_meta(|meta| meta.clear_bitmap(name))
    }

    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_meta(|meta| meta.enable_bitmap(name, enabled))
    }

    fn mark(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        self.change_meta(|meta| meta.mark_bitmap(name, offset, len))
    }

    fn next_dirty(&self, name: &str, offset: u64) -> Result<Option<(u64, u64)>> {
        self.read_meta(|meta| meta.next_dirty(name, offset))
    }
}
