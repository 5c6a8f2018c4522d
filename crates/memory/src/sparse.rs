//! A large array of atomics that costs memory only where it is touched.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Types of which all bytes zero is a value, and that are shared between threads.
///
/// # Safety
/// All-zero bytes must be a valid value, and the type must need no drop.
pub(crate) unsafe trait Zeroed: Sync {}

// SAFETY: an integer, of which zero is a value.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: an integer, of which zero is a value.
unsafe impl Zeroed for AtomicU32 {}

/// `len` zeroes of `T` in memory that the host provides on first touch.
#[derive(Debug)]
pub(crate) struct Sparse<T> {
    base: NonNull<T>,
    len: usize,
    marker: PhantomData<T>,
}

// SAFETY: it is a slice of `T` and gives out shared references only.
unsafe impl<T: Zeroed + Send> Send for Sparse<T> {}
// SAFETY: as above; `Zeroed` implies `Sync`.
unsafe impl<T: Zeroed> Sync for Sparse<T> {}

impl<T: Zeroed> Sparse<T> {
    /// Reserves `len` elements.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let bytes = len.max(1).checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        match NonNull::new(base.cast::<T>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self { base, len, marker: PhantomData })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// All elements.
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `base` is the start of a live mapping of `len` elements, zero-filled (valid by `Zeroed`), page-aligned.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T> Drop for Sparse<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len.max(1) * size_of::<T>()) };
    }
}
