//! Memory for thunks and for translations.
//!
//! One sparse memory file each is mapped once, readable and executable; code comes into it by `pwrite` alone, so no mapping is ever
//! writable and executable, and none writable at all. A processor owns one slot of it. That all slots lie in one range makes "is this
//! instruction pointer in a thunk" one comparison in a signal handler.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use umbra_engine::EngineError;

/// Slots: as many processors as a machine may have, twice over.
const SLOT_COUNT: usize = 512;

/// Says that a memory file is meant to be executed (Linux 6.3).
const MFD_EXEC: libc::c_uint = 0x10;

/// What kind of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Thunks: some three thousand for each processor.
    Thunks,
    /// Translations.
    Blocks,
}

impl Pool {
    /// Bytes of code that one processor may have.
    const fn slot_size(self) -> usize {
        match self {
            Self::Thunks => 512 << 10,
            Self::Blocks => 64 << 20,
        }
    }

    /// Whether `address` lies in code of this kind.
    pub fn contains(self, address: usize) -> bool {
        let start = START[self as usize].load(Ordering::Relaxed);
        start != 0 && address.wrapping_sub(start) < self.slot_size() * SLOT_COUNT
    }
}

/// Where the mappings start; 0 before they exist. Signal handlers read it.
static START: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

struct Memory {
    kind: Pool,
    file: OwnedFd,
    base: usize,
    free: Mutex<Vec<usize>>,
}

static MEMORY: [OnceLock<Result<Memory, String>>; 2] = [const { OnceLock::new() }; 2];

fn memory_file() -> io::Result<OwnedFd> {
    let name = c"umbra-code";
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

fn make_memory(kind: Pool) -> io::Result<Memory> {
    let file = memory_file()?;
    let len = kind.slot_size() * SLOT_COUNT;
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
    START[kind as usize].store(base as usize, Ordering::SeqCst);
    Ok(Memory { kind, file, base: base as usize, free: Mutex::new((0..SLOT_COUNT).rev().collect()) })
}

fn memory(kind: Pool) -> Result<&'static Memory, EngineError> {
    let memory = MEMORY[kind as usize].get_or_init(|| make_memory(kind).map_err(|e| e.to_string()));
    memory.as_ref().map_err(|e| {
        EngineError::Unavailable(format!(
            "the host allows no executable memory ({e}), which the software engine needs: allow memfd_create and PROT_EXEC mappings of it (seccomp, SELinux, vm.memfd_noexec)"
        ))
    })
}

/// One processor's code.
pub struct Area {
    memory: &'static Memory,
    slot: usize,
    used: usize,
}

impl Area {
    /// An empty area.
    pub fn new(kind: Pool) -> Result<Self, EngineError> {
        let memory = memory(kind)?;
        let slot = memory.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot =
            slot.ok_or_else(|| EngineError::Unavailable("too many processors in one process".into()))?;
        Ok(Self { memory, slot, used: 0 })
    }

    fn start(&self) -> usize {
        self.slot * self.memory.kind.slot_size()
    }

    /// Adds code; `None` when it is full, or the host has no memory left.
    pub fn push(&mut self, code: &[u8]) -> Option<*const u8> {
        let start = self.used.next_multiple_of(16);
        if start + code.len() > self.memory.kind.slot_size() || !self.write(start, code) {
            return None;
        }
        self.used = start + code.len();
        Some(self.address_of(start))
    }

    /// Writes code at an offset into the area.
    fn write(&self, offset: usize, code: &[u8]) -> bool {
        let mut done = 0;
        while done < code.len() {
            let rest = &code[done..];
            let at = (self.start() + offset + done) as libc::off_t;
            // SAFETY: `rest` is readable for its length.
            let n =
                unsafe { libc::pwrite(self.memory.file.as_raw_fd(), rest.as_ptr().cast(), rest.len(), at) };
            match n {
                1.. => done += n as usize,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }

    /// Lets the branch whose 32-bit displacement is at an offset into the area lead to `to`, which is in the area too.
    pub fn patch(&self, offset: usize, to: *const u8) {
        debug_assert!(offset + 4 <= self.used);
        let displacement = (self.offset_of(to) as i64 - (offset as i64 + 4)) as i32;
        // Where the host cannot take it the branch leads where it led.
        self.write(offset, &displacement.to_le_bytes());
    }

    /// Puts other code at an offset into the area, for as much as there is now.
    pub fn overwrite(&self, offset: usize, code: &[u8]) {
        debug_assert!(offset + code.len() <= self.used);
        self.write(offset, code);
    }

    /// Puts a branch to `to` at an offset into the area.
    pub fn redirect(&self, offset: usize, to: *const u8) {
        let displacement = (self.offset_of(to) as i64 - (offset as i64 + 5)) as i32;
        let mut code = [0xe9, 0, 0, 0, 0];
        code[1..].copy_from_slice(&displacement.to_le_bytes());
        self.write(offset, &code);
    }

    /// Bytes of code, and how many there may be.
    #[cfg(test)]
    pub fn held(&self) -> (usize, usize) {
        (self.used, self.memory.kind.slot_size())
    }

    /// Where `address` is in the area.
    pub fn offset_of(&self, address: *const u8) -> usize {
        (address as usize).wrapping_sub(self.memory.base + self.start())
    }

    /// The address of an offset into the area.
    pub fn address_of(&self, offset: usize) -> *const u8 {
        (self.memory.base + self.start() + offset) as *const u8
    }

    /// Forgets all code.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (at, len) = (self.start() as libc::off_t, self.memory.kind.slot_size() as libc::off_t);
        // SAFETY: gives back the memory behind a slot whose code nobody runs any more; no memory is passed.
        unsafe { libc::fallocate(self.memory.file.as_raw_fd(), flags, at, len) };
        self.memory.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

#[cfg(test)]
#[path = "area_test.rs"]
mod area_test;
