//! Images as a fuzzer's input: the sectors that are not zero, with their numbers.

use umbra_block::{MemoryStorage, StorageExt};

const SECTOR: usize = 512;
/// Sectors of a file: 64 MiB.
const SECTORS_MAX: u32 = 1 << 17;

/// The image that an input describes: records of a sector's number (32 bits, little-endian) and its bytes.
pub fn image_of(input: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new("image");
    for record in input.chunks(4 + SECTOR) {
        let Some((number, bytes)) = record.split_first_chunk() else { break };
        let number = u32::from_le_bytes(*number) % SECTORS_MAX;
        storage.write_at(u64::from(number) * SECTOR as u64, bytes).expect("memory takes everything");
    }
    storage
}

/// The input that describes a file.
pub fn input_of(file: &[u8]) -> Vec<u8> {
    let mut input = Vec::new();
    let last = file.len().div_ceil(SECTOR).saturating_sub(1);
    for (number, sector) in file.chunks(SECTOR).enumerate() {
        // The last one says how long the file is.
        if number == last || sector.iter().any(|&byte| byte != 0) {
            input.extend_from_slice(&(number as u32).to_le_bytes());
            input.extend_from_slice(sector);
            input.resize(input.len() + SECTOR - sector.len(), 0);
        }
    }
    input
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 })
    })
}
