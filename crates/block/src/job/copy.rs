//! Copying disks by several threads: each takes the next piece of the sources, reads it, and writes what is not zero.
//!
//! Memory: one buffer a thread. Order: pieces are taken in order, and may be written out of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::is_zero;
use crate::{Disk, Error, Result, Task};

/// Bytes of a piece, so that it is still in a processor's cache when it is written.
const PIECE: u64 = 512 << 10;
/// Threads that copy, where nobody says how many.
const THREADS_MAX: usize = 8;

/// What is copied, and how.
pub struct Copy<'a> {
    /// The sources, joined: disk, and what of it is copied.
    pub sources: Vec<CopySource<'a>>,
    /// Where it goes.
    pub target: &'a Disk,
    /// Where it begins there.
    pub target_start: u64,
    /// The target reads as zeroes before.
    pub target_is_zero: bool,
    /// Only what this many images from the top of a source's chain have: the target has the rest.
    pub from_top: Option<usize>,
    /// Compressed.
    pub compress: bool,
    /// Zeroes in runs of this and more are not written as data; 0 for all written.
    pub sparse: u64,
    /// Requests at once, as the user has it.
    pub threads: Option<usize>,
    /// At most so many bytes a second.
    pub rate: Option<u64>,
    /// What cannot be read becomes zeroes; how it is told.
    pub salvage: Option<&'a (dyn Fn(&Error) + Sync)>,
}

/// A source and the part of it that is copied.
#[derive(Debug, Clone, Copy)]
pub struct CopySource<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// Where it begins.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
}

/// A piece of work.
#[derive(Debug, Clone, Copy)]
struct Job<'a> {
    source: &'a Disk,
    from: u64,
    to: u64,
    len: u64,
    kind: Kind,
}

/// Where the next piece begins.
struct Scanner<'a> {
    index: usize,
    /// Within the source's part.
    at: u64,
    /// In the target.
    to: u64,
    /// A run that is known: its end within the source's part, and what it is; `None` to skip it.
    run: Option<(u64, Option<Kind>)>,
    copy: &'a Copy<'a>,
}

impl<'a> Scanner<'a> {
    fn next(&mut self, piece: u64, done: &AtomicU64) -> Result<Option<Job<'a>>> {
        loop {
            let Some(source) = self.copy.sources.get(self.index).copied() else { return Ok(None) };
            if self.at >= source.len {
                (self.index, self.at, self.run) = (self.index + 1, 0, None);
                continue;
            }
            let (end, kind) = match self.run {
                Some((end, kind)) if end > self.at => (end, kind),
                _ => {
                    let (len, kind) = self.look(source)?;
                    self.run = Some((self.at + len, kind));
                    (self.at + len, kind)
                }
            };
            let (kind, len) = match (kind, self.whole_units(source, end)) {
                (None, len @ 1..) => {
                    done.fetch_add(len, Ordering::Relaxed);
                    (self.at, self.to) = (self.at + len, self.to + len);
                    continue;
                }
                (Some(Kind::Zero), len @ 1..) => (Kind::Zero, len),
                // Pieces end where units of the target do.
                _ => (Kind::Data, self.data_len(source, end, piece)),
            };
            let job = Job { source: source.disk, from: source.start + self.at, to: self.to, len, kind };
            (self.at, self.to) = (self.at + len, self.to + len);
            return Ok(Some(job));
        }
    }

    /// What is next in a source: length, and what it is.
    fn look(&self, source: CopySource<'_>) -> Result<(u64, Option<Kind>)> {
        let (at, mut rest) = (source.start + self.at, source.len - self.at);
        let salvaged = |error: Error| match (self.copy.salvage, &error) {
            (Some(_), Error::Cancelled) | (None, _) => Err(error),
            // What is there is found out by reading it.
            (Some(_), _) => Ok(()),
        };
        if let Some(depth) = self.copy.from_top {
            match is_allocated_above(source.disk, at, rest, depth) {
                Ok((false, len)) => return Ok((len, None)),
                Ok((true, len)) => rest = len,
                Err(error) => salvaged(error)?,
            }
        }
        match source.disk.block_status(at, rest) {
            Ok(status) if status.zero && self.copy.sparse > 0 => {
                let kind = (!self.copy.target_is_zero).then_some(Kind::Zero);
                Ok((status.len, kind))
            }
            Ok(status) => Ok((status.len, Some(Kind::Data))),
            Err(error) => {
                salvaged(error)?;
                Ok((rest, Some(Kind::Data)))
            }
        }
    }

    /// Length of what there is no data in up to `end`. A unit that is compressed is written as a whole, also where it is
    /// data only in part.
    fn whole_units(&self, source: CopySource<'_>, end: u64) -> u64 {
        let len = end - self.at;
        if !self.copy.compress || end == source.len {
            return len;
        }
        let stop = self.to + len;
        (stop - stop % granule(self.copy)).saturating_sub(self.to)
    }

    /// Length of a piece of data: it ends at a unit of the target, also where that is behind the end of the run.
    fn data_len(&self, source: CopySource<'_>, end: u64, piece: u64) -> u64 {
        let granule = granule(self.copy);
        let stop = (self.to / piece + 1).saturating_mul(piece);
        let run_end = (self.to + (end - self.at)).next_multiple_of(granule);
        let len = stop.min(run_end) - self.to;
        len.min(source.len - self.at)
    }
}

/// Whether one of `depth` images from the top has something at an offset, and for how many bytes that is so.
fn is_allocated_above(top: &Disk, at: u64, mut len: u64, depth: usize) -> Result<(bool, u64)> {
    let mut next = Some(Disk::over(top.node()));
    for _ in 0..depth {
        let Some(disk) = next else { break };
        let have = disk.size().saturating_sub(at);
        if have == 0 {
            // Behind the end of an image in between its overlay reads as zeroes, whatever lies below.
            return Ok((true, len));
        }
        let (allocated, run) = disk.is_allocated(at, len.min(have))?;
        len = run;
        if allocated {
            return Ok((true, len));
        }
        next = disk.backing();
    }
    Ok((false, len))
}

/// The unit in which zeroes are looked for: writing a part of a cluster of qcow2 means to write all of it.
fn granule(copy: &Copy<'_>) -> u64 {
    let geometry = copy.target.geometry();
    match geometry.compression {
        Some(compression) if copy.compress => compression.unit,
        _ if copy.target.node().format_name() == "qcow2" => geometry.zero_unit.max(4096),
        _ => copy.sparse.clamp(4096, PIECE).next_power_of_two(),
    }
}

/// Keeps to a rate.
struct Limiter {
    rate: Option<u64>,
    began: Instant,
    bytes: AtomicU64,
}

impl Limiter {
    fn wait(&self, len: u64, task: &Task<'_>) -> Result<()> {
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return Ok(()) };
        let bytes = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        while let Some(early) = due.checked_sub(self.began.elapsed()).filter(|early| !early.is_zero()) {
            task.cancel().check()?;
            std::thread::sleep(early.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// Does it. The target is not flushed.
    ///
    /// # Errors
    /// [`Error::Copy`] with what failed and where; [`Error::Cancelled`].
    pub fn run(&self, task: &Task<'_>) -> Result<()> {
        let total: u64 = self.sources.iter().map(|source| source.len).sum();
        let granule = granule(self);
        let piece = PIECE.next_multiple_of(granule);
        let scanner = Mutex::new(Scanner { index: 0, at: 0, to: self.target_start, run: None, copy: self });
        let done = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let first: Mutex<Option<Error>> = Mutex::new(None);
        let limiter = Limiter { rate: self.rate, began: Instant::now(), bytes: AtomicU64::new(0) };
        let work = || -> Result<()> {
            let mut buffer = vec![0; usize::try_from(piece).unwrap_or(usize::MAX)];
            while !failed.load(Ordering::Relaxed) {
                task.at(done.load(Ordering::Relaxed), total)?;
                let next = scanner.lock().unwrap_or_else(PoisonError::into_inner).next(piece, &done)?;
                let Some(job) = next else { break };
                limiter.wait(job.len, task)?;
                self.job(job, granule, &mut buffer)?;
                done.fetch_add(job.len, Ordering::Relaxed);
            }
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // More threads than cores only take memory; one more than a single core overlaps reading and writing.
        let threads = self.threads.unwrap_or(cores).clamp(1, cores.clamp(2, THREADS_MAX));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        failed.store(true, Ordering::Relaxed);
                        first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => task.at(total, total),
        }
    }

    fn job(&self, job: Job<'_>, granule: u64, buffer: &mut [u8]) -> Result<()> {
        let writing = |error: Error, at: u64| copying("writing", at, error);
        if job.kind == Kind::Zero {
            return self.target.write_zeroes(job.to, job.len, true).map_err(|error| writing(error, job.to));
        }
        let len = usize::try_from(job.len).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = &mut buffer[..len];
        self.read(job, bytes)?;
        if self.compress {
            return self.write_units(job.to, bytes, granule);
        }
        let mut at = 0;
        while at < len {
            // Runs begin and end where granules of the target do.
            let first = granule - (job.to + at as u64) % granule;
            let mut end = len.min(at + first as usize);
            let zero = self.sparse > 0 && is_zero(&bytes[at..end]);
            while end < len {
                let next = len.min(end + granule as usize);
                if (self.sparse > 0 && is_zero(&bytes[end..next])) != zero {
                    break;
                }
                end = next;
            }
            let to = job.to + at as u64;
            let run = &bytes[at..end];
            let result = match zero {
                true if self.target_is_zero => Ok(()),
                true => self.target.write_zeroes(to, run.len() as u64, true),
                false => self.target.write(to, run),
            };
            result.map_err(|error| writing(error, to))?;
            at = end;
        }
        Ok(())
    }

    /// Writes compressed. What is less than a unit, where sources meet or end, is written plain, or filled up with zeroes
    /// where nothing else is behind it.
    fn write_units(&self, start: u64, bytes: &[u8], granule: u64) -> Result<()> {
        let size = self.target.size();
        let sources_end = self.target_start + self.sources.iter().map(|source| source.len).sum::<u64>();
        let mut at = 0;
        while at < bytes.len() {
            let to = start + at as u64;
            let end = bytes.len().min(at + (granule - to % granule) as usize);
            let unit = &bytes[at..end];
            let stop = to + unit.len() as u64;
            let begins = to.is_multiple_of(granule);
            let written = if self.skips(unit) {
                Ok(())
            } else if begins && (unit.len() as u64 == granule || stop == size) {
                self.target.write_compressed(to, unit)
            } else if begins && stop == sources_end && self.target_is_zero {
                let mut filled = unit.to_vec();
                filled.resize(granule.min(size - to) as usize, 0);
                self.target.write_compressed(to, &filled)
            } else {
                self.target.write(to, unit)
            };
            written.map_err(|error| copying("writing", to, error))?;
            at = end;
        }
        Ok(())
    }

    /// Whether a unit need not be written at all.
    fn skips(&self, unit: &[u8]) -> bool {
        self.sparse > 0 && self.target_is_zero && is_zero(unit)
    }

    fn read(&self, job: Job<'_>, bytes: &mut [u8]) -> Result<()> {
        let Err(error) = job.source.read(job.from, bytes) else { return Ok(()) };
        let Some(say) = self.salvage.filter(|_| !matches!(error, Error::Cancelled)) else {
            return Err(copying("reading", job.to, error));
        };
        for (index, sector) in bytes.chunks_mut(512).enumerate() {
            let at = job.from + index as u64 * 512;
            if let Err(error) = job.source.read(at, sector) {
                say(&copying("reading", at, error));
                sector.fill(0);
            }
        }
        Ok(())
    }
}

fn copying(doing: &'static str, at: u64, error: Error) -> Error {
    match error {
        Error::Cancelled => Error::Cancelled,
        error => Error::Copy { doing, at, source: Box::new(error) },
    }
}
