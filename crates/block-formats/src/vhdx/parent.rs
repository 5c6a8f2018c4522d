//! The parent of a differencing image, by its relative path. Absolute paths of another machine are not followed.
//!
//! Authority: [MS-VHDX] 2.6.2.6.

use umbra_block::{BackingRef, Error, Result, Storage, StorageExt};

use super::layout::{Guid, LOCATOR_VHDX};
use crate::common::hex;

/// Bytes of a locator that are read.
const LEN_MAX: u64 = 64 << 10;

/// The parent that a locator of `len` bytes at `offset` names, and the identities that it may have, as their text is.
pub(super) fn find(storage: &dyn Storage, (offset, len): (u64, u64)) -> Result<(BackingRef, Vec<String>)> {
    let bytes = storage.read_vec(offset, len.min(LEN_MAX) as usize)?;
    let half =
        |at: usize| bytes.get(at..at + 2).map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])));
    let word = |at: usize| half(at).zip(half(at + 2)).map(|(low, high)| low | high << 16);
    if bytes.get(..16) != Some(&LOCATOR_VHDX) {
        return Err(Error::Unsupported("a VHDX parent locator of another type".into()));
    }
    let text = |at: usize, len: usize| {
        let units = bytes.get(at..at.checked_add(len)?)?.chunks_exact(2);
        let units: Vec<u16> = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        Some(String::from_utf16_lossy(&units))
    };
    let (mut name, mut identities) = (None, Vec::new());
    for index in 0..half(18).unwrap_or(0) {
        let at = 20 + index * 12;
        let (Some(key_at), Some(value_at)) = (word(at), word(at + 4)) else { break };
        let (Some(key_len), Some(value_len)) = (half(at + 8), half(at + 10)) else { break };
        let value = || text(value_at, value_len).unwrap_or_default();
        match text(key_at, key_len).as_deref() {
            Some("relative_path") => name = Some(value().replace('\\', "/")),
            Some("parent_linkage" | "parent_linkage2") => identities.extend(identity(&value())),
            _ => {}
        }
    }
    let name = name.ok_or_else(|| Error::corrupt("it has a parent and no relative path to it"))?;
    let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
    Ok((BackingRef { name, format: Some("vhdx".into()) }, identities))
}

/// The digits of a GUID, `{12345678-ABCD-...}`, in small letters; nothing where it is none, or all zeroes.
fn identity(guid: &str) -> Option<String> {
    let digits: String =
        guid.chars().filter(char::is_ascii_hexdigit).map(|digit| digit.to_ascii_lowercase()).collect();
    (digits.len() == 32 && digits.bytes().any(|digit| digit != b'0')).then_some(digits)
}

/// The same of a GUID as it lies in a file: its first three numbers are little-endian.
pub(super) fn of_guid(guid: &Guid) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    hex(&order.map(|index: usize| guid[index]))
}

#[cfg(test)]
#[path = "parent_test.rs"]
mod parent_test;
