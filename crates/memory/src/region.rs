//! One range of guest physical addresses and what backs it.
//!
//! A region's host address is congruent to its guest physical address modulo the size of a huge page: only then can the host
//! map a huge page of it to the guest as one (transparent huge pages, see `madvise(2)`, and KVM's 2 MiB mappings).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use crate::track::PAGE_SIZE;

/// Inaccessible bytes on either side of a region's mapping: an access that runs off its end faults and hits nothing.
const GUARD: usize = 1 << 20;
/// The host's huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Every region can be read and written from here; what the guest may is its engine's affair.
pub(crate) const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory.
    Ram,
    /// Memory that the guest cannot write (firmware).
    Rom,
}

/// What holds a region's bytes.
#[derive(Debug, Clone)]
pub enum Backing {
    /// A range of an open file, which can be mapped again and shared with another process.
    File {
        /// The file; a memfd for RAM.
        file: Arc<File>,
        /// Where in the file the region starts, in bytes; page-aligned.
        offset: u64,
    },
    /// This process's own memory. Hosts commonly give it huge pages, and refuse them to memfds.
    Anonymous,
}

impl Backing {
    /// A new memfd of `len` bytes, all zero, which costs nothing until it is touched.
    ///
    /// # Errors
    /// What the host says.
    pub fn memfd(name: &CStr, len: u64) -> io::Result<Self> {
        // SAFETY: `name` is a valid C string; the result is checked.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        // A file that could shrink would turn accesses to guest memory into SIGBUS.
        // SAFETY: the descriptor is open; the seals take no pointer.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self::File { file: Arc::new(file), offset: 0 })
    }

    /// What lies `bytes` further in it, for another region.
    #[must_use]
    pub fn further(&self, bytes: u64) -> Self {
        match self {
            Self::File { file, offset } => Self::File { file: file.clone(), offset: offset + bytes },
            Self::Anonymous => Self::Anonymous,
        }
    }
}

/// A mapped range of guest physical addresses.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: u64,
    kind: RegionKind,
    backing: Backing,
    /// The address range that was reserved, guards included.
    reserved: *mut u8,
    reserved_len: usize,
}

// SAFETY: the pointer is to a mapping that lives as long as the region; whoever uses it does so through volatile slices or atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes of `backing` to stand at guest physical address `gpa`; both are multiples of the page size.
    ///
    /// # Errors
    /// Unaligned or empty ranges; what the host says.
    pub fn map(gpa: u64, len: u64, kind: RegionKind, backing: Backing) -> io::Result<Self> {
        if len == 0
            || !gpa.is_multiple_of(PAGE_SIZE)
            || !len.is_multiple_of(PAGE_SIZE)
            || gpa.checked_add(len).is_none()
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a region must be made of whole pages"));
        }
        let reserved_len = usize::try_from(len)
            .ok()
            .and_then(|n| n.checked_add(2 * GUARD + HUGE_PAGE))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh inaccessible mapping at an address of the kernel's choice.
        let reserved =
            unsafe { libc::mmap(std::ptr::null_mut(), reserved_len, libc::PROT_NONE, none, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self { gpa, len, kind, backing, reserved: reserved.cast(), reserved_len };
        let (fd, offset) = match &region.backing {
            Backing::File { file, offset } => (file.as_raw_fd(), *offset),
            Backing::Anonymous => (-1, 0),
        };
        // SAFETY: the range lies within the reservation made above, which nothing else uses.
        let mapped = unsafe {
            libc::mmap(
                region.host().cast(),
                len as usize,
                PROTECTION,
                region.flags() | libc::MAP_FIXED,
                fd,
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped. Refused by hosts without huge pages, which changes nothing.
        unsafe { libc::madvise(mapped, len as usize, libc::MADV_HUGEPAGE) };
        Ok(region)
    }

    /// How it is mapped: `mmap`'s flags.
    pub(crate) fn flags(&self) -> libc::c_int {
        libc::MAP_NORESERVE
            | match self.backing {
                Backing::File { .. } => libc::MAP_SHARED,
                Backing::Anonymous => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            }
    }

    /// The first guest physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A region is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What it is.
    pub fn kind(&self) -> RegionKind {
        self.kind
    }

    /// What is behind it.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Where it is mapped in this process: `len` bytes, readable and writable, shared with the guest.
    pub fn host(&self) -> *mut u8 {
        let least = self.reserved as usize + GUARD;
        let up = (self.gpa as usize).wrapping_sub(least) % HUGE_PAGE;
        self.reserved.wrapping_add(GUARD + up)
    }

    /// Whether `gpa` lies within.
    pub fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation was made by `map` with this length; the memory space keeps a region alive while it is used.
        unsafe { libc::munmap(self.reserved.cast(), self.reserved_len) };
    }
}
