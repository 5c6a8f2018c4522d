//! The parent of a differencing image, by its relative path. Absolute paths of another machine are not followed.
//!
//! Authority: [MS-VHDX] 2.6.2.6.

use umbra_block::{BackingRef, Error, Result, Storage, StorageExt};

use super::layout::LOCATOR_VHDX;

/// Bytes of a locator that are read.
const LEN_MAX: u64 = 64 << 10;

/// The parent that a locator of `len` bytes at `offset` names.
pub(super) fn find(storage: &dyn Storage, (offset, len): (u64, u64)) -> Result<BackingRef> {
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
    for index in 0..half(18).unwrap_or(0) {
        let at = 20 + index * 12;
        let (Some(key_at), Some(value_at)) = (word(at), word(at + 4)) else { break };
        let (Some(key_len), Some(value_len)) = (half(at + 8), half(at + 10)) else { break };
        if text(key_at, key_len).as_deref() == Some("relative_path") {
            let name = text(value_at, value_len).unwrap_or_default().replace('\\', "/");
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            return Ok(BackingRef { name, format: Some("vhdx".into()) });
        }
    }
    Err(Error::corrupt("it has a parent and no relative path to it"))
}
