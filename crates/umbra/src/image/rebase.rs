//! `rebase`: give an overlay another backing file, and keep its content: what the new one has differently is copied into the
//! overlay first, and made durable before the name is changed.

use umbra_block::{BackingRef, BackingSpec, Disk, Error, NodeSpec, Task, resolve};

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
    disk.flush()?;
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

/// Copies into the overlay what it has by its old backing file and would have differently by the new one.
fn copy_differences(disk: &Disk, new: Option<&Disk>, compress: bool, task: &Task<'_>) -> Outcome<()> {
    let geometry = disk.geometry();
    let size = geometry.size;
    let unit = match geometry.compression {
        Some(compression) if compress => compression.unit,
        _ => geometry.zero_unit.max(4096),
    };
    let piece = unit.max(512 << 10);
    let mut buffers = [vec![0; piece as usize], vec![0; piece as usize]];
    let mut at = 0;
    while at < size {
        task.at(at, size)?;
        let (allocated, len) = disk.is_allocated(at, size - at)?;
        // Whole units, because a unit that is begun is the overlay's.
        if allocated {
            at += len.max(1);
            continue;
        }
        if let Some(len) = both_zero(disk, new, at, len)? {
            at += len;
            continue;
        }
        let len = len.min(piece - at % piece);
        let [old_bytes, new_bytes] = &mut buffers;
        let (old_bytes, new_bytes) = (&mut old_bytes[..len as usize], &mut new_bytes[..len as usize]);
        disk.read(at, old_bytes)?;
        read_or_zero(new, at, new_bytes)?;
        for (index, (old, new)) in
            old_bytes.chunks(unit as usize).zip(new_bytes.chunks(unit as usize)).enumerate()
        {
            if old != new {
                let to = at + index as u64 * unit;
                match compress {
                    true => disk.write_compressed(to, old)?,
                    false => disk.write(to, old)?,
                }
            }
        }
        at += len;
    }
    task.at(size, size)?;
    Ok(())
}

/// How many bytes read as zeroes with either backing file.
fn both_zero(disk: &Disk, new: Option<&Disk>, at: u64, len: u64) -> Outcome<Option<u64>> {
    let old = disk.block_status(at, len)?;
    if !old.zero {
        return Ok(None);
    }
    let len = old.len.max(1);
    let Some(new) = new.filter(|new| at < new.size()) else { return Ok(Some(len)) };
    let status = new.block_status(at, len.min(new.size() - at))?;
    Ok(status.zero.then_some(status.len.max(1)))
}

/// Reads a backing disk, which may end before.
fn read_or_zero(disk: Option<&Disk>, at: u64, bytes: &mut [u8]) -> Outcome<()> {
    let have = disk.map_or(0, |disk| disk.size().saturating_sub(at)).min(bytes.len() as u64) as usize;
    if let Some(disk) = disk
        && have > 0
    {
        disk.read(at, &mut bytes[..have])?;
    }
    bytes[have..].fill(0);
    Ok(())
}
