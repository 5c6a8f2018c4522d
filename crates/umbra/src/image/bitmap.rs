//! `bitmap`: persistent dirty bitmaps.

use umbra_block::{BackingSpec, Bitmaps, Disk, Error, NodeSpec};

use super::failure::{Doing, Failure, Outcome, told};
use super::getopt::Parsed;
use super::open::{Want, warn_of_guess};
use super::{Tool, size, tell};

/// Bytes of the disk for one bit, where nobody says otherwise: those of a cluster, between these bounds.
const GRANULARITY_MIN: u64 = 4096;
const GRANULARITY_MAX: u64 = 65536;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let granularity = match parsed.last("granularity") {
        None => None,
        Some(text) => Some(
            size::parse(text)
                .map_err(|_| Failure::new(format!("Invalid granularity specified: '{text}'.")))?,
        ),
    };
    let [file, bitmap] = parsed.operands.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name"));
    };
    let actions = ["add", "remove", "clear", "enable", "disable", "merge"];
    let asked: Vec<(&str, &str)> = parsed
        .options
        .iter()
        .filter(|(key, _)| actions.contains(key))
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    if asked.is_empty() {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    if granularity.is_some() && !parsed.has("add") {
        return Err(Failure::new("granularity only supported with --add"));
    }
    if parsed.has("source-file") && !parsed.has("merge") {
        return Err(Failure::new("Merge bitmap source file only supported with --merge"));
    }
    if parsed.has("source-format") && !parsed.has("source-file") {
        return Err(Failure::new("-F only supported with -b"));
    }
    // What lies below an image has nothing to do with its bitmaps, and may be the image that is changed.
    let want = Want { alone: true, ..Want::new(parsed, file)?.writable() };
    let spec = NodeSpec { backing: BackingSpec::None, ..tool.spec(&want)? };
    let opened = tool.open_spec(&spec, want.cache);
    let disk = opened.doing(|| format!("Could not open '{file}'"))?;
    warn_of_guess(&want, &spec, &disk);
    let source = match parsed.last("source-file") {
        None => None,
        Some(name) => {
            let want = Want::plain(name, parsed.last("source-format"));
            let spec = NodeSpec { backing: BackingSpec::None, ..tool.spec(&want)? };
            let opened = tool.open_spec(&spec, want.cache);
            Some(opened.doing(|| format!("Could not open '{name}'"))?)
        }
    };
    // A bitmap that is added disabled is never seen enabled.
    let disabled = asked.iter().any(|(action, _)| *action == "disable");
    for (action, value) in &asked {
        let from = source.as_ref().unwrap_or(&disk);
        let done = change(&disk, from, bitmap, action, value, granularity, disabled);
        done.doing(|| format!("Operation {action} on bitmap {bitmap} failed"))?;
    }
    disk.close()?;
    Ok(0)
}

fn change(
    disk: &Disk,
    from: &Disk,
    bitmap: &str,
    action: &str,
    value: &str,
    granularity: Option<u64>,
    disabled: bool,
) -> Outcome<()> {
    let cluster = disk.geometry().unit;
    // Before the disk is drained, because the source may be the same disk.
    let from = from.node();
    let done = disk.drained(|node| {
        let none = || {
            Error::Refused(format!(
                "Can't store persistent bitmaps to {}: Operation not supported",
                node.name()
            ))
        };
        let bitmaps = node.format().bitmaps().ok_or_else(none)?;
        match action {
            "add" => {
                let granularity = granularity.unwrap_or(cluster.clamp(GRANULARITY_MIN, GRANULARITY_MAX));
                bitmaps.add(bitmap, granularity, !disabled)
            }
            "remove" => bitmaps.remove(bitmap),
            "clear" => bitmaps.clear(bitmap),
            "enable" => bitmaps.set_enabled(bitmap, true),
            "disable" => bitmaps.set_enabled(bitmap, false),
            _ => {
                let source = from.format().bitmaps().ok_or_else(none)?;
                if !bitmaps.list()?.iter().any(|one| one.name == bitmap) {
                    return Err(Error::NotFound { kind: "bitmap", name: bitmap.to_owned() });
                }
                merge(source, value, bitmaps, bitmap)
            }
        }
    });
    done.map_err(|error| match error {
        Error::Cancelled => Failure::interrupted(),
        Error::Exists { name, .. } => Failure::new(format!("Bitmap already exists: {name}")),
        Error::NotFound { name, .. } => Failure::new(format!("Dirty bitmap '{name}' not found")),
        other => Failure::new(told(&other)),
    })
}

/// Marks in one bitmap what is dirty in another.
fn merge(source: &dyn Bitmaps, from: &str, bitmaps: &dyn Bitmaps, to: &str) -> umbra_block::Result<()> {
    let mut at = 0;
    while let Some((start, len)) = source.next_dirty(from, at)? {
        bitmaps.mark(to, start, len)?;
        at = start + len.max(1);
    }
    Ok(())
}

/// Copies all bitmaps of a disk to another.
pub fn copy_all(source: &Disk, target: &Disk, skip_broken: bool) -> Outcome<()> {
    let from = source.node();
    let missing = || Failure::new("Source lacks bitmap support");
    let from_bitmaps = from.format().bitmaps().ok_or_else(missing)?;
    let to = target.node();
    if to.format().bitmaps().is_none() {
        return Err(Failure::new(format!("Format driver '{}' does not support bitmaps", to.format_name())));
    }
    let list = from_bitmaps.list()?;
    for bitmap in &list {
        if bitmap.in_use {
            if skip_broken {
                tell(&format!("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
                continue;
            }
            return Err(Failure::new(format!(
                "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove'",
                bitmap.name
            )));
        }
        target.drained(|node| {
            let bitmaps = node.format().bitmaps().ok_or(Error::Unsupported("persistent bitmaps".into()))?;
            bitmaps.add(&bitmap.name, bitmap.granularity, bitmap.auto)?;
            merge(from_bitmaps, &bitmap.name, bitmaps, &bitmap.name)
        })?;
    }
    Ok(())
}
