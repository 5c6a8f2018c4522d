//! Strings that end with a zero byte: taken apart and put together.

use core::ffi::CStr;

/// Bytes of a path, with its zero byte.
pub const PATH_MAX: usize = 4096;

/// Takes a string off the front of `bytes`.
pub fn next<'a>(bytes: &mut &'a [u8]) -> Option<&'a CStr> {
    let string = CStr::from_bytes_until_nul(bytes).ok()?;
    *bytes = bytes.get(string.count_bytes() + 1..)?;
    Some(string)
}

/// Puts parts together at the front of `space`, with a zero byte behind them.
pub fn join<'a>(space: &mut &'a mut [u8], parts: &[&[u8]]) -> Option<&'a CStr> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>() + 1;
    let (front, rest) = core::mem::take(space).split_at_mut_checked(len)?;
    *space = rest;
    let mut at = 0;
    for part in parts {
        front.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    *front.last_mut()? = 0;
    CStr::from_bytes_until_nul(front).ok()
}
