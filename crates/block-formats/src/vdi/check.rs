//! The check of a VDI image: each place is used once, and lies where the header says blocks are.

use std::collections::BTreeMap;

use umbra_block::{CheckReport, Error, Finding, Repair, Result, Task};

use super::{Image, UNALLOCATED, ZERO};

impl Image {
    pub(super) fn check_all(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        if repair != Repair::None {
            return Err(Error::Unsupported("mending a VDI image; convert it to another format".into()));
        }
        let blocks = u64::from(self.header.blocks.get());
        let limit = u64::from(self.header.blocks_allocated.get());
        let mut report = CheckReport::default();
        let mut found = 0;
        // Places as runs: start and length. An image that was written in order is one run.
        let mut used: BTreeMap<u32, u32> = BTreeMap::new();
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
                note(&mut report, format!("block {block} is at place {place}, and there are {limit}"));
            } else if !add(&mut used, place) {
                note(&mut report, format!("block {block} is at place {place}, where another is too"));
            }
        }
        if found != limit {
            note(&mut report, format!("{found} blocks have a place, and the header says {limit}"));
        }
        task.at(blocks, blocks)?;
        Ok(report)
    }
}

fn note(report: &mut CheckReport, what: String) {
    report.corruptions += 1;
    report.note(Finding { corruption: true, fixed: false, loses_data: false, what });
}

/// Adds a place to the runs; false where it is there already.
fn add(used: &mut BTreeMap<u32, u32>, place: u32) -> bool {
    let mut start = place;
    let mut len = 1;
    if let Some((&before, &run)) = used.range(..=place).next_back() {
        if place - before < run {
            return false;
        }
        if place - before == run {
            start = before;
            len += run;
        }
    }
    if let Some(&run) = used.get(&(place + 1)) {
        used.remove(&(place + 1));
        len += run;
    }
    used.insert(start, len);
    true
}
