//! What a machine without a terminal showed on its serial line: two files of bounded size in the machine's folder.
//!
//! `console.log` is written until it has a mebibyte; then it becomes `console.log.1`, in place of the one before, and another is begun.
//! So a guest that writes without end has between one and two mebibytes, of what it wrote last.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FILE: &str = "console.log";
const OLD: &str = "console.log.1";
/// Bytes of one file.
const LEN_MAX: u64 = 1 << 20;

/// The log of a running machine.
pub struct Log {
    folder: PathBuf,
    /// None if it could not be made: a full disk does not stop a machine.
    file: Option<File>,
    len: u64,
}

impl Log {
    /// An empty one in this folder; what is left of one before is gone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn start(folder: &Path) -> io::Result<Self> {
        remove(folder)?;
        Ok(Self { folder: folder.to_owned(), file: Some(create(folder)?), len: 0 })
    }

    /// Writes down what the guest showed.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.len.saturating_add(bytes.len() as u64) > LEN_MAX {
            // If it cannot be moved, it is begun anew.
            let _ = fs::rename(self.folder.join(FILE), self.folder.join(OLD));
            (self.file, self.len) = (create(&self.folder).ok(), 0);
        }
        if let Some(file) = &mut self.file {
            // As above; it counts, so that another is tried after a while.
            let _ = file.write_all(bytes);
        }
        self.len = self.len.saturating_add(bytes.len() as u64);
    }
}

fn create(folder: &Path) -> io::Result<File> {
    let path = folder.join(FILE);
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Removes the log in this folder, if there is one.
///
/// # Errors
/// What the system says.
pub fn remove(folder: &Path) -> io::Result<()> {
    for name in [FILE, OLD] {
        match fs::remove_file(folder.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// All of the log in this folder, and what follows it.
///
/// # Errors
/// It cannot be read; `NotFound` where there is none.
pub fn read(folder: &Path) -> io::Result<(Vec<u8>, Follower)> {
    let file = File::open(folder.join(FILE))?;
    let mut follower = Follower { folder: folder.to_owned(), file };
    let mut all = Vec::new();
    // Where the file was moved meanwhile, the one before it is itself.
    if let Ok(mut old) = File::open(folder.join(OLD))
        && old.metadata()?.ino() != follower.file.metadata()?.ino()
    {
        old.read_to_end(&mut all)?;
    }
    follower.more(&mut all)?;
    Ok((all, follower))
}

/// Reads on where a log was read to.
pub struct Follower {
    folder: PathBuf,
    file: File,
}

impl Follower {
    /// Adds what is new to `bytes`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn more(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.file.read_to_end(bytes)?;
        let Ok(now) = File::open(self.folder.join(FILE)) else { return Ok(()) };
        if now.metadata()?.ino() != self.file.metadata()?.ino() {
            // It was moved after we had read it, or before.
            self.file.read_to_end(bytes)?;
            self.file = now;
            self.file.read_to_end(bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "log_test.rs"]
mod log_test;
