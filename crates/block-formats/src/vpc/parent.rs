//! The parent of a differencing image: found by its relative name, where there is one, else by its name alone beside the
//! image. Absolute names of another machine's drives are not followed.

use umbra_block::{BackingRef, Result, Storage, StorageExt};

use super::header::Dynamic;

/// Longest name that is read.
const NAME_MAX: u32 = 4096;

/// The parent that a header names.
pub(super) fn find(header: &Dynamic, storage: &dyn Storage) -> Result<BackingRef> {
    let format = Some("vpc".to_owned());
    for locator in header.locators.iter().filter(|locator| &locator.platform == b"W2ru") {
        let len = locator.len.get().min(NAME_MAX);
        let bytes = storage.read_vec(locator.offset.get(), len as usize)?;
        let name = utf16(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
        if !name.is_empty() {
            return Ok(BackingRef { name: relative(&name), format });
        }
    }
    let units = header.parent_name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let name = relative(&utf16(units));
    let alone = name.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(BackingRef { name: alone, format })
}

fn utf16(units: impl Iterator<Item = u16>) -> String {
    let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// A name of Windows as one of ours.
fn relative(name: &str) -> String {
    let name = name.replace('\\', "/");
    name.strip_prefix("./").map_or(name.clone(), str::to_owned)
}

#[cfg(test)]
#[path = "parent_test.rs"]
mod parent_test;
