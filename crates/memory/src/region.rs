//! One range of guest physical addresses and the file that backs it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use crate::track::PAGE_SIZE;

/// Inaccessible bytes on either side of a region's mapping: an access that runs off its end faults and hits nothing.
const GUARD: usize = 1 << 20;

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory.
    Ram,
    /// Memory that the guest cannot write (firmware).
    Rom,
}

/// A range of an open file that holds a region's bytes.
#[derive(Debug, Clone)]
pub struct Backing {
    /// The file; a memfd for RAM.
    pub file: Arc<File>,
    /// Where in the file the region starts, in bytes; page-aligned.
    pub offset: u64,
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
        Ok(Self { file: Arc::new(file), offset: 0 })
    }
}

/// A mapped range of guest physical addresses.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: u64,
    kind: RegionKind,
    backing: Backing,
    reserved: *mut u8,
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
        let total = usize::try_from(len)
            .ok()
            .and_then(|n| n.checked_add(2 * GUARD))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh inaccessible mapping at an address of the kernel's choice.
        let reserved = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, anonymous, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self { gpa, len, kind, backing, reserved: reserved.cast() };
        // SAFETY: the range lies within the reservation made above, which nothing else uses.
        let mapped = unsafe {
            libc::mmap(
                region.host().cast(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED,
                region.backing.file.as_raw_fd(),
                region.backing.offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(region)
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

    /// The file behind it.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Where it is mapped in this process: `len` bytes, readable and writable, shared with the guest.
    pub fn host(&self) -> *mut u8 {
        self.reserved.wrapping_add(GUARD)
    }

    /// Whether `gpa` lies within.
    pub fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation was made by `map` with this length; the memory space keeps a region alive while it is used.
        unsafe { libc::munmap(self.reserved.cast(), self.len as usize + 2 * GUARD) };
    }
}
