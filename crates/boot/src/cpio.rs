//! Initramfs archives: cpio's "new ASCII" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries give the same bytes: owner 0, time 0, numbers by order.
//!
//! ```
//! use umbra_boot::cpio::Archive;
//! let initramfs = Archive::new()
//!     .file("bin/busybox", 0o755, b"...".as_slice())
//!     .symlink("bin/sh", "busybox")
//!     .char_device("dev/console", 0o600, 5, 1)
//!     .dir("proc", 0o555)
//!     .finish()?;
//! assert!(initramfs.starts_with(b"070701"));
//! # Ok::<(), umbra_boot::BootError>(())
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::error::BootError;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// The kernel's PATH_MAX, NUL included: it skips entries with longer names.
const PATH_MAX: usize = 4096;
/// The permissions of folders that an entry's path needs and nobody named.
const PARENT_MODE: u32 = 0o755;

/// An archive that is being made. Folders which a path needs are added by themselves, unless they were named before.
#[derive(Debug, Default)]
pub struct Archive<'a> {
    entries: Vec<Entry<'a>>,
    folders: BTreeSet<String>,
}

#[derive(Debug)]
struct Entry<'a> {
    path: String,
    mode: u32,
    device: (u32, u32),
    data: Cow<'a, [u8]>,
}

impl<'a> Archive<'a> {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder with permissions `mode`.
    #[must_use]
    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        let path = normal(path);
        if self.folders.insert(path.clone()) {
            self.push(path, S_IFDIR | mode, (0, 0), Cow::Borrowed(&[]));
        }
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Cow<'a, [u8]>>) -> Self {
        self.push(normal(path), S_IFREG | mode, (0, 0), content.into());
        self
    }

    /// Adds a symbolic link at `path` that leads to `target`.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let target = Cow::Owned(target.as_bytes().to_vec());
        self.push(normal(path), S_IFLNK | 0o777, (0, 0), target);
        self
    }

    /// Adds a character device.
    #[must_use]
    pub fn char_device(mut self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        self.push(normal(path), S_IFCHR | mode, (major, minor), Cow::Borrowed(&[]));
        self
    }

    fn push(&mut self, path: String, mode: u32, device: (u32, u32), data: Cow<'a, [u8]>) {
        for (slash, _) in path.match_indices('/') {
            let parent = path.split_at(slash).0;
            if self.folders.insert(parent.to_owned()) {
                let entry = Entry {
                    path: parent.to_owned(),
                    mode: S_IFDIR | PARENT_MODE,
                    device: (0, 0),
                    data: Cow::Borrowed(&[]),
                };
                self.entries.push(entry);
            }
        }
        self.entries.push(Entry { path, mode, device, data });
    }

    /// The archive's bytes, a multiple of 512.
    ///
    /// # Errors
    ///
    /// [`BootError::Archive`] for a path that is empty, too long or climbs out of the root, that holds a NUL byte or
    /// occurs twice, and for a file of 4 GiB or more.
    pub fn finish(self) -> Result<Vec<u8>, BootError> {
        let mut seen = BTreeSet::new();
        let size: usize = self.entries.iter().map(|e| e.data.len() + e.path.len() + 128).sum();
        let mut out = Vec::with_capacity(size + 1024);
        for (entry, number) in self.entries.iter().zip(1u32..) {
            let refuse = |reason| Err(BootError::Archive { path: entry.path.clone(), reason });
            if let Some(reason) = bad_path(&entry.path) {
                return refuse(reason);
            }
            if !seen.insert(&entry.path) {
                return refuse("it is there twice");
            }
            let Ok(size) = u32::try_from(entry.data.len()) else {
                return refuse("it has 4 GiB or more");
            };
            write_header(&mut out, entry, number, size);
            out.extend_from_slice(&entry.data);
            pad(&mut out, 4);
        }
        let trailer = Entry { path: TRAILER.into(), mode: 0, device: (0, 0), data: Cow::Borrowed(&[]) };
        write_header(&mut out, &trailer, 0, 0);
        pad(&mut out, 512);
        Ok(out)
    }
}

/// A path as the archive holds it: relative to the root.
fn normal(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

fn bad_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        Some("the path is empty")
    } else if path.len() >= PATH_MAX {
        Some("the path is too long")
    } else if path.contains('\0') {
        Some("the path holds a NUL byte")
    } else if path == TRAILER {
        Some("that name marks the archive's end")
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("a part of the path is empty, \".\" or \"..\"")
    } else {
        None
    }
}

/// Thirteen numbers of eight hexadecimal digits, then the name with its NUL, padded to four bytes.
fn write_header(out: &mut Vec<u8>, entry: &Entry<'_>, number: u32, size: u32) {
    let links = if entry.mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
    let name_size = entry.path.len() as u32 + 1;
    let (major, minor) = entry.device;
    let fields = [number, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(entry.path.as_bytes());
    out.push(0);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}
