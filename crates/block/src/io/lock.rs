//! Locks on image files, the same that QEMU takes, so that both refuse each other's images in use.
//!
//! An open file description holds read locks (OFD) on single bytes: byte 100 + n where it uses right n, byte 200 + n
//! where it does not let others use right n. Whether somebody else is in the way is asked by testing for a write lock on
//! the opposite byte. Rights: 0 consistent read, 1 write, 2 write unchanged, 3 resize. Nothing is stored at these bytes.
//!
//! Authority: QEMU's documentation of image locking (docs/system/images, "Disk image file locking"); the numbers are
//! those that a running QEMU shows in /proc/locks.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use crate::{Error, Result};

const USED: u64 = 100;
const NOT_SHARED: u64 = 200;

const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// What others may do with a file while it is open here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockMode {
    /// Nobody else writes or resizes it; a reader lets others read.
    #[default]
    Exclusive,
    /// No locks at all (`-U`, or a file that somebody else has locked for us).
    None,
}

/// What is locked: bits of rights.
#[derive(Debug, Clone, Copy)]
struct Rights {
    used: u64,
    not_shared: u64,
}

fn rights(write: bool) -> Rights {
    let not_shared = 1 << WRITE | 1 << RESIZE;
    let used = if write { 1 << CONSISTENT_READ | 1 << WRITE | 1 << RESIZE } else { 1 << CONSISTENT_READ };
    Rights { used, not_shared }
}

fn name_of(right: u64) -> &'static str {
    match right {
        CONSISTENT_READ => "consistent read",
        WRITE => "write",
        RESIZE => "resize",
        _ => "write unchanged",
    }
}

fn request(kind: libc::c_int, byte: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int, byte: u64) -> io::Result<()> {
    let lock = request(kind, byte);
    // SAFETY: the descriptor is open and `lock` is a valid flock.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether somebody else holds a lock on the byte.
fn held_by_other(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open and `lock` is a valid flock that the call fills.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if done == 0 {
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| mask & 1 << bit != 0)
}

/// Locks a file for as long as its open file description lives. A file system without locks is left alone.
pub(super) fn lock(file: BorrowedFd<'_>, name: &str, write: bool) -> Result<()> {
    let rights = rights(write);
    let bytes =
        bits(rights.used).map(|bit| USED + bit).chain(bits(rights.not_shared).map(|bit| NOT_SHARED + bit));
    for byte in bytes {
        match set(file, libc::F_RDLCK, byte) {
            Ok(()) => {}
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EINVAL | libc::EOPNOTSUPP)) =>
            {
                return Ok(());
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(refused(file, name, byte % 100, byte));
            }
            Err(error) => return Err(Error::io("lock", name, error)),
        }
    }
    let others = bits(rights.used)
        .map(|bit| (bit, NOT_SHARED + bit))
        .chain(bits(rights.not_shared).map(|bit| (bit, USED + bit)));
    for (right, byte) in others {
        if held_by_other(file, byte).map_err(|error| Error::io("lock", name, error))? {
            let error = refused(file, name, right, byte);
            unlock(file);
            return Err(error);
        }
    }
    Ok(())
}

/// Gives all locks back.
pub(super) fn unlock(file: BorrowedFd<'_>) {
    for byte in (USED..USED + 5).chain(NOT_SHARED..NOT_SHARED + 5) {
        // A lock that cannot be given back ends with the descriptor.
        let _ = set(file, libc::F_UNLCK, byte);
    }
}

fn refused(file: BorrowedFd<'_>, name: &str, right: u64, byte: u64) -> Error {
    let (name, permission) = (name.to_owned(), name_of(right).to_owned());
    let holder = match holder(file, byte) {
        None => String::new(),
        Some((pid, _)) if pid == std::process::id() => return Error::LockedHere { name, permission },
        Some((pid, program)) => format!(" (process {pid}, {program})"),
    };
    Error::Locked { name, permission, holder }
}

/// The process whose descriptor shows a lock on the byte, as far as /proc lets us see.
fn holder(file: BorrowedFd<'_>, byte: u64) -> Option<(u32, String)> {
    let ours = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(meta) = fs::metadata(descriptor.path()) else { continue };
            let own = pid == std::process::id()
                && descriptor.file_name().to_str() == Some(&file.as_raw_fd().to_string());
            if own || (meta.dev(), meta.ino()) != (ours.dev(), ours.ino()) {
                continue;
            }
            let Ok(text) = fs::read_to_string(entry.path().join("fdinfo").join(descriptor.file_name()))
            else {
                continue;
            };
            if text.lines().any(|line| locks_byte(line, byte)) {
                let program = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                return Some((pid, program.trim().to_owned()));
            }
        }
    }
    None
}

/// Whether a line of fdinfo is a lock on the byte: `lock: 1: OFDLCK  ADVISORY  READ -1 00:2d:71 100 101`.
fn locks_byte(line: &str, byte: u64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut words = lock.split_whitespace().rev();
    let (Some(end), Some(start)) = (words.next(), words.next()) else { return false };
    let end = if end == "EOF" { Some(u64::MAX) } else { end.parse().ok() };
    start.parse::<u64>().is_ok_and(|start| start <= byte) && end.is_some_and(|end| byte <= end)
}
