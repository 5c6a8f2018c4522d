//! Any bytes as an image of vdi, vhdx, vmdk or vpc: opened, mapped, read, checked, and written where it can be.
//!
//! The image comes as sectors with their numbers, so that a file of megabytes is a few bytes of input. Checksums are made
//! right half of the time, or nothing but refusals would be seen.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use umbra_block::{
    Disk, Environment, Error, FileSpec, FileStorageSpec, Format, FormatDriver, MemoryStorage, Node, NodeSpec,
    OpenRequest, Opener, Options, Registry, Repair, Result, Storage, StorageExt, Task,
};
use umbra_fuzz::{Input, crc32c, image_of};

/// Calls of `map` for one input.
const EXTENTS_MAX: usize = 200;

/// Where in the input's image an extent's file begins.
const EXTENT_AT: u64 = 64 << 10;

/// No image gets at a file of the host: extents are the image itself, or a copy of what follows its beginning.
#[derive(Debug)]
struct Memory(Arc<dyn Storage>);

impl Memory {
    fn copy(&self) -> Result<Arc<dyn Storage>> {
        let (copy, len) = (MemoryStorage::new("extent"), self.0.len()?);
        let mut at = EXTENT_AT;
        while at < len {
            let run = self.0.run(at, len - at)?;
            if run.data {
                copy.write_at(at - EXTENT_AT, &self.0.read_vec(at, run.len as usize)?)?;
            }
            at += run.len;
        }
        Ok(Arc::new(copy))
    }
}

impl Opener for Memory {
    fn open(&self, file: &FileSpec, _spec: &FileStorageSpec) -> Result<Arc<dyn Storage>> {
        match file.name.len() % 4 {
            0 => Err(Error::option("no such file")),
            1 => Ok(self.0.clone()),
            _ => self.copy(),
        }
    }

    fn create(&self, _file: &FileSpec) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(MemoryStorage::new("made")))
    }
}

/// Makes the checksums of VHDX headers and region tables, and of VHD footers and headers, right.
fn repair(storage: &dyn Storage) -> Result<()> {
    if storage.read_vec(0, 8)? == b"vhdxfile" {
        for (offset, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)] {
            let mut bytes = storage.read_vec(offset, len)?;
            bytes[4..8].fill(0);
            storage.write_at(offset + 4, &crc32c(&bytes).to_le_bytes())?;
        }
        return Ok(());
    }
    let last = storage.len()?.saturating_sub(512);
    for (offset, len, at) in [(0, 512, 64), (last, 512, 64), (512, 1024, 36)] {
        let mut bytes = storage.read_vec(offset, len)?;
        if bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse") {
            bytes[at..at + 4].fill(0);
            let sum = !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
            storage.write_at(offset + at as u64, &sum.to_be_bytes())?;
        }
    }
    Ok(())
}

fn exercise(format: Box<dyn Format>, input: &[u8]) {
    let size = format.geometry().size;
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        if at >= size {
            break;
        }
        let Ok(extent) = format.map(at, size - at) else { break };
        assert!(extent.len > 0 && extent.len <= size - at, "a run of {} at {at} of {size}", extent.len);
        at += extent.len;
    }
    let _ = format.info();
    let _ = format.check(Repair::None, &Task::quiet());
    let name = "image";
    let disk = Disk::over(Node::new(format, "fuzz", NodeSpec::new(name, Some("raw")), None));
    let mut bytes = vec![0; 4096];
    for offset in [0, size / 2, size.saturating_sub(4096)] {
        let len = bytes.len().min(size.saturating_sub(offset) as usize);
        let _ = disk.read(offset, &mut bytes[..len]);
        if disk.write(offset, &vec![input.len() as u8; len]).is_ok() {
            let mut back = vec![0; len];
            disk.read(offset, &mut back).expect("what was written is read");
            assert!(
                back.iter().all(|&byte| byte == input.len() as u8) || size < 8192,
                "what was written is there"
            );
        }
    }
    let _ = disk.flush();
    let _ = disk.close();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let rest = input.rest();
    let mut registry = Registry::empty();
    umbra_block_formats::register(&mut registry);
    let drivers: Vec<Arc<dyn FormatDriver>> = registry.iter().cloned().collect();
    let driver = &drivers[usize::from(choice >> 2) % drivers.len()];
    let storage: Arc<dyn Storage> = Arc::new(image_of(rest));
    if choice & 1 != 0 && repair(&*storage).is_err() {
        return;
    }
    let mut environment = Environment::new(registry);
    environment.opener = Arc::new(Memory(storage.clone()));
    let spec = NodeSpec::new("image", Some(driver.name()));
    let head = storage.read_vec(0, Registry::PROBE_BYTES).expect("memory is read");
    let _ = driver.probe(&head, storage.len().expect("memory has a length"), "image");
    let request = OpenRequest {
        storage,
        name: "image",
        read_only: choice & 2 == 0,
        for_check: false,
        metadata_only: false,
        options: Options::new(),
        spec: &spec,
        environment: &environment,
    };
    if let Ok(format) = driver.open(request) {
        exercise(format, rest);
    }
});
