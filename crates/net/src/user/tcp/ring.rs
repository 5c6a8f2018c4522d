//! Bytes of a connection on their way: a ring that grows while it is needed and goes when it is not.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use rustix::net::SendFlags;

/// What a ring starts with.
const LEN_MIN: usize = 64 << 10;

/// Memory that all rings of a stack share. When it is used up rings stay as large as they are, and connections slow down.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let enough = self.left >= bytes;
        if enough {
            self.left -= bytes;
        }
        enough
    }
}

/// The ring. Its size is a power of two, or nothing.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    /// Where the first byte is.
    start: usize,
    len: usize,
    len_max: usize,
}

impl Ring {
    /// An empty one that grows to `len_max`, a power of two.
    pub(super) fn new(len_max: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, len: 0, len_max }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes more there is a promise of room for, if the budget holds.
    pub(super) fn room(&self) -> usize {
        self.len_max - self.len
    }

    /// Gives the memory back if nothing is in it.
    pub(super) fn shrink(&mut self, budget: &mut Budget) {
        if self.len == 0 {
            budget.left += self.bytes.len();
            self.bytes = Vec::new();
            self.start = 0;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        self.len = 0;
        self.shrink(budget);
    }

    fn grow(&mut self, budget: &mut Budget) {
        let old = self.bytes.len();
        let new = (old * 2).max(LEN_MIN);
        if new > self.len_max || !budget.take(new - old) {
            return;
        }
        let mut bytes = vec![0; new];
        let (first, second) = self.slices(0, self.len);
        for (to, from) in bytes.iter_mut().zip(first.iter().chain(second)) {
            *to = *from;
        }
        self.bytes = bytes;
        self.start = 0;
    }

    /// The `len` bytes from `offset` on, in two parts; fewer if there are fewer.
    pub(super) fn slices(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        if len == 0 {
            return (&[], &[]);
        }
        let from = (self.start + offset) & (self.bytes.len() - 1);
        let first = len.min(self.bytes.len() - from);
        (&self.bytes[from..from + first], &self.bytes[..len - first])
    }

    /// Drops the first `len` bytes.
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.len);
        self.len -= len;
        self.start = if self.len == 0 { 0 } else { (self.start + len) & (self.bytes.len() - 1) };
    }

    /// The free part, in two parts, grown if it is short.
    fn free(&mut self, budget: &mut Budget) -> (&mut [u8], &mut [u8]) {
        if self.bytes.len() - self.len < self.bytes.len() / 4 + 1 {
            self.grow(budget);
        }
        let (size, len) = (self.bytes.len(), self.len);
        if len == size {
            return (&mut [], &mut []);
        }
        let end = (self.start + len) & (size - 1);
        if end < self.start {
            return (&mut self.bytes[end..self.start], &mut []);
        }
        let (before, after) = self.bytes.split_at_mut(end);
        (after, &mut before[..self.start])
    }

    /// Takes what there is room for, and says how much.
    pub(super) fn push(&mut self, bytes: &[u8], budget: &mut Budget) -> usize {
        while self.bytes.len() - self.len < bytes.len() && self.bytes.len() < self.len_max {
            let old = self.bytes.len();
            self.grow(budget);
            if self.bytes.len() == old {
                break;
            }
        }
        let (first, second) = self.free(budget);
        let in_first = bytes.len().min(first.len());
        first[..in_first].copy_from_slice(&bytes[..in_first]);
        let rest = &bytes[in_first..];
        let in_second = rest.len().min(second.len());
        second[..in_second].copy_from_slice(&rest[..in_second]);
        self.len += in_first + in_second;
        in_first + in_second
    }

    /// Reads from a socket as much as there is and fits. `None` if the ring is full.
    pub(super) fn read_from(&mut self, socket: impl AsFd, budget: &mut Budget) -> Option<io::Result<usize>> {
        let (first, second) = self.free(budget);
        if first.is_empty() {
            return None;
        }
        let result = if second.is_empty() {
            rustix::io::read(socket, first)
        } else {
            rustix::io::readv(socket, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])
        };
        if let Ok(read) = result {
            self.len += read;
        }
        Some(result.map_err(Into::into))
    }

    /// Writes the bytes from the start on to a socket, as many as it takes, and drops those.
    pub(super) fn write_to(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let (first, second) = self.slices(0, self.len);
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        let written = rustix::net::sendmsg(socket, &parts, &mut Default::default(), SEND)?;
        self.consume(written);
        Ok(written)
    }
}

/// Neither wait nor be killed.
pub(in crate::user) const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

#[cfg(test)]
#[path = "ring_test.rs"]
mod ring_test;
