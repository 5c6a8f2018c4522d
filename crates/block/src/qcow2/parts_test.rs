//! The small parts: packed refcounts, L2 entries, headers.

use super::header::Header;
use super::layout::{COMPRESSED, COPIED, Entry, Kind, Layout, ZERO};
use super::refcount::{get, refcount_max, set};
use crate::test_help::Rng;
use crate::{MemoryStorage, StorageExt};

#[test]
fn refcounts_of_every_width_keep_to_themselves() {
    let mut rng = Rng(1);
    for order in 0..=6 {
        let mut bytes = vec![0; 512];
        let count = (512 * 8) >> order;
        let mut model = vec![0; count as usize];
        for _ in 0..2000 {
            let (index, value) = (rng.below(count), rng.next() & refcount_max(order));
            set(&mut bytes, index, order, value);
            model[index as usize] = value;
        }
        assert!((0..count).all(|index| get(&bytes, index, order) == model[index as usize]), "2^{order} bits");
    }
    // The specification: the lowest bits of a byte are the first refcounts; wider ones are big-endian.
    let mut bytes = [0; 8];
    set(&mut bytes, 1, 0, 1);
    set(&mut bytes, 3, 1, 2);
    set(&mut bytes, 1, 4, 0x1234);
    assert_eq!(bytes, [0x82, 0, 0x12, 0x34, 0, 0, 0, 0]);
}

#[test]
fn entries_say_what_the_specification_says() {
    let layout = Layout { cluster_bits: 16, extended: false, data_file: false };
    let kind = |word| Entry { word, bitmap: 0 }.kind(0, layout).ok();
    assert_eq!(kind(0), Some(Kind::Unallocated));
    assert_eq!(kind(ZERO), Some(Kind::Zero));
    assert_eq!(kind(0x50000 | COPIED), Some(Kind::Data(0x50000)));
    assert_eq!(kind(0x50000 | ZERO), Some(Kind::ZeroAt(0x50000)));
    assert_eq!(kind(0x50200), None, "within a cluster");
    assert_eq!(kind(COMPRESSED | 0x1234), Some(Kind::Compressed));
    let layout = Layout { extended: true, ..layout };
    let kind = |word, bitmap, index| Entry { word, bitmap }.kind(index, layout).ok();
    assert_eq!(kind(0x50000, 1 << 3, 3), Some(Kind::Data(0x50000)));
    assert_eq!(kind(0x50000, 1 << 3, 4), Some(Kind::UnallocatedAt(0x50000)));
    assert_eq!(kind(0, 1 << 35, 3), Some(Kind::Zero));
    assert_eq!(kind(0x50000, 1 << 35 | 1 << 3, 3), None, "both");
    assert_eq!(kind(0, 1, 0), None, "data nowhere");
}

#[test]
fn compressed_places_come_back() {
    let mut rng = Rng(2);
    for cluster_bits in 9..=21 {
        let layout = Layout { cluster_bits, extended: false, data_file: false };
        for _ in 0..200 {
            let (offset, len) = (rng.below(1 << 40), 1 + rng.below((1 << cluster_bits) - 1));
            let entry = Entry::compressed(offset, len, layout).expect("it can be said");
            let packed = entry.packed(layout);
            assert_eq!(packed.offset, offset);
            assert!(packed.len >= len && packed.len < len + 512 && (offset + packed.len).is_multiple_of(512));
        }
        assert_eq!(Entry::compressed(1 << 61, 1, layout), None, "too far away for any cluster size");
    }
}

#[test]
fn a_header_with_everything_comes_back() {
    let storage = MemoryStorage::new("image");
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 12;
    bytes[48 + 6] = 0x10;
    bytes[59] = 1;
    bytes[99] = 4;
    bytes[103] = 104;
    // An extension that nobody knows.
    bytes[104..112].copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 3]);
    bytes[112..115].copy_from_slice(b"abc");
    storage.write_at(0, &bytes).unwrap();
    let mut header = Header::read(&storage, "image").unwrap();
    assert_eq!(header.unknown, [(0x1234_5678, b"abc".to_vec())]);
    header.backing_name = Some("base".to_owned());
    header.backing_format = Some("raw".to_owned());
    storage.write_at(0, &header.to_bytes().unwrap()).unwrap();
    assert_eq!(Header::read(&storage, "image").unwrap(), header);
    let unknown = 1u64 << 40;
    storage.write_at(72, &unknown.to_be_bytes()).unwrap();
    let error = Header::read(&storage, "image").unwrap_err().to_string();
    assert!(error.contains("feature"), "{error}");
}

#[test]
fn a_file_that_is_nothing_but_length_is_looked_at_in_no_time() {
    use crate::test_help::{env, open};
    use crate::{CreateOptions, FileSpec, Task};
    let env = env();
    let file = env.opener.create(&FileSpec::file("image")).unwrap();
    let options = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    env.registry.get("qcow2").unwrap().create(file.clone(), "image", &options, &env, &Task::quiet()).unwrap();
    // As many blocks of refcounts as fit in a longest file would take years.
    file.set_len(i64::MAX as u64).unwrap();
    let disk = open(&env, "image");
    disk.write(0, &[1; 512]).unwrap();
    assert!(disk.block_status(0, 1 << 20).unwrap().data);
}
