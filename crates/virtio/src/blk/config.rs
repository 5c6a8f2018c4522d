//! A disk's configuration space (section 5.2.4) and features (5.2.3).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::BlkSpec;

/// Bytes of the sectors in which everything is counted.
pub(super) const SECTOR: u64 = 512;
/// Segments of data that a request has at most: what a queue has room for, less head and status.
const SEGMENTS_MAX: u32 = super::QUEUE_SIZE as u32 - 2;
/// Bytes of a segment.
const SEGMENT_MAX: u32 = 128 << 10;
/// Bytes of data of a request: what a driver can ask for that keeps to both, rounded up. A request keeps its thread busy,
/// and whoever pauses the machine waits for it.
pub(super) const REQUEST_MAX: u64 = 16 << 20;
/// Sectors that one request discards or zeroes.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Ranges of one such request.
pub(super) const RANGES_MAX: u32 = 64;

const _: () = assert!(SEGMENTS_MAX as u64 * SEGMENT_MAX as u64 <= REQUEST_MAX);

bitflags! {
    /// A disk's own features.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct BlkFeature: u64 {
        const SIZE_MAX = 1 << 1;
        const SEG_MAX = 1 << 2;
        const READ_ONLY = 1 << 5;
        const BLOCK_SIZE = 1 << 6;
        const FLUSH = 1 << 9;
        const TOPOLOGY = 1 << 10;
        const CONFIG_WRITE_CACHE = 1 << 11;
        const MULTIQUEUE = 1 << 12;
        const DISCARD = 1 << 13;
        const WRITE_ZEROES = 1 << 14;
    }
}

/// `struct virtio_blk_config`.
#[derive(FromZeros, IntoBytes, Immutable, Debug, Clone)]
#[repr(C)]
pub(super) struct BlkConfig {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    block_size: U32,
    physical_block_exponent: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    pub(super) write_back: u8,
    unused: u8,
    queues: U16,
    max_discard_sectors: U32,
    max_discard_segments: U32,
    discard_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_segments: U32,
    write_zeroes_may_unmap: u8,
    unused_end: [u8; 3],
}

/// Where `write_back` is.
pub(super) const WRITE_BACK: u64 = 32;

const _: () = assert!(std::mem::offset_of!(BlkConfig, write_back) as u64 == WRITE_BACK);

impl BlkConfig {
    /// The configuration of a disk of `sectors`, with a unit of `unit` bytes that is best written as a whole.
    pub(super) fn new(spec: &BlkSpec, sectors: u64, unit: u64) -> Self {
        let mut config = Self::new_zeroed();
        config.capacity = sectors.into();
        config.size_max = SEGMENT_MAX.into();
        config.seg_max = SEGMENTS_MAX.into();
        config.block_size = (SECTOR as u32).into();
        // The host's pages and file system blocks are of 4 KiB: smaller writes are read, changed and written there.
        config.physical_block_exponent = 3;
        config.min_io_size = 8.into();
        let unit_sectors = u32::try_from(unit / SECTOR).ok().filter(|n| n.is_power_of_two() && *n > 8);
        config.opt_io_size = unit_sectors.unwrap_or(0).into();
        config.write_back = 1;
        config.queues = spec.queues.into();
        config.max_discard_sectors = RANGE_SECTORS_MAX.into();
        config.max_discard_segments = RANGES_MAX.into();
        config.discard_alignment = unit_sectors.unwrap_or(8).into();
        config.max_write_zeroes_sectors = RANGE_SECTORS_MAX.into();
        config.max_write_zeroes_segments = RANGES_MAX.into();
        config.write_zeroes_may_unmap = 1;
        config
    }

    /// What is offered.
    pub(super) fn features(spec: &BlkSpec) -> BlkFeature {
        let always = BlkFeature::SIZE_MAX
            | BlkFeature::SEG_MAX
            | BlkFeature::BLOCK_SIZE
            | BlkFeature::FLUSH
            | BlkFeature::TOPOLOGY
            | BlkFeature::CONFIG_WRITE_CACHE
            | BlkFeature::MULTIQUEUE;
        match spec.read_only {
            true => always | BlkFeature::READ_ONLY,
            false => always | BlkFeature::DISCARD | BlkFeature::WRITE_ZEROES,
        }
    }
}
