//! Debian's packages through the host's own `apt-cache` and `apt-get`: which ones, and fetching them.
//!
//! Neither needs root, and nothing is installed. Authority: apt-cache(8), apt-get(8), apt.conf(5).

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::interrupt::Interrupt;
use super::progress::Progress;
use super::{cannot_write, disk_full, no_packages};

/// Depends on the newest kernel of the cloud flavour, which has what virtual machines need and boots fast.
const KERNEL: &str = "linux-image-cloud-amd64";
/// One program that is a whole user land and needs no library.
const BUSYBOX: &str = "busybox-static";
/// How often the size of what has come is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A package as it will be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// Its name.
    pub(super) name: String,
    /// The name of its file.
    pub(super) file: String,
    /// The file's size in bytes.
    pub(super) size: u64,
}

impl Package {
    /// Name and version as a folder's name: the file's name without architecture and ending.
    pub(super) fn identity(&self) -> &str {
        self.file.rsplit_once('_').map_or(&self.file, |(identity, _)| identity)
    }
}

/// The kernel and busybox that this host's package lists have.
///
/// # Errors
/// There is no apt, or it has no such packages.
pub(super) fn resolve(work: &Path) -> anyhow::Result<[Package; 2]> {
    let depends = run(Command::new("apt-cache").args(["depends", KERNEL]), work)?;
    let kernel = parse_depends(&text(&depends.stdout)).ok_or_else(lists_missing)?;
    let uris = run(apt_get().args(["download", "--print-uris", &kernel, BUSYBOX]), work)?;
    let packages = parse_uris(&text(&uris.stdout));
    let find =
        |name: &str| packages.iter().find(|package| package.name == name).cloned().ok_or_else(lists_missing);
    Ok([find(&kernel)?, find(BUSYBOX)?])
}

fn lists_missing() -> anyhow::Error {
    anyhow!(
        "this host's package lists lack {KERNEL} or {BUSYBOX}; on Debian run `sudo apt-get update` and try again, \
         elsewhere give a kernel (a vmlinuz or vmlinux file) with --kernel and an initial RAM disk with --initrd"
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq");
    if rustix::process::geteuid().is_root() {
        // apt would download as its own user, who may not write to our folder, and complain.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    command
}

/// Runs a program to its end; one that fails has not found the packages.
fn run(command: &mut Command, work: &Path) -> anyhow::Result<Output> {
    let output = prepare(command, work).output();
    let output = output.map_err(|e| cannot_start(command, e))?;
    if !output.status.success() {
        return Err(lists_missing().context(format!("apt says \"{}\"", complaint(&text(&output.stderr)))));
    }
    Ok(output)
}

fn prepare<'a>(command: &'a mut Command, work: &Path) -> &'a mut Command {
    // Its words are read.
    command.env("LC_ALL", "C").current_dir(work).stdin(Stdio::null())
}

fn cannot_start(command: &Command, e: io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    match (
        e.kind(),
        no_packages(&format!("the default guest is made by {program}, which this host does not have")),
    ) {
        (io::ErrorKind::NotFound, Err(told)) => told,
        _ => anyhow::Error::new(e).context(format!("cannot run {program}")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The package that the kernel's metapackage depends on: `  Depends: linux-image-6.1.0-56-cloud-amd64`.
pub(super) fn parse_depends(text: &str) -> Option<String> {
    let mut depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends
        .find(|name| name.starts_with("linux-image-") && !name.contains('<'))
        .map(|name| name.trim().to_owned())
}

/// Reads lines of `--print-uris`: `'address' file size checksum`.
pub(super) fn parse_uris(text: &str) -> Vec<Package> {
    let package = |line: &str| {
        let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split_whitespace();
        let (file, size) = (words.next()?, words.next()?.parse().ok()?);
        let name = file.split('_').next().filter(|name| !name.is_empty())?;
        // It is used as a file's name.
        (!file.contains('/')).then(|| Package { name: name.into(), file: file.into(), size })
    };
    text.lines().filter_map(package).collect()
}

/// Downloads the packages into `folder`.
///
/// # Errors
/// No network, no room, lists that are too old, or the user ended it.
pub(super) fn download(
    packages: &[Package],
    folder: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let log = folder.join("log");
    let log_file = File::create(&log).map_err(|e| cannot_write(&log, e))?;
    let mut command = apt_get();
    command.args(["-o", "Acquire::Retries=2", "download"]).args(packages.iter().map(|package| &package.name));
    prepare(&mut command, folder).stdout(Stdio::null()).stderr(log_file);
    let mut child = command.spawn().map_err(|e| cannot_start(&command, e))?;
    let ended = watch(&mut child, packages, folder, progress, interrupt);
    if ended.is_err() {
        // It may have ended by the same signal.
        let _ = child.kill();
    }
    let status = child.wait().context("cannot wait for apt-get")?;
    ended?;
    let missing = packages.iter().find(|package| !folder.join(&package.file).is_file());
    if !status.success() || missing.is_some() {
        bail!(explain(&fs::read_to_string(&log).unwrap_or_default()));
    }
    Ok(())
}

/// Shows how much has come until apt-get ends.
fn watch(
    child: &mut Child,
    packages: &[Package],
    folder: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let total = packages.iter().map(|package| package.size).sum();
    loop {
        let ended = child.try_wait().context("cannot wait for apt-get")?.is_some();
        interrupt.check()?;
        let here = |package: &Package| fs::metadata(folder.join(&package.file)).map_or(0, |meta| meta.len());
        let unfinished = packages.iter().find(|package| here(package) < package.size).or(packages.last());
        let name = unfinished.map_or("", |package| &package.name);
        progress.show(&format!("downloading {name}"), packages.iter().map(here).sum(), total);
        if ended {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// What apt complained of first.
fn complaint(log: &str) -> String {
    let errors = || log.lines().filter_map(|line| line.strip_prefix("E: "));
    let worst = errors().next().or_else(|| log.lines().find(|line| !line.trim().is_empty()));
    worst.unwrap_or("nothing").trim().to_owned()
}

/// Turns apt's words into ours.
pub(super) fn explain(log: &str) -> anyhow::Error {
    let complaint = complaint(log);
    let has = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if has(&["No space left", "not have enough free space", "Disk quota exceeded"]) {
        return disk_full(&complaint);
    }
    if has(&["404", "Hash Sum mismatch", "unexpected size"]) {
        return anyhow!(
            "the package lists of this host are older than the packages; run `sudo apt-get update` and try again (apt says \"{complaint}\")"
        );
    }
    if has(&[
        "resolving",
        "Could not connect",
        "Unable to connect",
        "Cannot initiate",
        "timed out",
        "Network is unreachable",
    ]) {
        return anyhow!(
            "the packages cannot be reached; check the network and try again (apt says \"{complaint}\")"
        );
    }
    anyhow!("apt-get could not download the packages: it says \"{complaint}\"")
}
