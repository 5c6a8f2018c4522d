//! Memory for thunks.
//!
//! One sparse memory file is mapped once, readable and executable; code comes into it by `pwrite` alone, so no mapping is ever
//! writable and executable, and none writable at all. A processor owns one slot of it. That all slots lie in one range makes "is this
//! instruction pointer in a thunk" one comparison in a signal handler.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use umbra_engine::EngineError;

/// Bytes of code that one processor may have: some three thousand thunks.
const SLOT_SIZE: usize = 512 << 10;
/// Slots: as many processors as a machine may have, twice over.
const SLOT_COUNT: usize = 512;

/// Says that a memory file is meant to be executed (Linux 6.3).
const MFD_EXEC: libc::c_uint = 0x10;

/// Where the mapping starts; 0 before it exists. Signal handlers read it.
static START: AtomicUsize = AtomicUsize::new(0);

struct Pool {
    file: OwnedFd,
    base: usize,
    free: Mutex<Vec<usize>>,
}

static POOL: OnceLock<Result<Pool, String>> = OnceLock::new();

/// Whether `address` lies in a thunk.
pub fn contains(address: usize) -> bool {
    let start = START.load(Ordering::Relaxed);
    start != 0 && address.wrapping_sub(start) < SLOT_SIZE * SLOT_COUNT
}

fn memory_file() -> io::Result<OwnedFd> {
    let name = c"umbra-thunks";
    // A host may demand that executable memory files say so (sysctl vm.memfd_noexec); older kernels do not know the flag.
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name is a C string; no other memory is passed.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: the descriptor is new and nobody else's.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::last_os_error())
}

fn make_pool() -> io::Result<Pool> {
    let file = memory_file()?;
    let len = SLOT_SIZE * SLOT_COUNT;
    // SAFETY: the descriptor is open; no memory is passed.
    if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    START.store(base as usize, Ordering::SeqCst);
    Ok(Pool { file, base: base as usize, free: Mutex::new((0..SLOT_COUNT).rev().collect()) })
}

fn pool() -> Result<&'static Pool, EngineError> {
    let pool = POOL.get_or_init(|| make_pool().map_err(|e| e.to_string()));
    pool.as_ref().map_err(|e| {
        EngineError::Unavailable(format!(
            "the host allows no executable memory ({e}), which the software engine needs: allow memfd_create and PROT_EXEC mappings of it (seccomp, SELinux, vm.memfd_noexec)"
        ))
    })
}

/// One processor's code.
pub struct Area {
    pool: &'static Pool,
    slot: usize,
    used: usize,
}

impl Area {
    /// An empty area.
    pub fn new() -> Result<Self, EngineError> {
        let pool = pool()?;
        let slot = pool.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot =
            slot.ok_or_else(|| EngineError::Unavailable("too many processors in one process".into()))?;
        Ok(Self { pool, slot, used: 0 })
    }

    /// Adds code; `None` when it is full, or the host has no memory left.
    pub fn push(&mut self, code: &[u8]) -> Option<*const u8> {
        let start = self.used.next_multiple_of(16);
        if start + code.len() > SLOT_SIZE {
            return None;
        }
        let at = self.slot * SLOT_SIZE + start;
        let mut done = 0;
        while done < code.len() {
            let rest = &code[done..];
            // SAFETY: `rest` is readable for its length.
            let n = unsafe {
                libc::pwrite(
                    self.pool.file.as_raw_fd(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    (at + done) as libc::off_t,
                )
            };
            match n {
                1.. => done += n as usize,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
        self.used = start + code.len();
        Some((self.pool.base + at) as *const u8)
    }

    /// Forgets all code.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let at = (self.slot * SLOT_SIZE) as libc::off_t;
        // SAFETY: gives back the memory behind a slot whose code nobody runs any more; no memory is passed.
        unsafe { libc::fallocate(self.pool.file.as_raw_fd(), flags, at, SLOT_SIZE as libc::off_t) };
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

#[cfg(test)]
#[path = "area_test.rs"]
mod area_test;
