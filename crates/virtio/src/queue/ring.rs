//! The three parts of a split queue in guest memory (section 2.7): descriptor table, available ring, used ring.
//!
//! All reads are of values that the driver may change in the next moment, so each is read once. Whatever cannot be is
//! [`Broken`].

use std::sync::atomic::Ordering;

use umbra_memory::Memory;
use umbra_memory::vm_memory::{Bytes, GuestAddress};

use crate::buffer::Segment;

/// The driver's part cannot be: a ring outside of memory, an index beyond, a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Another descriptor follows.
const NEXT: u16 = 1;
/// The device writes it; else it reads it.
const WRITE: u16 = 2;
/// It names a table of descriptors.
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u64 = 16;
/// Available ring's flags: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;

/// Where the parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What a chain has: what the device reads, and what it writes.
pub(super) type Segments = (Vec<Segment>, Vec<Segment>);

fn load16(memory: &Memory, base: u64, offset: u64, order: Ordering) -> Result<u16, Broken> {
    let at = base.checked_add(offset).ok_or(Broken)?;
    memory.guest().load(GuestAddress(at), order).map_err(|_| Broken)
}

fn store16(memory: &Memory, base: u64, offset: u64, value: u16, order: Ordering) -> Result<(), Broken> {
    let at = base.checked_add(offset).ok_or(Broken)?;
    memory.guest().store(value, GuestAddress(at), order).map_err(|_| Broken)
}

impl Rings {
    /// Whether the parts are aligned as they must be.
    pub(crate) fn are_aligned(&self) -> bool {
        self.descriptors.is_multiple_of(16) && self.available.is_multiple_of(2) && self.used.is_multiple_of(4)
    }

    fn entry(&self, index: u16) -> u64 {
        // The size is a power of two, and not zero where a queue is enabled.
        u64::from(index & self.size.wrapping_sub(1))
    }

    /// How far the driver has filled the available ring.
    pub(super) fn available_index(&self, memory: &Memory) -> Result<u16, Broken> {
        load16(memory, self.available, 2, Ordering::Acquire)
    }

    /// The head of the chain at `index` of the available ring.
    pub(super) fn head(&self, memory: &Memory, index: u16) -> Result<u16, Broken> {
        let head = load16(memory, self.available, 4 + 2 * self.entry(index), Ordering::Relaxed)?;
        if head < self.size { Ok(head) } else { Err(Broken) }
    }

    /// Whether the driver, without event indices, wants no interrupts.
    pub(super) fn wants_silence(&self, memory: &Memory) -> Result<bool, Broken> {
        Ok(load16(memory, self.available, 0, Ordering::Relaxed)? & NO_INTERRUPT != 0)
    }

    /// The entry of the used ring from which on the driver wants to be told.
    pub(super) fn used_event(&self, memory: &Memory) -> Result<u16, Broken> {
        load16(memory, self.available, 4 + 2 * u64::from(self.size), Ordering::Relaxed)
    }

    /// Says from which entry of the available ring on the device wants to be told.
    pub(super) fn set_available_event(&self, memory: &Memory, index: u16) -> Result<(), Broken> {
        store16(memory, self.used, 4 + 8 * u64::from(self.size), index, Ordering::Relaxed)
    }

    /// Puts a chain into the used ring at `index`; the driver sees it when the index moves on.
    pub(super) fn put_used(&self, memory: &Memory, index: u16, head: u16, len: u32) -> Result<(), Broken> {
        let at = self.used.checked_add(4 + 8 * self.entry(index)).ok_or(Broken)?;
        let entry = u64::from(len) << 32 | u64::from(head);
        memory.write(at, &entry.to_le_bytes()).map_err(|_| Broken)
    }

    /// Moves the used ring's index on.
    pub(super) fn set_used_index(&self, memory: &Memory, index: u16) -> Result<(), Broken> {
        store16(memory, self.used, 2, index, Ordering::Release)
    }

    /// What the chain at `head` consists of. Of each table, the queue's and an indirect one, it has at most as many
    /// descriptors as the queue, so a loop ends; what the device reads comes before what it writes; all of it is RAM.
    pub(super) fn chain(&self, memory: &Memory, head: u16, indirect: bool) -> Result<Segments, Broken> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut table, mut len, mut index) = (self.descriptors, self.size, head);
        let mut may_be_indirect = indirect;
        let mut left = self.size;
        loop {
            left = left.checked_sub(1).filter(|_| index < len).ok_or(Broken)?;
            let mut bytes = [0; DESCRIPTOR_LEN as usize];
            let at = table.checked_add(DESCRIPTOR_LEN * u64::from(index)).ok_or(Broken)?;
            memory.read(at, &mut bytes).map_err(|_| Broken)?;
            let [a @ .., l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
            let (address, bytes) = (u64::from_le_bytes(a), u32::from_le_bytes([l0, l1, l2, l3]));
            let (flags, next) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1]));
            if flags & INDIRECT != 0 {
                let count = bytes / DESCRIPTOR_LEN as u32;
                let whole = bytes.is_multiple_of(DESCRIPTOR_LEN as u32)
                    && (1..=u32::from(self.size)).contains(&count);
                if !may_be_indirect || flags & NEXT != 0 || !whole {
                    return Err(Broken);
                }
                may_be_indirect = false;
                (table, len, index, left) = (address, count as u16, 0, self.size);
                continue;
            }
            if bytes > 0 {
                let segment = Segment::new(memory, address, bytes.into()).ok_or(Broken)?;
                match flags & WRITE != 0 {
                    true => writable.push(segment),
                    false if writable.is_empty() => readable.push(segment),
                    false => return Err(Broken),
                }
            }
            if flags & NEXT == 0 {
                return Ok((readable, writable));
            }
            index = next;
        }
    }
}
