//! Images that are made to do harm: tables on tables, numbers without measure, counts that lie, names that reach out. Each
//! is refused or read with bounded time and memory, and nothing that it points to is destroyed.

use std::time::{Duration, Instant};

use crate::test_help::{env, spec};
use crate::{
    Access, BackingRef, BackingSpec, CreateOptions, Disk, Environment, Error, FileSpec, FileStorageSpec,
    NodeSpec, Registry, Storage, StorageExt, Task,
};

const SIZE: u64 = 1 << 20;

/// A sound image with some data, as a start.
fn image(options: &[(&str, &str)]) -> (Environment, std::sync::Arc<dyn Storage>) {
    let env = env();
    let create =
        CreateOptions { size: SIZE, options: options.iter().copied().collect(), ..CreateOptions::default() };
    let storage = env.opener.create(&FileSpec::file("image")).unwrap();
    let driver = Registry::builtin().get("qcow2").unwrap().clone();
    driver.create(storage.clone(), "image", &create, &env, &Task::quiet()).unwrap();
    let disk = Disk::open(&env, &spec("image")).unwrap();
    disk.write(0, &[1; 100_000]).unwrap();
    disk.close().unwrap();
    (env, storage)
}

fn word(storage: &dyn Storage, at: u64) -> u64 {
    u64::from_be_bytes(storage.read_vec(at, 8).unwrap().try_into().unwrap())
}

fn put(storage: &dyn Storage, at: u64, value: u64) {
    storage.write_at(at, &value.to_be_bytes()).unwrap();
}

/// Opens for reading, reads all, and opens for writing; how the first of these failed.
fn harm(env: &Environment) -> Result<(), Error> {
    let began = Instant::now();
    let done = Disk::open(env, &NodeSpec::new("image", Some("qcow2"))).and_then(|disk| {
        let mut bytes = vec![0; disk.size().min(SIZE) as usize];
        disk.read(0, &mut bytes)?;
        Disk::open(env, &spec("image"))?.write(SIZE / 2, &[9; 70_000])
    });
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    done
}

/// Offsets of the header's fields.
const BACKING_OFFSET: u64 = 8;
const BACKING_LEN: u64 = 16;
const CLUSTER_BITS: u64 = 20;
const DISK_SIZE: u64 = 24;
const L1_LEN: u64 = 36;
const L1_OFFSET: u64 = 40;
const REFTABLE_OFFSET: u64 = 48;
const REFTABLE_CLUSTERS: u64 = 56;
const SNAPSHOTS: u64 = 60;
const SNAPSHOTS_OFFSET: u64 = 64;
const REFCOUNT_ORDER: u64 = 96;
const HEADER_LEN: u64 = 100;

#[test]
fn a_guest_makes_no_image_of_a_disk_that_was_guessed_to_be_raw() {
    let env = env();
    let storage = env.opener.create(&crate::FileSpec::file("disk")).unwrap();
    storage.set_len(1 << 20).unwrap();
    let disk = Disk::open(&env, &NodeSpec::new("disk", None).writable()).unwrap();
    disk.write(0, &[7; 8192]).unwrap();
    for bytes in [&b"QFI\xfb\0\0\0\x03"[..], b"LUKS\xba\xbe\0\x01"] {
        let refused = disk.write(0, bytes).unwrap_err();
        assert!(refused.to_string().contains("format"), "{refused}");
        // Nor in two parts.
        disk.write(4, &bytes[4..]).unwrap();
        assert!(disk.write(0, &bytes[..4]).is_err());
        let mut head = [0; 4];
        disk.read(0, &mut head).unwrap();
        assert_eq!(head, [7; 4]);
        disk.write(0, &[7; 16]).unwrap();
    }
    drop(disk);
    // Whoever says that it is raw may write what he likes.
    let disk = Disk::open(&env, &NodeSpec::new("disk", Some("raw")).writable()).unwrap();
    disk.write(0, b"QFI\xfb\0\0\0\x03").unwrap();
}

#[test]
fn numbers_without_measure_are_refused() {
    let half = |at: u64, value: u32| (at, value.to_be_bytes().to_vec());
    let whole = |at: u64, value: u64| (at, value.to_be_bytes().to_vec());
    let fields = [
        half(CLUSTER_BITS, 63),
        half(CLUSTER_BITS, 22),
        half(CLUSTER_BITS, 0),
        whole(DISK_SIZE, u64::MAX),
        half(L1_LEN, u32::MAX),
        whole(L1_OFFSET, u64::MAX),
        whole(L1_OFFSET, 0x1234),
        whole(REFTABLE_OFFSET, u64::MAX - 511),
        whole(REFTABLE_OFFSET, 0),
        half(REFTABLE_CLUSTERS, u32::MAX),
        half(REFTABLE_CLUSTERS, 0),
        half(SNAPSHOTS, u32::MAX),
        whole(SNAPSHOTS_OFFSET, 0x7fff_ffff_ffff_fe01),
        half(REFCOUNT_ORDER, 7),
        half(REFCOUNT_ORDER, u32::MAX),
        half(HEADER_LEN, u32::MAX),
        half(HEADER_LEN, 8),
        whole(BACKING_OFFSET, u64::MAX),
        half(BACKING_LEN, u32::MAX),
        // An extension that is longer than the header's cluster.
        half(116, u32::MAX),
    ];
    for (at, bytes) in fields {
        let (env, storage) = image(&[]);
        if at == BACKING_LEN {
            put(&*storage, BACKING_OFFSET, 1024);
        }
        if at == SNAPSHOTS_OFFSET {
            storage.write_at(SNAPSHOTS, &1u32.to_be_bytes()).unwrap();
        }
        storage.write_at(at, &bytes).unwrap();
        let error = harm(&env).expect_err("it is refused");
        assert!(
            matches!(error, Error::Corrupt(_) | Error::TooLarge { .. } | Error::Unsupported(_)),
            "field {at}: {error}"
        );
    }
}

/// Writing must fail, leave the metadata as it is, and mark the image.
fn refuses_to_write(env: &Environment, storage: &dyn Storage, guest: u64, what: &str) {
    let kept = storage.read_vec(512, (storage.len().unwrap() - 512) as usize).unwrap();
    let disk = Disk::open(env, &spec("image")).unwrap();
    let error = disk.write(guest, &[0xff; 4096]).expect_err(what);
    assert!(matches!(error, Error::Corrupt(_)), "{what}: {error}");
    assert!(disk.write(SIZE - 4096, &[0xff; 4096]).is_err(), "{what}: nothing more is written");
    drop(disk);
    let now = storage.read_vec(512, kept.len()).unwrap();
    assert!(now == kept, "{what}: the metadata has changed");
    assert!(word(storage, 72) & 2 != 0, "{what}: the image is marked as corrupt");
    let again = Disk::open(env, &spec("image")).map(|_| ());
    assert!(matches!(again, Err(Error::Refused(_))), "{what}: {again:?}");
}

#[test]
fn data_on_metadata_is_never_written() {
    const COPIED: u64 = 1 << 63;
    type Places = (u64, u64, u64, u64);
    type Victim = fn(Places) -> u64;
    let places = |storage: &dyn Storage| -> Places {
        let l1 = word(storage, L1_OFFSET);
        let l2 = word(storage, l1) & 0x00ff_ffff_ffff_fe00;
        let reftable = word(storage, REFTABLE_OFFSET);
        (l1, l2, reftable, word(storage, reftable))
    };
    let victims: [(&str, Victim); 5] = [
        ("the L1 table", |places| places.0),
        ("an L2 table", |places| places.1),
        ("the refcount table", |places| places.2),
        ("a refcount block", |places| places.3),
        ("the header", |_| 1 << 63),
    ];
    for (what, victim) in victims {
        let (env, storage) = image(&[]);
        let found = places(&*storage);
        // An entry of offset 0 is one without a place, whatever else it says: the header cannot be named.
        if what == "the header" {
            put(&*storage, found.1, COPIED);
            let disk = Disk::open(&env, &spec("image")).unwrap();
            disk.write(0, &[5; 512]).unwrap();
            assert!(storage.read_vec(0, 4).unwrap() == *b"QFI\xfb");
            continue;
        }
        put(&*storage, found.1, victim(found) | COPIED);
        refuses_to_write(&env, &*storage, 0, what);
    }
}

#[test]
fn tables_on_tables_are_not_written() {
    let (env, storage) = image(&[]);
    let l1 = word(&*storage, L1_OFFSET);
    let block = word(&*storage, word(&*storage, REFTABLE_OFFSET));
    // The L2 table is the refcount block: an entry that is set would be a count.
    put(&*storage, l1, block | 1 << 63);
    refuses_to_write(&env, &*storage, SIZE / 2, "an L2 table on a refcount block");
}

#[test]
fn metadata_that_counts_as_free_is_not_given_away() {
    let (env, storage) = image(&[]);
    let l1 = word(&*storage, L1_OFFSET);
    let l2 = word(&*storage, l1) & 0x00ff_ffff_ffff_fe00;
    let block = word(&*storage, word(&*storage, REFTABLE_OFFSET));
    for table in [l1, l2] {
        storage.write_at(block + (table >> 16) * 2, &[0, 0]).unwrap();
    }
    refuses_to_write(&env, &*storage, SIZE / 2, "tables whose refcount is 0");
}

#[test]
fn the_user_chooses_what_is_checked() {
    let write = |options: &[(&str, &str)]| {
        let (env, storage) = image(&[]);
        let l2 = word(&*storage, word(&*storage, L1_OFFSET)) & 0x00ff_ffff_ffff_fe00;
        put(&*storage, l2, l2 | 1 << 63);
        let mut spec = spec("image");
        options.iter().for_each(|(name, value)| _ = spec.options.set(*name, *value));
        Disk::open(&env, &spec)?.write(0, &[0; 512])
    };
    for refused in [
        &[][..],
        &[("overlap-check", "cached")],
        &[("overlap-check", "all")],
        &[("overlap-check.template", "none"), ("overlap-check.active-l2", "on")],
    ] {
        assert!(matches!(write(refused), Err(Error::Corrupt(_))), "{refused:?}");
    }
    for allowed in [
        &[("overlap-check", "none")][..],
        &[("overlap-check", "constant")],
        &[("overlap-check.template", "all"), ("overlap-check.active-l2", "off")],
    ] {
        write(allowed).unwrap();
    }
    for wrong in [
        &[("overlap-check", "some")][..],
        &[("overlap-check", "all"), ("overlap-check.template", "none")],
        &[("overlap-check.main-header", "perhaps")],
    ] {
        assert!(matches!(write(wrong), Err(Error::InvalidOption(_))), "{wrong:?}");
    }
}

#[test]
fn a_bomb_fills_one_cluster() {
    for codec in ["zlib", "zstd"] {
        let (env, storage) = image(&[("compression_type", codec)]);
        let disk = Disk::open(&env, &spec("image")).unwrap();
        disk.write_compressed(0, &[3; 65536]).unwrap();
        disk.close().unwrap();
        let l2 = word(&*storage, word(&*storage, L1_OFFSET)) & 0x00ff_ffff_ffff_fe00;
        let place = word(&*storage, l2) & ((1 << 54) - 1);
        // A gigabyte of zeroes in a few bytes.
        let bomb = match codec {
            "zlib" => {
                let mut packer =
                    flate2::Compress::new_with_window_bits(flate2::Compression::best(), false, 12);
                let mut out = vec![0; 65536];
                let _ = packer.compress(&vec![0; 40 << 20], &mut out, flate2::FlushCompress::Finish).unwrap();
                out.truncate(packer.total_out() as usize);
                out
            }
            _ => zstd::bulk::compress(&vec![0; 1 << 30], 3).unwrap(),
        };
        let entry = 1 << 62 | (bomb.len() as u64 / 512).min(127) << 54 | place;
        put(&*storage, l2, entry);
        storage.write_at(place, &bomb).unwrap();
        let disk = Disk::open(&env, &NodeSpec::new("image", Some("qcow2"))).unwrap();
        let mut bytes = vec![7; 65536];
        let began = Instant::now();
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0) && began.elapsed() < Duration::from_secs(1));
        // And what is no compressed data at all, or ends too soon.
        storage.write_at(place, &[0xff; 4096]).unwrap();
        let disk = Disk::open(&env, &NodeSpec::new("image", Some("qcow2"))).unwrap();
        assert!(matches!(disk.read(0, &mut bytes), Err(Error::Corrupt(_))), "{codec}");
    }
}

#[test]
fn names_reach_nowhere_unless_policy_allows() {
    let host = Environment::new(Registry::builtin());
    let (_, storage) = image(&[]);
    let folder = std::env::temp_dir().join(format!("umbra-block-names-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("image").display().to_string();
    for name in [
        "/etc/hostname",
        "../../../../etc/hostname",
        "json:{\"driver\":\"raw\"}",
        "nbd://host/x",
        "file:/etc/hostname",
    ] {
        std::fs::write(&path, storage.read_vec(0, storage.len().unwrap() as usize).unwrap()).unwrap();
        let mut open = NodeSpec::new(&path, Some("qcow2")).writable();
        open.backing = BackingSpec::None;
        let disk = Disk::open(&host, &open).unwrap();
        let backing = BackingRef { name: name.to_owned(), format: Some("raw".to_owned()) };
        disk.drained(|node| node.format().write().unwrap().set_backing(Some(&backing))).unwrap();
        disk.close().unwrap();
        let mut strict = NodeSpec::new(&path, Some("qcow2"));
        strict.follow_references = false;
        let error = Disk::open(&host, &strict).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::ReferenceRefused { named, .. } if named == name), "{name}: {error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    // A data file is a name like any other.
    let env = env();
    let create = CreateOptions {
        size: SIZE,
        options: [("data_file", "data")].into_iter().collect(),
        ..CreateOptions::default()
    };
    let storage = env.opener.create(&FileSpec::file("image")).unwrap();
    let driver = Registry::builtin().get("qcow2").unwrap().clone();
    driver.create(storage, "image", &create, &env, &Task::quiet()).unwrap();
    let mut strict = NodeSpec::new("image", Some("qcow2"));
    strict.follow_references = false;
    let error = Disk::open(&env, &strict).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::ReferenceRefused { role: "data file", .. }), "{error}");
    assert!(env.opener.open(&FileSpec::file("data"), &FileStorageSpec::new(Access::Read)).is_ok());
}
