//! Volatile buffers: memory that somebody else may write at any time, a guest for one. No reference to its bytes is
//! ever made; they are copied, or handed to the kernel by address.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Memory that a write takes its bytes from. May be written by others at any time.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IoSrc<'a> {
    // As the kernel's `iovec`, so that a list of these is a list of those.
    ptr: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a std::cell::Cell<u8>>,
}

/// Memory that a read fills. May be read and written by others at any time.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoBuf<'a> {
    // The same memory as a source; all of it can be written too.
    memory: IoSrc<'a>,
}

const _: () = assert!(
    size_of::<IoSrc<'_>>() == size_of::<libc::iovec>()
        && align_of::<IoSrc<'_>>() == align_of::<libc::iovec>()
);

// SAFETY: the address may be used from any thread; every access goes through raw copies that tolerate other writers.
unsafe impl Send for IoSrc<'_> {}
// SAFETY: as above.
unsafe impl Sync for IoSrc<'_> {}

impl fmt::Debug for IoBuf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len())
    }
}

impl fmt::Debug for IoSrc<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoSrc({} bytes)", self.len)
    }
}

impl<'a> IoBuf<'a> {
    /// A buffer of one's own.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let len = bytes.len();
        Self { memory: IoSrc { ptr: NonNull::from(bytes).cast(), len, memory: PhantomData } }
    }

    /// Foreign memory, a guest's for one.
    ///
    /// # Safety
    /// `ptr` to `ptr + len` is mapped readable and writable for all of `'a`, and no Rust reference to it is used
    /// meanwhile but through volatile or raw access.
    pub unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { memory: IoSrc { ptr, len, memory: PhantomData } }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// The first `at` bytes (at most all), and the rest.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (first, rest) = self.memory.split_at(at);
        (Self { memory: first }, Self { memory: rest })
    }

    /// Copies from the buffer's start as many bytes as both have.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        self.memory.copy_to(bytes);
    }

    /// Copies to the buffer's start as many bytes as both have.
    pub fn copy_from(&self, bytes: &[u8]) {
        let len = self.len().min(bytes.len());
        // SAFETY: both ranges are valid for `len`, and a buffer's can be written; `copy` allows them to overlap.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.memory.ptr.as_ptr(), len) }
    }

    /// Fills it with zeroes.
    pub fn zero(&self) {
        // SAFETY: the range is valid, and a buffer's can be written.
        unsafe { std::ptr::write_bytes(self.memory.ptr.as_ptr(), 0, self.len()) }
    }

    /// The same memory as the source of a write.
    pub fn as_src(&self) -> IoSrc<'a> {
        self.memory
    }

    /// Its address, for system calls.
    pub(crate) fn address(&self) -> usize {
        self.memory.address()
    }

    /// Bytes of a list of buffers.
    pub(crate) fn total(bufs: &[Self]) -> u64 {
        bufs.iter().map(|buf| buf.len() as u64).sum()
    }

    /// Whether a request for a list of buffers at `offset` is as a file wants it that goes around the page cache.
    pub(crate) fn are_aligned(bufs: &[Self], offset: u64, alignment: u64) -> bool {
        alignment == 1
            || offset.is_multiple_of(alignment) && bufs.iter().all(|buf| buf.memory.is_aligned(alignment))
    }

    /// A list of buffers as the kernel takes it.
    pub(crate) fn vectors(bufs: &[Self]) -> *const libc::iovec {
        bufs.as_ptr().cast()
    }
}

impl<'a> IoSrc<'a> {
    /// A buffer of one's own.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { len: bytes.len(), ptr: NonNull::from(bytes).cast(), memory: PhantomData }
    }

    /// Foreign memory, a guest's for one.
    ///
    /// # Safety
    /// `ptr` to `ptr + len` is mapped readable for all of `'a`.
    pub unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, memory: PhantomData }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes (at most all), and the rest.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.min(self.len);
        // SAFETY: `at` is within the buffer.
        let rest = unsafe { self.ptr.add(at) };
        (Self { len: at, ..self }, Self { ptr: rest, len: self.len - at, memory: PhantomData })
    }

    /// Copies from the buffer's start as many bytes as both have.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let len = self.len.min(bytes.len());
        // SAFETY: both ranges are valid for `len`, and `bytes` is exclusively ours, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr(), bytes.as_mut_ptr(), len) }
    }

    /// Its address, for system calls.
    pub(crate) fn address(&self) -> usize {
        self.ptr.as_ptr() as usize
    }

    fn is_aligned(&self, alignment: u64) -> bool {
        (self.address() as u64).is_multiple_of(alignment) && (self.len as u64).is_multiple_of(alignment)
    }

    /// Bytes of a list of sources.
    pub(crate) fn total(srcs: &[Self]) -> u64 {
        srcs.iter().map(|src| src.len() as u64).sum()
    }

    /// Whether a request for a list of sources at `offset` is as a file wants it that goes around the page cache.
    pub(crate) fn are_aligned(srcs: &[Self], offset: u64, alignment: u64) -> bool {
        alignment == 1 || offset.is_multiple_of(alignment) && srcs.iter().all(|src| src.is_aligned(alignment))
    }

    /// A list of sources as the kernel takes it.
    pub(crate) fn vectors(srcs: &[Self]) -> *const libc::iovec {
        srcs.as_ptr().cast()
    }
}

/// The part of a list of buffers that begins `skip` bytes into it and is `len` bytes long (or to its end).
pub fn slice_bufs<'a>(bufs: &[IoBuf<'a>], skip: u64, len: u64) -> Vec<IoBuf<'a>> {
    slice(bufs, skip, len, IoBuf::len, IoBuf::split_at)
}

/// The part of a list of sources that begins `skip` bytes into it and is `len` bytes long (or to its end).
pub fn slice_srcs<'a>(srcs: &[IoSrc<'a>], skip: u64, len: u64) -> Vec<IoSrc<'a>> {
    slice(srcs, skip, len, IoSrc::len, IoSrc::split_at)
}

fn slice<B: Copy>(
    bufs: &[B],
    mut skip: u64,
    mut len: u64,
    size: impl Fn(&B) -> usize,
    split: impl Fn(B, usize) -> (B, B),
) -> Vec<B> {
    let mut part = Vec::with_capacity(bufs.len().min(8));
    for buf in bufs {
        if len == 0 {
            break;
        }
        let have = size(buf) as u64;
        if skip >= have {
            skip -= have;
            continue;
        }
        // Both fit in usize, because they are below the buffer's length.
        let rest = split(*buf, skip as usize).1;
        let take = len.min(have - skip);
        part.push(split(rest, take as usize).0);
        len -= take;
        skip = 0;
    }
    part
}
