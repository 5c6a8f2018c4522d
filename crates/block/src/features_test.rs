//! Features one by one, each held against qemu-img where it has them: bitmaps, amend, key slots, locks, repair, VM state,
//! preallocation.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::MutexGuard;

use crate::interchange_test::{ALONE, Folder, SECRET, has_qemu, host_env, read_all, run};
use crate::test_help::{Rng, spec};
use crate::{
    Access, BackingRef, CreateOptions, Disk, Environment, Error, FileSpec, IoSrc, LockMode, NodeSpec,
    Options, Preallocation, Repair, SnapshotInfo, SnapshotTarget, Storage, StorageExt, Task,
};

pub(crate) struct Bench {
    _alone: MutexGuard<'static, ()>,
    pub folder: Folder,
    pub env: Environment,
}

/// A folder and an environment, where qemu-img is there.
pub(crate) fn bench(name: &str) -> Option<Bench> {
    let alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    has_qemu().then(|| Bench { _alone: alone, folder: Folder::new(name), env: host_env() })
}

impl Bench {
    pub(crate) fn path(&self) -> String {
        self.folder.path("image")
    }

    pub(crate) fn create_as(&self, format: &str, options: &[(&str, &str)], size: u64) {
        let mut create = CreateOptions { size, ..CreateOptions::default() };
        create.options = options.iter().copied().collect::<Options>();
        let storage = self.env.opener.create(&FileSpec::file(self.path())).unwrap();
        let driver = self.env.registry.get(format).unwrap();
        driver.create(storage, &self.path(), &create, &self.env, &Task::quiet()).unwrap();
    }

    pub(crate) fn create(&self, options: &[(&str, &str)], size: u64) {
        self.create_as("qcow2", options, size);
    }

    pub(crate) fn open(&self) -> Disk {
        Disk::open(&self.env, &spec(&self.path())).unwrap()
    }

    fn bytes_by_qemu(&self) -> Vec<u8> {
        let out = self.folder.path("out");
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &self.path(), &out]);
        std::fs::read(out).unwrap()
    }

    fn check_by_qemu(&self) {
        run("qemu-img", &["check", "-q", "-f", "qcow2", &self.path()]);
    }

    fn amend(&self, name: &str, value: &str) -> crate::Result<()> {
        let mut options = Options::new();
        options.set(name, value);
        let disk = self.open();
        let done = disk.drained(|node| node.format().write().unwrap().amend(&options, &Task::quiet()));
        disk.close().unwrap();
        done
    }
}

pub(crate) fn fill(disk: &Disk, seed: u64) {
    let mut rng = Rng(seed);
    let size = disk.size();
    for _ in 0..20 {
        let mut data = vec![0; 1 + rng.below(70_000) as usize];
        rng.fill(&mut data);
        let offset = rng.below(size - data.len() as u64);
        disk.write(offset, &data).unwrap();
    }
    disk.write_zeroes(size / 2, size / 8, false).unwrap();
}

#[test]
fn bitmaps_record_and_persist() {
    let Some(bench) = bench("bitmaps") else { return };
    bench.create(&[], 8 << 20);
    let disk = bench.open();
    disk.drained(|node| node.format().bitmaps().unwrap().add("b", 65536, true)).unwrap();
    disk.write(200_000, &[1; 100_000]).unwrap();
    disk.close().unwrap();
    bench.check_by_qemu();
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 3 4M 64k", &bench.path()]);
    let disk = bench.open();
    assert_eq!(next_dirty(&disk, "b", 0).unwrap(), Some((196_608, 131_072)));
    assert_eq!(next_dirty(&disk, "b", 400_000).unwrap(), Some((4 << 20, 65536)));
    disk.drained(|node| node.format().bitmaps().unwrap().set_enabled("b", false)).unwrap();
    disk.write(0, &[1; 512]).unwrap();
    assert_eq!(next_dirty(&disk, "b", 0).unwrap(), Some((196_608, 131_072)));
    disk.drained(|node| {
        let bitmaps = node.format().bitmaps().unwrap();
        bitmaps.add("c", 4096, false)?;
        bitmaps.mark("c", 10_000, 1)
    })
    .unwrap();
    disk.close().unwrap();
    bench.check_by_qemu();
    run("qemu-img", &["bitmap", "--merge", "c", &bench.path(), "b"]);
    let disk = bench.open();
    let bitmaps = node_bitmaps(&disk);
    assert_eq!(bitmaps, [("b".to_owned(), false, false), ("c".to_owned(), false, false)]);
    disk.drained(|node| {
        let bitmaps = node.format().bitmaps().unwrap();
        assert_eq!(bitmaps.next_dirty("b", 0)?, Some((0, 65536)));
        bitmaps.clear("b")?;
        assert_eq!(bitmaps.next_dirty("b", 0)?, None);
        bitmaps.remove("c")?;
        bitmaps.set_enabled("b", true)
    })
    .unwrap();
    disk.resize(16 << 20, Preallocation::Off, false, &Task::quiet()).unwrap();
    disk.write((16 << 20) - 512, &[1; 512]).unwrap();
    assert!(matches!(next_dirty(&disk, "nothing", 0), Err(Error::NotFound { .. })));
    disk.close().unwrap();
    bench.check_by_qemu();
    let disk = bench.open();
    assert_eq!(next_dirty(&disk, "b", 0).unwrap(), Some(((16 << 20) - 65536, 65536)));
}

fn next_dirty(disk: &Disk, name: &str, offset: u64) -> crate::Result<Option<(u64, u64)>> {
    disk.node().format().bitmaps().unwrap().next_dirty(name, offset)
}

fn node_bitmaps(disk: &Disk) -> Vec<(String, bool, bool)> {
    disk.bitmaps().unwrap().into_iter().map(|info| (info.name, info.in_use, info.auto)).collect()
}

#[test]
fn amend_keeps_the_disk() {
    let Some(bench) = bench("amend") else { return };
    bench.create(&[("cluster_size", "4k")], 4 << 20);
    let disk = bench.open();
    fill(&disk, 5);
    disk.snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() }).unwrap();
    fill(&disk, 6);
    disk.snapshot_delete(SnapshotTarget::Name("s")).unwrap();
    let bytes = read_all(&disk);
    disk.close().unwrap();
    for (name, value) in [
        ("refcount_bits", "64"),
        ("refcount_bits", "1"),
        ("refcount_bits", "16"),
        ("lazy_refcounts", "on"),
        ("lazy_refcounts", "off"),
        ("compat", "0.10"),
        ("compat", "1.1"),
        ("refcount_bits", "8"),
    ] {
        bench.amend(name, value).unwrap();
        bench.check_by_qemu();
        assert!(bench.bytes_by_qemu() == bytes, "{name}={value}");
        let info = run("qemu-img", &["info", "--output=json", &bench.path()]);
        let json: serde_json::Value = serde_json::from_str(&info).unwrap();
        let data = &json["format-specific"]["data"];
        let shown = match name {
            "refcount_bits" => data["refcount-bits"].to_string(),
            "compat" => data["compat"].as_str().unwrap().to_owned(),
            _ => if data["lazy-refcounts"].as_bool().unwrap() { "on" } else { "off" }.to_owned(),
        };
        assert_eq!(shown, value);
    }
    assert!(bench.amend("compat", "0.10").is_err(), "8 bits are none of version 2");
    let disk = bench.open();
    disk.snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() }).unwrap();
    disk.close().unwrap();
    assert!(bench.amend("refcount_bits", "1").is_err(), "two owners do not fit into a bit");
    bench.check_by_qemu();
}

#[test]
fn luks_is_qemus() {
    let Some(bench) = bench("luks") else { return };
    bench.create_as("luks", &[("key-secret", "s"), ("iter-time", "10")], 3 << 20);
    let mut luks = spec(&bench.path());
    luks.format = Some("luks".to_owned());
    luks.options = [("key-secret", "s")].into_iter().collect();
    let disk = Disk::open(&bench.env, &luks).unwrap();
    fill(&disk, 9);
    disk.write(1000, &[5; 77]).unwrap();
    let bytes = read_all(&disk);
    disk.close().unwrap();
    let out = bench.folder.path("out");
    let image = format!("driver=luks,key-secret=s,file.filename={}", bench.path());
    run("qemu-img", &["convert", "--object", SECRET, "--image-opts", &image, "-O", "raw", &out]);
    assert!(std::fs::read(&out).unwrap() == bytes);
    let options = "key-secret=s,iter-time=10,cipher-alg=aes-192,hash-alg=sha512";
    run("qemu-img", &["create", "-q", "-f", "luks", "--object", SECRET, "-o", options, &bench.path(), "2M"]);
    run("qemu-io", &["--object", SECRET, "--image-opts", "-c", "write -P 77 1M 3k", &image]);
    let disk = Disk::open(&bench.env, &luks).unwrap();
    let bytes = read_all(&disk);
    assert!(bytes[1 << 20..(1 << 20) + 3072].iter().all(|&byte| byte == 77));
}

#[test]
fn key_slots_come_and_go() {
    let Some(mut bench) = bench("slots") else { return };
    bench.env.secrets.add("new", b"other".to_vec());
    let options = [("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "10")];
    bench.create(&options, 1 << 20);
    let amend = |secret: &str, options: &[(&str, &str)]| {
        let mut spec = spec(&bench.path());
        spec.options.set("encrypt.key-secret", secret);
        let disk = Disk::open(&bench.env, &spec)?;
        let options: Options = options.iter().copied().collect();
        let done = disk.drained(|node| node.format().write().unwrap().amend(&options, &Task::quiet()));
        disk.close().unwrap();
        done
    };
    assert!(matches!(amend("new", &[]), Err(Error::WrongSecret)));
    let add = [("encrypt.state", "active"), ("encrypt.new-secret", "new"), ("encrypt.iter-time", "10")];
    amend("s", &add).unwrap();
    let image = format!("driver=qcow2,encrypt.key-secret=n,file.filename={}", bench.path());
    let other = "secret,id=n,data=other";
    run("qemu-io", &["--object", other, "--image-opts", "-c", "write -P 3 0 4k", &image]);
    amend("new", &[("encrypt.state", "inactive"), ("encrypt.old-secret", "s")]).unwrap();
    assert!(matches!(amend("s", &[]), Err(Error::WrongSecret)));
    let erase_last = [("encrypt.state", "inactive"), ("encrypt.keyslot", "1")];
    assert!(matches!(amend("new", &erase_last), Err(Error::Refused(_))));
    run("qemu-io", &["--object", other, "--image-opts", "-c", "read -P 3 0 4k", &image]);
}

#[test]
fn the_legacy_encryption_is_read() {
    let Some(bench) = bench("aes") else { return };
    let options = "encrypt.format=aes,encrypt.key-secret=s";
    run("qemu-img", &["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", options, &bench.path(), "1M"]);
    let image = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", bench.path());
    run("qemu-io", &["--object", SECRET, "--image-opts", "-c", "write -P 99 70000 5000", &image]);
    let bytes = read_all(&bench.open());
    assert!(bytes[70_000..75_000].iter().all(|&byte| byte == 99) && bytes[69_000] == 0);
}

#[test]
fn an_emptied_overlay_is_an_image_for_qemu() {
    let Some(bench) = bench("empty") else { return };
    let base = bench.folder.path("base");
    std::fs::write(&base, vec![5; 4 << 20]).unwrap();
    let image = bench.path();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &image]);
    let disk = bench.open();
    fill(&disk, 17);
    disk.snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() }).unwrap();
    let kept = read_all(&disk);
    fill(&disk, 18);
    disk.make_empty().unwrap();
    disk.close().unwrap();
    bench.check_by_qemu();
    assert!(bench.bytes_by_qemu() == vec![5; 4 << 20]);
    run("qemu-img", &["snapshot", "-a", "s", &image]);
    bench.check_by_qemu();
    assert!(bench.bytes_by_qemu() == kept);
}

#[test]
fn locks_are_qemus() {
    let Some(bench) = bench("locks") else { return };
    bench.create(&[], 1 << 20);
    let disk = bench.open();
    let output = Command::new("qemu-img").args(["info", &bench.path()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("lock"), "{text}");
    let again = Disk::open(&bench.env, &spec(&bench.path())).map(|_| ());
    assert!(matches!(again, Err(Error::LockedHere { .. })), "{again:?}");
    let mut shared = NodeSpec::new(bench.path(), Some("qcow2"));
    shared.lock = LockMode::None;
    Disk::open(&bench.env, &shared).unwrap();
    disk.close().unwrap();
    // Readers let each other read.
    let reader = Disk::open(&bench.env, &NodeSpec::new(bench.path(), Some("qcow2"))).unwrap();
    run("qemu-img", &["info", &bench.path()]);
    drop(reader);
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "qcow2", &bench.path()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = qemu.stdin.take().unwrap();
    writeln!(input, "read 0 512").unwrap();
    let mut line = String::new();
    BufReader::new(qemu.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let refused = Disk::open(&bench.env, &spec(&bench.path())).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains(&format!("process {}, qemu-io", qemu.id())), "{refused}");
    drop(input);
    qemu.wait().unwrap();
    bench.open().close().unwrap();
}

/// Damages an image: `work` gets the file and its header's words.
fn damage(bench: &Bench, work: impl FnOnce(&dyn Storage, &dyn Fn(u64) -> u64)) {
    let spec = crate::FileStorageSpec { access: Access::ReadWrite, direct: false, lock: LockMode::None };
    let file = crate::FileStorage::open(bench.path(), &spec).unwrap();
    let word = |at: u64| u64::from_be_bytes(file.read_vec(at, 8).unwrap().try_into().unwrap());
    work(&file, &word);
}

fn repaired(bench: &Bench, expect_corruption: bool) {
    let mut look = spec(&bench.path());
    look.for_check = true;
    let disk = Disk::open(&bench.env, &look).unwrap();
    let check = |repair| disk.drained(|node| node.format().check(repair, &Task::quiet())).unwrap();
    let found = check(Repair::None);
    assert!(!found.is_clean() && (found.corruptions > 0) == expect_corruption, "{found:#?}");
    let mended = check(Repair::All);
    assert!(mended.is_clean() && mended.corruptions_fixed + mended.leaks_fixed > 0, "{mended:#?}");
    assert!(check(Repair::None).is_clean());
    disk.close().unwrap();
    bench.check_by_qemu();
}

#[test]
fn damage_is_mended() {
    let Some(bench) = bench("repair") else { return };
    let fresh = || {
        bench.create(&[("cluster_size", "4k")], 2 << 20);
        let disk = bench.open();
        fill(&disk, 11);
        let bytes = read_all(&disk);
        disk.close().unwrap();
        bytes
    };
    let (l1, reftable) = (40, 48);
    // All refcounts of one block are gone.
    let bytes = fresh();
    damage(&bench, |file, word| file.write_at(word(word(reftable)), &[0; 4096]).unwrap());
    repaired(&bench, true);
    assert!(bench.bytes_by_qemu() == bytes);
    // The refcount table names no block.
    let bytes = fresh();
    damage(&bench, |file, word| file.write_at(word(reftable), &[0; 4096]).unwrap());
    repaired(&bench, true);
    assert!(bench.bytes_by_qemu() == bytes);
    // A block that is the L1 table too.
    let bytes = fresh();
    damage(&bench, |file, word| file.write_at(word(reftable), &word(l1).to_be_bytes()).unwrap());
    repaired(&bench, true);
    assert!(bench.bytes_by_qemu() == bytes);
    // A cluster that nothing uses.
    let bytes = fresh();
    damage(&bench, |file, word| {
        let end = file.len().unwrap() / 4096;
        file.set_len((end + 1) * 4096).unwrap();
        file.write_at(word(word(reftable)) + end * 2, &[0, 1]).unwrap();
    });
    repaired(&bench, false);
    assert!(bench.bytes_by_qemu() == bytes);
    // An L2 entry that points nowhere.
    fresh();
    damage(&bench, |file, word| {
        let table = word(word(l1)) & !(1 << 63);
        file.write_at(table, &(1u64 << 50 | 1 << 63).to_be_bytes()).unwrap();
    });
    repaired(&bench, true);
    // Two entries of one cluster, both marked as its sole owner.
    fresh();
    damage(&bench, |file, word| {
        let table = word(word(l1)) & !(1 << 63);
        let entry = (0..512).map(|i| word(table + i * 8)).find(|entry| entry >> 63 == 1).unwrap();
        file.writev(table, &[IoSrc::new(&entry.to_be_bytes()), IoSrc::new(&entry.to_be_bytes())]).unwrap();
    });
    repaired(&bench, true);
}

#[test]
fn the_corrupt_mark_keeps_writers_out() {
    let Some(bench) = bench("corrupt") else { return };
    bench.create(&[], 1 << 20);
    // An L2 entry that refers to the header.
    let disk = bench.open();
    disk.write(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    damage(&bench, |file, word| {
        let table = word(word(40)) & !(1 << 63);
        file.write_at(table, &(0x10000u64 | 1 << 63).to_be_bytes()).unwrap();
    });
    let disk = bench.open();
    assert!(matches!(disk.write(0, &[2; 512]), Err(Error::Corrupt(_))), "the refcount table is no data");
    assert!(disk.write(1 << 19, &[2; 512]).is_err(), "nothing more is written");
    let _ = disk.close();
    assert!(matches!(Disk::open(&bench.env, &spec(&bench.path())).map(|_| ()), Err(Error::Refused(_))));
    let info = run("qemu-img", &["info", &bench.path()]);
    assert!(info.contains("corrupt: true"), "{info}");
    repaired(&bench, true);
    bench.open().close().unwrap();
}

#[test]
fn vm_state_is_kept_with_its_snapshot() {
    let Some(bench) = bench("vmstate") else { return };
    bench.create(&[("cluster_size", "4k")], 1 << 20);
    let disk = bench.open();
    let state: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    disk.write_vm_state(0, &state).unwrap();
    let info =
        SnapshotInfo { name: "live".into(), vm_state_size: state.len() as u64, ..SnapshotInfo::default() };
    disk.snapshot_create(&info).unwrap();
    disk.close().unwrap();
    bench.check_by_qemu();
    let list = run("qemu-img", &["snapshot", "-l", &bench.path()]);
    assert!(list.contains("live") && list.contains("293 KiB"), "{list}");
    let disk = bench.open();
    let mut back = vec![1; state.len()];
    disk.read_vm_state(0, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 0), "the active disk has none");
    disk.snapshot_apply(SnapshotTarget::Either("live")).unwrap();
    disk.read_vm_state(0, &mut back).unwrap();
    assert!(back == state);
    disk.resize(64 << 20, Preallocation::Off, false, &Task::quiet()).unwrap();
    assert!(read_all(&disk).iter().all(|&byte| byte == 0), "it is no part of a disk that has grown");
    disk.snapshot_delete(SnapshotTarget::Either("1")).unwrap();
    disk.close().unwrap();
    bench.check_by_qemu();
}

#[test]
fn preallocation_and_measure_are_qemus() {
    let Some(bench) = bench("prealloc") else { return };
    for options in [
        &[("preallocation", "metadata")][..],
        &[("preallocation", "falloc"), ("cluster_size", "4k")],
        &[("preallocation", "full"), ("extended_l2", "on")],
        &[("preallocation", "metadata"), ("cluster_size", "512"), ("refcount_bits", "64")],
        &[("cluster_size", "2M")],
    ] {
        bench.create(options, 5 << 20);
        bench.check_by_qemu();
        assert!(bench.bytes_by_qemu().iter().all(|&byte| byte == 0));
        let words: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let (size, words) = ((5u64 << 20).to_string(), words.join(","));
        let json =
            run("qemu-img", &["measure", "--output=json", "-O", "qcow2", "-o", &words, "--size", &size]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let create = CreateOptions {
            size: 5 << 20,
            options: options.iter().copied().collect(),
            ..CreateOptions::default()
        };
        let (required, full) = bench.env.registry.get("qcow2").unwrap().measure(&create, 0).unwrap().unwrap();
        assert_eq!(
            (Some(required), Some(full)),
            (json["required"].as_u64(), json["fully-allocated"].as_u64())
        );
    }
}

#[test]
fn an_overlay_hides_what_it_grew_over() {
    let Some(bench) = bench("grow") else { return };
    let base = bench.folder.path("base");
    std::fs::write(&base, vec![7u8; 3 << 20]).unwrap();
    let mut create = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    create.backing = Some(BackingRef { name: "base".into(), format: Some("raw".into()) });
    let storage = bench.env.opener.create(&FileSpec::file(bench.path())).unwrap();
    let driver = bench.env.registry.get("qcow2").unwrap();
    driver.create(storage, &bench.path(), &create, &bench.env, &Task::quiet()).unwrap();
    let disk = bench.open();
    disk.resize(4 << 20, Preallocation::Off, false, &Task::quiet()).unwrap();
    let bytes = read_all(&disk);
    disk.close().unwrap();
    assert!(bytes[..1 << 20].iter().all(|&byte| byte == 7) && bytes[1 << 20..].iter().all(|&byte| byte == 0));
    assert!(bench.bytes_by_qemu() == bytes);
}
