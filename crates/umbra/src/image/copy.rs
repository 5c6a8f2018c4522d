//! What the commands that copy have in common.

use umbra_block::Disk;

use super::failure::{Failure, Outcome};
use super::getopt::Parsed;
use super::size;

/// The rate that was asked for.
pub fn rate(parsed: &Parsed) -> Outcome<Option<u64>> {
    let wrong = |text| Failure::new(format!("Invalid rate limit specified: '{text}'."));
    parsed.last("rate").map(|text| size::parse(text).map_err(|_| wrong(text))).transpose()
}

/// Whether a disk takes compressed data only, as a stream does.
pub fn is_stream(disk: &Disk) -> bool {
    disk.node().format_name() == "vmdk" && disk.geometry().compression.is_some()
}

/// Whether a disk that was just made reads as zeroes: what is encrypted as a whole does not, nor does a device.
pub fn is_zero_when_new(disk: &Disk) -> bool {
    let node = disk.node();
    let is_device = node.format().storages().first().is_some_and(|storage| storage.info().fixed_len);
    match node.format_name() {
        "luks" => false,
        "raw" | "file" | "host_device" | "nbd" => !is_device,
        _ => true,
    }
}

/// Whether there are only zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    // The compiler makes vectors of it; the first few bytes decide for most data.
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|&byte| byte == 0)
        && rest.chunks(1024).all(|chunk| chunk.iter().fold(0, |any, &byte| any | byte) == 0)
}
