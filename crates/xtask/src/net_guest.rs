//! The guest that proves networks: Debian's kernel with its virtio modules, and busybox.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::elf;
use crate::guests::{Guests, Kernel};
use crate::initramfs::Initramfs;

const INIT: &str = include_str!("init/net.sh");
/// What a kernel needs for a virtio network card on PCI, with what these need themselves.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// Writes the initramfs for `kernel` into `folder`.
///
/// # Errors
/// The kernel has no such modules.
pub fn initrd(guests: &Guests, kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let mut image = Initramfs::new();
    image.busybox(&guests.busybox)?;
    image.modules(elf::modules(&kernel.modules, &MODULES)?);
    image.file("init", true, INIT);
    let path = folder.join(format!("net-{}.cpio", kernel.release));
    std::fs::write(&path, image.to_cpio()?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
