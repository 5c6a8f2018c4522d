//! The default guest: a Debian cloud kernel and a small user land, made from Debian's packages and kept in the cache.
//!
//! The packages are fetched by the host's own `apt-get download` (apt-get(8)), which checks their signatures and
//! needs no root. What is needed of them is kept in `guest/VERSIONS` of the cache folder, together with the initramfs
//! that we write ourselves. A folder that is there is complete: it is made under another name and renamed. A cached
//! guest is used as long as it is there; deleting the cache folder makes the next run fetch what is then newest.

mod apt;
mod deb;
mod initrd;
mod interrupt;
mod progress;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use crate::paths::cache_folder;
pub use deb::module_name;
pub use initrd::MODULE_NAMES;
pub use interrupt::Interrupt;
pub use progress::{Progress, megabytes};

/// The command line of a kernel that the user names, unless the user gives one.
pub const CONSOLE: &str = "console=ttyS0";

/// The command line of the default guest: nothing but the shell is shown; a panic ends the guest instead of waiting
/// for somebody to read it; the self-tests of the kernel's ciphers, which nothing there uses, are left out.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";

/// Name of the kernel's file in its folder.
const KERNEL: &str = "vmlinuz";
/// Name of busybox' file.
const BUSYBOX: &str = "busybox";
/// Folder of the kernel's modules.
const MODULES: &str = "modules";
/// The file beside them that says which were looked for.
const MODULES_TAKEN: &str = "modules-taken";
/// Names of folders that are being made begin with this.
pub const UNFINISHED: &str = ".making-";

/// The files of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

/// The default guest, made if it is not in the cache. `quiet` leaves out the progress.
///
/// # Errors
/// It cannot be made: what is missing, and what to do.
pub fn default_guest(quiet: bool) -> anyhow::Result<Guest> {
    let cache = cache_folder()?.join("guest");
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot make the cache folder {}", cache.display()))?;
    let mut progress = Progress::new(quiet);
    let parts = match newest(&cache) {
        Some(parts) => parts,
        None => make_once(&cache, &mut progress)?,
    };
    let initrd = initrd::of(&parts).context("cannot make the default guest")?;
    Ok(Guest { kernel: parts.join(KERNEL), initrd })
}

/// The newest complete folder.
fn newest(cache: &Path) -> Option<PathBuf> {
    let made = |path: &PathBuf| fs::metadata(path.join(KERNEL)).and_then(|m| m.modified()).ok();
    // Another version of Umbra may have taken fewer modules.
    let has_all = |path: &PathBuf| fs::read_to_string(path.join(MODULES_TAKEN)).is_ok_and(|t| t == modules());
    let complete = |path: &PathBuf| !is_unfinished(path) && path.join(BUSYBOX).is_file() && has_all(path);
    let folders = fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let dated = folders.filter(complete).filter_map(|path| Some((made(&path)?, path)));
    dated.max().map(|(_, path)| path)
}

/// What [`MODULES_TAKEN`] holds.
fn modules() -> String {
    initrd::MODULE_NAMES.join("\n")
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED))
}

/// Makes it, unless somebody else is at it: then waits and takes theirs.
fn make_once(cache: &Path, progress: &mut Progress) -> anyhow::Result<PathBuf> {
    let _lock = lock(cache, progress)?;
    if let Some(parts) = newest(cache) {
        return Ok(parts);
    }
    sweep(cache);
    let interrupt = Interrupt::watch().context("cannot handle signals")?;
    let made = make(cache, progress, &interrupt);
    progress.end();
    // What failed because the user ended it needs no other reason.
    interrupt.check()?;
    made.context("cannot make the default guest")
}

fn lock(cache: &Path, progress: &mut Progress) -> anyhow::Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
        progress.say("another umbra is making the default guest; waiting for it");
        let locked = rustix::io::retry_on_intr(|| flock(file.as_fd(), FlockOperation::LockExclusive));
        locked.with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Removes what killed processes left. The caller has the lock, so nobody is working on it.
fn sweep(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    for path in entries.filter(|path| is_unfinished(path)) {
        // It only takes room; the next run tries again.
        let _ = fs::remove_dir_all(path);
    }
}

fn make(cache: &Path, progress: &mut Progress, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    let work = Unfinished::new(cache)?;
    let packages = apt::resolve(work.path())?;
    let [kernel, busybox] = &packages;
    progress.say(&format!(
        "making the default guest of Debian's {} and {} ({}); it is kept in {}",
        kernel.name,
        busybox.name,
        progress::megabytes(kernel.size + busybox.size),
        cache.display()
    ));
    let packed = work.path().join("packages");
    fs::create_dir(&packed).map_err(|e| cannot_write(&packed, e))?;
    apt::download(&packages, &packed, progress, interrupt)?;
    progress.say("unpacking");
    let parts = work.path().join("parts");
    fs::create_dir(&parts).map_err(|e| cannot_write(&parts, e))?;
    deb::unpack_kernel(&packed.join(&kernel.file), &parts, interrupt)?;
    deb::unpack_busybox(&packed.join(&busybox.file), &parts, interrupt)?;
    write_synced(&parts.join(MODULES_TAKEN), &mut modules().as_bytes())?;
    initrd::of(&parts)?;
    sync_folder(&parts)?;
    let place = cache.join(format!("{}_{}", kernel.identity(), busybox.identity()));
    if place.exists() {
        // Somebody took files out of it: it was not found complete.
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::rename(&parts, &place).map_err(|e| cannot_write(&place, e))?;
    sync_folder(cache)?;
    Ok(place)
}

/// A folder that goes away when it is dropped.
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Makes it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(cache: &Path) -> anyhow::Result<Self> {
        let path = cache.join(format!("{UNFINISHED}{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| cannot_write(&path, e))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Whoever makes the guest next sweeps up what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a file that is on the disk before its folder gets its final name.
pub fn write_synced(path: &Path, from: &mut dyn io::Read) -> anyhow::Result<()> {
    let mut write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        io::copy(from, &mut file)?;
        file.sync_all()
    };
    write().map_err(|e| cannot_write(path, e))
}

/// Puts a folder's names on the disk.
pub fn sync_folder(path: &Path) -> anyhow::Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| cannot_write(path, e))
}

/// The error of a file that cannot be written, with what to do where the disk is full.
fn cannot_write(path: &Path, e: io::Error) -> anyhow::Error {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            disk_full(&format!("{}: {e}", path.display()))
        }
        _ => anyhow::Error::new(e).context(format!("cannot write {}", path.display())),
    }
}

fn disk_full(what: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{what}; the guest needs 60 MB in the cache folder: free some space, or set XDG_CACHE_HOME to a folder on another disk"
    )
}

/// Fails for a host whose packages cannot be used.
fn no_packages(what: &str) -> anyhow::Result<()> {
    bail!(
        "{what}; give a kernel (a vmlinuz or vmlinux file) with --kernel and an initial RAM disk with --initrd"
    )
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod guest_test;
