//! The broker's side: which files a worker may have while it makes its machine.
//!
//! An image that the user names may be had as the user said. A file that an image names (a backing file, an extent) may
//! be read; it may be written only where it lies in the folder of the image, so that an image from somewhere else makes
//! nobody write to files of the user's.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::protocol::{DiskFile, OpenFile};

/// Files of all disks. A chain has 512 images at most.
const FILES_MAX: usize = 2048;

/// What a worker may have.
pub struct Grant {
    disks: Vec<DiskFile>,
    left: usize,
}

impl Grant {
    /// The files of these disks.
    pub fn new(disks: &[DiskFile]) -> Self {
        Self { disks: disks.to_vec(), left: FILES_MAX }
    }

    /// Nothing any more: the guest runs, and who knows who asks.
    pub fn end(&mut self) {
        self.disks.clear();
    }

    /// Opens a file for the worker.
    ///
    /// # Errors
    /// Why it does not get it, in words that follow the file's name.
    pub fn open(&mut self, wanted: &OpenFile) -> Result<File, String> {
        let disk = self.disks.get(wanted.disk as usize).ok_or("it is not open to this machine")?;
        self.left = self.left.checked_sub(1).ok_or("the machine's images name too many files")?;
        let is_image = wanted.name == disk.name;
        if wanted.write && disk.read_only {
            return Err("the disk is read-only".into());
        }
        if wanted.write && !is_image && !is_beside(&wanted.name, &disk.name) {
            return Err(format!(
                "it is written only in the folder of the image '{}' that names it",
                disk.name
            ));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(wanted.write)
            // What is no file is refused, and not waited for.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&wanted.name)
            .map_err(|e| e.to_string())?;
        let kind = file.metadata().map_err(|e| e.to_string())?.file_type();
        match kind.is_file() || kind.is_block_device() {
            true => Ok(file),
            false => Err("it is neither a file nor a block device".into()),
        }
    }
}

/// Whether a file lies in the folder of another, wherever links lead.
fn is_beside(file: &str, image: &str) -> bool {
    let folder = |name: &str| Some(Path::new(name).canonicalize().ok()?.parent()?.to_owned());
    folder(image).is_some_and(|of_image| folder(file) == Some(of_image))
}
