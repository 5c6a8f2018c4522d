//! Packets from the guest that come in parts (RFC 791, section 3.2; RFC 8200, section 4.5; overlaps: RFC 5722).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::wire::{Packet, Part};

/// Packets that are being put together. A guest sends the parts of one after another.
const PACKETS_MAX: usize = 8;
/// Parts of one packet: 64 KiB in packets of the smallest MTU.
const PARTS_MAX: usize = 128;
/// How long the missing parts are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Payload of a packet.
const LEN_MAX: usize = 65_535;

#[derive(Debug)]
struct Pieces {
    key: (IpAddr, IpAddr, u8, u32),
    since: Instant,
    bytes: Vec<u8>,
    /// Starts and ends of the parts that are there, in order.
    ranges: Vec<(usize, usize)>,
    /// Length of the whole, once the last part is there.
    len: Option<usize>,
}

/// Packets in parts.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    packets: Vec<Pieces>,
}

impl Fragments {
    /// Takes a part; gives the whole payload once all are there.
    pub(super) fn add(&mut self, now: Instant, packet: &Packet<'_>, part: Part) -> Option<Vec<u8>> {
        self.packets.retain(|pieces| now.saturating_duration_since(pieces.since) < PATIENCE);
        let end = part.offset + packet.payload.len();
        let broken = packet.payload.is_empty()
            || end > LEN_MAX
            || (part.more && !packet.payload.len().is_multiple_of(8));
        let key = (packet.source, packet.destination, packet.protocol, part.id);
        let found = self.packets.iter().position(|pieces| pieces.key == key);
        if broken {
            return self.forget(found);
        }
        let index = found.unwrap_or_else(|| {
            if self.packets.len() >= PACKETS_MAX {
                self.packets.remove(0);
            }
            let (bytes, ranges) = (Vec::new(), Vec::new());
            self.packets.push(Pieces { key, since: now, bytes, ranges, len: None });
            self.packets.len() - 1
        });
        let pieces = self.packets.get_mut(index)?;
        if !pieces.take(packet.payload, part.offset, end, part.more) {
            return self.forget(Some(index));
        }
        let complete = pieces.len == Some(pieces.ranges.iter().map(|(start, end)| end - start).sum());
        complete.then(|| self.packets.remove(index).bytes)
    }

    fn forget(&mut self, index: Option<usize>) -> Option<Vec<u8>> {
        if let Some(index) = index {
            self.packets.remove(index);
        }
        None
    }
}

impl Pieces {
    /// False if the part does not fit to the others: a packet with overlapping parts is dropped as a whole.
    fn take(&mut self, payload: &[u8], start: usize, end: usize, more: bool) -> bool {
        let at = self.ranges.partition_point(|range| range.0 < start);
        let overlaps_before = at.checked_sub(1).and_then(|i| self.ranges.get(i)).is_some_and(|r| r.1 > start);
        let overlaps_after = self.ranges.get(at).is_some_and(|range| range.0 < end);
        if overlaps_before || overlaps_after || self.ranges.len() >= PARTS_MAX {
            return false;
        }
        if !more {
            if self.len.is_some() || self.ranges.last().is_some_and(|range| range.1 > end) {
                return false;
            }
            self.len = Some(end);
        }
        if self.len.is_some_and(|len| end > len) {
            return false;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let Some(room) = self.bytes.get_mut(start..end) else { return false };
        room.copy_from_slice(payload);
        self.ranges.insert(at, (start, end));
        true
    }
}

#[cfg(test)]
#[path = "fragments_test.rs"]
mod fragments_test;
