//! Damaged kernels: whatever a header says, loading ends soon, with an image in RAM or an error.

use crate::layout::{Layout, MIB};
use crate::load::{BootSource, LoadMethod, load};
use crate::testdata;

const INITRD: &[u8] = b"initrd";

fn check(kernel: &[u8]) {
    let layout = Layout::new(64 * MIB, 40).unwrap();
    for method in [LoadMethod::Pvh, LoadMethod::Linux64] {
        let source = BootSource { kernel, initrd: Some(INITRD), cmdline: "quiet", method };
        let Ok(image) = load(&source, &layout) else { continue };
        let mut last = 0;
        let mut ranges: Vec<_> = image.segments.iter().map(|s| s.range()).collect();
        ranges.sort_by_key(|r| r.start);
        for r in ranges {
            assert!(last <= r.start && r.start <= r.end && r.end <= 64 * MIB, "{r:x?} after {last:#x}");
            last = r.end;
        }
    }
}

/// Every byte of the parts that steer the loader, with the values that overflow, wrap or point elsewhere.
fn mutate(file: &[u8], steering: impl Iterator<Item = usize>) {
    for at in steering {
        let original = file[at];
        for value in [0, 1, 0x7f, 0x80, 0xff, original ^ 1, original.wrapping_add(1)] {
            let mut kernel = file.to_vec();
            kernel[at] = value;
            check(&kernel);
        }
        // The whole field and its neighbours.
        for value in [0, 0xff] {
            let mut kernel = file.to_vec();
            let end = file.len().min(at + 8);
            kernel[at..end].fill(value);
            check(&kernel);
        }
    }
}

/// A kernel whose segments are small, so that a thousand loads are quick.
fn small_elf() -> Vec<u8> {
    testdata::elf_of(&[
        testdata::Part::load(testdata::TEXT, vec![0xf4; 0x80], 0),
        testdata::Part::load(testdata::TEXT + 0x1000, b"data".to_vec(), 0x100),
        testdata::Part::notes(testdata::notes()),
    ])
}

#[test]
fn damaged_setup_headers() {
    let file = testdata::bzimage_of(testdata::header(), &testdata::lz4(&small_elf()));
    mutate(&file, 0x1f1..0x280);
}

#[test]
fn damaged_elf_headers_and_notes() {
    let file = small_elf();
    let notes = file.len() - testdata::notes().len();
    mutate(&file, (0..64 + 3 * 56).chain(notes..file.len()));
}

#[test]
fn damaged_elf_inside_a_bzimage() {
    let file = testdata::bzimage_of(testdata::header(), &small_elf());
    let start = 5 * 512 + testdata::PAYLOAD_OFFSET;
    mutate(&file, start..start + 64 + 3 * 56);
}

#[test]
fn files_cut_anywhere() {
    for file in [testdata::bzimage_of(testdata::header(), &testdata::lz4(&small_elf())), small_elf()] {
        for length in 0..file.len() {
            check(&file[..length]);
        }
    }
}
