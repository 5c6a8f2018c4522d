//! `apt:`: Debian, by mmdebstrap(1), which needs no root and checks signatures as apt does, into one archive of tar.

use std::path::Path;
use std::process::Command;

use super::program;
use super::recipe::Recipe;
use crate::guest::{Interrupt, Progress};

/// What mmdebstrap says when it begins with something, and what that is.
const PHASES: [(&str, &str); 6] = [
    ("I: running apt-get update", "fetching the lists of packages"),
    ("I: downloading packages", "downloading packages"),
    ("I: extracting archives", "unpacking the essential packages"),
    ("I: installing essential", "installing the essential packages"),
    ("I: installing remaining", "installing the other packages"),
    ("I: creating tarball", "collecting files"),
];

/// Writes the archive `to`, in the folder `work`.
///
/// # Errors
/// mmdebstrap is not here, or fails.
pub fn fetch(
    suite: &str,
    recipe: &Recipe,
    to: &Path,
    work: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--format=tar", "--aptopt=Apt::Install-Recommends \"false\""]);
    if !recipe.packages.is_empty() {
        command.arg(format!("--include={}", recipe.packages.join(",")));
    }
    for path in &recipe.without {
        command.arg(format!("--dpkgopt=path-exclude=/{path}"));
    }
    // The initramfs is ours; making Debian's would take its time.
    command.env("INITRD", "No");
    command.arg(suite).arg(to);
    let mut told = 0;
    program::run(&mut command, "mmdebstrap", &work.join("log"), interrupt, |line| {
        let phase = PHASES.iter().position(|(begin, _)| line.starts_with(begin));
        if let Some(phase) = phase.filter(|phase| *phase >= told)
            && let Some((_, what)) = PHASES.get(phase)
        {
            told = phase + 1;
            progress.say(what);
        }
    })
}
