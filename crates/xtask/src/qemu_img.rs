//! The real `qemu-img`, with which `umbra image` is compared: unpacked from Debian's backports, or that of the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;

/// The series whose behaviour ours has.
const VERSION: &[u8] = b"qemu-img version 10.";

/// Where the one that was unpacked is: a script that finds its libraries.
pub fn unpacked() -> PathBuf {
    cache::folder().join("bin/qemu-img")
}

/// Whether a program is the one that we want.
pub(crate) fn is_good(program: &Path) -> bool {
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

/// Writes the script for a tree of unpacked packages. Under the name `qemu-img`, because its messages begin with its name.
pub(crate) fn install(tree: &Path) -> Result<()> {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let path: Vec<String> = libraries.iter().map(|folder| tree.join(folder).display().to_string()).collect();
    let text = format!(
        "#!/bin/bash\nLD_LIBRARY_PATH='{}' exec -a qemu-img '{}' \"$@\"\n",
        path.join(":"),
        tree.join("usr/bin/qemu-img").display()
    );
    let script = unpacked();
    cache::write_file(&script, text.as_bytes())?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", script.display()))?;
    match is_good(&script) {
        true => Ok(()),
        false => bail!("the qemu-img that was unpacked does not start"),
    }
}
