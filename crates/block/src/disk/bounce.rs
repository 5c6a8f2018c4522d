//! Memory of a thread's own, in which data is encrypted and decrypted: a piece of what others may change meanwhile is
//! copied here first. It is kept, because to get memory from the host costs as much as the cipher does.

use std::cell::Cell;

/// Bytes at once: so many that calls cost little, so few that they are still in a processor's cache when they are moved
/// on.
pub(super) const BOUNCE: u64 = 256 << 10;
/// What files around the page cache want of memory.
const ALIGN: usize = 4096;

thread_local! {
    static MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with `len` bytes, at most [`BOUNCE`], of any content.
pub(super) fn with_bounce<T>(len: u64, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut memory = MEMORY.take();
    memory.resize(BOUNCE as usize + ALIGN, 0);
    let start = memory.as_ptr().align_offset(ALIGN);
    let done = work(&mut memory[start..start + len.min(BOUNCE) as usize]);
    MEMORY.set(memory);
    done
}
