//! The real `qemu-img`, with which `umbra image` is compared, and its sisters `qemu-io` and `qemu-nbd`: unpacked from Debian's
//! backports, or those of the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;

/// The series whose behaviour ours has.
const VERSION: &[u8] = b"qemu-img version 10.";
/// The programs of the package.
const PROGRAMS: [&str; 3] = ["qemu-img", "qemu-io", "qemu-nbd"];

/// Where the one that was unpacked is: a script that finds its libraries.
pub fn unpacked() -> PathBuf {
    cache::folder().join("bin/qemu-img")
}

/// Whether all that were unpacked are there.
pub(crate) fn is_complete() -> bool {
    is_good(&unpacked()) && PROGRAMS.iter().all(|name| starts(&unpacked().with_file_name(name)))
}

fn starts(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether a program is the one that we want.
fn is_good(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.stdout.starts_with(VERSION))
}

/// The program to compare with.
pub fn find() -> Result<PathBuf> {
    let named = std::env::var_os("UMBRA_QEMU_IMG").map(PathBuf::from);
    let places = [named, Some(unpacked()), Some("/usr/bin/qemu-img".into())];
    let found = places.into_iter().flatten().find(|path| is_good(path));
    match found {
        Some(path) => Ok(path),
        None => bail!("there is no qemu-img 10 here; run `cargo xtask deps`"),
    }
}

/// Writes the scripts for a tree of unpacked packages. Each program gets its own name, with which its messages begin.
pub(crate) fn install(tree: &Path) -> Result<()> {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let path: Vec<String> = libraries.iter().map(|folder| tree.join(folder).display().to_string()).collect();
    for name in PROGRAMS {
        let text = format!(
            "#!/bin/bash\nLD_LIBRARY_PATH='{}' exec -a {name} '{}' \"$@\"\n",
            path.join(":"),
            tree.join("usr/bin").join(name).display()
        );
        let script = unpacked().with_file_name(name);
        cache::write_file(&script, text.as_bytes())?;
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", script.display()))?;
    }
    match is_complete() {
        true => Ok(()),
        false => bail!("the qemu-img that was unpacked does not start"),
    }
}
