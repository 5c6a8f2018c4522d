//! What is where: the answers of `map`, and what `convert`, `commit` and `rebase` go by.

use super::Node;
use crate::{Holes, Mapping, Place, Result};

/// What a run of the disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatus {
    /// Its length, at least 1 where any was asked for.
    pub len: u64,
    /// Which node has it: 0 is the top. Where none has, the last that was asked.
    pub depth: usize,
    /// Some node of the chain has it.
    pub present: bool,
    /// It reads as zeroes for sure.
    pub zero: bool,
    /// There is data to read.
    pub data: bool,
    /// It is compressed.
    pub compressed: bool,
    /// Where its bytes lie as they are, and in which file.
    pub offset: Option<(u64, String)>,
}

impl Node {
    /// What is at `offset`, in whichever node it is.
    pub(super) fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let end = self.range("status", offset, len)?;
        let _shared = self.locks.shared(offset, end);
        let mut extent_len = len;
        let mapping = if len == 0 {
            Mapping::Backing
        } else {
            let extent = self.format.map(offset, len)?;
            extent_len = extent.len;
            extent.mapping
        };
        let mut status = BlockStatus {
            len: extent_len,
            depth: 0,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        };
        match mapping {
            Mapping::Data(place) => {
                status.data = true;
                let storage = self.storage(place.storage)?;
                let readable = place.sector.is_none();
                status.offset = readable.then(|| (place.offset, storage.info().name));
                // A hole of the file reads as zeroes. It is looked for where there may be many: asking costs calls.
                let holes = if readable { self.format.holes(offset) } else { Holes::Rare };
                if holes != Holes::Rare {
                    let run = storage.run(place.offset, extent_len)?;
                    status.len = run.len.min(extent_len);
                    status.zero = !run.data;
                    status.data = run.data || holes == Holes::Zeroes;
                }
            }
            Mapping::Zero(place) => {
                status.zero = true;
                if let Some(place) = place.filter(|place| place.sector.is_none()) {
                    status.offset = Some((place.offset, self.storage(place.storage)?.info().name));
                }
            }
            Mapping::Compressed { .. } => (status.data, status.compressed) = (true, true),
            Mapping::Backing => return self.status_behind(offset, extent_len),
        }
        Ok(status)
    }

    fn status_behind(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        let backing = self.backing();
        let size = backing.as_ref().map_or(0, |backing| backing.format.geometry().size);
        let have = size.saturating_sub(offset).min(len);
        let Some(backing) = backing.filter(|_| have > 0) else {
            // Nobody has it; a place may be kept for it all the same.
            let (place, len) = self.format.reserved(offset, len)?;
            let place = place.filter(|place| place.sector.is_none());
            let name = |place: &Place| Ok((place.offset, self.storage(place.storage)?.info().name));
            return Ok(BlockStatus {
                len,
                depth: 0,
                present: false,
                zero: true,
                data: false,
                compressed: false,
                offset: place.as_ref().map(name).transpose()?,
            });
        };
        let status = backing.block_status(offset, have)?;
        Ok(BlockStatus { depth: status.depth + 1, ..status })
    }

    /// Whether this node itself has something at `offset`.
    pub(super) fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let end = self.range("status", offset, len)?;
        if len == 0 {
            return Ok((false, 0));
        }
        let _shared = self.locks.shared(offset, end);
        let extent = self.format.map(offset, len)?;
        Ok((extent.mapping != Mapping::Backing, extent.len))
    }
}
