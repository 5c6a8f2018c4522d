//! Parts of lists of buffers.

use umbra_block::{IoBuf, IoSrc};

/// What `skip` bytes into a list begins and is `len` bytes long.
fn part<B: Copy>(
    list: &[B],
    skip: u64,
    len: u64,
    size: impl Fn(&B) -> usize,
    split: impl Fn(B, usize) -> (B, B),
) -> Vec<B> {
    let (mut at, end) = (0, skip.saturating_add(len));
    let mut found = Vec::with_capacity(list.len().min(8));
    for one in list {
        let next = at + size(one) as u64;
        let (from, to) = (skip.max(at), end.min(next));
        if from < to {
            // Both lie in this buffer, so they fit.
            let behind = split(*one, (from - at) as usize).1;
            found.push(split(behind, (to - from) as usize).0);
        }
        at = next;
    }
    found
}

/// The part of a list of buffers that begins `skip` bytes into it and is `len` bytes long.
pub fn of_bufs<'a>(list: &[IoBuf<'a>], skip: u64, len: u64) -> Vec<IoBuf<'a>> {
    part(list, skip, len, IoBuf::len, IoBuf::split_at)
}

/// The part of a list of sources that begins `skip` bytes into it and is `len` bytes long.
pub fn of_srcs<'a>(list: &[IoSrc<'a>], skip: u64, len: u64) -> Vec<IoSrc<'a>> {
    part(list, skip, len, IoSrc::len, IoSrc::split_at)
}
