//! What the formats share.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use umbra_block::{Error, Extent, Mapping, Place, Prepared, Result, Storage, StorageId, Token};

/// Entries that one call of `map` looks at: 512 MiB of the smallest units.
const ENTRIES_A_CALL: u64 = 8192;

/// What an entry of a table says of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nothing: the backing file's, or zeroes.
    Absent,
    /// Zeroes.
    Zero,
    /// Data at an offset of the file.
    At(u64),
}

/// What a lock guards, whoever panicked with it.
pub(crate) fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The run of one mapping from `offset` on, in units of `unit` bytes that `look` tells of. Units that follow each other
/// in the file `id` make one run. `absent` is what absent units are.
pub(crate) fn run(
    id: StorageId,
    offset: u64,
    len: u64,
    unit: u64,
    absent: &Mapping,
    look: impl Fn(u64) -> Result<Unit>,
) -> Result<Extent> {
    let first = offset / unit;
    let within = offset % unit;
    let kind = look(first)?;
    let mut have = unit - within;
    let mut next = first + 1;
    while have < len && next - first < ENTRIES_A_CALL {
        let expected = match kind {
            Unit::At(start) => {
                (next - first).checked_mul(unit).and_then(|skip| start.checked_add(skip)).map(Unit::At)
            }
            other => Some(other),
        };
        if expected != Some(look(next)?) {
            break;
        }
        have = have.saturating_add(unit);
        next += 1;
    }
    let mapping = match kind {
        Unit::Absent => absent.clone(),
        Unit::Zero => Mapping::Zero(None),
        Unit::At(start) => {
            let place = start.checked_add(within);
            let place = place.ok_or_else(|| Error::corrupt("data lies behind the end of all files"))?;
            Mapping::Data(Place::plain(id, place))
        }
    };
    Ok(Extent { mapping, len: have.min(len) })
}

/// For a `zero` or `discard` of a format that has no form for it: how many bytes from `offset` on are absent units,
/// which read as zeroes already.
pub(crate) fn absent_run(
    offset: u64,
    len: u64,
    unit: u64,
    look: impl Fn(u64) -> Result<Unit>,
) -> Result<u64> {
    match run(StorageId(0), offset, len, unit, &Mapping::Zero(None), look)? {
        Extent { mapping: Mapping::Zero(_), len } => Ok(len),
        _ => Ok(0),
    }
}

/// A place for data that needs no allocation.
pub(crate) fn in_place(place: Place, len: u64) -> Prepared {
    Prepared { len, place, before: 0, after: 0, token: None }
}

/// A place for `len` bytes, `within` bytes into a new unit at `start`, which was the end of the file.
pub(crate) fn in_new_unit(
    storage: &dyn Storage,
    start: u64,
    unit: u64,
    within: u64,
    len: u64,
    token: Token,
) -> Prepared {
    // What lies behind the end of a file reads as zeroes, and so does a unit that is put there; a device has anything
    // there.
    let rest = unit - within - len;
    let (before, after) = if storage.info().fixed_len { (within, rest) } else { (0, 0) };
    Prepared { len, place: Place::plain(StorageId(0), start + within), before, after, token: Some(token) }
}

/// What a token of the format holds.
pub(crate) fn pending<T: Any>(token: Token) -> Result<T> {
    let pending = token.downcast::<T>().map_err(|_| Error::corrupt("a token of another format"))?;
    Ok(*pending)
}

/// An identity by chance, RFC 9562 version 4.
pub(crate) fn random_uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled +=
            got.map_err(|error| Error::io("get random bytes for", "the image's identity", error.into()))?;
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

/// Bytes of an identity as text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An error for what a format has no form for.
pub(crate) fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported(what.to_owned()))
}

/// A check of a value that an image chose.
pub(crate) fn at_most(what: &str, value: u64, limit: u64) -> Result<()> {
    match value <= limit {
        true => Ok(()),
        false => Err(Error::TooLarge { what: what.to_owned(), value, limit }),
    }
}

/// Places that are taken, as runs: start and length. What was written in order is one run.
#[derive(Debug, Default)]
pub(crate) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// Takes `len` places from `start` on; false where one of them is taken already.
    pub(crate) fn add(&mut self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len);
        let (mut first, mut last) = (start, end);
        if let Some((&before, &run)) = self.0.range(..=start).next_back() {
            let before_end = before + run;
            if before_end > start {
                return false;
            }
            if before_end == start {
                first = before;
            }
        }
        if let Some((&next, &run)) = self.0.range(start..).next() {
            if next < end {
                return false;
            }
            if next == end {
                self.0.remove(&next);
                last = next + run;
            }
        }
        self.0.insert(first, last - first);
        true
    }

    /// Whether one of `len` places from `start` on is taken.
    fn touches(&self, start: u64, len: u64) -> bool {
        let before = self.0.range(..start.saturating_add(len)).next_back();
        len > 0 && before.is_some_and(|(&first, &run)| first.saturating_add(run) > start)
    }
}

/// What of a file is not the disk's data: headers and tables. An image whose own parts lie on each other, or whose data
/// lies on them, would be destroyed by a write, so it is only read.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Runs);

impl Reserved {
    /// Reserves a range, in bytes, for `what`.
    pub(crate) fn add(&mut self, what: &str, offset: u64, len: u64) -> Result<()> {
        match len == 0 || self.0.add(offset, len) {
            true => Ok(()),
            false => Err(Error::corrupt(format!("its {what} at {offset} lies on other metadata"))),
        }
    }

    /// Fails where data in a range would lie on what is reserved.
    pub(crate) fn refuse(&self, offset: u64, len: u64) -> Result<()> {
        match self.0.touches(offset, len) {
            false => Ok(()),
            true => Err(Error::corrupt(format!(
                "data at {offset} lies on metadata; writing there would destroy the image"
            ))),
        }
    }
}
