//! The check of a VHDX image: every block lies in the file, and no two at one place.

use umbra_block::{CheckReport, Repair, Result, Task};

use super::layout::MIB;
use super::{Image, PARTIAL, PLACE, PRESENT};
use crate::common::Runs;

impl Image {
    /// Mending is what opening for writing has done: the log is replayed.
    pub(super) fn check_all(&self, _repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        let blocks = self.metadata.blocks();
        let len = self.storage().len()?;
        let mut report = CheckReport::default();
        let mut used = Runs::default();
        for block in 0..blocks {
            if block.is_multiple_of(4096) {
                task.at(block, blocks)?;
            }
            let entry = self.entry(block)?;
            if ![PRESENT, PARTIAL].contains(&(entry & 7)) {
                continue;
            }
            let place = entry & PLACE;
            let what = if place.checked_add(self.metadata.block).is_none_or(|end| end > len) {
                format!("block {block} lies at {place}, beyond the file's end")
            } else if !used.add(place / MIB, self.metadata.block / MIB) {
                format!("block {block} lies at {place}, where another is too")
            } else {
                continue;
            };
            report.corruption(what);
        }
        task.at(blocks, blocks)?;
        Ok(report)
    }
}
