//! An image with a temporary overlay, in which all that is written goes and is lost.
//!
//! The overlay's file has no name any more once it is open, so that nothing of it is left however the program ends.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use umbra_block::{BackingSpec, CreateOptions, Disk, FileSpec, HostFiles, NodeSpec, Opener, Options, Task};

use super::Tool;
use super::failure::{Doing, Failure, Outcome, reason};
use super::open::Want;

const FORMAT: &str = "qcow2";
/// Names that are tried.
const TRIES: u32 = 100;

/// A folder of one's own for as long as the overlay has a name.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Folder> {
        let parent = std::env::temp_dir();
        let mut last = None;
        for number in 0..TRIES {
            let path = parent.join(format!("umbra-overlay-{}-{number}", std::process::id()));
            // It must not be there before: somebody else may have put a link in its place.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(error) => last = Some(error),
            }
        }
        let why = last.map_or_else(String::new, |error| reason(&error));
        Err(Failure::new(format!("Could not make a folder for an overlay in '{}': {why}", parent.display())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays would be seen; there is nobody to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens an image read-only, with an overlay for what is written.
pub fn open(tool: &Tool, want: &Want<'_>, policy: &Options) -> Outcome<Disk> {
    let base = tool.spec(want)?;
    let below = tool.open_spec(&base, want.cache).doing(|| format!("Could not open '{}'", want.name))?;
    let folder = Folder::new()?;
    let path = folder.0.join("overlay.qcow2").display().to_string();
    let made = || {
        let storage = HostFiles.create(&FileSpec::file(path.as_str()))?;
        let options = CreateOptions { size: below.size(), ..CreateOptions::default() };
        let driver = tool.environment.registry.get(FORMAT)?;
        driver.create(storage, &path, &options, &tool.environment, &Task::quiet())?;
        // What it was found to be, so that it is that when it is opened again.
        let format = Some(below.node().format_name().to_owned());
        let base = NodeSpec { format, ..base };
        let spec = NodeSpec {
            backing: BackingSpec::Node(Box::new(base)),
            options: policy.clone(),
            ..NodeSpec::new(path.as_str(), Some(FORMAT)).writable()
        };
        Ok::<NodeSpec, Failure>(spec)
    };
    let spec = made().doing(|| "Could not make an overlay".to_owned())?;
    drop(below);
    tool.open_spec(&spec, want.cache).doing(|| format!("Could not open an overlay of '{}'", want.name))
}
