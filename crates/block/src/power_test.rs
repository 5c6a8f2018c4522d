//! Loss of power at any moment: nothing that was flushed is lost, and at most clusters are leaked.
//!
//! A series of operations runs on recording storages. Then the power goes after any number of their changes, with any
//! part of what was not flushed, and the image is looked at: no corruption; every sector holds what it held at the last
//! flush or what was written since; every snapshot that is there is whole.

use std::sync::Arc;

use crate::test_help::{MemoryFiles, Rng, env, open};
use crate::{
    CreateOptions, Disk, Environment, FileSpec, MemoryStorage, NodeSpec, Options, Preallocation, Recorder,
    Registry, Repair, SnapshotInfo, SnapshotTarget, Storage, StorageExt, Task,
};

const SECTOR: usize = 512;

/// What happened to the disk: when, in entries of the record, and what it held afterwards.
struct Event {
    /// The record's length when it began, and when it had returned.
    began: usize,
    ended: usize,
    /// All bytes afterwards.
    bytes: Vec<u8>,
    /// It was durable when it had returned.
    durable: bool,
}

struct Series {
    recorder: Recorder,
    names: Vec<&'static str>,
    events: Vec<Event>,
    /// Snapshots: name, and what they hold.
    snapshots: Vec<(String, Vec<u8>)>,
}

fn created(options: &[(&'static str, &'static str)], size: u64) -> (Environment, Vec<&'static str>) {
    let env = env();
    let mut create = CreateOptions { size, ..CreateOptions::default() };
    create.options = options.iter().copied().collect::<Options>();
    let storage = env.opener.create(&FileSpec::file("image")).unwrap();
    let driver = Registry::builtin().get("qcow2").cloned().unwrap();
    driver.create(storage, "image", &create, &env, &Task::quiet()).unwrap();
    let mut names = vec!["image"];
    if options.iter().any(|(name, _)| *name == "data_file") {
        names.push("data");
    }
    (env, names)
}

/// Puts recording storages in the place of the files in memory.
fn record(env: &mut Environment, names: &[&'static str]) -> Recorder {
    let recorder = Recorder::new();
    let files = MemoryFiles::default();
    for name in names {
        let old = env
            .opener
            .open(&FileSpec::file(*name), &crate::FileStorageSpec::new(crate::Access::Read))
            .unwrap();
        let bytes = old.read_vec(0, old.len().unwrap() as usize).unwrap();
        files.0.lock().unwrap().insert((*name).to_owned(), recorder.storage(name, &bytes));
    }
    env.opener = Arc::new(files);
    recorder
}

fn act(options: &[(&'static str, &'static str)], size: u64, rng: &mut Rng, steps: u32) -> Series {
    let (mut env, names) = created(options, size);
    let recorder = record(&mut env, &names);
    let mut disk = Some(open(&env, "image"));
    let mut bytes = vec![0; size as usize];
    let now = recorder.len();
    let start = Event { began: now, ended: now, bytes: bytes.clone(), durable: true };
    let mut series = Series { recorder, names, events: vec![start], snapshots: Vec::new() };
    for _ in 0..steps {
        let began = series.recorder.len();
        let durable = step(&mut disk, &env, &mut bytes, rng, &mut series);
        let ended = series.recorder.len();
        series.events.push(Event { began, ended, bytes: bytes.clone(), durable });
    }
    let began = series.recorder.len();
    disk.take().unwrap().close().unwrap();
    let ended = series.recorder.len();
    series.events.push(Event { began, ended, bytes, durable: true });
    series
}

/// One operation; whether everything is durable afterwards.
fn step(
    disk: &mut Option<Disk>,
    env: &Environment,
    bytes: &mut Vec<u8>,
    rng: &mut Rng,
    series: &mut Series,
) -> bool {
    let top = disk.as_ref().unwrap();
    let unit = top.geometry().unit;
    let size = bytes.len() as u64;
    let grain = if rng.below(2) == 0 { 512 } else { unit };
    let offset = (rng.below(size / grain + 1) * grain).min((size - 1) / grain * grain);
    let len = ((1 + rng.below(3 * unit / grain)) * grain).min(size - offset);
    let at = offset as usize..(offset + len) as usize;
    match rng.below(20) {
        0..=8 => {
            rng.fill(&mut bytes[at.clone()]);
            top.write(offset, &bytes[at]).unwrap();
        }
        9 | 10 => {
            top.write_zeroes(offset, len, rng.below(2) == 0).unwrap();
            bytes[at].fill(0);
        }
        11 => {
            top.discard(offset, len).unwrap();
            top.read(offset, &mut bytes[at]).unwrap();
        }
        12 | 13 if top.geometry().compression.is_some() => {
            let start = offset / unit * unit;
            let end = (start + unit).min(size);
            let data: Vec<u8> = (start..end).map(|i| (i / 5) as u8 ^ offset as u8).collect();
            top.write_compressed(start, &data).unwrap();
            bytes[start as usize..end as usize].copy_from_slice(&data);
        }
        14 | 15 => {
            top.flush().unwrap();
            return true;
        }
        16 if series.names.len() == 1 => return snapshot(top, bytes, rng, series),
        17 => {
            disk.take().unwrap().close().unwrap();
            *disk = Some(open(env, "image"));
            return true;
        }
        18 if rng.below(3) == 0 && series.snapshots.is_empty() => {
            let new = (size / 2 + rng.below(size)) / 512 * 512;
            top.resize(new, Preallocation::Off, true, &Task::quiet()).unwrap();
            bytes.resize(new as usize, 0);
            return true;
        }
        19 if rng.below(2) == 0 => {
            top.make_empty().unwrap();
            bytes.fill(0);
            return true;
        }
        _ => {}
    }
    false
}

fn snapshot(disk: &Disk, bytes: &mut Vec<u8>, rng: &mut Rng, series: &mut Series) -> bool {
    let there = disk.snapshots().unwrap();
    match rng.below(3) {
        0 if there.len() < 3 => {
            let name = format!("s{}", series.snapshots.len());
            series.snapshots.push((name.clone(), bytes.clone()));
            disk.snapshot_create(&SnapshotInfo { name, ..SnapshotInfo::default() }).unwrap();
            true
        }
        1 if !there.is_empty() => {
            let name = &there[rng.below(there.len() as u64) as usize].name;
            disk.snapshot_apply(SnapshotTarget::Name(name)).unwrap();
            *bytes = series.snapshots.iter().find(|kept| kept.0 == *name).unwrap().1.clone();
            true
        }
        2 if !there.is_empty() => {
            let name = &there[rng.below(there.len() as u64) as usize].name;
            disk.snapshot_delete(SnapshotTarget::Name(name)).unwrap();
            true
        }
        _ => false,
    }
}

/// The image after a loss of power.
fn survivors(series: &Series, at: usize, rng: &mut Rng) -> Environment {
    let mut env = env();
    let files = MemoryFiles::default();
    let left = series.recorder.after_power_loss(at, &mut |limit| rng.below(limit));
    for (name, bytes) in series.names.iter().zip(left) {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(*name, &bytes));
        files.0.lock().unwrap().insert((*name).to_owned(), storage);
    }
    env.opener = Arc::new(files);
    env
}

fn judge(series: &Series, at: usize, rng: &mut Rng, context: &str) {
    let env = survivors(series, at, rng);
    let mut look = NodeSpec::new("image", Some("qcow2"));
    look.for_check = true;
    let disk = Disk::open(&env, &look).unwrap_or_else(|error| panic!("{context}: {error}"));
    let dirty = disk.node().format().info().unwrap().dirty;
    let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
    // With lazy refcounts the dirty bit stands for refcounts that are late; nothing else may be wrong.
    assert!(dirty || report.corruptions == 0, "{context}: {report:#?}");
    drop(disk);
    let disk = open(&env, "image");
    compare(series, at, &disk, context);
    for info in disk.snapshots().unwrap() {
        let (_, bytes) = series.snapshots.iter().find(|kept| kept.0 == info.name).unwrap();
        let view = disk.node().format().snapshots().unwrap().view(SnapshotTarget::Name(&info.name)).unwrap();
        let spec = NodeSpec::new("image", Some("qcow2"));
        let view = Disk::over(crate::Node::new(view, "qcow2", spec, None));
        let mut kept = vec![0; view.size() as usize];
        view.read(0, &mut kept).unwrap();
        assert!(kept == *bytes, "{context}: snapshot {} is not whole", info.name);
    }
    // And it can be mended and used.
    disk.write(0, &[7; 512]).unwrap();
    disk.drained(|node| node.format().check(Repair::All, &Task::quiet())).unwrap();
    let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
    assert!(report.is_clean(), "{context}: {report:#?}");
    disk.close().unwrap();
}

/// Every sector holds what it held at the last flush, or what was written since.
fn compare(series: &Series, at: usize, disk: &Disk, context: &str) {
    let last = series.events.iter().rposition(|event| event.durable && event.ended <= at).unwrap();
    let since = series.events[last..].iter().enumerate().take_while(|(i, event)| *i == 0 || event.began < at);
    let possible: Vec<&[u8]> = since.map(|(_, event)| event.bytes.as_slice()).collect();
    let size = disk.size() as usize;
    assert!(possible.iter().any(|bytes| bytes.len() == size), "{context}: a size that the disk never had");
    let mut bytes = vec![0; size];
    disk.read(0, &mut bytes).unwrap();
    for (sector, now) in bytes.chunks(SECTOR).enumerate() {
        let range = sector * SECTOR..sector * SECTOR + now.len();
        let zero = now.iter().all(|&byte| byte == 0);
        let held = |bytes: &&[u8]| bytes.get(range.clone()).map_or(zero, |then| then == now);
        assert!(possible.iter().any(held), "{context}: sector {sector} holds what was never written there");
    }
}

type Case = (&'static [(&'static str, &'static str)], u64);

const CASES: [Case; 8] = [
    (&[("cluster_size", "512")], 96 << 10),
    (&[("cluster_size", "1k"), ("refcount_bits", "64")], 96 << 10),
    (&[("cluster_size", "4k")], 256 << 10),
    (&[("cluster_size", "16k"), ("extended_l2", "on")], 512 << 10),
    (&[("cluster_size", "2k"), ("compat", "0.10")], 128 << 10),
    (&[("cluster_size", "2k"), ("lazy_refcounts", "on")], 128 << 10),
    (&[("cluster_size", "4k"), ("data_file", "data")], 128 << 10),
    (&[("cluster_size", "512"), ("refcount_bits", "8"), ("lazy_refcounts", "on")], 64 << 10),
];

#[test]
fn a_loss_of_power_leaves_leaks_at_most() {
    let number =
        |name: &str, other| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(other);
    let (first, rounds) = (number("UMBRA_POWER_SEED", 1), number("UMBRA_POWER_ROUNDS", 2));
    let cuts = number("UMBRA_POWER_CUTS", 60);
    for seed in first..first + rounds {
        for (index, (options, size)) in CASES.iter().enumerate() {
            let rng = &mut Rng(seed * 1000 + index as u64);
            let series = act(options, *size, rng, 40);
            let first = series.events[0].ended;
            for _ in 0..cuts {
                let at = first + rng.below((series.recorder.len() - first) as u64 + 1) as usize;
                judge(&series, at, rng, &format!("seed {seed}, {options:?}, power lost at {at}"));
            }
        }
    }
}

#[test]
fn a_disk_that_cannot_grow_stays_as_it_is() {
    for budget in 6..40 {
        let (mut env, names) = created(&[("cluster_size", "4k")], 64 << 10);
        let recorder = record(&mut env, &names);
        let disk = open(&env, "image");
        disk.write(0, &[3; 9000]).unwrap();
        recorder.fail_after(budget);
        let grown = disk.resize(16 << 20, Preallocation::Full, false, &Task::quiet());
        recorder.fail_after(u64::MAX);
        let mut bytes = [0; 9000];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes == [3; 9000]);
        drop(disk);
        let disk = open(&env, "image");
        let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
        assert_eq!(report.corruptions, 0, "budget {budget}: {report:#?}");
        assert!(grown.is_err() || disk.size() == 16 << 20, "budget {budget}");
    }
    // The user has had enough: nothing is left of it.
    let (env, _) = created(&[("cluster_size", "4k")], 64 << 10);
    let disk = open(&env, "image");
    let cancel = crate::Cancel::new();
    cancel.cancel();
    let stopped = disk.resize(16 << 20, Preallocation::Full, false, &Task::new(&|_, _| (), cancel));
    assert!(matches!(stopped, Err(crate::Error::Cancelled)));
    assert_eq!(disk.size(), 64 << 10);
    let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

#[test]
fn a_full_disk_leaves_leaks_at_most() {
    for (index, (options, size)) in CASES.iter().enumerate() {
        for budget in (0..120).step_by(3) {
            let rng = &mut Rng(budget * 100 + index as u64);
            let (mut env, names) = created(options, *size);
            let recorder = record(&mut env, &names);
            let disk = open(&env, "image");
            recorder.fail_after(budget);
            for _ in 0..60 {
                let offset = rng.below(size / 512) * 512;
                let _ = disk.write(offset, &[1; 512]);
                if rng.below(4) == 0 {
                    let _ =
                        disk.snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() });
                    let _ = disk.snapshot_delete(SnapshotTarget::Name("s"));
                }
            }
            drop(disk);
            recorder.fail_after(u64::MAX);
            let disk = open(&env, "image");
            let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
            assert_eq!(report.corruptions, 0, "budget {budget}, {options:?}: {report:#?}");
        }
    }
}
