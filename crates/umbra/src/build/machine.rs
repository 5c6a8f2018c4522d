//! A machine of an image: its disk, which lies over the image's, and what it is told when it first starts.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use umbra_block::{BackingRef, CreateOptions};

use super::initrd::{Instance, for_machine};
use super::root;
use super::store::{BASE, Image, Store};
use crate::paths::state_folder;
use crate::protocol::DiskFile;

/// Name of a machine's own disk.
const DISK: &str = "root.qcow2";
/// A file of keys that is longer is none.
const KEYS_MAX: u64 = 64 << 10;

/// What a machine boots from.
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: OwnedFd,
    /// The kernel's command line.
    pub cmdline: String,
    /// Its first disk.
    pub disk: DiskFile,
    /// A disk without a name, which is there as long as this is.
    pub _unnamed: Option<File>,
}

/// What the user says of a machine.
#[derive(Debug)]
pub struct Wishes<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// Whether its disk is kept, under that name.
    pub keep: bool,
    /// The disk's size; the image's by default.
    pub disk_size: Option<u64>,
    /// What the guest calls itself.
    pub hostname: Option<&'a str>,
    /// Files with public keys; those in the user's `.ssh` by default.
    pub keys: &'a [PathBuf],
}

/// Makes what a machine of `image` boots from.
///
/// # Errors
/// A file that cannot be read or written; a wish that the image cannot fulfil.
pub fn prepare(image: &Image, wishes: &Wishes<'_>) -> anyhow::Result<Boot> {
    let store = Store::open()?;
    let _lock = store.lock(|| {})?;
    let (name, unnamed, id) = if wishes.keep {
        let (path, id) = kept(image, wishes)?;
        (path.display().to_string(), None, id)
    } else {
        let path = store.folder().join(format!("{}disk-{}", crate::guest::UNFINISHED, std::process::id()));
        overlay(image, &path, wishes.disk_size)?;
        let file = File::options().read(true).write(true).open(&path);
        // Nothing of it is left however we end.
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        // The broker opens it for the worker by this name, which is its own.
        (format!("/proc/self/fd/{}", file.as_raw_fd()), Some(file), format!("{}-{}", wishes.name, random()?))
    };
    let disk = DiskFile { name, format: Some("qcow2".into()), read_only: false };
    let hostname = wishes.hostname.unwrap_or(wishes.name).to_owned();
    let initrd = for_machine(&image.initrd(), &Instance { id, hostname, keys: keys(wishes.keys)? })?;
    Ok(Boot {
        kernel: image.kernel(),
        initrd,
        cmdline: image.manifest.cmdline.clone(),
        disk,
        _unnamed: unnamed,
    })
}

/// The disk of a machine that keeps it, made if it is not there, and what tells the machine apart.
fn kept(image: &Image, wishes: &Wishes<'_>) -> anyhow::Result<(PathBuf, String)> {
    let folder = state_folder(wishes.name)?;
    let (disk, base) = (folder.join(DISK), folder.join(BASE));
    if !disk.is_file() {
        let unfinished = folder.join(format!(".{DISK}"));
        overlay(image, &unfinished, wishes.disk_size)?;
        let text = format!("{}\n{}\n", image.hash(), random()?);
        fs::write(&base, text).with_context(|| format!("cannot write {}", base.display()))?;
        fs::rename(&unfinished, &disk).with_context(|| format!("cannot write {}", disk.display()))?;
    }
    let text = fs::read_to_string(&base).with_context(|| format!("cannot read {}", base.display()))?;
    let mut lines = text.lines();
    let (over, id) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if over != image.hash() {
        bail!(
            "the disk of the machine `{0}` lies over another image ({over}): `umbra run {over} --name {0}` starts it, \
             `umbra rm {0}` removes it",
            wishes.name
        );
    }
    if wishes
        .disk_size
        .is_some_and(|size| root::open(&disk, Some("qcow2"), false).is_ok_and(|d| d.size() != size))
    {
        bail!(
            "the machine `{}` has its disk already; `umbra image resize {} SIZE` makes it larger",
            wishes.name,
            disk.display()
        );
    }
    Ok((disk, format!("{}-{id}", wishes.name)))
}

/// Makes an empty image over that of `image`.
fn overlay(image: &Image, path: &Path, size: Option<u64>) -> anyhow::Result<()> {
    let size = size.unwrap_or(image.manifest.size);
    if size < image.manifest.size {
        bail!(
            "--disk-size must be at least {} MiB, which is what the image `{}` has",
            image.manifest.size >> 20,
            image.manifest.name
        );
    }
    let backing = BackingRef { name: image.disk().display().to_string(), format: Some("qcow2".into()) };
    root::create(path, &CreateOptions { size, backing: Some(backing), ..CreateOptions::default() })
}

fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot make an identity")?;
    Ok(super::fetch::hex(&bytes))
}

/// Public keys of these files, or of the user.
fn keys(files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for path in files {
        let text = read(path).with_context(|| format!("cannot read the key {}", path.display()))?;
        let found = public_keys(&text);
        if found.is_empty() {
            bail!("there is no public key in {}; give the file whose name ends in .pub", path.display());
        }
        keys.extend(found);
    }
    if files.is_empty()
        && let Some(home) = std::env::var_os("HOME")
    {
        let entries = fs::read_dir(Path::new(&home).join(".ssh")).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "pub"));
        paths.sort();
        // One that cannot be read was not asked for.
        keys.extend(paths.iter().filter_map(|path| read(path).ok()).flat_map(|text| public_keys(&text)));
    }
    Ok(keys)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(File::open(path)?, KEYS_MAX), &mut text)?;
    Ok(text)
}

/// The lines that are public keys (sshd(8), "AUTHORIZED_KEYS FILE FORMAT", without options).
pub(super) fn public_keys(text: &str) -> Vec<String> {
    let is_key = |line: &&str| {
        let kind = line.split(' ').next().unwrap_or_default();
        ["ssh-", "ecdsa-", "sk-"].iter().any(|begin| kind.starts_with(begin)) && line.contains(" AAAA")
    };
    text.lines().map(str::trim).filter(is_key).map(str::to_owned).collect()
}
