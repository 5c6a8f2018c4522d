//! Images that are made to do harm: numbers without measure, tables behind the end, compressed data that lies, and names that
//! reach out. Each is refused, or read with bounded time and memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_block::{
    Access, Disk, Environment, Error, FileSpec, FileStorageSpec, NodeSpec, Storage, StorageExt,
};

use crate::model_test::{create, environment, open};

fn storage(environment: &Environment, name: &str) -> Arc<dyn Storage> {
    environment.opener.open(&FileSpec::file(name), &FileStorageSpec::new(Access::ReadWrite)).unwrap()
}

/// Reads all of a small disk, and the start and end of a large one, then writes to it.
fn harm(environment: &Environment, format: &str) -> Result<(), Error> {
    let began = Instant::now();
    let spec = NodeSpec::new("image", Some(format));
    let done = Disk::open(environment, &spec).and_then(|disk| {
        let mut bytes = vec![0; disk.size().min(1 << 20) as usize];
        disk.read(0, &mut bytes)?;
        disk.read(disk.size() - bytes.len() as u64, &mut bytes)?;
        drop(disk);
        let disk = Disk::open(environment, &spec.writable())?;
        disk.write(disk.size() / 2, &[9; 512])?;
        disk.close()
    });
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    done
}

/// A sound image, of which bytes are changed.
fn refused(format: &str, options: &[(&str, &str)], changes: &[(u64, &[u8])]) {
    for (at, bytes) in changes {
        let environment = environment();
        create(&environment, format, options, 8 << 20);
        storage(&environment, "image").write_at(*at, bytes).unwrap();
        let error = harm(&environment, format).map(|()| "nothing").expect_err("it is refused");
        assert!(!matches!(error, Error::Io { .. }), "{format}, byte {at}: {error}");
    }
}

#[test]
fn numbers_without_measure_are_refused() {
    let most = [0xff; 8];
    // Version, type, table, data, size of the disk, of a block, number of blocks.
    refused(
        "vdi",
        &[],
        &[
            (68, &most[..4]),
            (76, &most[..4]),
            (340, &most[..4]),
            (368, &most),
            (376, &most[..4]),
            (376, &[0; 4]),
            (384, &most[..4]),
        ],
    );
    // Version, capacity, grain, entries of a table, directory.
    refused(
        "vmdk",
        &[],
        &[
            (4, &most[..4]),
            (12, &most),
            (20, &most),
            (20, &[0; 8]),
            (44, &most[..4]),
            (44, &[0; 4]),
            (56, &most[..7]),
        ],
    );
    // Of the header behind the footer: table, entries, size of a block; none of them has its checksum then.
    refused(
        "vpc",
        &[],
        &[(512 + 16, &most), (512 + 28, &most[..4]), (512 + 32, &most[..4]), (512 + 32, &[0; 4])],
    );
    // Both region tables; the metadata's count of entries.
    refused("vhdx", &[], &[((2 << 20) + 10, &[0xff, 0xff]), (2 << 20, &[0; 8])]);
}

#[test]
fn a_compressed_grain_is_one_grain() {
    let environment = environment();
    create(&environment, "vmdk", &[("subformat", "streamOptimized")], 1 << 20);
    let disk = open(&environment, "vmdk");
    disk.write_compressed(0, &[3; 65536]).unwrap();
    disk.close().unwrap();
    let file = storage(&environment, "image");
    let len = file.len().unwrap();
    let bytes = file.read_vec(0, len as usize).unwrap();
    // The marker of the grain: sector 0, and a length; zlib's header follows.
    let marker =
        bytes.windows(14).rposition(|window| window[..8] == [0; 8] && window[12..] == [0x78, 0x9c]).unwrap();
    for lie in [u32::MAX, 0, 1, 100_000_000] {
        file.write_at(marker as u64 + 8, &lie.to_le_bytes()).unwrap();
        let disk = Disk::open(&environment, &NodeSpec::new("image", Some("vmdk"))).unwrap();
        let error = disk.read(0, &mut [0; 512]).expect_err("a length that lies");
        assert!(matches!(error, Error::Corrupt(_) | Error::TooLarge { .. }), "{lie}: {error}");
    }
}

const DESCRIPTOR: &str =
    "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";

/// An image that is a descriptor with these lines.
fn descriptor(lines: &str) -> Environment {
    let environment = environment();
    let file = environment.opener.create(&FileSpec::file("image")).unwrap();
    file.write_at(0, format!("{DESCRIPTOR}{lines}").as_bytes()).unwrap();
    environment
}

#[test]
fn extents_without_measure_are_refused() {
    let many = "RW 1 ZERO\n".repeat(5000);
    let long = format!("RW {} ZERO\n", u64::MAX);
    let sum = format!("RW {0} ZERO\nRW {0} ZERO\n", i64::MAX / 512);
    let behind = format!("RW 100 FLAT \"flat\" {}\n", u64::MAX / 512);
    for lines in [many.as_str(), &long, &sum, &behind, "", "RW x FLAT \"flat\" 0\n", "RW 5 FLAT flat 0\n"] {
        let environment = descriptor(lines);
        environment.opener.create(&FileSpec::file("flat")).unwrap();
        assert!(harm(&environment, "vmdk").is_err(), "{}", &lines[..lines.len().min(60)]);
    }
    // One that is its own extent.
    let environment = descriptor("RW 100 FLAT \"image\" 0\n");
    assert!(harm(&environment, "vmdk").is_err(), "an image on itself");
}

#[test]
fn names_reach_nowhere_unless_policy_allows() {
    for name in ["/etc/hostname", "../../secret", "secret"] {
        let environment = descriptor(&format!("RW 1 FLAT \"{name}\" 0\n"));
        let mut strict = NodeSpec::new("image", Some("vmdk"));
        strict.follow_references = false;
        let error = Disk::open(&environment, &strict).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::ReferenceRefused { named, .. } if named == name), "{name}: {error}");
    }
    let environment = descriptor("RW 1 ZERO\n");
    let parent =
        DESCRIPTOR.replace("ffffffff", "0badcafe") + "parentFileNameHint=\"/etc/hostname\"\nRW 1 ZERO\n";
    storage(&environment, "image").write_at(0, parent.as_bytes()).unwrap();
    let mut strict = NodeSpec::new("image", Some("vmdk"));
    strict.follow_references = false;
    let error = Disk::open(&environment, &strict).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::ReferenceRefused { role: "backing file", .. }), "{error}");
}
