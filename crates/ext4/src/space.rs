//! Which blocks are used. They are given out in order; what is given back stays unused in the new file system.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::layout::{BLOCK, GROUP_BLOCKS, Layout};

/// The blocks of a file system.
#[derive(Debug)]
pub struct Space {
    layout: Layout,
    /// Everything from here on is free, except what is reserved.
    next: u64,
    freed: Vec<Range<u64>>,
}

impl Space {
    pub fn new(layout: Layout) -> Self {
        Self { layout, next: 0, freed: Vec::new() }
    }

    /// Takes at least one and at most `wanted` blocks, which follow each other.
    pub fn take(&mut self, wanted: u64) -> Result<Range<u64>> {
        loop {
            if self.next >= self.layout.blocks {
                return Err(Error::Full);
            }
            let group = self.next / GROUP_BLOCKS;
            let (reserved, all) = (self.layout.reserved(group), self.layout.group(group));
            if reserved.contains(&self.next) {
                self.next = reserved.end;
                continue;
            }
            // Where the next group begins with nothing that is reserved, the next run follows on this one.
            let end = all.end.min(self.next.saturating_add(wanted.max(1)));
            let run = self.next..end;
            self.next = end;
            return Ok(run);
        }
    }

    /// Takes one block.
    pub fn take_one(&mut self) -> Result<u64> {
        self.take(1).map(|run| run.start)
    }

    /// Gives blocks back.
    pub fn free(&mut self, run: Range<u64>) {
        match self.freed.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.freed.push(run),
        }
    }

    /// In order of their places, so that bitmaps are made group by group.
    pub fn settle(&mut self) {
        self.freed.sort_by_key(|run| run.start);
    }

    /// The bitmap of a group, after [`Space::settle`], and how many of its blocks are free.
    pub fn bitmap(&self, group: u64) -> ([u8; BLOCK], u64) {
        let mut bits = [0; BLOCK];
        let all = self.layout.group(group);
        let relative = |block: u64| block.clamp(all.start, all.start + GROUP_BLOCKS) - all.start;
        let mut put = |from: u64, to: u64, value: bool| set(&mut bits, relative(from)..relative(to), value);
        put(all.start, self.layout.reserved(group).end, true);
        put(all.start, self.next.min(all.end), true);
        let first = self.freed.partition_point(|run| run.end <= all.start);
        for run in self.freed.iter().skip(first).take_while(|run| run.start < all.end) {
            put(run.start, run.end, false);
        }
        // Blocks behind the end are nobody's.
        put(all.end, all.start + GROUP_BLOCKS, true);
        let used: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        (bits, GROUP_BLOCKS - used)
    }

    /// Whether nothing of a group was ever taken.
    pub fn is_untouched(&self, group: u64) -> bool {
        self.next <= self.layout.group(group).start
    }
}

/// Sets bits, which are few or whole bytes.
pub fn set(bits: &mut [u8], range: Range<u64>, value: bool) {
    for bit in range {
        if let Some(byte) = bits.get_mut((bit / 8) as usize) {
            let mask = 1 << (bit % 8);
            *byte = if value { *byte | mask } else { *byte & !mask };
        }
    }
}
