//! `convert`: copy an image, to another format perhaps.

use umbra_block::{
    BackingRef, Copy, CopySource, Disk, Error, Node, NodeSpec, Preallocation, SnapshotTarget, resolve,
};

use super::copy::{self, is_stream, is_zero_when_new};
use super::failure::{Doing, Failure, Outcome, told};
use super::getopt::Parsed;
use super::open::{Cache, Want};
use super::partial::Partial;
use super::target::{self, Target};
use super::{Tool, bitmap, keyval, print, size};

/// Zeroes in runs of this and more are not written as data, where nobody says otherwise.
const SPARSE: u64 = 4096;
const SPARSE_MAX: u64 = 16 << 20;
const PARALLEL_MAX: usize = 16;

/// What the command line says.
struct Plan<'a> {
    sources: &'a [String],
    target: &'a str,
    format: &'a str,
    sparse: u64,
    threads: Option<usize>,
    rate: Option<u64>,
    cache: Cache,
    create: bool,
    target_is_zero: bool,
    compress: bool,
}

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let texts: Vec<&str> = parsed.all("options").collect();
    let format = parsed.last("output-format").unwrap_or("raw");
    if texts.iter().any(|text| keyval::asks_for_help(text)) {
        print(&target::option_help(&**tool.driver(format)?, false, !parsed.operands.is_empty()));
        return Ok(0);
    }
    let plan = plan(parsed, format)?;
    let disks = open_sources(tool, parsed, &plan)?;
    let total: u64 = disks.iter().map(Disk::size).sum();
    let backing = check_formats(tool, parsed, &plan)?;
    if parsed.has("dry-run") {
        return dry_run(tool, parsed, &plan, total);
    }
    let copied = tool.progress(parsed).run(|task| -> Outcome<()> {
        let (disk, partial) = open_target(tool, parsed, &plan, total, task)?;
        let quiet = parsed.has("quiet");
        let say = |error: &Error| {
            if !quiet {
                tool.say(&told(error));
            }
        };
        let copy = Copy {
            sources: disks.iter().map(|disk| CopySource { disk, start: 0, len: disk.size() }).collect(),
            target: &disk,
            target_start: 0,
            target_is_zero: match plan.create {
                true => !backing && is_zero_when_new(&disk),
                false => plan.target_is_zero,
            },
            from_top: backing.then_some(1),
            compress: plan.compress || is_stream(&disk),
            sparse: plan.sparse,
            threads: plan.threads,
            rate: plan.rate,
            salvage: parsed.has("salvage").then_some(&say),
        };
        copy.run(task)?;
        if parsed.has("bitmaps") {
            bitmap::copy_all(&disks[0], &disk, parsed.has("skip-broken-bitmaps"))?;
        }
        disk.close()?;
        partial.into_iter().for_each(Partial::keep);
        Ok(())
    });
    copied.map(|()| 0).map_err(|failure| match failure.interrupted && !plan.create {
        true => Failure { message: format!("interrupted; '{}' is not complete", plan.target), ..failure },
        false => failure,
    })
}

/// Options that do not go together, or with whether the target is made here.
fn exclude(parsed: &Parsed, create: bool) -> Outcome<()> {
    if create && parsed.has("target-is-zero") {
        return Err(Failure::new("--target-is-zero requires use of -n flag"));
    }
    if create && parsed.has("target-image-opts") {
        return Err(Failure::new("--target-image-opts requires use of -n flag"));
    }
    if parsed.has("skip-broken-bitmaps") && !parsed.has("bitmaps") {
        return Err(Failure::new("Use of --skip-broken-bitmaps requires --bitmaps"));
    }
    for (option, letter) in [("sparse-size", "S"), ("compress", "c")] {
        if parsed.has("copy-range-offloading") && parsed.has(option) {
            return Err(Failure::new(format!("Cannot enable copy offloading when -{letter} is used")));
        }
    }
    if !create && parsed.has("options") {
        return Err(Failure::new("-o has no effect when skipping image creation"));
    }
    if parsed.has("target-image-opts") && parsed.has("output-format") {
        return Err(Failure::new("--image-opts and --format are mutually exclusive"));
    }
    Ok(())
}

fn plan<'a>(parsed: &'a Parsed, format: &'a str) -> Outcome<Plan<'a>> {
    let threads = match parsed.last("parallel") {
        None => None,
        Some(text) => {
            let number: i64 = text
                .parse()
                .map_err(|_| Failure::new(format!("Invalid number of coroutines specified: '{text}'.")))?;
            let threads = usize::try_from(number).ok().filter(|threads| (1..=PARALLEL_MAX).contains(threads));
            Some(threads.ok_or_else(|| {
                Failure::new("Invalid number of coroutines specified. Must be between 1 and 16.")
            })?)
        }
    };
    let sparse = match parsed.last("sparse-size").map(size::parse) {
        None => SPARSE,
        Some(Ok(size)) if size.is_multiple_of(512) && size <= SPARSE_MAX => size,
        Some(Err(size::SizeError::Malformed)) => {
            let text = parsed.last("sparse-size").unwrap_or_default();
            return Err(Failure::new(format!("Invalid buffer size for sparse output specified: '{text}'.")));
        }
        Some(_) => {
            return Err(Failure::new(
                "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. \
                 Select 0 to disable sparse detection (fully allocates output).",
            ));
        }
    };
    let create = !parsed.has("no-create");
    exclude(parsed, create)?;
    let rate = copy::rate(parsed)?;
    let [sources @ .., target] = parsed.operands.as_slice() else {
        return Err(Failure::new("Must specify image file name"));
    };
    if sources.is_empty() {
        return Err(Failure::new("Must specify image file name"));
    }
    if sources.len() > 1 && parsed.has("backing") {
        return Err(Failure::new(
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ));
    }
    Ok(Plan {
        sources,
        target,
        format,
        sparse,
        threads,
        rate,
        cache: Cache::parse(parsed.last("target-cache").or(Some("unsafe")), "cache option")?,
        create,
        target_is_zero: parsed.has("target-is-zero"),
        compress: parsed.has("compress"),
    })
}

fn open_sources(tool: &Tool, parsed: &Parsed, plan: &Plan<'_>) -> Outcome<Vec<Disk>> {
    let snapshot = parsed.last("snapshot");
    if snapshot.is_some() && plan.sources.len() > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    let cache = Cache::parse(parsed.last("source-cache"), "source cache option")?;
    let mut disks = Vec::new();
    for name in plan.sources {
        let disk = tool.open(&Want { cache, ..Want::new(parsed, name)? })?;
        disks.push(match snapshot {
            Some(snapshot) => open_snapshot(&disk, snapshot)?,
            None => disk,
        });
    }
    Ok(disks)
}

/// A disk as it was at a snapshot, which is named by `snapshot.id=` and `snapshot.name=`, or by either.
pub fn open_snapshot(disk: &Disk, text: &str) -> Outcome<Disk> {
    let missing = |_| Failure::new("Failed to load snapshot: Can't find snapshot");
    let node = disk.node();
    let snapshots = node.format().snapshots();
    let snapshots = snapshots
        .ok_or_else(|| {
            Failure::new(format!(
                "Failed to load snapshot: Block format '{}' used by device '' does not support temporarily loading internal snapshots",
                node.format_name()
            ))
        })?;
    let mut id = text.to_owned();
    if text.starts_with("snapshot.") {
        let mut options = keyval::options(text).map_err(Failure::new)?;
        let (wanted_id, wanted_name) = (options.take("snapshot.id"), options.take("snapshot.name"));
        options.finish().map_err(|error| {
            Failure::new(format!("{error}\nqemu-img: Failed in parsing snapshot param '{text}'"))
        })?;
        let list = snapshots.list()?;
        let found = list.iter().find(|one| {
            wanted_id.as_ref().is_none_or(|id| *id == one.id)
                && wanted_name.as_ref().is_none_or(|name| *name == one.name)
        });
        id = found.ok_or_else(|| missing(()))?.id.clone();
        let view = snapshots.view(SnapshotTarget::Id(&id));
        return Ok(over(disk, view.map_err(|_| missing(()))?));
    }
    let view = snapshots.view(SnapshotTarget::Either(&id)).map_err(|error| match error {
        Error::NotFound { .. } => missing(()),
        other => other.into(),
    })?;
    Ok(over(disk, view))
}

fn over(disk: &Disk, view: Box<dyn umbra_block::Format>) -> Disk {
    let node = disk.node();
    Disk::over(Node::new(view, node.format_name(), node.spec().clone(), node.backing()))
}

/// What does not go together with the target's format. Whether the target gets a backing file.
fn check_formats(tool: &Tool, parsed: &Parsed, plan: &Plan<'_>) -> Outcome<bool> {
    let driver = tool.driver(plan.format)?;
    if !plan.create {
        return Ok(parsed.has("backing"));
    }
    let texts: Vec<&str> = parsed.all("options").collect();
    let given = target::given(&**driver, &texts)?;
    if plan.compress {
        let streams = given.options.get("subformat") == Some("streamOptimized");
        if driver.name() != "qcow2" && !streams {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if given.options.get("encryption") == Some("on") || given.options.get("encrypt.format").is_some() {
            return Err(Failure::new("Compression and encryption not supported at the same time"));
        }
        let preallocation =
            given.options.get("preallocation").map_or(Ok(Preallocation::Off), Preallocation::parse)?;
        if preallocation != Preallocation::Off {
            return Err(Failure::new("Compression and preallocation not supported at the same time"));
        }
    }
    let backing = parsed.has("backing") || given.backing_file.is_some();
    if backing && !target::WITH_BACKING.contains(&driver.name()) {
        return Err(target::no_backing(driver.name()));
    }
    let format = parsed.has("backing-format") || given.backing_fmt.is_some();
    if backing && !format {
        return Err(Failure::new("Use of backing file requires explicit backing format"));
    }
    Ok(backing)
}

fn planned_target(tool: &Tool, parsed: &Parsed, plan: &Plan<'_>, total: u64) -> Outcome<Target> {
    let driver = tool.driver(plan.format)?.clone();
    let texts: Vec<&str> = parsed.all("options").collect();
    let given = target::given(&*driver, &texts)?;
    let backing = parsed.last("backing").map(str::to_owned).or(given.backing_file);
    let format = parsed.last("backing-format").map(str::to_owned).or(given.backing_fmt);
    Ok(Target {
        driver,
        name: plan.target.to_owned(),
        // The sources', whatever -o says, as with `qemu-img`.
        size: total,
        backing: backing.map(|name| BackingRef { name, format }),
        options: given.options,
        hints: given.hints,
    })
}

/// Makes the target where it is to be made, and opens it for writing.
fn open_target(
    tool: &Tool,
    parsed: &Parsed,
    plan: &Plan<'_>,
    total: u64,
    task: &umbra_block::Task<'_>,
) -> Outcome<(Disk, Option<Partial>)> {
    let image_opts = parsed.has("target-image-opts");
    let format = (!image_opts).then_some(plan.format);
    let mut want = Want { image_opts, cache: plan.cache, ..Want::plain(plan.target, format).writable() };
    if !plan.create {
        // A target that was not made here is somebody's: it is made durable.
        want.cache = Cache::parse(parsed.last("target-cache"), "cache option")?;
        let disk = tool.open(&want)?;
        if plan.compress && disk.geometry().compression.is_none() {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if disk.size() < total {
            return Err(Failure::new("output file is smaller than input file"));
        }
        return Ok((disk, None));
    }
    let target = planned_target(tool, parsed, plan, total)?;
    if let Some(backing) = &target.backing {
        // What is there already is not given up for an image that nobody could open.
        let path = resolve(plan.target, &backing.name);
        let below = Want { metadata_only: true, ..Want::plain(&path, backing.format.as_deref()) };
        tool.open_spec(&tool.spec(&below)?, below.cache)
            .doing(|| format!("Could not open '{}': Could not open backing file", plan.target))?;
    }
    let partial = target
        .make(tool, plan.cache, task)
        .doing(|| format!("{}: error while converting {}", plan.target, plan.format))?;
    let mut spec: NodeSpec = tool.spec(&want)?;
    if let Some(secret) = target.options.get("encrypt.key-secret") {
        spec.options.set("encrypt.key-secret", secret);
    }
    if let Some(secret) = target.options.get("key-secret") {
        spec.options.set("key-secret", secret);
    }
    let disk = tool.open_spec(&spec, plan.cache).doing(|| format!("Could not open '{}'", plan.target))?;
    Ok((disk, Some(partial)))
}

fn dry_run(tool: &Tool, parsed: &Parsed, plan: &Plan<'_>, total: u64) -> Outcome {
    let what = match plan.create {
        true => format!("would make it: {}\n", planned_target(tool, parsed, plan, total)?.formatting()),
        false => format!("would write into '{}'\n", plan.target),
    };
    print(&format!("would copy {} of {}\n{what}", size::human(total), plan.sources.join(", ")));
    Ok(0)
}
