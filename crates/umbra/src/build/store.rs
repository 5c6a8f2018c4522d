//! Built images: a folder for each, named by what is in it, and names that lead to them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::guest::{UNFINISHED, sync_folder};
use crate::paths::{cache_folder, state_home};

/// What tells of an image, in its folder. A folder that has it is complete.
const MANIFEST: &str = "image.json";
/// Folder of names.
const NAMES: &str = "names";
/// The file in a machine's folder that tells which image its disk lies over.
pub const BASE: &str = "image";

/// What tells of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its first name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Where it came from.
    pub from: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A built image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its folder.
    pub folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

impl Image {
    /// The disk that machines' disks lie over.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("root.qcow2")
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// The initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// What it is called by what is in it.
    pub fn hash(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The folder of images, locked while somebody makes or removes one.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open() -> anyhow::Result<Self> {
        let folder = cache_folder()?.join("images");
        let names = folder.join(NAMES);
        fs::create_dir_all(&names).with_context(|| format!("cannot make {}", names.display()))?;
        Ok(Self { folder })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps others from making and removing images until the value is dropped; `waiting` is called where that takes time.
    ///
    /// # Errors
    /// It cannot be locked.
    pub fn lock(&self, waiting: impl FnOnce()) -> anyhow::Result<File> {
        let path = self.folder.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            let locked = rustix::io::retry_on_intr(|| flock(file.as_fd(), FlockOperation::LockExclusive));
            locked.with_context(|| format!("cannot lock {}", path.display()))?;
        }
        for path in self.entries(&self.folder) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
                // What a killed process has left; it only takes room.
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
        Ok(file)
    }

    fn entries(&self, folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths
    }

    /// The image in a folder of the store.
    fn image(&self, hash: &str) -> Option<Image> {
        let is_hash = !hash.is_empty() && hash.chars().all(|letter| letter.is_ascii_hexdigit());
        let folder = Some(self.folder.join(hash)).filter(|_| is_hash)?;
        let text = fs::read(folder.join(MANIFEST)).ok()?;
        Some(Image { manifest: serde_json::from_slice(&text).ok()?, folder })
    }

    /// The image of this name, or with this hash.
    pub fn find(&self, name: &str) -> Option<Image> {
        crate::cli::parse_name(name).ok()?;
        let named = fs::read_to_string(self.folder.join(NAMES).join(name)).ok();
        named.and_then(|hash| self.image(hash.trim())).or_else(|| self.image(name))
    }

    /// All images, with the names that lead to them.
    pub fn all(&self) -> Vec<(Image, Vec<String>)> {
        let names: Vec<(String, String)> = self
            .entries(&self.folder.join(NAMES))
            .iter()
            .filter_map(|path| {
                let name = path.file_name()?.to_string_lossy().into_owned();
                Some((name, fs::read_to_string(path).ok()?.trim().to_owned()))
            })
            .collect();
        let image = |path: &PathBuf| self.image(&path.file_name()?.to_string_lossy());
        let with_names = |image: Image| {
            let hash = image.hash();
            let led = names.iter().filter(|(_, to)| *to == hash).map(|(name, _)| name.clone());
            let led = led.collect();
            (image, led)
        };
        self.entries(&self.folder).iter().filter_map(image).map(with_names).collect()
    }

    /// Puts a complete folder in its place, and lets `name` lead to it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, made: &Path, hash: &str, manifest: &Manifest) -> anyhow::Result<Image> {
        let path = made.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest)?;
        crate::guest::write_synced(&path, &mut text.as_slice())?;
        sync_folder(made)?;
        let folder = self.folder.join(hash);
        if !folder.join(MANIFEST).is_file() {
            fs::rename(made, &folder).with_context(|| format!("cannot write {}", folder.display()))?;
        }
        let name = self.folder.join(NAMES).join(&manifest.name);
        let unfinished = made.with_extension("name");
        crate::guest::write_synced(&unfinished, &mut hash.as_bytes())?;
        fs::rename(&unfinished, &name).with_context(|| format!("cannot write {}", name.display()))?;
        sync_folder(&self.folder)?;
        self.image(hash).context("the image that was just made cannot be read")
    }

    /// Removes the image, and all names of it.
    ///
    /// # Errors
    /// There is none; machines that were kept need it, and it is not forced.
    pub fn remove(&self, name: &str, force: bool) -> anyhow::Result<()> {
        let image = self.find(name).with_context(|| format!("there is no image `{name}`"))?;
        let hash = image.hash();
        let machines = machines_over(&hash);
        if !machines.is_empty() && !force {
            bail!(
                "the disks of {} lie over the image `{name}`; remove them first with `umbra rm`, or give --force, after which they cannot be started",
                machines.join(", ")
            );
        }
        let names = self.all().into_iter().find(|(other, _)| other.hash() == hash).map(|(_, names)| names);
        for name in names.unwrap_or_default() {
            let path = self.folder.join(NAMES).join(name);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // What tells of it first: without that there is no image, however far we come.
        let manifest = image.folder.join(MANIFEST);
        fs::remove_file(&manifest).with_context(|| format!("cannot remove {}", manifest.display()))?;
        fs::remove_dir_all(&image.folder).with_context(|| format!("cannot remove {}", image.folder.display()))
    }
}

/// Machines with a disk over an image.
fn machines_over(hash: &str) -> Vec<String> {
    let Ok(home) = state_home() else { return Vec::new() };
    let folders = fs::read_dir(home).into_iter().flatten().filter_map(Result::ok);
    let over = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join(BASE)).is_ok_and(|text| text.lines().next() == Some(hash))
    };
    let mut names: Vec<String> =
        folders.filter(over).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
