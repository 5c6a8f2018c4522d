//! Reading: through the chain, whatever the mapping.

use super::Node;
use super::bounce::{BOUNCE, with_bounce};
use super::codec::decompress;
use crate::io::slice_bufs;
use crate::{Codec, Error, Extent, IoBuf, Mapping, Place, Result, Storage, StorageExt, StorageId};

/// The greatest unit that is decompressed, and of its compressed form: qcow2's clusters are at most 2 MiB.
const UNIT_MAX: u64 = 4 << 20;

impl Node {
    pub(super) fn storage(&self, id: StorageId) -> Result<&dyn Storage> {
        let storage = self.format.storages().get(id.0);
        storage.map(|storage| &**storage).ok_or_else(|| Error::corrupt("a mapping into no file"))
    }

    /// Reads a range of the disk.
    pub(super) fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let len = IoBuf::total(bufs);
        let end = self.range("read", offset, len)?;
        let _shared = self.locks.shared(offset, end);
        self.read_locked(offset, bufs)
    }

    /// Reads a range that the caller holds; it may lie behind the disk's end where the format maps that (VM state).
    pub(super) fn read_locked(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let len = IoBuf::total(bufs);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let extent = self.format.map(at, len - done)?;
            if extent.len == 0 || extent.len > len - done {
                return Err(Error::corrupt("a mapping of no length"));
            }
            if extent.len == len {
                return self.read_extent(at, &extent, bufs);
            }
            self.read_extent(at, &extent, &slice_bufs(bufs, done, extent.len))?;
            done += extent.len;
        }
        Ok(())
    }

    fn read_extent(&self, at: u64, extent: &Extent, bufs: &[IoBuf<'_>]) -> Result<()> {
        match extent.mapping {
            Mapping::Data(place) => match place.sector {
                None => self.storage(place.storage)?.readv(place.offset, bufs),
                Some(sector) => self.read_encrypted(place, sector, bufs),
            },
            Mapping::Zero(_) => {
                bufs.iter().for_each(IoBuf::zero);
                Ok(())
            }
            Mapping::Compressed { storage, offset, compressed_len, codec, unit_start, unit_len } => {
                let unit = self.read_unit(storage, offset, compressed_len, codec, unit_len)?;
                let from = at.checked_sub(unit_start).and_then(|start| usize::try_from(start).ok());
                let range = from.and_then(|from| unit.get(from..from.checked_add(extent.len as usize)?));
                let range =
                    range.ok_or_else(|| Error::corrupt("a compressed unit that does not hold its range"))?;
                scatter(range, bufs);
                Ok(())
            }
            Mapping::Backing => self.read_backing(at, extent.len, bufs),
        }
    }

    /// From the node behind; zeroes behind its end.
    fn read_backing(&self, at: u64, len: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let Some(backing) = self.backing().filter(|_| at < self.format.geometry().size) else {
            bufs.iter().for_each(IoBuf::zero);
            return Ok(());
        };
        let have = backing.format.geometry().size.saturating_sub(at).min(len);
        if have == len {
            return backing.readv(at, bufs);
        }
        slice_bufs(bufs, have, len).iter().for_each(IoBuf::zero);
        if have > 0 { backing.readv(at, &slice_bufs(bufs, 0, have)) } else { Ok(()) }
    }

    fn read_encrypted(&self, place: Place, sector: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        let cipher = self.format.cipher().ok_or_else(|| Error::NeedsSecret(self.name.clone()))?;
        let size = cipher.sector_size();
        let storage = self.storage(place.storage)?;
        let len = IoBuf::total(bufs);
        // The first byte may lie within a sector: `sector` is the one that it is in.
        let mut skip = place.offset % size;
        let mut at = place.offset - skip;
        let (mut sector, mut done) = (sector, 0);
        while done < len {
            let span = (len - done + skip).next_multiple_of(size).min(BOUNCE);
            let take = (span - skip).min(len - done);
            with_bounce(span, |bytes| {
                storage.read_at(at, bytes)?;
                cipher.decrypt(sector, bytes);
                scatter(&bytes[skip as usize..(skip + take) as usize], &slice_bufs(bufs, done, take));
                Ok::<_, Error>(())
            })?;
            at += span;
            sector = sector.wrapping_add(span / size);
            done += take;
            skip = 0;
        }
        Ok(())
    }

    /// A compressed unit, whole.
    fn read_unit(
        &self,
        storage: StorageId,
        offset: u64,
        compressed_len: u64,
        codec: Codec,
        unit_len: u64,
    ) -> Result<Vec<u8>> {
        for (what, value) in [("compressed unit", unit_len), ("compressed data", compressed_len)] {
            if value > UNIT_MAX {
                return Err(Error::TooLarge { what: what.to_owned(), value, limit: UNIT_MAX });
            }
        }
        let data = self.storage(storage)?.read_vec(offset, compressed_len as usize)?;
        let mut unit = vec![0; unit_len as usize];
        decompress(codec, &data, &mut unit)?;
        Ok(unit)
    }

    /// A copy of a range that the caller holds.
    pub(super) fn copy_locked(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.read_locked(offset, &[IoBuf::new(&mut bytes)])?;
        Ok(bytes)
    }

    fn vm_state_at(&self, offset: u64, len: u64) -> Result<u64> {
        let snapshots = self.format.snapshots();
        let base = snapshots.map(|snapshots| snapshots.vm_state_offset());
        let base = base
            .ok_or_else(|| Error::Unsupported(format!("format '{}' keeps no VM state", self.format_name)))?;
        let at = base.checked_add(offset).filter(|at| at.checked_add(len).is_some());
        at.ok_or(Error::OutOfRange { what: "VM state", offset, len, size: u64::MAX - base })
    }

    pub(super) fn read_vm_state(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let at = self.vm_state_at(offset, bytes.len() as u64)?;
        let _shared = self.locks.shared(at, at + bytes.len() as u64);
        self.read_locked(at, &[IoBuf::new(bytes)])
    }

    pub(super) fn write_vm_state(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = self.vm_state_at(offset, bytes.len() as u64)?;
        self.write_range(at, &[crate::IoSrc::new(bytes)])
    }
}

/// Copies bytes into a list of buffers.
fn scatter(mut bytes: &[u8], bufs: &[IoBuf<'_>]) {
    for buf in bufs {
        buf.copy_from(bytes);
        bytes = &bytes[buf.len().min(bytes.len())..];
    }
}
