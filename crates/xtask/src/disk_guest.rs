//! The guest that proves disks: Debian's kernel with its virtio modules, busybox, and this machine's `mkfs.ext4`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::elf;
use crate::guests::{Guests, Kernel};
use crate::initramfs::Initramfs;

const INIT: &str = include_str!("init/disk.sh");
/// What a kernel needs for a virtio disk on PCI, with what these need themselves.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_rng"];
const MKFS: &str = "/usr/sbin/mke2fs";

/// Writes the initramfs for `kernel` into `folder`.
///
/// # Errors
/// This machine has no `mke2fs`, or the kernel no such modules.
pub fn initrd(guests: &Guests, kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let mut image = Initramfs::new();
    image.busybox(&guests.busybox)?;
    image.modules(elf::modules(&kernel.modules, &MODULES)?);
    image.program(Path::new(MKFS), "mkfs.ext4", &[]).context("mke2fs of the package e2fsprogs")?;
    image.file("init", true, INIT);
    let path = folder.join(format!("disk-{}.cpio", kernel.release));
    std::fs::write(&path, image.to_cpio()?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
