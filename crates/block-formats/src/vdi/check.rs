//! The check of a VDI image: each place is used once, and lies where the header says blocks are.

use umbra_block::{CheckReport, Error, Repair, Result, Task};

use super::{Image, UNALLOCATED, ZERO};
use crate::common::Runs;

impl Image {
    pub(super) fn check_all(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        if repair != Repair::None {
            return Err(Error::Unsupported("mending a VDI image; convert it to another format".into()));
        }
        let blocks = u64::from(self.header.blocks.get());
        let limit = u64::from(self.header.blocks_allocated.get());
        let mut report = CheckReport::default();
        let mut found = 0;
        let mut used = Runs::default();
        for block in 0..blocks {
            if block.is_multiple_of(4096) {
                task.at(block, blocks)?;
            }
            let place = u32::from_le_bytes(self.blocks.entry(block)?);
            if place == UNALLOCATED || place == ZERO {
                continue;
            }
            found += 1;
            if u64::from(place) >= limit {
                report.corruption(format!("block {block} is at place {place}, and there are {limit}"));
            } else if !used.add(place.into(), 1) {
                report.corruption(format!("block {block} is at place {place}, where another is too"));
            }
        }
        if found != limit {
            report.corruption(format!("{found} blocks have a place, and the header says {limit}"));
        }
        task.at(blocks, blocks)?;
        Ok(report)
    }
}
