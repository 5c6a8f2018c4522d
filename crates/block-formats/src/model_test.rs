//! Every format against an array of bytes: random writes, zeroes, reads and reopenings in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use umbra_block::{
    CreateOptions, Disk, Environment, Error, FileSpec, FileStorageSpec, MemoryStorage, NodeSpec, Opener,
    Registry, Repair, Result, Storage, StorageExt, Task,
};

/// Files in memory, by name.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<HashMap<String, Arc<dyn Storage>>>);

impl Files {
    pub(crate) fn put(&self, name: &str, storage: Arc<dyn Storage>) {
        self.0.lock().unwrap().insert(name.to_owned(), storage);
    }
}

impl Opener for Files {
    fn open(&self, file: &FileSpec, _spec: &FileStorageSpec) -> Result<Arc<dyn Storage>> {
        let files = self.0.lock().unwrap();
        files.get(&file.name).cloned().ok_or_else(|| Error::option(format!("no file {}", file.name)))
    }

    fn create(&self, file: &FileSpec) -> Result<Arc<dyn Storage>> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(file.name.clone()));
        self.0.lock().unwrap().insert(file.name.clone(), storage.clone());
        Ok(storage)
    }
}

pub(crate) fn environment() -> Environment {
    let mut registry = Registry::builtin();
    crate::register(&mut registry);
    let mut environment = Environment::new(registry);
    environment.opener = Arc::new(Files::default());
    environment
}

pub(crate) fn create(environment: &Environment, format: &str, options: &[(&str, &str)], size: u64) {
    let storage = environment.opener.create(&FileSpec::file("image")).unwrap();
    let mut spec = CreateOptions { size, ..CreateOptions::default() };
    for (name, value) in options {
        spec.options.set(*name, *value);
    }
    let driver = environment.registry.get(format).unwrap();
    driver.create(storage, "image", &spec, environment, &Task::quiet()).unwrap();
}

pub(crate) fn open(environment: &Environment, format: &str) -> Disk {
    Disk::open(environment, &NodeSpec::new("image", Some(format)).writable()).unwrap()
}

pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn run(format: &str, options: &[(&str, &str)], steps: usize, seed: u64) {
    let what = format!("{format} {options:?} seed {seed}");
    let environment = environment();
    create(&environment, format, options, 20 << 20);
    let mut disk = open(&environment, format);
    let size = disk.size();
    let mut model = vec![0u8; size as usize];
    let mut random = Random(seed);
    for step in 0..steps {
        let offset = random.below(size);
        let longest = if random.below(8) == 0 { 3 << 20 } else { 70_000 };
        let len = (1 + random.below(longest)).min(size - offset) as usize;
        let range = offset as usize..offset as usize + len;
        match random.below(20) {
            0..9 => {
                let byte = random.below(255) as u8 + 1;
                disk.write(offset, &vec![byte; len])
                    .unwrap_or_else(|error| panic!("{what}, step {step}: {error}"));
                model[range].fill(byte);
            }
            9..12 => {
                disk.write_zeroes(offset, len as u64, random.below(2) == 0).unwrap();
                model[range].fill(0);
            }
            12..18 => {
                let mut bytes = vec![0xaa; len];
                disk.read(offset, &mut bytes).unwrap();
                assert!(bytes == model[range], "{what}, step {step}: {len} bytes at {offset}");
            }
            18 => disk.flush().unwrap(),
            _ => {
                disk.close().unwrap();
                disk = open(&environment, format);
                assert_eq!(disk.size(), size, "{what}");
            }
        }
    }
    disk.close().unwrap();
    let disk = Disk::open(&environment, &NodeSpec::new("image", None)).unwrap();
    let fixed_vhd = format == "vpc" && options.contains(&("subformat", "fixed"));
    if !fixed_vhd {
        assert_eq!(disk.node().format_name(), format);
        let mut bytes = vec![0; size as usize];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes == model, "{what}");
        match disk.node().format().check(Repair::None, &Task::quiet()) {
            Ok(report) => assert!(report.is_clean(), "{what}: {:?}", report.findings),
            Err(error) => assert!(matches!(error, Error::Unsupported(_)), "{what}: {error}"),
        }
    }
}

#[test]
fn every_format_keeps_what_is_written() {
    let kinds: [(&str, &[(&str, &str)]); 12] = [
        ("vdi", &[]),
        ("vdi", &[("static", "on")]),
        ("vpc", &[]),
        ("vpc", &[("force_size", "on")]),
        ("vpc", &[("subformat", "fixed")]),
        ("vmdk", &[]),
        ("vmdk", &[("zeroed_grain", "on")]),
        ("vmdk", &[("subformat", "monolithicFlat")]),
        ("vmdk", &[("subformat", "twoGbMaxExtentSparse")]),
        ("vhdx", &[]),
        ("vhdx", &[("block_size", "1048576"), ("block_state_zero", "off")]),
        ("vhdx", &[("subformat", "fixed")]),
    ];
    for (format, options) in kinds {
        for seed in 1..=3 {
            run(format, options, 120, seed * 0x9e37_79b9);
        }
    }
}

#[test]
fn a_log_that_was_left_behind_is_replayed() {
    let environment = environment();
    create(&environment, "vhdx", &[("block_size", "1048576")], 8 << 20);
    let disk = open(&environment, "vhdx");
    disk.write(3 << 20, &[7; 5000]).unwrap();
    disk.flush().unwrap();
    // The power goes: the table was not written, only the log.
    std::mem::forget(disk);
    let file = environment
        .opener
        .open(&FileSpec::file("image"), &FileStorageSpec::new(umbra_block::Access::Read))
        .unwrap();
    let table = 3 << 20;
    file.write_zeroes(table, 4096, true).unwrap();
    let expect = |disk: &Disk| {
        let mut bytes = [0; 5000];
        disk.read(3 << 20, &mut bytes).unwrap();
        assert!(bytes == [7; 5000]);
    };
    // In memory, without a change of the file; then for good.
    expect(&Disk::open(&environment, &NodeSpec::new("image", Some("vhdx"))).unwrap());
    assert!(!file.run(table, 4096).unwrap().data, "a file that is only read stays as it is");
    let disk = open(&environment, "vhdx");
    expect(&disk);
    disk.close().unwrap();
    expect(&Disk::open(&environment, &NodeSpec::new("image", Some("vhdx"))).unwrap());
}

#[test]
fn an_overlay_of_vmdk_shows_its_parent() {
    let environment = environment();
    create(&environment, "vmdk", &[], 4 << 20);
    let disk = open(&environment, "vmdk");
    disk.write(0, &[1; 200_000]).unwrap();
    disk.close().unwrap();
    let storage = environment.opener.create(&FileSpec::file("top")).unwrap();
    let backing = Some(umbra_block::BackingRef { name: "image".into(), format: Some("vmdk".into()) });
    let options = CreateOptions { size: 4 << 20, backing, ..CreateOptions::default() };
    environment
        .registry
        .get("vmdk")
        .unwrap()
        .create(storage, "top", &options, &environment, &Task::quiet())
        .unwrap();
    let disk = Disk::open(&environment, &NodeSpec::new("top", Some("vmdk")).writable()).unwrap();
    disk.write(70_000, &[2; 10]).unwrap();
    let mut bytes = vec![0; 200_001];
    disk.read(0, &mut bytes).unwrap();
    assert!(
        bytes[..70_000].iter().all(|&byte| byte == 1) && bytes[70_010..200_000].iter().all(|&byte| byte == 1)
    );
    assert!(bytes[70_000..70_010].iter().all(|&byte| byte == 2) && bytes[200_000] == 0);
}

#[test]
fn an_overlay_notices_another_parent() {
    let environment = environment();
    create(&environment, "vmdk", &[], 4 << 20);
    let storage = environment.opener.create(&FileSpec::file("top")).unwrap();
    let backing = Some(umbra_block::BackingRef { name: "image".into(), format: Some("vmdk".into()) });
    let options = CreateOptions { size: 4 << 20, backing, ..CreateOptions::default() };
    let driver = environment.registry.get("vmdk").unwrap();
    driver.create(storage, "top", &options, &environment, &Task::quiet()).unwrap();
    let spec = NodeSpec::new("top", Some("vmdk")).writable();
    let top = Disk::open(&environment, &spec).unwrap();
    top.write(5000, &[2; 10]).unwrap();
    // A commit is a change of ours: the overlay goes along with it.
    let base = open(&environment, "vmdk");
    umbra_block::commit(&top, &base, 1, None, &Task::quiet()).unwrap();
    base.close().unwrap();
    top.close().unwrap();
    let mut bytes = [0; 10];
    Disk::open(&environment, &spec).unwrap().read(5000, &mut bytes).unwrap();
    assert_eq!(bytes, [2; 10]);
    let base = open(&environment, "vmdk");
    base.read(5000, &mut bytes).unwrap();
    assert_eq!(bytes, [2; 10]);
    base.write(0, &[9; 512]).unwrap();
    base.close().unwrap();
    let error = Disk::open(&environment, &spec).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherParent { .. }), "{error}");
}

#[test]
fn a_stream_takes_what_does_not_get_smaller() {
    let environment = environment();
    create(&environment, "vmdk", &[("subformat", "streamOptimized")], 1 << 20);
    let disk = open(&environment, "vmdk");
    let unit = disk.geometry().compression.unwrap().unit as usize;
    let mut random = Random(7);
    let noise: Vec<u8> = (0..2 * unit).map(|_| random.below(256) as u8).collect();
    disk.write_compressed(0, &noise[..unit]).unwrap();
    disk.write_compressed(unit as u64, &noise[unit..]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&environment, &NodeSpec::new("image", Some("vmdk"))).unwrap();
    let mut bytes = vec![0; 2 * unit];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes == noise);
}

#[test]
fn grain_tables_are_as_long_as_the_header_says() {
    let environment = environment();
    create(&environment, "vmdk", &[], 32 << 20);
    let file = environment
        .opener
        .open(&FileSpec::file("image"), &FileStorageSpec::new(umbra_block::Access::ReadWrite))
        .unwrap();
    // One table of 512 entries becomes one of 256, and a second that is not there.
    file.write_at(44, &256u32.to_le_bytes()).unwrap();
    let boundary = 256 * 65536;
    let disk = open(&environment, "vmdk");
    disk.write(boundary - 65536, &[5; 3 * 65536]).unwrap();
    disk.close().unwrap();
    let disk = Disk::open(&environment, &NodeSpec::new("image", Some("vmdk"))).unwrap();
    let mut bytes = vec![0; 4 * 65536];
    disk.read(boundary - 2 * 65536, &mut bytes).unwrap();
    assert!(bytes[..65536].iter().all(|&byte| byte == 0) && bytes[65536..].iter().all(|&byte| byte == 5));
    assert!(disk.node().format().check(Repair::None, &Task::quiet()).unwrap().is_clean());
}
