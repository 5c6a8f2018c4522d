//! Writing: in place where the format has a place, else into a new one that is made reachable afterwards.

use super::codec::compress;
use super::range_lock::RangeGuard;
use super::{Node, bounce};
use crate::io::slice_srcs;
use crate::{Error, FormatWrite, IoSrc, Mapping, Prepare, Prepared, Result, StorageExt, Token};

/// Bytes that one allocating write has alone at a time.
const SPAN: u64 = 8 << 20;
/// Bytes that are copied at once where data must not change under us.
const BOUNCE: u64 = 1 << 20;
/// The grain in which zeroes are looked for.
const ZERO_GRAIN: u64 = 4096;
static ZEROES: [u8; 65536] = [0; 65536];

impl Node {
    /// Has all units of a range alone.
    fn units_alone(&self, start: u64, end: u64) -> RangeGuard<'_> {
        let unit = self.format.geometry().unit.max(1);
        self.locks.exclusive(start - start % unit, end.div_ceil(unit).saturating_mul(unit))
    }

    /// Writes a range of the disk.
    pub(super) fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        self.range("write", offset, IoSrc::total(srcs))?;
        self.write_range(offset, srcs)
    }

    /// Writes a range that may lie behind the disk's end (VM state).
    pub(super) fn write_range(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        let writer = self.writer("write")?;
        let len = IoSrc::total(srcs);
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            at = self.write_in_place(writer, offset, at, end, srcs)?;
            if at < end {
                at = self.write_allocating(writer, offset, at, end, srcs)?;
            }
        }
        Ok(())
    }

    /// Writes what has a place, from `at` on; how far it came.
    fn write_in_place(
        &self,
        writer: &dyn FormatWrite,
        offset: u64,
        mut at: u64,
        end: u64,
        srcs: &[IoSrc<'_>],
    ) -> Result<u64> {
        if self.format.cipher().is_some_and(|cipher| !at.is_multiple_of(cipher.sector_size())) {
            // Part of a sector: what is around it must not change meanwhile.
            return Ok(at);
        }
        let _shared = self.locks.shared(at, end);
        while at < end {
            let Some(prepared) = writer.prepare(at, end - at, Prepare::InPlace)? else { break };
            let len = prepared.len.min(end - at);
            if len == 0 {
                return Err(Error::corrupt("a place of no length"));
            }
            if let Some(cipher) = self.format.cipher().filter(|_| prepared.place.sector.is_some()) {
                let whole = len - len % cipher.sector_size();
                if whole == 0 {
                    break;
                }
                self.put(&prepared, &slice_srcs(srcs, at - offset, whole))?;
                at += whole;
            } else if at == offset && len == end - at {
                self.put(&prepared, srcs)?;
                at += len;
            } else {
                self.put(&prepared, &slice_srcs(srcs, at - offset, len))?;
                at += len;
            }
        }
        Ok(at)
    }

    /// Writes what needs a new place, from `at` on, with the units to itself; how far it came.
    fn write_allocating(
        &self,
        writer: &dyn FormatWrite,
        offset: u64,
        mut at: u64,
        end: u64,
        srcs: &[IoSrc<'_>],
    ) -> Result<u64> {
        let unit = self.format.geometry().unit.max(1);
        let start = at - at % unit;
        let until = end.min(start.saturating_add(SPAN.max(unit)));
        let _alone = self.units_alone(start, until);
        while at < until {
            at = self.write_place(writer, offset, at, until, srcs)?;
        }
        Ok(at)
    }

    /// Writes one place, from `at` on, for which the caller has the units to itself; how far it came. `srcs` begin at
    /// `offset`.
    fn write_place(
        &self,
        writer: &dyn FormatWrite,
        offset: u64,
        at: u64,
        until: u64,
        srcs: &[IoSrc<'_>],
    ) -> Result<u64> {
        let prepared = writer.prepare(at, until - at, Prepare::Allocate)?;
        let mut prepared = prepared.ok_or_else(|| Error::corrupt("no place for a write"))?;
        let len = prepared.len.min(until - at);
        if len == 0 {
            return Err(Error::corrupt("a place of no length"));
        }
        let token = prepared.token.take();
        let written = self.fill(at, len, &prepared, &slice_srcs(srcs, at - offset, len));
        settle(writer, token, written)?;
        Ok(at + len)
    }

    /// Writes data and what the new place has around it.
    fn fill(&self, at: u64, len: u64, prepared: &Prepared, srcs: &[IoSrc<'_>]) -> Result<()> {
        let (mut before_len, mut after_len) = (prepared.before, prepared.after);
        if let (Some(_), Some(cipher)) = (prepared.place.sector, self.format.cipher()) {
            // A place in use whose first or last sector is written in part: the rest of the sector is written again.
            let size = cipher.sector_size();
            before_len += (at - before_len) % size;
            after_len += (at + len + after_len).next_multiple_of(size) - (at + len + after_len);
        }
        if before_len == 0 && after_len == 0 {
            return self.put(prepared, srcs);
        }
        let before = self.copy_locked(at - before_len, before_len)?;
        let after = self.copy_behind(at + len, after_len)?;
        let mut all = Vec::with_capacity(srcs.len() + 2);
        all.extend((!before.is_empty()).then(|| IoSrc::new(&before)));
        all.extend_from_slice(srcs);
        all.extend((!after.is_empty()).then(|| IoSrc::new(&after)));
        let mut place = prepared.place;
        let start = place
            .offset
            .checked_sub(before_len)
            .ok_or_else(|| Error::corrupt("a place that begins before its file"))?;
        if let (Some(sector), Some(cipher)) = (place.sector, self.format.cipher()) {
            // `sector` is the one that the first byte of the data lies in; the file's and the disk's sectors coincide.
            let size = cipher.sector_size();
            place.sector = Some(sector.wrapping_sub(place.offset / size - start / size));
        }
        place.offset = start;
        self.put(&Prepared { place, len: 0, before: 0, after: 0, token: None }, &all)
    }

    /// What the disk has behind a write; zeroes behind its end.
    fn copy_behind(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let size = self.format.geometry().size;
        if at >= size || at.saturating_add(len) <= size {
            return self.copy_locked(at, len);
        }
        let mut bytes = self.copy_locked(at, size - at)?;
        bytes.resize(len as usize, 0);
        Ok(bytes)
    }

    /// Writes to a place, encrypted where it is to be.
    fn put(&self, prepared: &Prepared, srcs: &[IoSrc<'_>]) -> Result<()> {
        let place = prepared.place;
        let storage = self.storage(place.storage)?;
        let Some(mut sector) = place.sector else { return storage.writev(place.offset, srcs) };
        let cipher = self.format.cipher().ok_or_else(|| Error::NeedsSecret(self.name.clone()))?;
        let size = cipher.sector_size();
        let len = IoSrc::total(srcs);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(bounce::BOUNCE);
            if !part.is_multiple_of(size) {
                return Err(Error::Refused(format!("encrypted data is written in sectors of {size} bytes")));
            }
            bounce::with_bounce(part, |bytes| {
                gather_to(&slice_srcs(srcs, done, part), bytes);
                cipher.encrypt(sector, bytes);
                storage.write_at(place.offset + done, bytes)
            })?;
            sector = sector.wrapping_add(part / size);
            done += part;
        }
        Ok(())
    }

    /// Writes, with runs of zeroes as such.
    pub(super) fn writev_detecting(&self, offset: u64, srcs: &[IoSrc<'_>], unmap: bool) -> Result<()> {
        let len = IoSrc::total(srcs);
        self.range("write", offset, len)?;
        let grain = self.format.geometry().zero_unit.max(ZERO_GRAIN);
        let mut done = 0;
        while done < len {
            // What is looked at is what is written: others may change the buffers meanwhile.
            let at = offset + done;
            let part = (BOUNCE - at % grain.min(BOUNCE)).min(len - done);
            let bytes = gather(&slice_srcs(srcs, done, part));
            let mut start = 0;
            while start < bytes.len() {
                let (zero, run) = zero_run(&bytes[start..], at + start as u64, grain);
                if zero {
                    self.write_zeroes(at + start as u64, run as u64, unmap)?;
                } else {
                    self.write_range(at + start as u64, &[IoSrc::new(&bytes[start..start + run])])?;
                }
                start += run;
            }
            done += part;
        }
        Ok(())
    }

    /// Writes one unit compressed.
    pub(super) fn write_compressed(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.range("compressed write", offset, bytes.len() as u64)?;
        let writer = self.writer("write")?;
        let geometry = self.format.geometry();
        let compression = geometry
            .compression
            .ok_or_else(|| Error::Unsupported(format!("format '{}' has no compression", self.format_name)))?;
        let whole =
            bytes.len() as u64 == compression.unit || end == geometry.size && end - offset < compression.unit;
        if bytes.is_empty() || !offset.is_multiple_of(compression.unit) || !whole {
            return Err(Error::option("compressed writes are of whole clusters"));
        }
        if is_zero(bytes) {
            return self.write_zeroes(offset, bytes.len() as u64, true);
        }
        let mut unit = std::borrow::Cow::Borrowed(bytes);
        if (unit.len() as u64) < compression.unit {
            unit.to_mut().resize(compression.unit as usize, 0);
        }
        let Some(packed) = compress(compression.codec, &unit)? else {
            return self.write_range(offset, &[IoSrc::new(bytes)]);
        };
        let alone = self.locks.exclusive(offset, offset + compression.unit);
        let how = Prepare::Compressed { len: packed.len() as u64 };
        let Some(prepared) = writer.prepare(offset, bytes.len() as u64, how)? else {
            drop(alone);
            return self.write_range(offset, &[IoSrc::new(bytes)]);
        };
        let written = self.storage(prepared.place.storage)?.write_at(prepared.place.offset, &packed);
        settle(writer, prepared.token, written)
    }

    /// Makes a range read as zeroes.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = self.range("write", offset, len)?;
        let writer = self.writer("write")?;
        let geometry = self.format.geometry();
        let unit = geometry.zero_unit.max(1);
        let first = offset.next_multiple_of(unit).min(end);
        let last = if end == geometry.size { end } else { (end - end % unit).max(first) };
        self.zero_part(offset, first)?;
        let mut at = first;
        while at < last {
            let until = last.min(at.saturating_add(1 << 40));
            let alone = self.units_alone(at, until);
            let done = writer.zero(at, until - at, unmap)?.min(until - at);
            drop(alone);
            at += done;
            if done == 0 {
                self.zero_bytes(at, last, unmap)?;
                at = last;
            }
        }
        self.zero_part(last, end)
    }

    /// Zeroes less than a unit: written, where they are not there already.
    fn zero_part(&self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let status = self.block_status(at, end - at)?;
            if !status.zero {
                self.zero_data(at, at + status.len)?;
            }
            at += status.len.max(1);
        }
        Ok(())
    }

    /// Zeroes that the format has no mapping for: by the storage where the place is in use, else written.
    fn zero_bytes(&self, start: u64, end: u64, unmap: bool) -> Result<()> {
        let mut at = start;
        while at < end {
            let mut done = 0;
            {
                let shared = self.locks.shared(at, end);
                let extent = self.format.map(at, end - at)?;
                let in_place = matches!(extent.mapping, Mapping::Data(place) if place.sector.is_none());
                if in_place
                    && let Some(prepared) = self.writer("write")?.prepare(at, extent.len, Prepare::InPlace)?
                {
                    done = prepared.len.min(extent.len);
                    self.storage(prepared.place.storage)?.write_zeroes(prepared.place.offset, done, unmap)?;
                } else if matches!(extent.mapping, Mapping::Zero(_))
                    || extent.mapping == Mapping::Backing && self.backing().is_none()
                {
                    done = extent.len;
                }
                drop(shared);
            }
            if done == 0 {
                let part = (end - at).min(ZEROES.len() as u64);
                self.zero_data(at, at + part)?;
                done = part;
            }
            at += done;
        }
        Ok(())
    }

    fn zero_data(&self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let part = (end - at).min(ZEROES.len() as u64);
            self.write_range(at, &[IoSrc::new(&ZEROES[..part as usize])])?;
            at += part;
        }
        Ok(())
    }

    /// Gives whole units of a range back.
    pub(super) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.range("discard", offset, len)?;
        let writer = self.writer("discard")?;
        let geometry = self.format.geometry();
        let unit = geometry.zero_unit.max(1);
        let first = offset.next_multiple_of(unit);
        let last = if end == geometry.size { end } else { end - end % unit };
        if first >= last {
            return Ok(());
        }
        let _alone = self.units_alone(first, last);
        writer.discard(first, last - first)
    }

    /// A disk that has grown shows zeroes: not what its last unit held, nor what a longer backing node has there.
    pub(super) fn clear_new_end(&self, old: u64, new: u64) -> Result<()> {
        let unit = self.format.geometry().unit.max(1);
        let behind = self.backing().map_or(0, |backing| backing.format.geometry().size);
        let until = old.next_multiple_of(unit).max(behind).min(new);
        let writer = self.writer("resize")?;
        let zero_unit = self.format.geometry().zero_unit.max(1);
        let mut at = old;
        while at < until {
            let extent = self.format.map(at, until - at)?;
            let zero = matches!(extent.mapping, Mapping::Zero(_))
                || extent.mapping == Mapping::Backing && at >= behind;
            if zero {
                at += extent.len;
                continue;
            }
            let whole = at.is_multiple_of(zero_unit);
            let done = if whole {
                writer.zero(at, until.next_multiple_of(zero_unit).min(new) - at, false)?
            } else {
                0
            };
            if done > 0 {
                at += done;
                continue;
            }
            let part = (zero_unit - at % zero_unit).min(until - at).min(ZEROES.len() as u64);
            at = self.write_place(writer, at, at, at + part, &[IoSrc::new(&ZEROES[..part as usize])])?;
        }
        Ok(())
    }
}

/// Commits what was written to a place, or gives the place back.
fn settle(writer: &dyn FormatWrite, token: Option<Token>, written: Result<()>) -> Result<()> {
    match (written, token) {
        (Ok(()), Some(token)) => writer.commit(token),
        (Err(error), Some(token)) => {
            writer.abort(token);
            Err(error)
        }
        (written, None) => written,
    }
}

fn gather_to(srcs: &[IoSrc<'_>], bytes: &mut [u8]) {
    let mut at = 0;
    for src in srcs {
        src.copy_to(&mut bytes[at..]);
        at += src.len();
    }
}

fn gather(srcs: &[IoSrc<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; IoSrc::total(srcs) as usize];
    gather_to(srcs, &mut bytes);
    bytes
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // By the piece, so that the compiler looks at many bytes at once.
    let (pieces, rest) = bytes.as_chunks::<32>();
    pieces.iter().all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

/// The run at the start of `bytes`, which lie at `at`: whether it is zeroes, and its length in bytes.
fn zero_run(bytes: &[u8], at: u64, grain: u64) -> (bool, usize) {
    let step = |start: usize| {
        let to_next = grain - (at + start as u64) % grain;
        usize::try_from(to_next).unwrap_or(usize::MAX).min(bytes.len() - start)
    };
    let first = step(0);
    let zero = is_zero(&bytes[..first]);
    let mut end = first;
    while end < bytes.len() {
        let next = step(end);
        if is_zero(&bytes[end..end + next]) != zero {
            break;
        }
        end += next;
    }
    (zero, end)
}
