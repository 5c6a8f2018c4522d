//! Opening VMDK images: a file that has its descriptor inside, or a text that names the files of its extents.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

use umbra_block::{
    Access, BackingRef, CreateOptions, Environment, Error, Format, FormatDriver, OpenRequest, OptionSpec,
    Referenced, Result, Storage, StorageExt, StorageId, Task, resolve,
};
use zerocopy::FromBytes;

use super::descriptor::{Descriptor, ExtentLine, Kind, LEN_MAX};
use super::sparse::{Header, MAGIC, SECTOR, Sparse};
use super::{DiskExtent, Image, Part, create};

/// The format `vmdk`.
#[derive(Debug, Clone, Copy)]
pub struct Vmdk;

/// How a descriptor in a file of its own begins.
const TEXT: &str = "# Disk DescriptorFile";

fn is_text(head: &[u8]) -> bool {
    // Comments and empty lines may stand before it.
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match lines.next() {
        Some(first) if first.eq_ignore_ascii_case(TEXT) => true,
        Some(first) => first.starts_with('#') && lines.any(|line| line.starts_with("version=")),
        None => false,
    }
}

impl FormatDriver for Vmdk {
    fn name(&self) -> &'static str {
        "vmdk"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        let is_ours =
            head.starts_with(MAGIC) || head.starts_with(b"COWD") || head.starts_with(b"#") && is_text(head);
        if is_ours { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        request.options.clone().finish()?;
        let head = request.storage.read_vec(0, 2048)?;
        if head.starts_with(MAGIC) || head.starts_with(b"COWD") {
            open_sparse(request)
        } else if is_text(&head) {
            open_text(request)
        } else {
            let reason = "it has neither a sparse header nor a descriptor";
            Err(Error::not_this_format(request.name, "vmdk", reason))
        }
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        name: &str,
        options: &CreateOptions,
        environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()> {
        create::create(storage, name, options, environment, task)
    }
}

/// The descriptor's text, up to its first zero, and its length.
fn read_text(storage: &dyn Storage, offset: u64, len: u64) -> Result<(String, u64)> {
    let len = len.min(LEN_MAX as u64);
    let mut bytes = storage.read_vec(offset, len as usize)?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    Ok((String::from_utf8_lossy(&bytes).into_owned(), end as u64))
}

fn backing_of(descriptor: &Descriptor) -> Result<Option<BackingRef>> {
    if descriptor.parent_cid.is_none() {
        return Ok(None);
    }
    let name = descriptor.parent.clone().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Error::corrupt("it has a parent and does not say where"))?;
    Ok(Some(BackingRef { name, format: Some("vmdk".into()) }))
}

/// A file of grains with its descriptor inside, or one of an early ESX server, which has none.
fn open_sparse(request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
    let mut sparse = Sparse::open(request.storage.clone())?;
    let (descriptor, place) = match sparse.descriptor {
        Some((offset, len)) => {
            let (text, len) = read_text(&*request.storage, offset, len)?;
            (Descriptor::parse(&text)?, (StorageId(0), offset, len))
        }
        None => {
            let descriptor = Descriptor { create_type: "monolithicSparse".into(), ..Descriptor::default() };
            (descriptor, (StorageId(0), 0, 0))
        }
    };
    let writable = !request.read_only;
    if writable {
        begin_writing(&mut sparse)?;
    }
    let len = sparse.len;
    let cid = descriptor.cid;
    let extent = DiskExtent {
        start: 0,
        len,
        part: Part::Sparse(StorageId(0), Box::new(sparse)),
        word: String::new(),
        file: request.name.to_owned(),
    };
    Ok(Box::new(Image {
        name: request.name.to_owned(),
        storages: vec![request.storage],
        extents: vec![extent],
        size: len,
        backing: backing_of(&descriptor)?,
        descriptor,
        descriptor_place: place,
        writable,
        changed: AtomicBool::new(false),
        cid: AtomicU32::new(cid),
        flushing: Mutex::new(()),
    }))
}

fn begin_writing(sparse: &mut Sparse) -> Result<()> {
    match sparse.writable {
        true => sparse.begin_writing(),
        false => Err(Error::Unsupported(
            "writing to this kind of VMDK extent; convert it, or put a qcow2 overlay on it".into(),
        )),
    }
}

/// Whether two storages are one file.
fn is_same(one: &Arc<dyn Storage>, other: &Arc<dyn Storage>) -> bool {
    let identity = one.info().identity;
    Arc::ptr_eq(one, other) || identity.is_some() && identity == other.info().identity
}

/// A descriptor in a file of its own.
fn open_text(request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
    let file_len = request.storage.len()?;
    let (text, text_len) = read_text(&*request.storage, 0, file_len)?;
    let descriptor = Descriptor::parse(&text)?;
    let writable = !request.read_only;
    let mut storages = vec![request.storage.clone()];
    let mut extents = Vec::new();
    let mut size = 0u64;
    for line in &descriptor.extents {
        let len = line.sectors.checked_mul(SECTOR).ok_or_else(|| Error::corrupt("an extent is too long"))?;
        let part = open_part(&request, line, len, &mut storages, writable)?;
        extents.push(DiskExtent {
            start: size,
            len,
            part,
            word: line.word.clone(),
            file: resolve(request.name, &line.file),
        });
        let end = size.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        size = end.ok_or_else(|| Error::corrupt("its extents are longer than any disk"))?;
    }
    if extents.is_empty() {
        return Err(Error::corrupt("it has no extents"));
    }
    let cid = descriptor.cid;
    Ok(Box::new(Image {
        name: request.name.to_owned(),
        storages,
        extents,
        size,
        backing: backing_of(&descriptor)?,
        descriptor,
        descriptor_place: (StorageId(0), 0, text_len),
        writable,
        changed: AtomicBool::new(false),
        cid: AtomicU32::new(cid),
        flushing: Mutex::new(()),
    }))
}

fn open_part(
    request: &OpenRequest<'_>,
    line: &ExtentLine,
    len: u64,
    storages: &mut Vec<Arc<dyn Storage>>,
    writable: bool,
) -> Result<Part> {
    if line.kind == Kind::Zero {
        return Ok(Part::Zero);
    }
    let access = if writable { Access::ReadWrite } else { Access::Read };
    let storage =
        request.environment.open_referenced(request.spec, &line.file, Referenced::Extent, access)?;
    if writable && storages.iter().any(|other| is_same(other, &storage)) {
        return Err(Error::corrupt(format!(
            "file '{}' is a part of it twice; it can only be read",
            line.file
        )));
    }
    let id = StorageId(storages.len());
    storages.push(storage.clone());
    if line.kind == Kind::Flat {
        let start = line
            .offset
            .checked_mul(SECTOR)
            .filter(|start| start.checked_add(len).is_some_and(|end| end <= i64::MAX as u64));
        let start = start.ok_or_else(|| Error::corrupt("a flat extent behind the end of all files"))?;
        return Ok(Part::Flat(id, start));
    }
    let mut sparse = Sparse::open(storage)?;
    if writable {
        begin_writing(&mut sparse)?;
    }
    match sparse.len >= len {
        true => Ok(Part::Sparse(id, Box::new(sparse))),
        false => Err(Error::corrupt(format!("extent '{}' is shorter than the descriptor says", line.file))),
    }
}

/// The identity of an image, for one that is put over it.
pub(super) fn identity(storage: &dyn Storage) -> Result<u32> {
    let head = storage.read_vec(0, 2048)?;
    let (offset, len) = match head.starts_with(MAGIC) {
        true => {
            let (header, _) = Header::read_from_prefix(&head)
                .map_err(|_| Error::option("Invalid backing file: its header is cut"))?;
            let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
            (bytes(header.descriptor_offset.get()), bytes(header.descriptor_size.get()))
        }
        false if is_text(&head) => (0, storage.len()?),
        false => return Err(Error::option("Invalid backing file: it is no VMDK image")),
    };
    Descriptor::parse(&read_text(storage, offset, len)?.0).map(|descriptor| descriptor.cid)
}
