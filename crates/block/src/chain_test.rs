//! Chains, what images may name, and many threads on one disk.

use std::sync::Arc;

use crate::test_help::{Rng, env, open, open_over};
use crate::{
    Access, BackingRef, BackingSpec, CreateOptions, Disk, Environment, Error, FileSpec, NodeSpec, Options,
    Preallocation, Registry, Repair, SnapshotInfo, StorageExt, Task,
};

fn create(env: &Environment, name: &str, backing: Option<(&str, Option<&str>)>, options: &[(&str, &str)]) {
    let mut create = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    create.options = options.iter().copied().collect::<Options>();
    create.backing = backing.map(|(name, format)| BackingRef {
        name: name.to_owned(),
        format: Some(format.unwrap_or("raw").to_owned()),
    });
    let storage = env.opener.create(&FileSpec::file(name)).unwrap();
    Registry::builtin().get("qcow2").unwrap().create(storage, name, &create, env, &Task::quiet()).unwrap();
    if let Some((name_behind, None)) = backing {
        // As old programs wrote it: without the format.
        let disk = open(env, name);
        let backing = BackingRef { name: name_behind.to_owned(), format: None };
        disk.drained(|node| node.format().write().unwrap().set_backing(Some(&backing))).unwrap();
        disk.close().unwrap();
    }
}

#[test]
fn a_chain_is_read_through() {
    let env = env();
    create(&env, "a", None, &[]);
    create(&env, "b", Some(("a", Some("qcow2"))), &[("cluster_size", "4k")]);
    create(&env, "c", Some(("b", Some("qcow2"))), &[("extended_l2", "on")]);
    for (name, at) in [("a", 0u64), ("b", 1000), ("c", 2000)] {
        let disk = open(&env, name);
        disk.write(at, &[name.as_bytes()[0]; 1000]).unwrap();
        disk.close().unwrap();
    }
    // `open` of the help has no backing node, so `b` and `c` have copied zeroes: write through the chain instead.
    let disk = Disk::open(&env, &NodeSpec::new("c", Some("qcow2")).writable()).unwrap();
    assert_eq!(disk.backing().unwrap().backing().unwrap().node().name(), "a");
    disk.write(5000, &[9; 10]).unwrap();
    let mut bytes = [0; 10];
    disk.read(5000, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 10]);
    let status = disk.block_status(1 << 19, 1 << 19).unwrap();
    assert_eq!((status.depth, status.present, status.zero), (2, false, true));
}

#[test]
fn loops_and_unnamed_references_are_refused() {
    let env = env();
    create(&env, "a", Some(("b", Some("qcow2"))), &[]);
    create(&env, "b", Some(("a", Some("qcow2"))), &[]);
    // Files in memory have no identity, so the chain's length is the limit.
    let error = Disk::open(&env, &NodeSpec::new("a", Some("qcow2"))).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let folder = std::env::temp_dir().join(format!("umbra-block-loop-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let host = Environment::new(Registry::builtin());
    let path = |name: &str| folder.join(name).display().to_string();
    create(&host, &path("a"), Some(("b", Some("qcow2"))), &[]);
    create(&host, &path("b"), Some(("./a", Some("qcow2"))), &[]);
    let error = Disk::open(&host, &NodeSpec::new(path("a"), Some("qcow2"))).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::BackingLoop(_)), "{error}");
    let mut strict = NodeSpec::new(path("a"), Some("qcow2"));
    strict.follow_references = false;
    let error = Disk::open(&host, &strict).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::ReferenceRefused { .. }), "{error}");
    strict.backing = BackingSpec::None;
    Disk::open(&host, &strict).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_guessed_format_reaches_no_further() {
    let env = env();
    env.opener.create(&FileSpec::file("secret")).unwrap().write_at(0, &[1; 512]).unwrap();
    create(&env, "inner", Some(("secret", Some("raw"))), &[]);
    create(&env, "outer", Some(("inner", None)), &[]);
    let error = Disk::open(&env, &NodeSpec::new("outer", Some("qcow2"))).map(|_| ()).unwrap_err();
    let Error::Reference { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, Error::ReferenceRefused { .. }), "{source}");
}

#[test]
fn what_an_image_names_may_be_opened_otherwise() {
    let env = env();
    create(&env, "base", None, &[]);
    create(&env, "top", Some(("base", Some("qcow2"))), &[]);
    let with = |format: Option<&str>, options: &[(&str, &str)]| {
        let wish = NodeSpec { options: options.iter().copied().collect(), ..NodeSpec::new("", format) };
        let backing = BackingSpec::Changed(Box::new(wish));
        Disk::open(&env, &NodeSpec { backing, ..NodeSpec::new("top", Some("qcow2")) })
    };
    let below = |disk: Disk| disk.backing().unwrap().node().format_name().to_owned();
    assert_eq!(below(with(None, &[("lazy-refcounts", "on")]).unwrap()), "qcow2");
    assert_eq!(below(with(Some("raw"), &[]).unwrap()), "raw");
    let Err(Error::Reference { source, .. }) = with(None, &[("bogus", "1")]) else { panic!("it opens") };
    assert!(source.to_string().contains("does not support the option 'bogus'"), "{source}");
    let wish = BackingSpec::Changed(Box::new(NodeSpec::new("", None)));
    let alone = NodeSpec { backing: wish, ..NodeSpec::new("base", Some("qcow2")) };
    assert!(matches!(Disk::open(&env, &alone), Err(Error::Reference { .. })));
}

#[test]
fn many_threads_write_one_disk() {
    for options in [&[("cluster_size", "4k")][..], &[("cluster_size", "16k"), ("extended_l2", "on")]] {
        let env = env();
        create(&env, "image", None, options);
        let disk = Arc::new(open(&env, "image"));
        let threads = 6u64;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let disk = disk.clone();
                // Each has every sixth sector: all share all clusters.
                scope.spawn(move || {
                    let mut rng = Rng(thread);
                    for _ in 0..1500 {
                        let sector = rng.below((1 << 20) / 512 / threads) * threads + thread;
                        match rng.below(12) {
                            0 => disk.write_zeroes(sector * 512, 512, true).unwrap(),
                            1 => disk.flush().unwrap(),
                            2 => disk.read(sector * 512, &mut [0; 512]).unwrap(),
                            3 if thread == 0 => {
                                let info = SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() };
                                disk.snapshot_create(&info).unwrap();
                                disk.snapshot_delete(crate::SnapshotTarget::Name("s")).unwrap();
                            }
                            _ => {
                                let value = 1 + (rng.next() % 250) as u8;
                                disk.write(sector * 512, &[value; 512]).unwrap();
                                let mut back = [0; 512];
                                disk.read(sector * 512, &mut back).unwrap();
                                assert!(back == [value; 512], "somebody else wrote there");
                            }
                        }
                    }
                });
            }
        });
        let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
        assert_eq!(report.corruptions, 0, "{report:#?}");
    }
}

#[test]
fn a_node_is_exchanged_under_a_running_disk() {
    let env = env();
    create(&env, "old", None, &[]);
    create(&env, "new", Some(("old", Some("qcow2"))), &[]);
    let disk = open(&env, "old");
    disk.write(0, &[1; 4096]).unwrap();
    let mut drained = disk.drain();
    let behind = drained.node().clone();
    let mut spec = NodeSpec::new("new", Some("qcow2"));
    spec.access = Access::ReadWrite;
    spec.backing = BackingSpec::None;
    let top = Disk::open(&env, &spec).unwrap();
    top.drain().exchange_backing(Some(behind));
    drained.exchange(top.node()).unwrap();
    drop(drained);
    disk.write(512, &[2; 512]).unwrap();
    let mut bytes = [0; 2048];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes[..512] == [1; 512] && bytes[512..1024] == [2; 512] && bytes[1024..] == [1; 1024]);
    assert_eq!(disk.backing().unwrap().node().name(), "old");
}

#[test]
fn a_disk_that_grows_into_a_data_file_shows_zeroes() {
    let env = env();
    create(&env, "image", None, &[("data_file", "data"), ("cluster_size", "4k")]);
    let disk = open(&env, "image");
    disk.write(0, &vec![1; 1 << 20]).unwrap();
    disk.resize(1 << 18, Preallocation::Off, true, &Task::quiet()).unwrap();
    disk.resize(1 << 20, Preallocation::Metadata, false, &Task::quiet()).unwrap();
    let mut bytes = vec![9; 1 << 20];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes[..1 << 18].iter().all(|&byte| byte == 1));
    assert!(bytes[1 << 18..].iter().all(|&byte| byte == 0), "what was cut off has come back");
}

#[test]
fn an_emptied_overlay_shows_what_is_behind() {
    for options in [
        &[][..],
        &[("cluster_size", "4k"), ("compat", "0.10")],
        &[("cluster_size", "16k"), ("extended_l2", "on"), ("lazy_refcounts", "on")],
        &[("data_file", "data"), ("cluster_size", "4k")],
    ] {
        let env = env();
        create(&env, "image", None, options);
        let behind = env.opener.create(&FileSpec::file("base")).unwrap();
        behind.write_at(0, &vec![3; 1 << 20]).unwrap();
        let disk = open_over(&env, "image", behind);
        let keeps = !options.iter().any(|(name, _)| *name == "data_file");
        disk.write(100_000, &vec![1; 500_000]).unwrap();
        if keeps {
            let unit = disk.geometry().unit;
            disk.write_compressed(0, &vec![6; unit as usize]).unwrap();
            disk.snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() }).unwrap();
        }
        disk.write(300_000, &vec![2; 500_000]).unwrap();
        disk.write_zeroes(900_000, 50_000, true).unwrap();
        disk.make_empty().unwrap();
        let mut bytes = vec![0; 1 << 20];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes == vec![3; 1 << 20], "{options:?}");
        assert_eq!(disk.is_allocated(0, 1 << 20).unwrap(), (false, 1 << 20), "{options:?}");
        let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
        assert!(report.is_clean() && report.allocated_clusters == 0, "{options:?}: {report:#?}");
        disk.write(4096, &[4; 512]).unwrap();
        if keeps {
            disk.snapshot_apply(crate::SnapshotTarget::Name("s")).unwrap();
            disk.read(0, &mut bytes).unwrap();
            assert!(bytes[0] == 6 && bytes[100_000..600_000] == vec![1; 500_000], "{options:?}");
            disk.snapshot_delete(crate::SnapshotTarget::Name("s")).unwrap();
        }
        let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
        assert!(report.is_clean(), "{options:?}: {report:#?}");
        disk.close().unwrap();
    }
    let raw = Disk::over(crate::Node::new(
        Box::new(crate::Raw::over(Arc::new(crate::MemoryStorage::new("raw"))).unwrap()),
        "raw",
        NodeSpec::new("raw", Some("raw")).writable(),
        None,
    ));
    assert!(matches!(raw.make_empty(), Err(Error::Unsupported(_))));
}
