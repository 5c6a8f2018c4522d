//! Bytes and where they go: what every loader and table builder here returns.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes to put into guest memory.
///
/// Memory of a machine that starts for the first time is zero already; one that starts again (reset) must also clear
/// [`Segment::zeroes`] bytes after the data.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Guest physical address.
    pub gpa: u64,
    /// What goes there.
    pub data: Bytes<'a>,
    /// How many bytes after the data must read as zero (a kernel's .bss).
    pub zeroes: u64,
}

impl<'a> Segment<'a> {
    /// A segment without zeroes after it.
    pub fn new(gpa: u64, data: impl Into<Bytes<'a>>) -> Self {
        Self { gpa, data: data.into(), zeroes: 0 }
    }

    /// The guest physical addresses it covers, zeroes included.
    pub fn range(&self) -> Range<u64> {
        let end = self.gpa.saturating_add(self.data.len() as u64).saturating_add(self.zeroes);
        self.gpa..end
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:#x}: {} bytes, {} zeroes)", self.gpa, self.data.len(), self.zeroes)
    }
}

/// Bytes borrowed from the caller's file, made here, or part of something made here.
#[derive(Clone, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// Part of a file that the caller holds.
    Borrowed(&'a [u8]),
    /// Made by the loader.
    Owned(Vec<u8>),
    /// A part of the unpacked kernel, which several segments share. The range lies within.
    Part(Arc<Vec<u8>>, Range<usize>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(b) => b,
            Self::Owned(b) => b,
            Self::Part(b, range) => b.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(b: &'a [u8]) -> Self {
        Self::Borrowed(b)
    }
}

impl From<Vec<u8>> for Bytes<'_> {
    fn from(b: Vec<u8>) -> Self {
        Self::Owned(b)
    }
}
