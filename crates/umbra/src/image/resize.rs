//! `resize`: change a disk's size.

use umbra_block::{Error, Preallocation};

use super::failure::{Failure, Outcome};
use super::getopt::Parsed;
use super::open::Want;
use super::{Tool, print, size, target};

/// How the size is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Grow,
    Shrink,
    Set,
}

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let (name, text) = operands(parsed)?;
    let preallocation = match parsed.last("preallocation") {
        None => Preallocation::Off,
        Some(mode) => Preallocation::parse(mode)
            .map_err(|_| Failure::new(format!("Invalid preallocation mode '{mode}'")))?,
    };
    let (change, digits) = match text.split_at_checked(1) {
        Some(("+", digits)) => (Change::Grow, digits),
        Some(("-", digits)) => (Change::Shrink, digits),
        _ => (Change::Set, text),
    };
    let given = size::parse(digits).map_err(|_| target::wrong_size("size"))?;
    let want = Want::new(parsed, name)?;
    let dry_run = parsed.has("dry-run");
    let disk = tool.open(&if dry_run { want } else { want.writable() })?;
    let old = disk.size();
    let new = match change {
        Change::Grow => old.checked_add(given),
        Change::Shrink => old.checked_sub(given),
        Change::Set => Some(given),
    };
    let new = new.filter(|&new| new > 0 && new <= i64::MAX as u64);
    let new = new.ok_or_else(|| Failure::new("New image size must be positive"))?;
    let shrink = parsed.has("shrink");
    if new < old && !shrink {
        tool.say("Use the --shrink option to perform a shrink operation.");
        return Err(Failure::new(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such \
             an operation, make sure there is no important data there.",
        ));
    }
    if new <= old && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if preallocation == Preallocation::Metadata && disk.node().format_name() == "raw" {
        return Err(Failure::new("Unsupported preallocation mode: metadata"));
    }
    if dry_run {
        let (old, new) = (size::human(old), size::human(new));
        print(&format!("would change the size of '{name}' from {old} to {new}\n"));
        return Ok(0);
    }
    let done = tool.progress(parsed).run(|task| disk.resize(new, preallocation, shrink, task));
    done.map_err(|error| match error {
        Error::Unsupported(_) => Failure::new("Image format driver does not support resize"),
        other => other.into(),
    })?;
    disk.close()?;
    if !parsed.has("quiet") {
        print("Image resized.\n");
    }
    Ok(0)
}

/// The image and the size. A size that begins with `-` looks like an option, so it is taken from the end as it is.
fn operands(parsed: &Parsed) -> Outcome<(&str, &str)> {
    match parsed.operands.as_slice() {
        [name, size] => Ok((name, size)),
        _ => Err(Failure::usage("Expecting image file name and size")),
    }
}
