//! CRC-32C (Castagnoli) as ext4 uses it: the register goes in and comes out as it is, with no inversion at the end.

/// The polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut value, mut bit) = (index as u32, 0);
        while bit < 8 {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// What a checksum of nothing is.
pub const START: u32 = u32::MAX;

/// Goes on with `bytes`.
pub fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |sum, byte| (sum >> 8) ^ TABLE[usize::from(sum as u8 ^ byte)])
}

/// The two halves of a checksum, as descriptors and inodes keep it.
pub fn halves(sum: u32) -> (u16, u16) {
    (sum as u16, (sum >> 16) as u16)
}

#[cfg(test)]
mod checksum_test {
    use super::*;

    #[test]
    fn it_is_castagnolis() {
        // The check value of the catalogue of CRCs, whose result is inverted.
        assert_eq!(!crc32c(START, b"123456789"), 0xe306_9283);
    }
}
