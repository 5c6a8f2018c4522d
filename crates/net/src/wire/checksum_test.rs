use super::Sum;

/// As RFC 1071 writes it.
fn plain(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn parts_of_any_length_sum_as_the_whole() {
    let bytes: Vec<u8> = (0..1000u32).map(|i| ((i * 7919) >> 3) as u8).collect();
    for len in [0, 1, 2, 3, 4, 5, 8, 63, 64, 65, 999, 1000] {
        for cut in [0, 1, 2, 3, 7, 500] {
            let cut = cut.min(len);
            let mut sum = Sum::default();
            sum.add(&bytes[..cut]);
            sum.add(&bytes[cut..len]);
            assert_eq!(sum.finish(), plain(&bytes[..len]), "{len} bytes cut at {cut}");
        }
    }
}

#[test]
fn a_packet_with_its_checksum_is_valid() {
    let mut bytes = vec![0x45, 0, 0, 20, 1, 2, 3, 4, 64, 6, 0, 0, 10, 0, 2, 15];
    let mut sum = Sum::default();
    sum.add(&bytes);
    let checksum = sum.finish();
    bytes[10..12].copy_from_slice(&checksum);
    let mut sum = Sum::default();
    sum.add(&bytes);
    assert!(sum.is_valid());
    bytes[0] ^= 1;
    let mut sum = Sum::default();
    sum.add(&bytes);
    assert!(!sum.is_valid());
}
