//! Root file systems of guests: Debian packages unpacked into a folder, and the same as one initramfs.
//!
//! No disk: a guest is a kernel and an initramfs. No maintainer script is run, and what no guest needs is left out, since
//! every megabyte costs time at each start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{Apt, Architecture, Package};
use crate::cache;
use crate::initramfs::Initramfs;

/// Files and folders of packages that no guest needs, `TRIPLET` and `COMPILER` standing for the architecture's names: documents,
/// languages, and the great parts of gcc and binutils beside the compiler and the assembler.
const NOT_NEEDED: [&str; 17] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/gdb",
    "usr/share/X11",
    "usr/share/nodejs/@types",
    "usr/bin/perl5.36.0",
    "usr/bin/COMPILER-lto-dump-12",
    "usr/bin/COMPILER-dwp",
    "usr/bin/COMPILER-gold",
    "usr/bin/COMPILER-ld.gold",
    "usr/lib/gcc/COMPILER/12/lto1",
    "usr/lib/TRIPLET/gprofng",
    "usr/lib/systemd",
];

/// Folders in which libraries for linking go, and the sanitizers' run-time libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/TRIPLET", "usr/lib/gcc/COMPILER/12"];

/// What programs are linked with even if they are linked dynamically.
const NEEDED_FOR_LINKING: [&str; 3] = ["libc_nonshared.a", "libgcc.a", "libgcc_eh.a"];

/// What a root is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe<'a> {
    /// Its folder in the cache.
    pub name: &'a str,
    /// Goes up when a root that was made before no longer serves.
    pub number: u32,
    pub architecture: Architecture,
    /// The packages; a guest's first program comes from one of them.
    pub packages: &'a [&'a str],
    /// Whether what those depend on comes too.
    pub dependencies: bool,
    /// More files and folders that it goes without.
    pub not_needed: &'a [&'a str],
}

/// A root, in both its forms.
#[derive(Debug)]
pub(crate) struct Root {
    /// The folder, for the host.
    pub folder: PathBuf,
    /// The archive, for guests.
    pub initrd: PathBuf,
}

impl Recipe<'_> {
    /// The folder with the unpacked packages, made where it is not there, and made anew with `refresh`. `once` completes
    /// a new one before what is not needed goes.
    pub(crate) fn unpacked(&self, refresh: bool, once: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let cache = cache::folder();
        let place = cache.join(self.name);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let _lock = lock(&cache)?;
        let folder = place.join(format!("root-{}", self.number));
        if refresh && folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        if !folder.exists() {
            eprintln!("xtask: preparing {} from Debian packages", self.name);
            let partial = place.join("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            self.unpack(&cache, &partial)?;
            let completed = once(&partial).and_then(|()| self.strip(&partial));
            completed.with_context(|| format!("cannot complete {}", self.name))?;
            fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", self.name))?;
        }
        Ok(folder)
    }

    /// Makes the root, or what is missing of it; see [`Recipe::unpacked`] for `once`. `always` writes what is part of this
    /// program and may have changed since.
    pub(crate) fn prepare(
        &self,
        init: &str,
        once: impl FnOnce(&Path) -> Result<()>,
        always: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Root> {
        let folder = self.unpacked(false, once)?;
        let cache = cache::folder();
        let _lock = lock(&cache)?;
        always(&folder)?;
        let initrd = cache.join(self.name).join("root.cpio");
        let mut tree = Initramfs::new();
        tree.tree(&folder)?;
        tree.file("init", true, init);
        cache::write_file(&initrd, &tree.to_cpio()?)?;
        Ok(Root { folder, initrd })
    }

    fn unpack(&self, cache: &Path, to: &Path) -> Result<()> {
        let state = match self.architecture {
            Architecture::Amd64 => "apt",
            Architecture::I386 => "apt-i386",
        };
        let apt = Apt::open_for(&cache.join(state), self.architecture)?;
        let mut packages = apt.closure_from_nothing(self.packages)?;
        if !self.dependencies {
            packages.retain(|package: &Package| self.packages.contains(&package.name.as_str()));
        }
        apt.unpack_all(&packages, to)?;
        for folder in ["dev", "proc", "sys", "tmp", "root", "run"] {
            fs::create_dir_all(to.join(folder))?;
        }
        Ok(())
    }

    /// Removes what nobody needs.
    fn strip(&self, root: &Path) -> Result<()> {
        let (triplet, compiler) = (self.architecture.triplet(), self.architecture.compiler());
        let of_architecture =
            |path: &str| root.join(path.replace("TRIPLET", triplet).replace("COMPILER", compiler));
        for path in NOT_NEEDED.iter().chain(self.not_needed) {
            remove(&of_architecture(path))?;
        }
        for folder in LIBRARIES.map(of_architecture) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let for_linking = name.ends_with(".a") && !NEEDED_FOR_LINKING.contains(&name.as_str());
                if for_linking || (name.starts_with("lib") && name.contains("san")) {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// Keeps others from working in the cache folder at the same time, until the value is dropped.
fn lock(cache: &Path) -> Result<File> {
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the cache folder")?;
    Ok(lock)
}

/// Removes what is there; what is not is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
