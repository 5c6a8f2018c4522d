//! `rebase`: give an overlay another backing file, and keep its content: what the new one has differently is copied into the
//! overlay first, and made durable before the name is changed.

use umbra_block::{BackingRef, BackingSpec, Disk, Error, NodeSpec, copy_differences, resolve};

use super::failure::{Doing, Failure, Outcome, told};
use super::getopt::Parsed;
use super::open::{Cache, Want, file_spec};
use super::{Tool, print};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let unsafe_mode = parsed.has("backing-unsafe");
    let backing = parsed.last("backing");
    let name = tool.one_name(parsed)?;
    if backing.is_none() && !unsafe_mode {
        return Err(Failure::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let format = parsed.last("backing-format");
    let reference = backing
        .filter(|backing| !backing.is_empty())
        .map(|backing| BackingRef { name: backing.to_owned(), format: format.map(str::to_owned) });
    if let Some(format) = format
        && tool.driver(format).is_err()
    {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    let want = Want { share: false, ..Want::new(parsed, name)? }.writable();
    if unsafe_mode {
        return change_only(tool, parsed, &want, reference.as_ref());
    }
    let disk = tool.open(&want)?;
    if let Some(reference) = &reference
        && reference.format.is_none()
    {
        return Err(cannot_change(Some(reference), "backing format must be specified"));
    }
    let cache = Cache::parse(parsed.last("backing-cache"), "source cache option")?;
    let new = match &reference {
        Some(reference) => Some(open_new(tool, name, reference, cache)?),
        None => None,
    };
    if parsed.has("dry-run") {
        let to = reference.map_or("no backing file".to_owned(), |reference| format!("'{}'", reference.name));
        print(&format!("would put '{name}' on {to}; its content stays\n"));
        return Ok(0);
    }
    let compress = parsed.has("compress");
    if compress && disk.geometry().compression.is_none() {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    tool.progress(parsed).run(|task| copy_differences(&disk, new.as_ref(), compress, task))?;
    set_backing(&disk, reference.as_ref())?;
    disk.close()?;
    Ok(0)
}

fn cannot_change(reference: Option<&BackingRef>, why: &str) -> Failure {
    let name = reference.map_or("", |reference| reference.name.as_str());
    Failure::new(format!("Could not change the backing file to '{name}': {why}"))
}

fn change_only(tool: &Tool, parsed: &Parsed, want: &Want<'_>, reference: Option<&BackingRef>) -> Outcome {
    let spec = NodeSpec { backing: BackingSpec::None, ..tool.spec(want)? };
    let disk = tool.open_spec(&spec, want.cache).doing(|| format!("Could not open '{}'", want.name))?;
    if let Some(reference) = reference
        && reference.format.is_none()
    {
        return Err(cannot_change(Some(reference), "backing format must be specified"));
    }
    if parsed.has("dry-run") {
        print("would change the name of the backing file only\n");
        return Ok(0);
    }
    set_backing(&disk, reference)?;
    disk.close()?;
    Ok(0)
}

fn set_backing(disk: &Disk, reference: Option<&BackingRef>) -> Outcome<()> {
    let changed = disk.drained(|node| {
        let write = node.format().write().ok_or_else(|| Error::ReadOnly("rebase".into()))?;
        write.set_backing(reference)?;
        node.format().flush()
    });
    changed.map_err(|error| match error {
        Error::Cancelled => Failure::interrupted(),
        Error::Unsupported(_) => cannot_change(reference, "Operation not supported"),
        other => cannot_change(reference, &told(&other)),
    })
}

fn open_new(tool: &Tool, image: &str, reference: &BackingRef, cache: Cache) -> Outcome<Disk> {
    let path = resolve(image, &reference.name);
    let mut spec = NodeSpec::new(path.clone(), reference.format.as_deref());
    spec.file = file_spec(&path);
    tool.open_spec(&spec, cache).doing(|| format!("Could not open new backing file '{path}'"))
}
