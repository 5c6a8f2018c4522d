//! The root file system of the bench: Debian packages unpacked into a folder, and the same as one initramfs.
//!
//! One root for all rows and no disk: a guest is a kernel and an initramfs. Its 250 MB cost each side a few seconds at
//! each start, once a run, since a started guest runs all rows; roots for groups of rows would save part of that and
//! cost a start each. No maintainer script is run; the little that the rows need of what those do is done here.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::source;
use crate::apt::Apt;
use crate::cache;
use crate::initramfs::Initramfs;

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

/// Files and folders of those packages that no row needs: documents, languages, and the great parts of gcc and binutils
/// beside the compiler and the assembler.
const NOT_NEEDED: [&str; 18] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/gdb",
    "usr/share/X11",
    "usr/share/nodejs/@types",
    "usr/include/linux",
    "usr/bin/perl5.36.0",
    "usr/bin/x86_64-linux-gnu-lto-dump-12",
    "usr/bin/x86_64-linux-gnu-dwp",
    "usr/bin/x86_64-linux-gnu-gold",
    "usr/bin/x86_64-linux-gnu-ld.gold",
    "usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "usr/lib/x86_64-linux-gnu/gprofng",
    "usr/lib/systemd",
];

/// Folders in which libraries for linking go, and the sanitizers' run-time libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/gcc/x86_64-linux-gnu/12"];

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

/// Goes up when a root that was made before no longer serves.
const RECIPE: u32 = 1;

/// The root, in both its forms.
#[derive(Debug)]
pub(super) struct Image {
    /// The folder, for the host.
    pub root: PathBuf,
    /// The archive, for guests.
    pub initrd: PathBuf,
}

/// Makes the root, or what is missing of it.
pub(super) fn prepare() -> Result<Image> {
    let cache = cache::folder();
    let folder = cache.join("cpu-root");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the cache folder")?;
    let root = folder.join(format!("root-{RECIPE}"));
    if !root.exists() {
        eprintln!("bench cpu: preparing the guest's root (about 100 MB of Debian packages)");
        let partial = folder.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        let apt = Apt::open(&cache.join("apt"))?;
        apt.unpack_all(&apt.closure_from_nothing(&PACKAGES)?, &partial)?;
        complete(&partial).context("cannot complete the guest's root")?;
        fs::rename(&partial, &root).context("cannot rename the guest's root")?;
    }
    for (name, text) in FILES {
        cache::write_file(&root.join("bench").join(name), text.as_bytes())?;
    }
    build_crypto(&root)?;
    let c_file = source::c_file();
    cache::write_file(&root.join("bench/work.c"), c_file.as_bytes())?;
    let initrd = folder.join("root.cpio");
    let mut tree = Initramfs::new();
    tree.tree(&root)?;
    tree.file("init", true, FILES[0].1);
    cache::write_file(&initrd, &tree.to_cpio()?)?;
    Ok(Image { root, initrd })
}

/// What maintainer scripts would have done, the bench's own parts, and less of what nobody needs.
fn complete(root: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "tmp", "root", "run", "bench"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let bench = root.join("bench");
    fs::write(bench.join("corpus"), source::corpus(root)?)?;
    make_key(root, &bench.join("rsa2048.pem"))?;
    add_applets(root)?;
    for path in NOT_NEEDED {
        remove(&root.join(path))?;
    }
    for folder in LIBRARIES {
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("cannot list {folder}"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The one that every program is linked with stays.
            let for_linking = name.ends_with(".a") && name != "libc_nonshared.a";
            if for_linking || (name.starts_with("lib") && name.contains("san")) {
                remove(&path)?;
            }
        }
    }
    Ok(())
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

/// Links for busybox's applets, where no package brings the program itself.
fn add_applets(root: &Path) -> Result<()> {
    let output =
        Command::new(root.join("bin/busybox")).arg("--list").output().context("cannot run busybox")?;
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
