use crate::smbios::tables;

const UUID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// (type, formatted part, strings) of each structure, as a kernel walks them.
fn walk(mut table: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut out = Vec::new();
    while let [kind, length, ..] = *table {
        let (formatted, rest) = table.split_at(usize::from(length));
        let end = rest.windows(2).position(|w| w == [0, 0]).unwrap();
        let strings = rest[..end].split(|b| *b == 0).filter(|s| !s.is_empty());
        let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
        out.push((kind, formatted.to_vec(), strings));
        table = &rest[end + 2..];
    }
    out
}

#[test]
fn the_guest_reads_our_names() {
    let segment = tables(UUID);
    assert_eq!(segment.gpa, 0xf_0000);
    let (entry, table) = segment.data.split_at(24);
    assert_eq!(&entry[..5], b"_SM3_");
    assert_eq!(entry[6], 24);
    assert_eq!(entry.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    assert_eq!(u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize, table.len());
    assert_eq!(u64::from_le_bytes(entry[16..24].try_into().unwrap()), 0xf_0018);

    let structures = walk(table);
    assert_eq!(structures.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 127]);
    let (_, firmware, strings) = &structures[0];
    assert_eq!((firmware.len(), strings[0].as_str()), (24, "Umbra"));
    assert_eq!(firmware[0x13] & 0x10, 0x10, "the virtual machine flag");
    let (_, system, strings) = &structures[1];
    assert_eq!(system.len(), 27);
    assert_eq!(strings[..3], ["Umbra", "Umbra machine umbra-1", "umbra-1"]);
    assert_eq!(system[8..24], [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
}
