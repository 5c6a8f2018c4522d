//! Writing: new grains go to the end of their extent's file, and their entries are written when they are durable.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use umbra_block::{
    BackingRef, Error, Extent, Format, FormatWrite, Mapping, Options, Place, Prepare, Prepared, Result,
    StorageExt, StorageId, Task, Token,
};

use super::descriptor::Descriptor;
use super::sparse::{MARKER, SECTOR, Sparse};
use super::{DiskExtent, Image, Part};
use crate::common::{Unit, hold, in_place, pending, random_uuid, unsupported};

/// Grains that one request gets in a row: 4 MiB of the usual ones.
const GRAINS_AT_ONCE: u64 = 64;

/// Grains that wait for their data.
struct Pending {
    /// A byte of the disk in the first of them.
    offset: u64,
    grain: u64,
    count: u64,
    /// Where the first is in its file.
    start: u64,
    /// Length of the compressed data.
    compressed: Option<u64>,
}

impl Image {
    pub(super) fn flush_all(&self) -> Result<()> {
        let _order = hold(&self.flushing);
        for sparse in self.sparse().filter(|sparse| sparse.grains.is_changed()) {
            // Grains whose end was never written are whole all the same.
            let end = *hold(&sparse.end);
            if !sparse.storage.info().fixed_len && sparse.storage.len()? < end {
                sparse.storage.set_len(end)?;
            }
            sparse.storage.flush()?;
            sparse.grains.write_back()?;
        }
        self.storages.iter().try_for_each(|storage| storage.flush())
    }

    /// Gives the image another identity, once, before its first change.
    fn change_identity(&self) -> Result<()> {
        if self.changed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let id = random_uuid()?;
        let cid = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
        self.put_identity("CID", cid)?;
        self.cid.store(cid, Ordering::Release);
        Ok(())
    }

    /// Writes an identity into the descriptor.
    fn put_identity(&self, key: &str, cid: u32) -> Result<()> {
        let (id, offset, len) = self.descriptor_place;
        let storage =
            self.storages.get(id.0).ok_or_else(|| Error::corrupt("the descriptor's file is not open"))?;
        // The length has been checked against the descriptor's limit.
        let bytes = storage.read_vec(offset, len as usize)?;
        let text = String::from_utf8_lossy(&bytes);
        match Descriptor::with_cid(&text, key, cid) {
            // An identity of another length would move what follows.
            Some(text) if text.len() as u64 == len => storage.write_at(offset, text.as_bytes()),
            _ => Ok(()),
        }
    }

    /// Makes the table of a grain where it is not there. The guard, because two grains may want the same table, is that
    /// of the file's end.
    fn with_table(sparse: &Sparse, grain: u64) -> Result<MutexGuard<'_, u64>> {
        let mut end = hold(&sparse.end);
        if sparse.grains.get(grain)?.is_none() {
            sparse.grains.add_table(grain, *end)?;
            *end += sparse.grains.room();
        }
        Ok(end)
    }

    /// Takes room for grains at the end of the file, and for their table where it is not there.
    fn allocate(sparse: &Sparse, grain: u64, len: u64) -> Result<u64> {
        let mut end = Self::with_table(sparse, grain)?;
        let start = *end;
        if (start + len) / SECTOR > u64::from(u32::MAX) {
            return Err(Error::Refused(
                "an extent of a VMDK image ends at 2 TiB; convert it to another format".into(),
            ));
        }
        *end = (start + len).next_multiple_of(SECTOR);
        Ok(start)
    }

    fn prepare_plain(
        &self,
        extent: &DiskExtent,
        id: StorageId,
        sparse: &Sparse,
        offset: u64,
        len: u64,
    ) -> Result<Prepared> {
        if sparse.compressed {
            return unsupported(
                "a streamOptimized image takes whole compressed grains only; convert it (convert -c)",
            );
        }
        let inside = offset - extent.start;
        let (grain, within) = (inside / sparse.grain, inside % sparse.grain);
        // Grains of one table that are not there.
        let in_table = sparse.grains.next_table(grain) - grain;
        let wanted = (within + len).div_ceil(sparse.grain).min(GRAINS_AT_ONCE).min(in_table);
        let mut count = 1;
        while count < wanted && !matches!(sparse.look(grain + count)?, Unit::At(_)) {
            count += 1;
        }
        let room = count * sparse.grain;
        let start = Self::allocate(sparse, grain, room)?;
        let len = len.min(room - within);
        // What lies behind the end of a file reads as zeroes, and so does a grain that is put there. It has to be filled
        // where something shows through, and on a device.
        let fill = self.backing.is_some() || sparse.storage.info().fixed_len;
        let end_of_extent = extent.len - inside;
        let after = (room - within - len).min(end_of_extent.saturating_sub(len));
        let token = Pending { offset, grain, count, start, compressed: None };
        Ok(Prepared {
            len,
            place: Place::plain(id, start + within),
            before: if fill { within } else { 0 },
            after: if fill { after } else { 0 },
            token: Some(Box::new(token)),
        })
    }

    fn prepare_compressed(&self, offset: u64, len: u64, packed: u64) -> Result<Option<Prepared>> {
        let extent = self.extent(offset)?;
        let Part::Sparse(id, sparse) = &extent.part else { return Ok(None) };
        if !sparse.compressed {
            return Ok(None);
        }
        let grain = (offset - extent.start) / sparse.grain;
        let start = Self::allocate(sparse, grain, MARKER + packed)?;
        let token = Pending { offset, grain, count: 1, start, compressed: Some(packed) };
        let place = Place::plain(*id, start + MARKER);
        Ok(Some(Prepared { len, place, before: 0, after: 0, token: Some(Box::new(token)) }))
    }
}

impl FormatWrite for Image {
    fn prepare(&self, offset: u64, len: u64, how: Prepare) -> Result<Option<Prepared>> {
        self.change_identity()?;
        if let Prepare::Compressed { len: packed } = how {
            return self.prepare_compressed(offset, len, packed);
        }
        if let Extent { mapping: Mapping::Data(place), len } = self.map(offset, len)? {
            return Ok(Some(in_place(place, len)));
        }
        if how == Prepare::InPlace {
            return Ok(None);
        }
        let extent = self.extent(offset)?;
        match &extent.part {
            Part::Sparse(id, sparse) => {
                let len = len.min(extent.start + extent.len - offset);
                self.prepare_plain(extent, *id, sparse, offset, len).map(Some)
            }
            Part::Zero => unsupported("writing to an extent of zeroes"),
            Part::Flat(..) => Err(Error::corrupt("a flat extent without a place")),
        }
    }

    fn commit(&self, token: Token) -> Result<()> {
        let pending: Pending = pending(token)?;
        let extent = self.extent(pending.offset)?;
        let Part::Sparse(_, sparse) = &extent.part else {
            return Err(Error::corrupt("a grain of a flat extent"));
        };
        if let Some(len) = pending.compressed {
            // The marker: which sector of the disk, and how many bytes follow.
            let mut marker = [0; MARKER as usize];
            let sector = (extent.start + pending.grain * sparse.grain) / SECTOR;
            marker[..8].copy_from_slice(&sector.to_le_bytes());
            marker[8..].copy_from_slice(&(len as u32).to_le_bytes());
            sparse.storage.write_at(pending.start, &marker)?;
        }
        {
            // A flush writes only entries of what it has made durable.
            let _order = hold(&self.flushing);
            for index in 0..pending.count {
                // Below 2^32, as `allocate` has seen.
                let sector = ((pending.start + index * sparse.grain) / SECTOR) as u32;
                sparse.grains.set(pending.grain + index, sector)?;
            }
        }
        if sparse.grains.is_full() { self.flush_all() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64> {
        let extent = self.extent(offset)?;
        let Part::Sparse(_, sparse) = &extent.part else { return Ok(0) };
        self.change_identity()?;
        let inside = offset - extent.start;
        let (mut done, len) = (0, len.min(extent.len - inside));
        while done < len {
            let grain = (inside + done) / sparse.grain;
            match sparse.look(grain)? {
                Unit::Zero => {}
                Unit::Absent if self.backing.is_none() => {}
                _ if sparse.zeroed && sparse.writable => {
                    drop(Self::with_table(sparse, grain)?);
                    sparse.grains.set(grain, 1)?;
                }
                _ => break,
            }
            done += sparse.grain - (inside + done) % sparse.grain;
        }
        if sparse.grains.is_full() {
            self.flush_all()?;
        }
        Ok(done.min(len))
    }

    fn follow_parent(&self, identity: &str) -> Result<()> {
        let cid = u32::from_str_radix(identity, 16);
        let cid = cid.map_err(|_| Error::option(format!("'{identity}' is no identity of a VMDK image")))?;
        self.put_identity("parentCID", cid)
    }

    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        unsupported("the parent of a VMDK image cannot be changed")
    }

    fn amend(&self, _options: &Options, _task: &Task<'_>) -> Result<()> {
        unsupported("Format driver 'vmdk' does not support option amendment")
    }
}
