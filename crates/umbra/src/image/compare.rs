//! `compare`: whether two disks have the same content.

use std::sync::atomic::{AtomicU64, Ordering};

use umbra_block::{BlockStatus, Disk, Task};

use super::copy::is_zero;
use super::failure::{Failure, Outcome, told};
use super::getopt::Parsed;
use super::open::{Cache, Want};
use super::{Tool, print};

const DIFFER: u8 = 1;
const CANNOT_OPEN: u8 = 2;
const CANNOT_MAP: u8 = 3;
const CANNOT_READ: u8 = 4;
/// Bytes that are compared at once.
const PIECE: u64 = 256 << 10;
const SECTOR: usize = 512;
/// Threads that compare at most.
const THREADS_MAX: usize = 8;

/// What came out.
enum Verdict {
    Same,
    /// With what is to be said of it.
    Differ(String, Where),
}

/// Where a difference is.
enum Where {
    /// Where both have something.
    Common,
    /// Where one has ended.
    Behind,
}

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let [first, second] = parsed.operands.as_slice() else {
        return Err(Failure::usage("Expecting two image file names"));
    };
    let cache =
        Cache::parse(parsed.last("cache"), "source cache option").map_err(|e| e.with_code(CANNOT_OPEN))?;
    if parsed.has("image-opts") && (parsed.has("a-format") || parsed.has("b-format")) {
        let exclusive = Failure::new("--image-opts and --format are mutually exclusive");
        return Err(exclusive.with_code(CANNOT_OPEN));
    }
    let open = |name, format| -> Outcome<Disk> {
        let want = Want { format, cache, ..Want::new(parsed, name)? };
        tool.open(&want).map_err(|failure| failure.with_code(CANNOT_OPEN))
    };
    let first = open(first, parsed.last("a-format"))?;
    let second = open(second, parsed.last("b-format"))?;
    let (quiet, strict) = (parsed.has("quiet"), parsed.has("strict"));
    let say = |text: &str| {
        if !quiet {
            print(text);
        }
    };
    if first.size() != second.size() && strict {
        say("Strict mode: Image size mismatch!\n");
        return Ok(DIFFER);
    }
    let verdict = tool.progress(parsed).run(|task| compare(&first, &second, strict, task))?;
    let unequal_sizes = first.size() != second.size();
    match verdict {
        Verdict::Same | Verdict::Differ(_, Where::Behind) if unequal_sizes => {
            say("Warning: Image size mismatch!\n")
        }
        _ => {}
    }
    match verdict {
        Verdict::Same => {
            say("Images are identical.\n");
            Ok(0)
        }
        Verdict::Differ(how, _) => {
            say(&format!("{how}\n"));
            Ok(DIFFER)
        }
    }
}

fn compare(first: &Disk, second: &Disk, strict: bool, task: &Task<'_>) -> Outcome<Verdict> {
    let common = first.size().min(second.size());
    let total = first.size().max(second.size());
    let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    let mut at = 0;
    while at < common {
        task.at(at, total)?;
        let one = status(first, at, common - at)?;
        let other = status(second, at, common - at)?;
        let len = one.len.min(other.len);
        if strict && kind(&one) != kind(&other) {
            return Ok(Verdict::Differ(
                format!("Strict mode: Offset {at} block status mismatch!"),
                Where::Common,
            ));
        }
        let mismatch = match (one.zero, other.zero) {
            (true, true) => None,
            (true, false) => first_data(second, at, len, total, &mut buffers[0], task)?,
            (false, true) => first_data(first, at, len, total, &mut buffers[0], task)?,
            (false, false) => first_difference(first, second, (at, len), total, &mut buffers, task)?,
        };
        if let Some(offset) = mismatch {
            return Ok(Verdict::Differ(format!("Content mismatch at offset {offset}!"), Where::Common));
        }
        at += len.max(1);
    }
    let larger = if first.size() > second.size() { first } else { second };
    while at < total {
        let rest = status(larger, at, total - at)?;
        if !rest.zero
            && let Some(offset) = first_data(larger, at, rest.len, total, &mut buffers[0], task)?
        {
            return Ok(Verdict::Differ(format!("Content mismatch at offset {offset}!"), Where::Behind));
        }
        at += rest.len.max(1);
    }
    task.at(total, total)?;
    Ok(Verdict::Same)
}

fn kind(status: &BlockStatus) -> (bool, bool, bool) {
    (status.present, status.zero, status.data)
}

fn status(disk: &Disk, at: u64, len: u64) -> Outcome<BlockStatus> {
    disk.block_status(at, len).map_err(|error| {
        let name = disk.node().name().to_owned();
        Failure::new(format!("Sector allocation test failed for {name}: {}", told(&error)))
            .with_code(CANNOT_MAP)
    })
}

fn read(disk: &Disk, at: u64, bytes: &mut [u8]) -> Outcome<()> {
    disk.read(at, bytes).map_err(|error| {
        let name = disk.node().name().to_owned();
        Failure::new(format!("Error while reading offset {at} of {name}: {}", told(&error)))
            .with_code(CANNOT_READ)
    })
}

/// The first sector that is not zero.
fn first_data(
    disk: &Disk,
    start: u64,
    len: u64,
    total: u64,
    buffer: &mut [u8],
    task: &Task<'_>,
) -> Outcome<Option<u64>> {
    for skip in (0..len).step_by(PIECE as usize) {
        task.at(start + skip, total)?;
        let bytes = &mut buffer[..(len - skip).min(PIECE) as usize];
        read(disk, start + skip, bytes)?;
        if !is_zero(bytes) {
            let sector = bytes.chunks(SECTOR).position(|sector| !is_zero(sector)).unwrap_or(0);
            return Ok(Some(start + skip + (sector * SECTOR) as u64));
        }
    }
    Ok(None)
}

/// The first sector in which two disks differ. Pieces are compared by as many threads as there are processors, and the first
/// difference counts.
fn first_difference(
    first: &Disk,
    second: &Disk,
    (start, len): (u64, u64),
    total: u64,
    buffers: &mut [Vec<u8>; 2],
    task: &Task<'_>,
) -> Outcome<Option<u64>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    if len <= 4 * PIECE || cores == 1 {
        let [one, other] = buffers;
        for skip in (0..len).step_by(PIECE as usize) {
            task.at(start + skip, total)?;
            let at = start + skip;
            if let Some(offset) = piece_difference(first, second, at, (len - skip).min(PIECE), one, other)? {
                return Ok(Some(offset));
            }
        }
        return Ok(None);
    }
    let next = AtomicU64::new(0);
    let found = AtomicU64::new(u64::MAX);
    let work = || -> Outcome<()> {
        let (mut one, mut other) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        loop {
            let skip = next.fetch_add(PIECE, Ordering::Relaxed);
            // What lies behind a difference does not matter any more.
            if skip >= len || start + skip > found.load(Ordering::Relaxed) {
                return Ok(());
            }
            task.at(start + skip, total)?;
            let at = start + skip;
            let difference =
                piece_difference(first, second, at, (len - skip).min(PIECE), &mut one, &mut other)?;
            if let Some(offset) = difference {
                found.fetch_min(offset, Ordering::Relaxed);
            }
        }
    };
    let results: Vec<Outcome<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let failed = || Err(Failure::new("a thread of the comparison failed"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| failed())).collect()
    });
    results.into_iter().collect::<Outcome<()>>()?;
    Ok(Some(found.into_inner()).filter(|offset| *offset != u64::MAX))
}

fn piece_difference(
    first: &Disk,
    second: &Disk,
    at: u64,
    len: u64,
    one: &mut [u8],
    other: &mut [u8],
) -> Outcome<Option<u64>> {
    // At most a piece.
    let len = len as usize;
    let (one, other) = (&mut one[..len], &mut other[..len]);
    read(first, at, one)?;
    read(second, at, other)?;
    if one == other {
        return Ok(None);
    }
    let mut pairs = one.chunks(SECTOR).zip(other.chunks(SECTOR));
    let sector = pairs.position(|(one, other)| one != other).unwrap_or(0);
    Ok(Some(at + (sector * SECTOR) as u64))
}
