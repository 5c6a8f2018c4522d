//! `create`: make an image.

use std::path::Path;

use umbra_block::{BackingRef, resolve};

use super::failure::{Failure, Outcome};
use super::getopt::Parsed;
use super::open::{Cache, Want};
use super::target::{self, Target};
use super::{Tool, keyval, print, size};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let format = parsed.last("format").unwrap_or("raw");
    let texts: Vec<&str> = parsed.all("options").collect();
    if texts.iter().any(|text| keyval::asks_for_help(text)) {
        print(&target::option_help(&**tool.driver(format)?, false, !parsed.operands.is_empty()));
        return Ok(0);
    }
    keyval::of_all(&texts).map_err(Failure::new)?;
    let (name, size_text) = match parsed.operands.as_slice() {
        [] => return Err(Failure::usage("Expecting image file name")),
        [name] => (name, None),
        [name, size, ..] => (name, Some(size.as_str())),
    };
    let size = size_text.map(parse_size).transpose()?;
    if let Some(extra) = parsed.operands.get(2) {
        return Err(Failure::usage(format!("Unexpected argument: {extra}")));
    }
    let target = plan(tool, parsed, name, size).map_err(|failure| named(name, failure))?;
    if !parsed.has("quiet") {
        print(&format!("{}\n", target.formatting()));
    }
    if parsed.has("dry-run") {
        return Ok(0);
    }
    let made = tool.progress(parsed).run(|task| target.make(tool, Cache::default(), task));
    made.map_err(|failure| named(name, failure))?.keep();
    Ok(0)
}

fn named(name: &str, failure: Failure) -> Failure {
    match failure.interrupted {
        true => failure,
        false => Failure { message: format!("{name}: {}", failure.message), ..failure },
    }
}

/// Reads a size of an image.
pub fn parse_size(text: &str) -> Outcome<u64> {
    size::bounded("image size", text, 0..=i64::MAX as u64)
}

fn plan(tool: &Tool, parsed: &Parsed, name: &str, size: Option<u64>) -> Outcome<Target> {
    let format = parsed.last("format").unwrap_or("raw");
    let driver = tool.driver(format)?.clone();
    let texts: Vec<&str> = parsed.all("options").collect();
    let given = target::given(&*driver, &texts)?;
    // An option of its own counts more than one of -o.
    let backing = parsed.last("backing").map(str::to_owned).or(given.backing_file);
    let backing_format = parsed.last("backing-format").map(str::to_owned).or(given.backing_fmt);
    if backing.is_some() && !target::WITH_BACKING.contains(&driver.name()) {
        return Err(target::no_backing(driver.name()));
    }
    if backing.as_deref() == Some("") {
        return Err(Failure::new("Expected backing file name, got empty string"));
    }
    if let Some(format) = &backing_format
        && tool.driver(format).is_err()
    {
        return Err(Failure::new(match backing {
            Some(_) if !parsed.has("backing-unsafe") => {
                format!("Unknown driver '{format}'\nCould not open backing image.")
            }
            _ => format!("Invalid backing file format '{format}'"),
        }));
    }
    let size = match (size, given.size) {
        (Some(_), Some(_)) => return Err(Failure::new("The image size must be specified only once")),
        (size, other) => size.or(other),
    };
    let mut backing_size = None;
    if let Some(backing) = &backing {
        if same_file(&resolve(name, backing), name) {
            return Err(Failure::new(
                "Error: Trying to create an image with the same filename as the backing file",
            ));
        }
        if !parsed.has("backing-unsafe") {
            backing_size = Some(look_at_backing(tool, name, backing, backing_format.as_deref())?);
        }
    }
    let size = size.or(backing_size).ok_or_else(|| Failure::new("Image creation needs a size parameter"))?;
    if backing.is_none() && backing_format.is_some() {
        return Err(Failure::new("Backing format cannot be used without backing file"));
    }
    let backing = backing.map(|name| BackingRef { name, format: backing_format });
    Ok(Target { driver, name: name.to_owned(), size, backing, options: given.options, hints: given.hints })
}

fn same_file(one: &str, other: &str) -> bool {
    let real = |name: &str| Path::new(name).canonicalize();
    one == other || matches!((real(one), real(other)), (Ok(one), Ok(other)) if one == other)
}

/// Opens a backing file to see that it is there; its disk's size.
fn look_at_backing(tool: &Tool, image: &str, backing: &str, format: Option<&str>) -> Outcome<u64> {
    let path = resolve(image, backing);
    let want = Want { metadata_only: true, ..Want::plain(&path, format) };
    let opened = tool.spec_plain(&want).and_then(|spec| tool.open_spec(&spec, want.cache));
    let disk = opened.map_err(|failure| Failure {
        message: format!("{}\nCould not open backing image.", failure.message),
        ..failure
    })?;
    if format.is_none() {
        return Err(Failure::new(format!(
            "Backing file specified without backing format\nDetected format of {}.",
            disk.node().format_name()
        )));
    }
    Ok(disk.size())
}
