//! `map`: where the data of an image is.

use std::fmt::Write as _;

use umbra_block::{BlockStatus, Disk};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::open::Want;
use super::{Tool, print, size};

/// Text that is gathered before it is printed.
const GATHERED: usize = 1 << 16;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)?;
    let number =
        |key, what| parsed.last(key).map(|text| size::bounded(what, text, 0..=i64::MAX as u64)).transpose();
    let start = number("start-offset", "start offset")?.unwrap_or(0);
    let max = number("max-length", "max length")?;
    let name = tool.one_name(parsed)?;
    let disk = tool.open(&Want::new(parsed, name)?)?;
    let end = max.map_or(disk.size(), |max| disk.size().min(start.saturating_add(max)));
    let mut shown = Shown { json, text: String::new(), first: true };
    shown.text.push_str(if json { "[" } else { "Offset          Length          Mapped to       File\n" });
    let walked = walk(tool, &disk, start, end, &mut |from, status| shown.entry(from, status));
    // What is known is printed even where the rest is not.
    if walked.is_err() {
        print(&shown.text);
        return walked.map(|()| 0);
    }
    if json {
        if shown.first {
            let nothing = BlockStatus {
                len: 0,
                depth: 0,
                present: false,
                zero: false,
                data: false,
                compressed: false,
                offset: None,
            };
            shown.entry(start, &nothing)?;
        }
        shown.text.push_str("]\n");
    }
    print(&shown.text);
    Ok(0)
}

/// Calls `tell` with the runs of a disk, neighbours of one kind joined.
pub fn walk(
    tool: &Tool,
    disk: &Disk,
    start: u64,
    end: u64,
    tell: &mut dyn FnMut(u64, &BlockStatus) -> Outcome<()>,
) -> Outcome<()> {
    let mut run: Option<(u64, BlockStatus)> = None;
    let mut at = start;
    while at < end {
        tool.signals.cancel().check()?;
        let status = disk.block_status(at, end - at).doing(|| "Failed to read image metadata".to_owned())?;
        let len = status.len.max(1);
        run = match run {
            Some((from, before)) if joins(&before, &status) => {
                Some((from, BlockStatus { len: before.len + status.len, ..before }))
            }
            Some((from, before)) => {
                tell(from, &before)?;
                Some((at, status))
            }
            None => Some((at, status)),
        };
        at += len;
    }
    match run {
        Some((from, status)) => tell(from, &status),
        None => Ok(()),
    }
}

fn joins(before: &BlockStatus, next: &BlockStatus) -> bool {
    let kind =
        |status: &BlockStatus| (status.depth, status.present, status.zero, status.data, status.compressed);
    let follows = match (&before.offset, &next.offset) {
        (None, None) => true,
        (Some((offset, file)), Some((next, next_file))) => offset + before.len == *next && file == next_file,
        _ => false,
    };
    kind(before) == kind(next) && follows
}

struct Shown {
    json: bool,
    text: String,
    first: bool,
}

impl Shown {
    fn entry(&mut self, start: u64, status: &BlockStatus) -> Outcome<()> {
        if self.json {
            self.entry_json(start, status);
        } else if status.data && !status.zero {
            let Some((offset, file)) = &status.offset else {
                return Err(Failure::new("File contains external, encrypted or compressed clusters."));
            };
            let _ =
                writeln!(self.text, "{:<16}{:<16}{:<16}{file}", hex(start), hex(status.len), hex(*offset));
        }
        self.first = false;
        if self.text.len() >= GATHERED {
            print(&self.text);
            self.text.clear();
        }
        Ok(())
    }

    fn entry_json(&mut self, start: u64, status: &BlockStatus) {
        if !self.first {
            self.text.push_str(",\n");
        }
        let BlockStatus { len, depth, present, zero, data, compressed, offset } = status;
        // Writing to a string cannot fail.
        let _ = write!(
            self.text,
            "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some((offset, _)) = offset {
            let _ = write!(self.text, ", \"offset\": {offset}");
        }
        self.text.push('}');
    }
}

/// As C's `%#x`, which has no prefix for zero.
fn hex(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}
