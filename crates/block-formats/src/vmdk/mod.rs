//! VMware disk images (VMDK): monolithic sparse and flat, extents of 2 GiB, streamOptimized, and (read) what ESX servers
//! write: VMFS, VMFS sparse and seSparse.
//!
//! Constraints: a disk is extents in a row, each a file or a part of one. Grain tables are written when what they point to is
//! durable. The first write gives the image another identity, by which overlays notice that their parent has changed.
//! Authority: VMware, "Virtual Disk Format 5.0".

mod check;
mod create;
mod descriptor;
mod driver;
mod grains;
mod sparse;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use umbra_block::{
    BackingRef, CheckReport, Codec, Compression, Error, Extent, Format, FormatWrite, Geometry, Holes,
    ImageInfo, InfoValue, Mapping, Place, Repair, Result, Storage, StorageId, Task,
};

use crate::common::{Unit, run};
use descriptor::{Descriptor, NO_PARENT};
pub use driver::Vmdk;
use sparse::{MARKER, Sparse};

/// The unit in which requests to flat extents are kept apart.
const FLAT_UNIT: u64 = 1 << 16;

/// What a part of the disk is.
#[derive(Debug)]
enum Part {
    /// Data from an offset of a storage on.
    Flat(StorageId, u64),
    Zero,
    Sparse(StorageId, Box<Sparse>),
}

/// A part of the disk.
#[derive(Debug)]
struct DiskExtent {
    /// Where it begins on the disk.
    start: u64,
    len: u64,
    part: Part,
    /// The kind and the file's name as `info` tells them.
    word: String,
    file: String,
}

/// An open image.
#[derive(Debug)]
struct Image {
    name: String,
    storages: Vec<Arc<dyn Storage>>,
    extents: Vec<DiskExtent>,
    size: u64,
    descriptor: Descriptor,
    /// Where the descriptor is: the storage, and its place there.
    descriptor_place: (StorageId, u64, u64),
    backing: Option<BackingRef>,
    writable: bool,
    /// Whether the identity was changed.
    changed: AtomicBool,
    /// The identity that the image has now.
    cid: AtomicU32,
    /// A flush, or new entries.
    flushing: Mutex<()>,
}

impl Image {
    /// The extent that an offset of the disk lies in.
    fn extent(&self, offset: u64) -> Result<&DiskExtent> {
        let index = self.extents.partition_point(|extent| extent.start <= offset);
        let extent = index.checked_sub(1).and_then(|index| self.extents.get(index));
        extent
            .filter(|extent| offset - extent.start < extent.len)
            .ok_or_else(|| Error::corrupt(format!("no extent has offset {offset}")))
    }

    /// The grains of the first extent, which give the image its unit.
    fn first_sparse(&self) -> Option<&Sparse> {
        self.sparse().next()
    }

    fn sparse(&self) -> impl Iterator<Item = &Sparse> {
        self.extents.iter().filter_map(|extent| match &extent.part {
            Part::Sparse(_, sparse) => Some(&**sparse),
            _ => None,
        })
    }

    /// A run within an extent of grains; `offset` is the extent's.
    fn map_sparse(
        &self,
        extent: &DiskExtent,
        id: StorageId,
        sparse: &Sparse,
        offset: u64,
        len: u64,
    ) -> Result<Extent> {
        let (first, within) = (offset / sparse.grain, offset % sparse.grain);
        if sparse.compressed
            && let Unit::At(at) = sparse.look(first)?
        {
            let unit_start = extent.start + first * sparse.grain;
            let unit_len = sparse.grain.min(extent.start + extent.len - unit_start);
            let mapping = Mapping::Compressed {
                storage: id,
                offset: at.saturating_add(MARKER),
                compressed_len: sparse.compressed_len(at)?,
                codec: Codec::Zlib,
                unit_start,
                unit_len,
            };
            return Ok(Extent { mapping, len: len.min(sparse.grain - within) });
        }
        run(id, offset, len, sparse.grain, &Mapping::Backing, |grain| sparse.look(grain))
    }

    fn extent_info(&self, extent: &DiskExtent) -> InfoValue {
        let mut facts: Vec<(String, InfoValue)> = Vec::new();
        let mut put = |name: &str, value: InfoValue| facts.push((name.to_owned(), value));
        let sparse = match &extent.part {
            Part::Sparse(_, sparse) => Some(sparse),
            _ => None,
        };
        if sparse.is_some_and(|sparse| sparse.compressed) {
            put("compressed", true.into());
        }
        put("virtual-size", extent.len.into());
        put("filename", extent.file.as_str().into());
        if let Some(sparse) = sparse {
            put("cluster-size", sparse.grain.into());
        }
        put("format", extent.word.as_str().into());
        InfoValue::Map(facts)
    }
}

impl Format for Image {
    fn geometry(&self) -> Geometry {
        let unit = self.sparse().map(|sparse| sparse.grain).max().unwrap_or(FLAT_UNIT);
        let streams = self.first_sparse().filter(|sparse| sparse.compressed);
        Geometry {
            size: self.size,
            unit,
            zero_unit: unit,
            compression: streams.map(|sparse| Compression { codec: Codec::Zlib, unit: sparse.grain }),
        }
    }

    fn storages(&self) -> &[Arc<dyn Storage>] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let extent = self.extent(offset)?;
        let within = offset - extent.start;
        let len = len.min(extent.len - within);
        match &extent.part {
            Part::Zero => Ok(Extent { mapping: Mapping::Zero(None), len }),
            Part::Flat(id, start) => {
                Ok(Extent { mapping: Mapping::Data(Place::plain(*id, start + within)), len })
            }
            Part::Sparse(id, sparse) => self.map_sparse(extent, *id, sparse, within, len),
        }
    }

    fn holes(&self, offset: u64) -> Holes {
        let is_flat = self.extent(offset).is_ok_and(|extent| matches!(extent.part, Part::Flat(..)));
        if is_flat { Holes::Zeroes } else { Holes::Rare }
    }

    fn backing(&self) -> Option<BackingRef> {
        self.backing.clone()
    }

    fn identity(&self) -> Option<String> {
        Some(format!("{:08x}", self.cid.load(Ordering::Acquire)))
    }

    fn parent_identities(&self) -> Vec<String> {
        self.descriptor.parent_cid.map(|cid| format!("{cid:08x}")).into_iter().collect()
    }

    fn write(&self) -> Option<&dyn FormatWrite> {
        self.writable.then_some(self)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn close(&self) -> Result<()> {
        match self.writable {
            true => self.flush_all(),
            false => Ok(()),
        }
    }

    fn info(&self) -> Result<ImageInfo> {
        let extents = self.extents.iter().map(|extent| self.extent_info(extent)).collect();
        let allocated: Option<u64> = self.storages.iter().map(|storage| storage.info().allocated).sum();
        Ok(ImageInfo {
            format: "vmdk".into(),
            filename: self.name.clone(),
            virtual_size: self.size,
            actual_size: allocated,
            cluster_size: self.first_sparse().map(|sparse| sparse.grain),
            backing: self.backing.clone(),
            specific: vec![
                ("cid".into(), u64::from(self.descriptor.cid).into()),
                ("parent-cid".into(), u64::from(self.descriptor.parent_cid.unwrap_or(NO_PARENT)).into()),
                ("create-type".into(), self.descriptor.create_type.as_str().into()),
                ("extents".into(), InfoValue::List(extents)),
            ],
            specific_type: "vmdk".into(),
            ..ImageInfo::default()
        })
    }

    fn check(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        self.check_all(repair, task)
    }
}
