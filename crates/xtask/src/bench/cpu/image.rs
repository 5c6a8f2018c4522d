//! The root file system of the bench, for the guests and for the host's own programs.
//!
//! One root for all rows. Its 250 MB cost each side a few seconds at each start, once a run, since a started guest runs
//! all rows; roots for groups of rows would save part of that and cost a start each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::source;
use crate::apt::Architecture;
use crate::cache;
use crate::root::{Recipe, Root};

/// What the rows run. The gcc of the release is named by its version, as its package names the program.
const PACKAGES: [&str; 13] = [
    "busybox-static",
    "gcc-12",
    "libc6-dev",
    "nodejs",
    "openssl",
    "p7zip",
    "perl-base",
    "python3-minimal",
    "sqlite3",
    "stress-ng",
    "sysbench",
    "xz-utils",
    "zstd",
];

/// The bench's own files, put into `/bench`.
const FILES: [(&str, &str); 8] = [
    ("agent.sh", include_str!("../../init/cpu/agent.sh")),
    ("rows.sh", include_str!("../../init/cpu/rows.sh")),
    ("text.pl", include_str!("../../init/cpu/text.pl")),
    ("number.pl", include_str!("../../init/cpu/number.pl")),
    ("text.py", include_str!("../../init/cpu/text.py")),
    ("number.py", include_str!("../../init/cpu/number.py")),
    ("work.js", include_str!("../../init/cpu/work.js")),
    ("work.sql", include_str!("../../init/cpu/work.sql")),
];
const CRYPTO: &str = include_str!("../../init/cpu/crypto.c");

const RECIPE: Recipe = Recipe {
    name: "cpu-root",
    number: 1,
    architecture: Architecture::Amd64,
    packages: &PACKAGES,
    dependencies: true,
    not_needed: &["usr/include/linux"],
};

/// Makes the root, or what is missing of it.
pub(super) fn prepare() -> Result<Root> {
    RECIPE.prepare(FILES[0].1, complete, bring_up_to_date)
}

/// What is made from the root itself.
fn complete(root: &Path) -> Result<()> {
    let bench = root.join("bench");
    fs::create_dir_all(&bench)?;
    fs::write(bench.join("corpus"), source::corpus(root)?)?;
    make_key(root, &bench.join("rsa2048.pem"))?;
    add_applets(root)
}

/// What is part of this program.
fn bring_up_to_date(root: &Path) -> Result<()> {
    for (name, text) in FILES {
        cache::write_file(&root.join("bench").join(name), text.as_bytes())?;
    }
    build_crypto(root)?;
    cache::write_file(&root.join("bench/work.c"), source::c_file().as_bytes())
}

/// Links for busybox's applets, where no package brings the program itself.
fn add_applets(root: &Path) -> Result<()> {
    let output =
        Command::new(root.join("bin/busybox")).arg("--list").output().context("cannot run busybox")?;
    if !output.status.success() {
        bail!("busybox --list failed");
    }
    for applet in String::from_utf8_lossy(&output.stdout).lines() {
        let there = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(applet));
        if there.iter().all(|path| fs::symlink_metadata(path).is_err()) {
            symlink("busybox", &there[0]).with_context(|| format!("cannot link {applet}"))?;
        }
    }
    Ok(())
}

/// Builds the small program that has OpenSSL's library do fixed amounts of work, against the root's own libraries.
fn build_crypto(root: &Path) -> Result<()> {
    let (source, program) = (root.join("bench/crypto.c"), root.join("bench/crypto"));
    if program.exists() && fs::read(&source).is_ok_and(|old| old == CRYPTO.as_bytes()) {
        return Ok(());
    }
    fs::write(&source, CRYPTO)?;
    let mut command = Command::new("cc");
    command.arg("-O2").arg(format!("--sysroot={}", root.display())).arg("-o").arg(&program);
    command.arg(&source).arg("-L").arg(root.join("usr/lib/x86_64-linux-gnu")).arg("-l:libcrypto.so.3");
    succeed(command, "cc")
}

/// Makes the key that is signed with, by the root's OpenSSL.
fn make_key(root: &Path, path: &Path) -> Result<()> {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| root.join(folder));
    let mut command = Command::new(libraries[1].join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(std::env::join_paths(&libraries)?);
    command.arg(root.join("usr/bin/openssl")).args(["genrsa", "-out"]).arg(path).arg("2048");
    succeed(command.env("OPENSSL_CONF", "/dev/null"), "openssl")
}

fn succeed(mut command: impl std::borrow::BorrowMut<Command>, what: &str) -> Result<()> {
    let output = command.borrow_mut().output().with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
