//! Any bytes as a kernel file: headers, unpackers, ELF notes and placement, in every method.
//!
//! `cargo +nightly fuzz run load` in the folder above; the corpus holds a small kernel in each form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_boot::{BootSource, Layout, LoadMethod, load};

const MEMORY: u64 = 64 << 20;

fuzz_target!(|kernel: &[u8]| {
    let layout = Layout::new(MEMORY, 40).expect("a size that the machine type has");
    for method in [LoadMethod::Auto, LoadMethod::Pvh, LoadMethod::Linux64] {
        let source = BootSource { kernel, initrd: Some(b"initrd"), cmdline: "quiet", method };
        let Ok(image) = load(&source, &layout) else { continue };
        let mut ranges: Vec<_> = image.segments.iter().map(|s| s.range()).collect();
        ranges.sort_by_key(|r| r.start);
        let mut last = 0;
        for r in ranges {
            assert!(last <= r.start && r.end <= MEMORY, "{r:x?}");
            last = r.end;
        }
    }
});
