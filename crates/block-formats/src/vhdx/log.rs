//! The log: metadata is written there first, so that a loss of power in the middle of an update can be made good.
//!
//! Reading: the valid sequence of entries with the greatest sequence number is replayed. Writing: our log is one entry, at
//! its beginning; the one before it has been applied and is durable when another takes its place.
//! Authority: [MS-VHDX] 2.3.

use std::collections::BTreeMap;

use umbra_block::{Error, Result, Storage, StorageExt};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::layout::{Guid, Header, PAGE, checksum};

/// Descriptors in one entry that we write: they fill its first sector.
pub(super) const PAGES_MAX: usize = (PAGE as usize - size_of::<EntryHeader>()) / size_of::<Descriptor>();
/// Bytes of zeroes that one log may order: what it zeroes is metadata, and its pages are held in memory.
const ZEROES_MAX: u64 = 64 << 20;
/// Bytes of a data sector that it brings; the first 8 and the last 4 are in its descriptor.
const DATA: usize = 4084;

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct EntryHeader {
    signature: [u8; 4],
    checksum: U32,
    len: U32,
    tail: U32,
    sequence: U64,
    descriptors: U32,
    reserved: U32,
    log: Guid,
    flushed_len: U64,
    last_len: U64,
}

/// Both kinds: `desc` has the sector's ends, `zero` a length in place of the first.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Descriptor {
    signature: [u8; 4],
    trailing: [u8; 4],
    leading: [u8; 8],
    offset: U64,
    sequence: U64,
}

const _: () = assert!(size_of::<EntryHeader>() == 64 && size_of::<Descriptor>() == 32);

/// What a log orders.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Pages by their offset in the file.
    pub pages: BTreeMap<u64, Box<[u8]>>,
    /// The file has at least this length afterwards.
    pub file_len: u64,
}

/// An entry that is whole.
#[derive(Debug, Clone)]
struct Entry {
    sectors: usize,
    tail: usize,
    sequence: u64,
    descriptors: usize,
    flushed_len: u64,
    last_len: u64,
}

struct Log {
    bytes: Vec<u8>,
    guid: Guid,
}

/// Reads what the log of a file orders; `None` where it is empty.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Option<Replay>> {
    if header.log == [0; 16] {
        return Ok(None);
    }
    // Bounded by `LOG_MAX`.
    let bytes = storage.read_vec(header.log_offset.get(), header.log_len.get() as usize)?;
    let log = Log { bytes, guid: header.log };
    let entries: Vec<Option<Entry>> = (0..log.sectors()).map(|sector| log.entry(sector)).collect();
    let Some(start) = log.active(&entries) else { return Ok(None) };
    let mut replay = Replay::default();
    let mut zeroed = 0;
    let file_len = storage.len()?;
    let mut at = start;
    let mut expected = None;
    while let Some(entry) = entries.get(at).and_then(Option::as_ref) {
        if expected.is_some_and(|sequence| sequence != entry.sequence) {
            break;
        }
        if entry.flushed_len > file_len {
            return Err(Error::corrupt("its log speaks of a longer file; it was cut"));
        }
        log.apply(at, entry, &mut replay, &mut zeroed)?;
        replay.file_len = replay.file_len.max(entry.last_len);
        expected = Some(entry.sequence + 1);
        at = (at + entry.sectors) % log.sectors();
    }
    Ok(Some(replay))
}

impl Log {
    fn sectors(&self) -> usize {
        self.bytes.len() / PAGE as usize
    }

    fn sector(&self, number: usize) -> &[u8] {
        let start = number % self.sectors().max(1) * PAGE as usize;
        self.bytes.get(start..start + PAGE as usize).unwrap_or_default()
    }

    /// The entry that begins at a sector, if it is whole.
    fn entry(&self, at: usize) -> Option<Entry> {
        let (header, _) = EntryHeader::read_from_prefix(self.sector(at)).ok()?;
        if &header.signature != b"loge" || header.log != self.guid || header.sequence.get() == 0 {
            return None;
        }
        let len = header.len.get() as usize;
        let (sectors, descriptors) = (len / PAGE as usize, header.descriptors.get() as usize);
        let tail = header.tail.get() as usize;
        let shape = len.is_multiple_of(PAGE as usize)
            && tail.is_multiple_of(PAGE as usize)
            && (1..=self.sectors()).contains(&sectors)
            && tail < self.bytes.len()
            && header.sequence.get() < u64::MAX;
        if !shape || head_sectors(descriptors)? > sectors {
            return None;
        }
        let mut whole = Vec::with_capacity(len);
        (0..sectors).for_each(|index| whole.extend_from_slice(self.sector(at + index)));
        if checksum(&whole, 4) != header.checksum.get() || !sectors_fit(&whole, &header, sectors, descriptors)
        {
            return None;
        }
        Some(Entry {
            sectors,
            tail: tail / PAGE as usize,
            sequence: header.sequence.get(),
            descriptors,
            flushed_len: header.flushed_len.get(),
            last_len: header.last_len.get().min(i64::MAX as u64),
        })
    }

    /// Where the active sequence begins: of those whose last entry points to their first, the one that ends last.
    fn active(&self, entries: &[Option<Entry>]) -> Option<usize> {
        // An entry's successor has the next sequence number, so chains have no loops; the last of each is found once.
        let mut last: Vec<Option<usize>> = vec![None; entries.len()];
        let mut best: Option<(u64, usize)> = None;
        for start in 0..entries.len() {
            let mut path = Vec::new();
            let mut at = start;
            let end = loop {
                if let Some(end) = last[at] {
                    break Some(end);
                }
                let Some(entry) = &entries[at] else { break None };
                path.push(at);
                let next = (at + entry.sectors) % entries.len();
                match &entries[next] {
                    Some(other) if other.sequence == entry.sequence + 1 => at = next,
                    _ => break Some(at),
                }
            };
            let Some(end) = end else { continue };
            path.iter().for_each(|&at| last[at] = Some(end));
            if let Some(entry) = &entries[end]
                && entry.tail == start
                && best.is_none_or(|(sequence, _)| entry.sequence > sequence)
            {
                best = Some((entry.sequence, start));
            }
        }
        best.map(|(_, start)| start)
    }

    /// Adds what an entry orders.
    fn apply(&self, at: usize, entry: &Entry, replay: &mut Replay, zeroed: &mut u64) -> Result<()> {
        let first_data = head_sectors(entry.descriptors).unwrap_or(1);
        let mut data = at + first_data;
        for index in 0..entry.descriptors {
            let descriptor = self.descriptor(at, index)?;
            let offset = descriptor.offset.get();
            if !offset.is_multiple_of(PAGE) || offset > i64::MAX as u64 {
                return Err(Error::corrupt(format!("its log writes to {offset}")));
            }
            if &descriptor.signature == b"desc" {
                let mut page = Vec::with_capacity(PAGE as usize);
                page.extend_from_slice(&descriptor.leading);
                page.extend_from_slice(&self.sector(data)[8..8 + DATA]);
                page.extend_from_slice(&descriptor.trailing);
                replay.pages.insert(offset, page.into_boxed_slice());
                data += 1;
                continue;
            }
            let len = u64::from_le_bytes(descriptor.leading);
            *zeroed = zeroed.saturating_add(len);
            if !len.is_multiple_of(PAGE) || *zeroed > ZEROES_MAX || offset.checked_add(len).is_none() {
                return Err(Error::corrupt(format!("its log zeroes {len} bytes at {offset}")));
            }
            // Zero pages take no room where nothing was, but may hide older ones of the log.
            for page in (offset..offset + len).step_by(PAGE as usize) {
                replay.pages.insert(page, vec![0; PAGE as usize].into_boxed_slice());
            }
        }
        Ok(())
    }

    fn descriptor(&self, at: usize, index: usize) -> Result<Descriptor> {
        let start = size_of::<EntryHeader>() + index * size_of::<Descriptor>();
        let sector = self.sector(at + start / PAGE as usize);
        let bytes = sector.get(start % PAGE as usize..).unwrap_or_default();
        let (descriptor, _) =
            Descriptor::read_from_prefix(bytes).map_err(|_| Error::corrupt("a descriptor beyond its log"))?;
        Ok(descriptor)
    }
}

/// Sectors that header and descriptors take.
fn head_sectors(descriptors: usize) -> Option<usize> {
    let bytes = descriptors.checked_mul(size_of::<Descriptor>())?.checked_add(size_of::<EntryHeader>())?;
    Some(bytes.div_ceil(PAGE as usize))
}

/// Whether descriptors and data sectors belong to the entry.
fn sectors_fit(whole: &[u8], header: &EntryHeader, sectors: usize, descriptors: usize) -> bool {
    let sequence = header.sequence.get();
    let Some(first_data) = head_sectors(descriptors) else { return false };
    let mut data = 0;
    let list = whole[size_of::<EntryHeader>()..].chunks_exact(size_of::<Descriptor>()).take(descriptors);
    for bytes in list {
        let Ok(descriptor) = Descriptor::read_from_bytes(bytes) else { return false };
        if descriptor.sequence.get() != sequence {
            return false;
        }
        match &descriptor.signature {
            b"desc" => data += 1,
            b"zero" => {}
            _ => return false,
        }
    }
    first_data + data == sectors
        && whole[first_data * PAGE as usize..].chunks_exact(PAGE as usize).all(|sector| {
            let high = (sequence >> 32) as u32;
            sector.starts_with(b"data")
                && sector[4..8] == high.to_le_bytes()
                && sector[8 + DATA..] == (sequence as u32).to_le_bytes()
        })
}

/// An entry that orders these pages.
pub(super) fn entry(pages: &[(u64, Vec<u8>)], sequence: u64, log: Guid, file_len: u64) -> Vec<u8> {
    let sectors = 1 + pages.len();
    let mut bytes = Vec::with_capacity(sectors * PAGE as usize);
    let header = EntryHeader {
        signature: *b"loge",
        checksum: 0.into(),
        len: ((sectors * PAGE as usize) as u32).into(),
        tail: 0.into(),
        sequence: sequence.into(),
        descriptors: (pages.len() as u32).into(),
        reserved: 0.into(),
        log,
        flushed_len: file_len.into(),
        last_len: file_len.into(),
    };
    bytes.extend_from_slice(header.as_bytes());
    for (offset, page) in pages {
        let mut descriptor = Descriptor {
            signature: *b"desc",
            trailing: [0; 4],
            leading: [0; 8],
            offset: (*offset).into(),
            sequence: sequence.into(),
        };
        descriptor.leading.copy_from_slice(&page[..8]);
        descriptor.trailing.copy_from_slice(&page[8 + DATA..]);
        bytes.extend_from_slice(descriptor.as_bytes());
    }
    bytes.resize(PAGE as usize, 0);
    for (_, page) in pages {
        bytes.extend_from_slice(b"data");
        bytes.extend_from_slice(&((sequence >> 32) as u32).to_le_bytes());
        bytes.extend_from_slice(&page[8..8 + DATA]);
        bytes.extend_from_slice(&(sequence as u32).to_le_bytes());
    }
    let sum = checksum(&bytes, 4);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}
