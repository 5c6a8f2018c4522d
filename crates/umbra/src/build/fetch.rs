//! Files that images are made of: of the host, of the network by curl(1), out of the Python index by pip(1).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::program;
use super::recipe::matches;
use crate::guest::Interrupt;

/// Lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of what is read, after `before`.
///
/// # Errors
/// It cannot be read, or the user ended it.
pub fn digest(before: &[u8], mut from: impl Read, interrupt: &Interrupt) -> anyhow::Result<String> {
    let mut sum = Sha256::new();
    sum.update(before);
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupt.check()?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&sum.finalize())),
            Ok(read) => sum.update(&buffer[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("cannot read what the image is made of"),
        }
    }
}

/// Fails where a file is not what the recipe says.
///
/// # Errors
/// It is not, or cannot be read.
pub fn verify(path: &Path, sha256: Option<&str>, interrupt: &Interrupt) -> anyhow::Result<()> {
    let Some(wanted) = sha256 else { return Ok(()) };
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = digest(&[], file, interrupt)?;
    match found.eq_ignore_ascii_case(wanted) {
        true => Ok(()),
        false => {
            bail!("{} is not what the recipe says: its SHA-256 is {found}, and not {wanted}", path.display())
        }
    }
}

/// Fetches a file of the network.
///
/// # Errors
/// curl is not here, or fails.
pub fn https(url: &str, to: &Path, work: &Path, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut command = Command::new("curl");
    command.args(["--proto", "=https", "--fail", "--location", "--silent", "--show-error", "--output"]);
    command.arg(to).arg("--").arg(url);
    program::run(&mut command, "curl", &work.join("log"), interrupt, |_| {})
}

/// Fetches a wheel of the Python index, and takes the files out of it whose names the patterns are, by their order. pip compares
/// the wheel with the index' checksum; the wheel's own list of checksums is not looked at.
///
/// # Errors
/// pip or unzip is not here, or fails; a file is not in it.
pub fn pypi(
    package: &str,
    patterns: &[&str],
    work: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<PathBuf>> {
    let folder = work.join("wheel");
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut command = Command::new("pip");
    command
        .args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(&folder)
        .arg(package);
    program::run(&mut command, "python3-pip", &work.join("log"), interrupt, |_| {})?;
    let wheel = files(&folder)?.into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheel.with_context(|| format!("pip brought no wheel of {package}"))?;
    // Names of files in it are not followed: everything comes into one folder.
    let inside = work.join("inside");
    fs::create_dir(&inside).with_context(|| format!("cannot make {}", inside.display()))?;
    let mut command = Command::new("unzip");
    command.args(["-q", "-j", "-o"]).arg(&wheel);
    command.args(patterns.iter().map(|pattern| format!("*/{pattern}"))).arg("-d").arg(&inside);
    program::run(&mut command, "unzip", &work.join("log"), interrupt, |_| {})?;
    let all = files(&inside)?;
    let find = |pattern: &&str| {
        let is =
            |path: &&PathBuf| path.file_name().is_some_and(|name| matches(pattern, &name.to_string_lossy()));
        all.iter()
            .find(is)
            .cloned()
            .with_context(|| format!("there is no {pattern} in the package {package}"))
    };
    patterns.iter().map(find).collect()
}

/// The plain files of a folder.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()));
    paths.sort();
    Ok(paths)
}
