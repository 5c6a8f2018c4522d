//! References to clusters of the file, as a check counts them.
//!
//! Memory: a byte for each cluster of those that are referred to, in chunks of 64, more for one that is referred to often,
//! and four bytes for 64 clusters of the file, which the host gives only where they are used. Files that are so long that nobody has them on a disk (they
//! are holes, then) take more time instead.

use std::collections::BTreeMap;
use std::ops::Range;

/// Clusters of a chunk.
pub(super) const CHUNK: u64 = 64;
/// Clusters of a file that has a place for each chunk: 256 TiB of the usual ones.
const FLAT_MAX: u64 = 1 << 32;

/// A byte that says that there are as many references or more.
const MANY: u8 = u8::MAX;

/// Where chunks are: 0 for nowhere, or one more than the place.
#[derive(Debug)]
enum Places {
    Flat(Vec<u32>),
    Few(BTreeMap<u64, u32>),
}

impl Places {
    fn get(&self, chunk: u64) -> u32 {
        match self {
            Places::Flat(places) => {
                usize::try_from(chunk).ok().and_then(|chunk| places.get(chunk)).copied().unwrap_or(0)
            }
            Places::Few(places) => places.get(&chunk).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, chunk: u64, place: u32) {
        match self {
            Places::Flat(places) => {
                // Behind the end is what is put there next, so that this is little.
                let chunk = usize::try_from(chunk).unwrap_or(usize::MAX);
                if places.len() <= chunk {
                    places.resize(chunk + 1, 0);
                }
                places[chunk] = place;
            }
            Places::Few(places) => {
                places.insert(chunk, place);
            }
        }
    }
}

/// References to clusters, as counted.
#[derive(Debug)]
pub(super) struct Counts {
    places: Places,
    chunks: Vec<[u8; CHUNK as usize]>,
    /// The references to clusters whose byte is [`MANY`].
    many: BTreeMap<u64, u32>,
    /// The cluster behind the last one that is referred to.
    pub end: u64,
}

impl Counts {
    /// For a file of so many clusters. Further ones can be counted, at the cost of the room up to them.
    pub(super) fn new(clusters: u64) -> Self {
        let places = match clusters <= FLAT_MAX {
            true => Places::Flat(vec![0; clusters.div_ceil(CHUNK) as usize]),
            false => Places::Few(BTreeMap::new()),
        };
        Self { places, chunks: Vec::new(), many: BTreeMap::new(), end: 0 }
    }

    fn chunk(&mut self, number: u64) -> &mut [u8; CHUNK as usize] {
        let mut place = self.places.get(number) as usize;
        if place == 0 {
            self.chunks.push([0; CHUNK as usize]);
            place = self.chunks.len();
            // As many chunks as fit in 32 bits are a terabyte of memory.
            self.places.set(number, place as u32);
        }
        &mut self.chunks[place - 1]
    }

    /// Counts `times` references to each of `count` clusters.
    pub(super) fn add(&mut self, first: u64, count: u64, times: u32) {
        let end = first + count;
        let mut at = first;
        while at < end {
            let within = at % CHUNK;
            let take = (CHUNK - within).min(end - at);
            let part = &mut self.chunk(at / CHUNK)[within as usize..(within + take) as usize];
            match part.iter().all(|place| u32::from(*place).saturating_add(times) < MANY.into()) {
                true => part.iter_mut().for_each(|place| *place += times as u8),
                false => self.add_many(at..at + take, times),
            }
            at += take;
        }
        self.end = self.end.max(end);
    }

    /// The same where not all fit in their bytes.
    fn add_many(&mut self, clusters: Range<u64>, times: u32) {
        for cluster in clusters {
            let place = &mut self.chunk(cluster / CHUNK)[(cluster % CHUNK) as usize];
            let before = u32::from(*place);
            match before.saturating_add(times) {
                sum if sum < MANY.into() => *place = sum as u8,
                _ => {
                    *place = MANY;
                    let sum = self.many.entry(cluster).or_insert(before);
                    *sum = sum.saturating_add(times);
                }
            }
        }
    }

    fn value(&self, cluster: u64, place: u8) -> u64 {
        match place {
            MANY => self.many.get(&cluster).copied().unwrap_or(MANY.into()).into(),
            few => few.into(),
        }
    }

    /// References to a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let chunk = self.get_chunk(cluster / CHUNK);
        chunk.map_or(0, |chunk| self.value(cluster, chunk[(cluster % CHUNK) as usize]))
    }

    fn get_chunk(&self, number: u64) -> Option<&[u8; CHUNK as usize]> {
        self.chunks.get((self.places.get(number) as usize).checked_sub(1)?)
    }

    /// The chunks that hold references, in their order.
    pub(super) fn used(&self) -> Vec<u64> {
        match &self.places {
            Places::Flat(places) => {
                (0..).zip(places).filter(|(_, place)| **place != 0).map(|it| it.0).collect()
            }
            Places::Few(places) => places.keys().copied().collect(),
        }
    }

    /// The references to clusters from `first` on, as many as `out` has room for.
    pub(super) fn fill(&self, first: u64, out: &mut [u64]) {
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let within = (at % CHUNK) as usize;
            let take = (CHUNK as usize - within).min(rest.len());
            let (part, behind) = rest.split_at_mut(take);
            match self.get_chunk(at / CHUNK) {
                Some(chunk) => {
                    let from = &chunk[within..within + take];
                    for (cluster, (to, from)) in (at..).zip(part.iter_mut().zip(from)) {
                        *to = self.value(cluster, *from);
                    }
                }
                None => part.fill(0),
            }
            at += take as u64;
            rest = behind;
        }
    }
}

#[cfg(test)]
#[path = "counts_test.rs"]
mod counts_test;
