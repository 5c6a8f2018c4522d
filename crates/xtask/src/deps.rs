//! `cargo xtask deps`: makes a bare Debian machine ready for the tests.
//!
//! Programs that tests call by name are installed where they are missing. The test guests' parts are only
//! downloaded and unpacked into the cache folder, never installed. What is there stays; a second run only looks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Package, Suite, install_missing};
use crate::cache;
use crate::guests::{Guests, Kernel, Qemu};
use crate::qemu_img;
use crate::soak;

/// Programs that tests and tools call by name, and the packages that bring them.
const PROGRAMS: [(&str, &str); 12] = [
    ("c++", "g++"),
    ("cc", "gcc"),
    ("dpkg", "dpkg"),
    ("e2fsck", "e2fsprogs"),
    ("ldd", "libc-bin"),
    ("mmdebstrap", "mmdebstrap"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("setpriv", "util-linux"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("taskset", "util-linux"),
];

/// Prepares everything and returns the list of it. With `refresh`, newer packages are looked for.
pub fn prepare(refresh: bool) -> Result<Guests> {
    let guests = prepare_guests(refresh)?;
    soak::fetch(refresh)?;
    Ok(guests)
}

fn prepare_guests(refresh: bool) -> Result<Guests> {
    let started = Instant::now();
    install_missing(&PROGRAMS)?;
    let folder = cache::folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Two runs at once would unpack into each other's folders.
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the cache folder")?;
    if !refresh && let Ok(mut guests) = Guests::load() {
        match check(&mut guests) {
            Ok(()) => {
                println!("deps: everything is there ({})", told(&guests));
                return Ok(guests);
            }
            Err(error) => println!("deps: {error:#}; preparing again"),
        }
    }
    println!("deps: preparing the test guests in {} (fetched from Debian, not installed)", folder.display());
    let guests = fetch(&folder)?;
    let list = serde_json::to_vec_pretty(&guests)?;
    cache::write_file(&Guests::list_path(), &list)?;
    println!("deps: ready in {:.1} s ({})", started.elapsed().as_secs_f64(), told(&guests));
    Ok(guests)
}

fn told(guests: &Guests) -> String {
    format!(
        "kernels {} and {}, QEMU {} and {}",
        guests.kernel_stable.release,
        guests.kernel_backports.release,
        guests.qemu_stable.version,
        guests.qemu_backports.version
    )
}

/// Sees that the emulators still start, and brings the initramfs images up to date with this program.
fn check(guests: &mut Guests) -> Result<()> {
    for qemu in [&guests.qemu_stable, &guests.qemu_backports] {
        qemu.probe()?;
    }
    if !qemu_img::is_complete() {
        bail!("there is no qemu-img, qemu-io or qemu-nbd yet");
    }
    for kernel in guests.kernels() {
        Kernel::write_initrd(&kernel.modules, &guests.busybox, &kernel.initrd)?;
    }
    Ok(())
}

fn fetch(folder: &Path) -> Result<Guests> {
    println!("deps: package lists");
    let apt = Apt::open(&folder.join("apt"))?;
    let busybox = single(&apt, folder, "busybox-static")?.join("bin/busybox");
    let strace = whole(&apt, folder, Suite::Stable, "strace")?.1.join("usr/bin/strace");
    qemu_utils(&apt, folder)?;
    Ok(Guests {
        kernel_stable: kernel(&apt, folder, Suite::Stable, &busybox)?,
        kernel_backports: kernel(&apt, folder, Suite::Backports, &busybox)?,
        qemu_stable: qemu(&apt, folder, Suite::Stable)?,
        qemu_backports: qemu(&apt, folder, Suite::Backports)?,
        busybox,
        strace,
    })
}

/// Downloads one package alone.
fn single(apt: &Apt, folder: &Path, name: &str) -> Result<PathBuf> {
    let packages = apt.closure(Suite::Stable, name)?;
    let package = find(&packages, |package| package.name == name)?;
    unpack(apt, folder, name, package, std::slice::from_ref(package))
}

/// Downloads a package with everything that it needs and this machine lacks.
fn whole(apt: &Apt, folder: &Path, suite: Suite, name: &str) -> Result<(String, PathBuf)> {
    let packages = apt.closure(suite, name)?;
    let package = find(&packages, |package| package.name == name)?;
    let path = unpack(apt, folder, name, package, &packages)?;
    Ok((package.version.clone(), path))
}

fn find(packages: &[Package], wanted: impl Fn(&Package) -> bool) -> Result<&Package> {
    packages.iter().find(|package| wanted(package)).context("apt-get did not name the package asked for")
}

/// Unpacks `packages` into a folder named after the one they are for, unless it is there.
fn unpack(
    apt: &Apt,
    folder: &Path,
    name: &str,
    version_of: &Package,
    packages: &[Package],
) -> Result<PathBuf> {
    // Epoch and tilde have no good standing in file names.
    let version = version_of.version.replace([':', '~'], "_");
    let target = folder.join(name).join(version);
    if !target.exists() {
        println!("deps: {} {} ({} packages)", version_of.name, version_of.version, packages.len());
        std::fs::create_dir_all(folder.join(name))?;
        apt.unpack(packages, &target).with_context(|| format!("cannot prepare {name}"))?;
    }
    Ok(target)
}

fn kernel(apt: &Apt, folder: &Path, suite: Suite, busybox: &Path) -> Result<Kernel> {
    let packages = apt.closure(suite, "linux-image-cloud-amd64")?;
    let is_image = |package: &Package| {
        let rest = package.name.strip_prefix("linux-image-");
        rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let package = find(&packages, is_image)?;
    let tree = unpack(apt, folder, "linux-image-cloud-amd64", package, std::slice::from_ref(package))?;
    let release = package.name.trim_start_matches("linux-image-").to_owned();
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")]
        .into_iter()
        .map(|path| path.join(&release))
        .find(|path| path.exists());
    let Some(modules) = modules.filter(|_| image.exists()) else {
        bail!("package {} has no kernel {release}", package.name);
    };
    let initrd = folder.join("guest").join(format!("initrd-{release}.cpio"));
    Kernel::write_initrd(&modules, busybox, &initrd)?;
    Ok(Kernel { release, package_version: package.version.clone(), image, modules, initrd })
}

/// The tool that `umbra image` is compared with.
fn qemu_utils(apt: &Apt, folder: &Path) -> Result<()> {
    let (_, tree) = whole(apt, folder, Suite::Backports, "qemu-utils")?;
    qemu_img::install(&tree)
}

fn qemu(apt: &Apt, folder: &Path, suite: Suite) -> Result<Qemu> {
    let (version, path) = whole(apt, folder, suite, "qemu-system-x86")?;
    let mut qemu = Qemu { version, folder: path };
    if qemu.probe().is_err() {
        // Unpacked when the machine had a library that it no longer has.
        std::fs::remove_dir_all(&qemu.folder)?;
        qemu.folder = whole(apt, folder, suite, "qemu-system-x86")?.1;
    }
    qemu.version = qemu.probe()?;
    Ok(qemu)
}
