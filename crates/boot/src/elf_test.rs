use crate::elf::ElfKernel;
use crate::error::BootError;
use crate::testdata::{self, BSS, PVH_ENTRY, Part, TEXT, note};

#[test]
fn a_good_kernel_is_read() {
    let file = testdata::elf();
    let elf = ElfKernel::parse(&file).unwrap();
    assert_eq!(elf.pvh_entry, Some(PVH_ENTRY));
    let [text, data] = &elf.segments[..] else { panic!("{:?}", elf.segments) };
    assert_eq!(file[text.file.clone()], testdata::text());
    assert_eq!(data.mem_size, 4 + BSS);
    assert_eq!(elf.end(), TEXT + 0x20_0000 + 4 + BSS);
}

#[test]
fn segments_come_sorted_and_empty_ones_not_at_all() {
    let file = testdata::elf_of(&[
        Part::load(0x30_0000, vec![3], 0),
        Part::load(0, vec![], 0),
        Part::load(0x10_0000, vec![1], 0),
    ]);
    let elf = ElfKernel::parse(&file).unwrap();
    assert_eq!(elf.segments.iter().map(|s| s.paddr).collect::<Vec<_>>(), [0x10_0000, 0x30_0000]);
}

#[test]
fn overlap_is_refused() {
    let file =
        testdata::elf_of(&[Part::load(0x20_0000, vec![3], 0), Part::load(0x10_0000, vec![1], 0x10_0000)]);
    assert!(matches!(ElfKernel::parse(&file), Err(BootError::Damaged(_))));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let file = testdata::elf();
    for length in 0..file.len() {
        let e = ElfKernel::parse(&file[..length]).unwrap_err();
        assert!(matches!(e, BootError::Truncated { .. }), "{length}: {e}");
    }
}

#[test]
fn other_machines_are_named() {
    let mut file = testdata::elf();
    file[4] = 1;
    assert!(ElfKernel::parse(&file).unwrap_err().to_string().contains("32-bit"));
    file[4] = 2;
    file[18] = 183;
    assert!(ElfKernel::parse(&file).unwrap_err().to_string().contains("machine number is 183"));
}

#[test]
fn impossible_sizes_are_refused() {
    for (paddr, mem_size) in [(0x10_0000, 1), (u64::MAX, 8), (u64::MAX - 3, 8)] {
        let part = Part { kind: 1, paddr, bytes: vec![0; 4], mem_size };
        assert!(ElfKernel::parse(&testdata::elf_of(&[part])).is_err(), "{paddr:#x} {mem_size}");
    }
}

#[test]
fn the_entry_is_found_among_notes() {
    let entry = |notes: Vec<u8>| {
        let file = testdata::elf_of(&[Part::load(TEXT, vec![0], 0), Part::notes(notes)]);
        ElfKernel::parse(&file).unwrap().pvh_entry
    };
    let desc = 0x1234u32.to_le_bytes();
    assert_eq!(entry(note(b"Xen\0", 18, &desc)), Some(0x1234));
    assert_eq!(entry([note(b"Xen\0", 5, &[1]), note(b"Xen\0", 18, &desc)].concat()), Some(0x1234));
    assert_eq!(entry(note(b"Xen\0", 18, &0x1_0000_1234u64.to_le_bytes())), None);
    assert_eq!(entry(note(b"Xen\0", 18, &[1, 2])), None);
    assert_eq!(entry(note(b"Zen\0", 18, &desc)), None);
    assert_eq!(entry(note(b"Xen\0", 17, &desc)), None);
    assert_eq!(entry(vec![]), None);
    // Lengths that lead out of the notes.
    for (name_size, desc_size) in [(u32::MAX, 4), (4, u32::MAX), (u32::MAX, u32::MAX), (5, 4), (4, 5)] {
        let mut bad = note(b"Xen\0", 18, &desc);
        bad[..4].copy_from_slice(&name_size.to_le_bytes());
        bad[4..8].copy_from_slice(&desc_size.to_le_bytes());
        assert_eq!(entry(bad), None, "{name_size:#x} {desc_size:#x}");
    }
}
