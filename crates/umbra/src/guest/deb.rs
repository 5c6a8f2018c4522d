//! Files out of Debian packages (deb(5)): `dpkg-deb` gives the file tree as a tar archive, of which we take what we need.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::initrd::MODULE_NAMES;
use super::interrupt::Interrupt;
use super::{BUSYBOX, KERNEL, MODULES, cannot_write, no_packages, write_synced};

/// No module is larger when it is unpacked.
const MODULE_MAX: u64 = 64 << 20;

/// Takes the kernel and its modules.
///
/// # Errors
/// The package cannot be read or has no kernel; what is taken cannot be written.
pub(super) fn unpack_kernel(package: &Path, parts: &Path, interrupt: &Interrupt) -> anyhow::Result<()> {
    let modules = parts.join(MODULES);
    fs::create_dir(&modules).map_err(|e| cannot_write(&modules, e))?;
    for_each_file(package, interrupt, |path, file| {
        if path.starts_with("boot/vmlinuz-") {
            return write_synced(&parts.join(KERNEL), file);
        }
        let Some(name) = module_name(path).filter(|name| MODULE_NAMES.contains(name)) else { return Ok(()) };
        let mut packed = Vec::new();
        file.read_to_end(&mut packed)
            .with_context(|| format!("cannot read {path} of the kernel's package"))?;
        let plain = umbra_boot::payload::unpack(&packed, MODULE_MAX)
            .with_context(|| format!("cannot unpack {path} of the kernel's package"))?;
        write_synced(&modules.join(format!("{name}.ko")), &mut plain.as_slice())
    })?;
    must_be_there(&parts.join(KERNEL), package)
}

/// Takes busybox.
///
/// # Errors
/// The package cannot be read or has no busybox; it cannot be written.
pub(super) fn unpack_busybox(package: &Path, parts: &Path, interrupt: &Interrupt) -> anyhow::Result<()> {
    let busybox = parts.join(BUSYBOX);
    for_each_file(package, interrupt, |path, file| match path {
        "bin/busybox" | "usr/bin/busybox" => write_synced(&busybox, file),
        _ => Ok(()),
    })?;
    must_be_there(&busybox, package)
}

fn must_be_there(path: &Path, package: &Path) -> anyhow::Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    no_packages(&format!("there is no {} in {}", name(path), name(package)))
}

/// The module in `path`: `lib/modules/RELEASE/kernel/.../NAME.ko`, perhaps packed.
pub fn module_name(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    let (name, ending) = inside.rsplit('/').next()?.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then_some(name)
}

/// Gives every plain file of the package to `take`, its path relative to the root.
fn for_each_file(
    package: &Path,
    interrupt: &Interrupt,
    mut take: impl FnMut(&str, &mut dyn Read) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut command = Command::new("dpkg-deb");
    command
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return no_packages("the default guest is unpacked by dpkg-deb, which this host does not have");
        }
        Err(e) => return Err(e).context("cannot run dpkg-deb"),
    };
    let Some(output) = child.stdout.take() else { bail!("cannot read from dpkg-deb") };
    let taken = walk(output, interrupt, &mut take);
    // Its end of the pipe is closed now: it ends, if it has not, and what it says is short.
    let ended = child.wait_with_output().context("cannot wait for dpkg-deb")?;
    if taken.is_ok() && !ended.status.success() {
        bail!(
            "dpkg-deb cannot unpack {}: {}",
            package.display(),
            String::from_utf8_lossy(&ended.stderr).trim()
        );
    }
    taken
}

type Take<'a> = &'a mut dyn FnMut(&str, &mut dyn Read) -> anyhow::Result<()>;

fn walk(output: impl Read, interrupt: &Interrupt, take: Take<'_>) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(output);
    for entry in archive.entries().context("cannot unpack the package")? {
        interrupt.check()?;
        let mut entry = entry.context("cannot unpack the package")?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().context("cannot unpack the package")?.to_string_lossy().into_owned();
        take(path.trim_start_matches("./"), &mut entry)?;
    }
    Ok(())
}
