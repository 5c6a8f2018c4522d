//! The default guest's initramfs: busybox, a few modules, and an `/init` of ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use umbra_agent::agent_binary;
use umbra_boot::cpio::Archive;

use super::{BUSYBOX, MODULES, write_synced};

/// The guest's first program.
const INIT: &str = include_str!("init.sh");
/// What the guest does when its power button is pressed; busybox' `acpid` calls it by this event's name.
const POWER_BUTTON: &str = include_str!("power-button.sh");

/// What the guest does with what DHCP tells.
const DHCP: &str = include_str!("dhcp.sh");

/// The modules that are taken, where the kernel has them as modules: a panic is told to the machine, and the power
/// button to `acpid`; then what virtio devices need, in the order in which it is loaded.
pub const MODULE_NAMES: [&str; 18] = [
    "pvpanic",
    "pvpanic-mmio",
    "button",
    "evdev",
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "rng-core",
    "virtio-rng",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// The initramfs made of what is in `parts`, which is made if another version of Umbra made those.
///
/// # Errors
/// A part cannot be read, or the initramfs cannot be written.
pub(super) fn of(parts: &Path) -> anyhow::Result<PathBuf> {
    let files = [INIT.as_bytes(), POWER_BUTTON.as_bytes(), DHCP.as_bytes(), agent_binary()];
    let version = crc32fast::hash(&files.concat());
    let path = parts.join(format!("initrd-{version:08x}"));
    if !path.is_file() {
        let archive = archive(parts)?;
        let unfinished = parts.join(format!(".initrd-{}", std::process::id()));
        let written = write_synced(&unfinished, &mut archive.as_slice());
        let written = written.and_then(|()| Ok(fs::rename(&unfinished, &path)?));
        if written.is_err() {
            // Nothing half-made stays; if even that fails, it is in nobody's way.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
    }
    Ok(path)
}

fn archive(parts: &Path) -> anyhow::Result<Vec<u8>> {
    let busybox = read(&parts.join(BUSYBOX))?;
    let mut archive = Archive::new();
    for folder in ["proc", "sys", "tmp", "root", "run"] {
        archive = archive.dir(folder, 0o755);
    }
    archive = archive
        // The kernel opens it for the first program, before anything is mounted.
        .char_device("dev/console", 0o600, 5, 1)
        .file("init", 0o755, INIT.as_bytes())
        .file("bin/busybox", 0o755, busybox)
        .symlink("bin/sh", "busybox")
        .file("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON.as_bytes())
        .file("etc/dhcp", 0o755, DHCP.as_bytes())
        .file("lib/umbra/agent", 0o755, agent_binary())
        .file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n".as_slice())
        .file("etc/group", 0o644, b"root:x:0:\n".as_slice());
    for name in MODULE_NAMES {
        let path = parts.join(MODULES).join(format!("{name}.ko"));
        if path.is_file() {
            archive = archive.file(&format!("lib/modules/{name}.ko"), 0o644, read(&path)?);
        }
    }
    archive.finish().context("cannot write the initramfs")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
