//! The initramfs of machines that boot from their disk, and what is added to it for one machine.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, bail};
use umbra_agent::agent_binary;
use umbra_boot::cpio::Archive;

use super::root::Parts;
use crate::guest::MODULE_NAMES;

/// The first program.
pub const INIT: &str = include_str!("init.sh");

/// What one machine is told when it first starts.
#[derive(Debug, Clone, Default)]
pub struct Instance {
    /// What tells machines apart: another one is told anew.
    pub id: String,
    /// Its name.
    pub hostname: String,
    /// Lines of root's `authorized_keys`.
    pub keys: Vec<String>,
}

/// The initramfs for a root file system whose kernel these parts belong to.
///
/// # Errors
/// There is no busybox among the parts.
pub fn archive(parts: &Parts) -> anyhow::Result<Vec<u8>> {
    let Some(busybox) = &parts.busybox else {
        bail!(
            "the image has no busybox, of which its initramfs is made; add the package busybox-static to its recipe"
        )
    };
    let mut archive = Archive::new();
    for folder in ["proc", "sys", "dev", "sysroot"] {
        archive = archive.dir(folder, 0o755);
    }
    archive = archive
        // The kernel opens it for the first program, before anything is mounted.
        .char_device("dev/console", 0o600, 5, 1)
        .file("init", 0o755, INIT.as_bytes())
        .file("bin/busybox", 0o755, busybox.as_slice())
        .symlink("bin/sh", "busybox");
    let mut order = String::new();
    for name in MODULE_NAMES {
        if let Some(module) = parts.modules.get(name) {
            archive = archive.file(&format!("lib/modules/{name}.ko"), 0o644, module.as_slice());
            order.push_str(name);
            order.push('\n');
        }
    }
    archive = archive.file("lib/modules/order", 0o644, order.into_bytes());
    archive.finish().context("cannot write the initramfs")
}

/// What is added to another system's initramfs, which has busybox and modules, so that it does what ours does.
///
/// # Errors
/// None: the names are ours.
pub fn addition() -> anyhow::Result<Vec<u8>> {
    let archive = Archive::new().dir("sysroot", 0o755).file("init", 0o755, INIT.as_bytes());
    archive.finish().context("cannot write the initramfs")
}

/// Adds an archive to an initramfs: they may follow each other (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
pub fn append(initrd: &mut Vec<u8>, archive: &[u8]) {
    // An archive begins at a multiple of four.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive);
}

/// The initramfs of an image with what a machine is told, the agent, and the first program of today, in memory.
///
/// # Errors
/// It cannot be read; there is no memory.
pub fn for_machine(initrd: &Path, instance: &Instance) -> anyhow::Result<OwnedFd> {
    let line = |text: &str| format!("{text}\n").into_bytes();
    let mut archive = Archive::new()
        .file("init", 0o755, INIT.as_bytes())
        .file("umbra/instance", 0o644, line(&instance.id))
        .file("umbra/hostname", 0o644, line(&instance.hostname))
        .file("umbra/agent", 0o755, agent_binary());
    if !instance.keys.is_empty() {
        archive = archive.file("umbra/authorized_keys", 0o600, line(&instance.keys.join("\n")));
    }
    let mut bytes = fs::read(initrd).with_context(|| format!("cannot read {}", initrd.display()))?;
    append(&mut bytes, &archive.finish().context("cannot write the initramfs")?);
    let memory = rustix::fs::memfd_create("initrd", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.context("cannot keep the initramfs in memory")?);
    file.write_all(&bytes).context("cannot keep the initramfs in memory")?;
    std::io::Seek::rewind(&mut file).context("cannot keep the initramfs in memory")?;
    Ok(file.into())
}
