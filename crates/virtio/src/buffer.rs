//! Guest memory as buffers of disks: handed on by address, so that data is not copied on its way.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use umbra_block::{IoBuf, IoSrc};
use umbra_memory::{Memory, RegionKind};

/// A range of guest RAM that lies in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) gpa: u64,
    pub(crate) len: u64,
}

impl Segment {
    /// The range, if all of it is RAM of one region. Regions neither move nor go while a machine lives.
    pub(crate) fn new(memory: &Memory, gpa: u64, len: u64) -> Option<Self> {
        let (region, _) = memory.region(gpa)?;
        let room = region.len() - (gpa - region.gpa());
        (region.kind() == RegionKind::Ram && len <= room).then_some(Self { gpa, len })
    }

    /// Where it is in this process.
    fn host(self, memory: &Memory) -> Option<(NonNull<u8>, usize)> {
        let host = NonNull::new(memory.host_address(self.gpa, self.len)?)?;
        Some((host, usize::try_from(self.len).ok()?))
    }

    /// As what a read from a disk fills. Whoever lets it be filled notes the write ([`Segment::wrote`]) afterwards.
    pub(crate) fn io_buf<'m>(self, memory: &'m Memory) -> Option<IoBuf<'m>> {
        let (host, len) = self.host(memory)?;
        // SAFETY: `host_address` has said that `len` bytes from `host` are mapped; the mapping is readable and writable,
        // lives as long as `memory`, and no Rust reference to guest memory is ever made.
        Some(unsafe { IoBuf::from_raw(host, len) })
    }

    /// As what a write to a disk takes its bytes from.
    pub(crate) fn io_src<'m>(self, memory: &'m Memory) -> Option<IoSrc<'m>> {
        let (host, len) = self.host(memory)?;
        // SAFETY: as above; the bytes are only read.
        Some(unsafe { IoSrc::from_raw(host, len) })
    }

    /// Notes that its bytes have been written past `memory`'s own functions.
    pub(crate) fn wrote(self, memory: &Memory) {
        if let Some((region, tracker)) = memory.region(self.gpa) {
            tracker.host_wrote(self.gpa - region.gpa(), self.len);
        }
    }

    /// The part of `segments` that begins `skip` bytes into them and is `len` bytes long, or to their end.
    pub(crate) fn part(segments: &[Self], mut skip: u64, mut len: u64) -> impl Iterator<Item = Self> {
        segments.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.len);
            skip -= skipped;
            let take = len.min(segment.len - skipped);
            len -= take;
            (take > 0).then_some(Self { gpa: segment.gpa + skipped, len: take })
        })
    }

    /// Bytes of all.
    pub(crate) fn total(segments: &[Self]) -> u64 {
        segments.iter().map(|segment| segment.len).sum()
    }
}
