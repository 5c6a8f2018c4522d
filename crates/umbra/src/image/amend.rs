//! `amend`: change options of an image.

use umbra_block::{Disk, Error, FormatDriver, Options, Preallocation, Task};

use super::failure::{Failure, Outcome};
use super::getopt::Parsed;
use super::open::Want;
use super::{Tool, keyval, print, size, target};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let texts: Vec<&str> = parsed.all("options").collect();
    if texts.is_empty() {
        return Err(Failure::usage("Must specify options (-o)"));
    }
    if let (true, Some(format)) =
        (texts.iter().any(|text| keyval::asks_for_help(text)), parsed.last("format"))
    {
        let driver = tool.driver(format)?;
        if !driver.create_options().iter().any(|option| option.amendable) {
            return Err(no_amendment(format));
        }
        print(&target::option_help(&**driver, true, false));
        return Ok(0);
    }
    let name = tool.one_name(parsed)?;
    let disk = tool.open(&Want::new(parsed, name)?.writable())?;
    let format = disk.node().format_name().to_owned();
    let driver = tool.environment.registry.get(&format)?;
    if !driver.create_options().iter().any(|option| option.amendable) {
        return Err(no_amendment(&format));
    }
    if texts.iter().any(|text| keyval::asks_for_help(text)) {
        print(&target::option_help(&**driver, true, false));
        return Ok(0);
    }
    let mut options = keyval::of_all(&texts).map_err(Failure::new)?;
    check_names(&**driver, &options)?;
    if parsed.has("dry-run") {
        let list: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        print(&format!("would change '{name}': {}\n", list.join(" ")));
        return Ok(0);
    }
    // Whether the last key may go is asked for key slots only.
    let luks = if format == "luks" { "" } else { "encrypt." };
    if parsed.has("force") && options.get(&format!("{luks}state")).is_some() {
        options.set(format!("{luks}force"), "on");
    }
    refuse_backing(&disk, &options)?;
    tool.progress(parsed).run(|task| change(&disk, options, task))?;
    disk.close()?;
    Ok(0)
}

/// Another backing file is `rebase`'s affair.
fn refuse_backing(disk: &Disk, options: &Options) -> Outcome<()> {
    let old = disk.node().format().backing().unwrap_or_default();
    let format = old.format.unwrap_or_default();
    for (option, is, what) in [("backing_file", &old.name, "file"), ("backing_fmt", &format, "format")] {
        if options.get(option).is_some_and(|wanted| wanted != is || is.is_empty()) {
            return Err(Failure::new(format!(
                "Cannot amend the backing {what}\nYou can use 'qemu-img rebase' instead."
            )));
        }
    }
    Ok(())
}

/// Whether each can be changed.
fn check_names(driver: &dyn FormatDriver, options: &Options) -> Outcome<()> {
    let of_all = ["size", "backing_file", "backing_fmt"];
    for (name, _) in options.iter().filter(|(name, _)| !of_all.contains(name)) {
        match driver.create_options().iter().find(|option| option.name == name) {
            Some(option) if option.amendable => {}
            Some(_) => {
                return Err(Failure::new(format!(
                    "Invalid parameter '{name}'\nThis option is only supported for image creation"
                )));
            }
            None => return Err(Failure::new(format!("Invalid parameter '{name}'"))),
        }
    }
    Ok(())
}

/// Changes what is named: the name of the backing file, the format's own options, the size.
fn change(disk: &Disk, mut options: Options, task: &Task<'_>) -> Outcome<()> {
    let new_size = options.take("size").map(|text| size::parse(&text)).transpose();
    let new_size = new_size.map_err(|_| target::wrong_size("size"))?;
    // They are what they were.
    options.take("backing_file");
    options.take("backing_fmt");
    let read_only = || Error::ReadOnly("amend".into());
    if !options.is_empty() {
        disk.drained(|node| node.format().write().ok_or_else(read_only)?.amend(&options, task))?;
    }
    if let Some(size) = new_size {
        disk.resize(size, Preallocation::Off, true, task)?;
    }
    Ok(())
}

fn no_amendment(format: &str) -> Failure {
    Failure::new(format!("Format driver '{format}' does not support option amendment"))
}
