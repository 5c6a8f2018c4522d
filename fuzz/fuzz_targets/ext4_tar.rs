//! Any bytes as archives of tar that become an ext4 file system: two layers, with removals as containers' images have them.
//!
//! Checksums of headers are made right, or nothing but refusals would be seen. What is written may only be blocks inside the file
//! system.
#![no_main]

use std::io::{self, Seek, SeekFrom, Write};

use libfuzzer_sys::fuzz_target;
use umbra_ext4::tar::{Archive, Kind};
use umbra_ext4::{Builder, Spec};

const SIZE: u64 = 16 << 20;
/// Bytes of a header.
const RECORD: usize = 512;

/// A target that only looks where it is written to.
struct Target(u64);

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        assert!(self.0 <= SIZE, "written beyond the end");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Target {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(at) = to else { panic!("blocks are at places of their own") };
        assert!(at < SIZE, "sought beyond the end");
        self.0 = at;
        Ok(at)
    }
}

fn repair(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(RECORD) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    repair(&mut bytes);
    let spec = Spec { size: SIZE, uuid: [7; 16], label: "fuzz".into(), time: 0 };
    let mut builder = Builder::new(Target(0), &spec).expect("a size that can be");
    let middle = bytes.len() / 2 / RECORD * RECORD;
    let mut failed = false;
    for layer in [&bytes[..middle], &bytes[middle..]] {
        let mut archive = Archive::new(layer);
        while let Ok(Some(entry)) = archive.next_entry() {
            let done = match (&entry.kind, entry.path.len() % 8) {
                (Kind::Directory, 0) => builder.clear(&entry.path),
                (Kind::Directory, 1) => builder.remove(&entry.path),
                _ => builder.entry(&entry, &mut archive),
            };
            failed |= done.is_err();
        }
        builder.begin_layer();
    }
    let made = builder.finish();
    assert!(failed || made.is_ok(), "what was taken is written");
});
