//! Commit and rebase. The order keeps everything safe: what shall keep the data has it, durably, before the other image loses
//! anything, so that a job which is interrupted leaves the same content and can be done again.

use super::copy::{Copy, CopySource};
use crate::disk::is_zero;
use crate::{Disk, Preallocation, Result, Task};

/// Bytes that are compared at once.
const PIECE: u64 = 512 << 10;
/// The least run of bytes that is compared, and written, as one.
const UNIT_MIN: u64 = 4096;

/// Writes what the `depth` images at the top of a chain have into the image below them, `base`, which is open for writing.
/// It is made larger where it is smaller, and is durable afterwards. The images at the top stay as they are.
///
/// # Errors
/// Those of [`Copy::run`]; a base that cannot grow.
pub fn commit(top: &Disk, base: &Disk, depth: usize, rate: Option<u64>, task: &Task<'_>) -> Result<()> {
    if base.size() < top.size() {
        base.resize(top.size(), Preallocation::Off, false, task)?;
    }
    let copy = Copy {
        sources: vec![CopySource { disk: top, start: 0, len: top.size() }],
        target: base,
        target_start: 0,
        target_is_zero: false,
        from_top: Some(depth),
        compress: false,
        sparse: UNIT_MIN,
        threads: None,
        rate,
        salvage: None,
    };
    copy.run(task)?;
    base.flush()?;
    // What is just above the base shows what it did, or is given up.
    let above = (1..depth).try_fold(Disk::over(top.node()), |disk, _| disk.backing());
    if let (Some(above), Some(identity)) = (above, base.node().format().identity())
        && let Some(write) = above.node().format().write()
    {
        write.follow_parent(&identity)?;
    }
    Ok(())
}

/// Copies into an overlay what it has by its backing disk and would have differently by `new`, or by none. It keeps its
/// content then when its backing file is changed to that. It is durable afterwards.
///
/// # Errors
/// Those of reading and writing; [`crate::Error::Cancelled`].
pub fn copy_differences(disk: &Disk, new: Option<&Disk>, compress: bool, task: &Task<'_>) -> Result<()> {
    let geometry = disk.geometry();
    let size = geometry.size;
    // What is written is written in whole units, because a unit that is begun is the overlay's.
    let unit = match geometry.compression {
        Some(compression) if compress => compression.unit,
        _ => geometry.zero_unit.max(1),
    };
    let chunk = if compress { unit } else { unit.max(UNIT_MIN) };
    let piece = chunk.max(PIECE);
    let whole = |at: u64, len: u64| if at + len >= size { size - at } else { len - len % unit };
    // Whatever becomes of zeroes that a guest writes, these must be written.
    let own = Disk::over(disk.node());
    let mut buffers = [vec![0; piece as usize], vec![0; piece as usize]];
    let mut at = 0;
    while at < size {
        task.at(at, size)?;
        let (allocated, len) = disk.is_allocated(at, size - at)?;
        // A unit to be compressed may be the overlay's in part: it is written as a whole then.
        let known = match allocated {
            true => whole(at, len),
            false => whole(at, both_zero(disk, new, at, len)?),
        };
        if known > 0 {
            at += known;
            continue;
        }
        let len = len.next_multiple_of(unit).min(piece).min(size - at);
        let [old, other] = &mut buffers;
        let (old, other) = (&mut old[..len as usize], &mut other[..len as usize]);
        disk.read(at, old)?;
        read_or_zero(new, at, other)?;
        for (old, other) in old.chunks(chunk as usize).zip(other.chunks(chunk as usize)) {
            if old != other {
                put(&own, at, old, compress)?;
            }
            at += old.len() as u64;
        }
    }
    task.at(size, size)?;
    disk.flush()
}

/// Makes the overlay itself have bytes. Zeroes that it shows already are not its own yet.
fn put(disk: &Disk, at: u64, bytes: &[u8], compress: bool) -> Result<()> {
    if is_zero(bytes) {
        let len = bytes.len() as u64;
        disk.write_zeroes(at, len, true)?;
        if disk.is_allocated(at, len)? == (true, len) {
            return Ok(());
        }
        return disk.write(at, bytes);
    }
    match compress {
        true => disk.write_compressed(at, bytes),
        false => disk.write(at, bytes),
    }
}

/// How many bytes read as zeroes with either base.
fn both_zero(disk: &Disk, new: Option<&Disk>, at: u64, len: u64) -> Result<u64> {
    let old = disk.block_status(at, len)?;
    if !old.zero {
        return Ok(0);
    }
    let Some(new) = new.filter(|new| at < new.size()) else { return Ok(old.len) };
    let status = new.block_status(at, old.len.min(new.size() - at))?;
    Ok(if status.zero { status.len } else { 0 })
}

/// Reads a base, which may end before.
fn read_or_zero(disk: Option<&Disk>, at: u64, bytes: &mut [u8]) -> Result<()> {
    let have = disk.map_or(0, |disk| disk.size().saturating_sub(at)).min(bytes.len() as u64) as usize;
    if let Some(disk) = disk.filter(|_| have > 0) {
        disk.read(at, &mut bytes[..have])?;
    }
    bytes[have..].fill(0);
    Ok(())
}
