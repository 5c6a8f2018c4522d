//! What we write is read by qemu-img and the other way round, over a generated matrix of features.
//!
//! Needs `qemu-img` and `qemu-io` (Debian: qemu-utils; `cargo xtask deps` installs it). Where they are missing the tests
//! say so and compare nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use crate::test_help::{Rng, spec};
use crate::{
    CreateOptions, Disk, Environment, FileSpec, InfoValue, NodeSpec, Options, Registry, Repair, Secrets,
    SnapshotInfo, SnapshotTarget, Task,
};

pub(crate) fn has_qemu() -> bool {
    let there = ["qemu-img", "qemu-io"].iter().all(|program| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if !there {
        eprintln!(
            "skipped: qemu-img and qemu-io (package qemu-utils) are not installed, so nothing was compared"
        );
    }
    there
}

/// A folder that goes when the test ends.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("umbra-block-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}\n{errors}", output.status);
    text
}

pub(crate) const SECRET: &str = "secret,id=s,data=password";

#[derive(Debug, Clone)]
struct Features {
    options: Vec<(String, String)>,
    size: u64,
    depth: usize,
    snapshots: bool,
    compress: bool,
    encrypted: bool,
    version: u32,
}

impl Features {
    /// One point of the matrix.
    fn draw(rng: &mut Rng, folder: &Folder) -> Self {
        let mut options = Vec::new();
        let mut put = |name: &str, value: &str| options.push((name.to_owned(), value.to_owned()));
        let version = if rng.below(4) == 0 { 2 } else { 3 };
        put("compat", if version == 2 { "0.10" } else { "1.1" });
        let extended = version == 3 && rng.below(3) == 0;
        let bits = if extended { 14 + rng.below(8) } else { 9 + rng.below(13) };
        put("cluster_size", &(1u64 << bits).to_string());
        let mut encrypted = false;
        let mut data_file = false;
        let mut order = 4;
        if version == 3 {
            order = rng.below(7);
            put("refcount_bits", &(1u64 << order).to_string());
            put("extended_l2", if extended { "on" } else { "off" });
            put("lazy_refcounts", if rng.below(4) == 0 { "on" } else { "off" });
            put("compression_type", if rng.below(2) == 0 { "zlib" } else { "zstd" });
            data_file = rng.below(5) == 0;
            if data_file {
                put("data_file", &folder.path("data.raw"));
            }
        }
        if rng.below(5) == 0 {
            encrypted = true;
            for (name, value) in
                [("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "10")]
            {
                put(name, value);
            }
            if rng.below(2) == 0 {
                let (alg, mode, iv) = [
                    ("aes-128", "xts", "plain64"),
                    ("aes-256", "cbc", "essiv"),
                    ("serpent-256", "xts", "plain64"),
                    ("twofish-256", "cbc", "plain"),
                ][rng.below(4) as usize];
                put("encrypt.cipher-alg", alg);
                put("encrypt.cipher-mode", mode);
                put("encrypt.ivgen-alg", iv);
                put("encrypt.hash-alg", ["sha1", "sha256", "sha512"][rng.below(3) as usize]);
            }
        }
        let depth = if bits >= 12 { rng.below(3) as usize } else { rng.below(2) as usize };
        Self {
            options,
            size: ((20 + rng.below(40)) << bits).min(24 << 20) / 512 * 512,
            depth,
            snapshots: !data_file && order > 3,
            compress: !data_file && !encrypted,
            encrypted,
            version,
        }
    }

    fn for_qemu(&self) -> String {
        self.options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }
}

pub(crate) fn host_env() -> Environment {
    let mut env = Environment::new(Registry::builtin());
    let mut secrets = Secrets::default();
    secrets.add("s", b"password".to_vec());
    env.secrets = secrets;
    env
}

fn open(env: &Environment, path: &str) -> Disk {
    Disk::open(env, &spec(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// qemu's words for an image that may be encrypted.
fn qemu_image(features: &Features, path: &str) -> String {
    if features.encrypted {
        format!("driver=qcow2,encrypt.key-secret=s,file.filename={path}")
    } else {
        format!("driver=qcow2,file.filename={path}")
    }
}

fn qemu_bytes(features: &Features, path: &str, out: &str, snapshot: Option<&str>) -> Vec<u8> {
    let image = qemu_image(features, path);
    let mut args = vec!["convert", "--object", SECRET, "--image-opts"];
    let named = snapshot.map(|name| format!("snapshot.name={name}"));
    if let Some(named) = &named {
        args.extend(["-l", named]);
    }
    args.extend([image.as_str(), "-O", "raw", out]);
    run("qemu-img", &args);
    fs::read(out).unwrap()
}

/// A chain of raw and qcow2 images, made by qemu; the name of its top, its format and what it holds.
fn chain(folder: &Folder, depth: usize, rng: &mut Rng, size: u64) -> Option<(String, &'static str, Vec<u8>)> {
    if depth == 0 {
        return None;
    }
    let len = size / 2 / 512 * 512 + 1024;
    let mut bytes = vec![0; len as usize];
    let used = bytes.len() / 2;
    rng.fill(&mut bytes[..used]);
    fs::write(folder.path("base.raw"), &bytes).unwrap();
    let mut top = ("base.raw".to_owned(), "raw");
    for level in 1..depth {
        let name = format!("mid{level}.qcow2");
        let path = folder.path(&name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &top.0, "-F", top.1, &path]);
        let at = rng.below(len / 4) / 512 * 512;
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {} {at} 4k", 60 + level), &path]);
        let end = (at + 4096).min(len) as usize;
        bytes[at as usize..end].fill(60 + level as u8);
        top = (name, "qcow2");
    }
    Some((top.0, top.1, bytes))
}

/// Random writes of every kind; the bytes follow.
fn scribble(disk: &Disk, bytes: &mut [u8], rng: &mut Rng, features: &Features, steps: u32) {
    let size = bytes.len() as u64;
    let unit = disk.geometry().unit;
    for _ in 0..steps {
        let grain = if rng.below(2) == 0 { 512 } else { unit };
        let offset = rng.below(size / grain + 1) * grain;
        let offset = offset.min((size - 1) / grain * grain);
        let len = ((1 + rng.below(3 * unit / grain)) * grain).min(size - offset);
        let at = offset as usize..(offset + len) as usize;
        match rng.below(10) {
            0..=4 => {
                let mut data = vec![0; len as usize];
                rng.fill(&mut data);
                disk.write(offset, &data).unwrap();
                bytes[at].copy_from_slice(&data);
            }
            5 | 6 => {
                disk.write_zeroes(offset, len, rng.below(2) == 0).unwrap();
                bytes[at].fill(0);
            }
            7 => {
                disk.discard(offset, len).unwrap();
                disk.read(offset, &mut bytes[at]).unwrap();
            }
            _ if features.compress => {
                let start = offset / unit * unit;
                let end = (start + unit).min(size);
                let data: Vec<u8> = (start..end).map(|i| (i / 7) as u8 ^ (i % 251) as u8 & 3).collect();
                disk.write_compressed(start, &data).unwrap();
                bytes[start as usize..end as usize].copy_from_slice(&data);
            }
            _ => {}
        }
    }
}

fn create_ours(
    env: &Environment,
    folder: &Folder,
    features: &Features,
    backing: Option<(&str, &str)>,
) -> String {
    let path = folder.path("ours.qcow2");
    let mut create = CreateOptions { size: features.size, ..CreateOptions::default() };
    create.options = features.options.iter().cloned().collect::<Options>();
    create.backing = backing
        .map(|(name, format)| crate::BackingRef { name: name.to_owned(), format: Some(format.to_owned()) });
    let storage = env.opener.create(&FileSpec::file(&path)).unwrap();
    env.registry.get("qcow2").unwrap().create(storage, &path, &create, env, &Task::quiet()).unwrap();
    path
}

/// What `info` says of the format, as one line a fact; what differs by nature is left out.
fn our_facts(value: &InfoValue, name: &str, out: &mut Vec<String>) {
    match value {
        InfoValue::Bool(value) => out.push(format!("{name}={value}")),
        InfoValue::Int(value) => out.push(format!("{name}={value}")),
        InfoValue::Text(value) => out.push(format!("{name}=\"{value}\"")),
        InfoValue::List(values) => {
            values.iter().enumerate().for_each(|(i, value)| our_facts(value, &format!("{name}[{i}]"), out));
        }
        InfoValue::Map(facts) => {
            facts.iter().for_each(|(key, value)| our_facts(value, &format!("{name}/{key}"), out))
        }
    }
}

fn qemu_facts(value: &serde_json::Value, name: &str, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| qemu_facts(value, &format!("{name}[{i}]"), out));
        }
        serde_json::Value::Object(facts) => {
            facts.iter().for_each(|(key, value)| qemu_facts(value, &format!("{name}/{key}"), out));
        }
        value => out.push(format!("{name}={value}")),
    }
}

fn compare_info(features: &Features, path: &str) {
    let env = host_env();
    let json = run("qemu-img", &["info", "--output=json", path]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let node = NodeSpec { metadata_only: true, ..NodeSpec::new(path, Some("qcow2")) };
    let info = Disk::open(&env, &node).unwrap().node().format().info().unwrap();
    let mut theirs = Vec::new();
    qemu_facts(&json["format-specific"]["data"], "", &mut theirs);
    let mut ours = Vec::new();
    our_facts(&InfoValue::Map(info.specific), "", &mut ours);
    theirs.sort();
    ours.sort();
    assert_eq!(ours, theirs, "{features:?}");
    assert_eq!(Some(info.virtual_size), json["virtual-size"].as_u64());
    assert_eq!(info.cluster_size, json["cluster-size"].as_u64());
    assert_eq!(info.encrypted, json["encrypted"].as_bool().unwrap_or(false));
    assert_eq!(info.dirty, json["dirty-flag"].as_bool().unwrap());
    assert_eq!(info.backing.as_ref().map(|backing| backing.name.as_str()), json["backing-filename"].as_str());
    assert_eq!(
        info.backing.as_ref().and_then(|backing| backing.format.as_deref()),
        json["backing-filename-format"].as_str()
    );
    let snapshots = json["snapshots"].as_array().map_or(0, Vec::len);
    assert_eq!(info.snapshots.len(), snapshots);
}

/// One run of `map`: where, how long, and what of it both tools say.
type MapRow = (u64, u64, u64, bool, bool, bool, bool, Option<u64>);

fn our_map(disk: &Disk) -> Vec<MapRow> {
    let mut rows: Vec<MapRow> = Vec::new();
    let mut at = 0;
    while at < disk.size() {
        let status = disk.block_status(at, disk.size() - at).unwrap();
        let offset = status.offset.map(|(offset, _)| offset);
        let row = (
            at,
            status.len,
            status.depth as u64,
            status.present,
            status.zero,
            status.data,
            status.compressed,
            offset,
        );
        push_row(&mut rows, row);
        at += status.len;
    }
    rows
}

/// Joins a row with the one before where they say the same.
fn push_row(rows: &mut Vec<MapRow>, row: MapRow) {
    if let Some(last) = rows.last_mut() {
        let flags = |row: &MapRow| (row.2, row.3, row.4, row.5, row.6);
        let offsets = match (last.7, row.7) {
            (Some(a), Some(b)) => a + last.1 == b,
            (a, b) => a == b,
        };
        if flags(last) == flags(&row) && offsets {
            last.1 += row.1;
            return;
        }
    }
    rows.push(row);
}

fn qemu_map(features: &Features, path: &str) -> Vec<MapRow> {
    let image = qemu_image(features, path);
    let json = run("qemu-img", &["map", "--object", SECRET, "--output=json", "--image-opts", &image]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut rows = Vec::new();
    for row in json.as_array().unwrap() {
        let flag = |name: &str| row[name].as_bool().unwrap();
        push_row(
            &mut rows,
            (
                row["start"].as_u64().unwrap(),
                row["length"].as_u64().unwrap(),
                row["depth"].as_u64().unwrap(),
                flag("present"),
                flag("zero"),
                flag("data"),
                flag("compressed"),
                row["offset"].as_u64(),
            ),
        );
    }
    rows
}

fn compare_map(features: &Features, path: &str) {
    let env = host_env();
    let disk = Disk::open(&env, &NodeSpec { access: crate::Access::Read, ..spec(path) }).unwrap();
    let (ours, theirs) = (our_map(&disk), qemu_map(features, path));
    for (our, their) in ours.iter().zip(&theirs) {
        assert_eq!(our, their, "{features:?}");
    }
    assert_eq!(ours.len(), theirs.len());
}

fn check_ours(env: &Environment, path: &str) {
    let disk =
        Disk::open(env, &NodeSpec { for_check: true, access: crate::Access::Read, ..spec(path) }).unwrap();
    let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
    assert!(report.is_clean(), "{path}: {report:#?}");
}

fn compare_check(features: &Features, path: &str) {
    let env = host_env();
    let image = qemu_image(features, path);
    let json = run("qemu-img", &["check", "--object", SECRET, "--output=json", "--image-opts", &image]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let disk =
        Disk::open(&env, &NodeSpec { for_check: true, access: crate::Access::Read, ..spec(path) }).unwrap();
    let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())).unwrap();
    assert!(report.is_clean(), "{report:#?} {features:?}");
    for (name, ours) in [
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("leaks", report.leaks),
        ("corruptions", report.corruptions),
        ("check-errors", report.check_errors),
    ] {
        assert_eq!(ours, json[name].as_u64().unwrap_or(0), "{name} {features:?}");
    }
}

fn our_image_for_qemu(seed: u64) {
    let rng = &mut Rng(seed);
    let folder = Folder::new(&format!("ours-{seed}"));
    let features = Features::draw(rng, &folder);
    let env = host_env();
    let backing = chain(&folder, features.depth, rng, features.size);
    let mut bytes = vec![0; features.size as usize];
    if let Some((_, _, below)) = &backing {
        let len = below.len().min(bytes.len());
        bytes[..len].copy_from_slice(&below[..len]);
    }
    let path = create_ours(
        &env,
        &folder,
        &features,
        backing.as_ref().map(|(name, format, _)| (name.as_str(), *format)),
    );
    let disk = open(&env, &path);
    scribble(&disk, &mut bytes, rng, &features, 30);
    let mut kept = Vec::new();
    if features.snapshots {
        for name in ["first", "second"] {
            disk.snapshot_create(&SnapshotInfo { name: name.to_owned(), ..SnapshotInfo::default() }).unwrap();
            kept.push((name, bytes.clone()));
            scribble(&disk, &mut bytes, rng, &features, 10);
        }
        disk.snapshot_delete(SnapshotTarget::Name("first")).unwrap();
        kept.remove(0);
        scribble(&disk, &mut bytes, rng, &features, 5);
    }
    disk.close().unwrap();
    compare_check(&features, &path);
    compare_info(&features, &path);
    compare_map(&features, &path);
    assert!(qemu_bytes(&features, &path, &folder.path("out"), None) == bytes, "other bytes: {features:?}");
    for (name, bytes) in kept {
        assert!(
            qemu_bytes(&features, &path, &folder.path("out"), Some(name)) == bytes,
            "snapshot: {features:?}"
        );
    }
    // And on, by qemu, and back.
    let image = qemu_image(&features, &path);
    let at = features.size / 3 / 512 * 512;
    let io = format!("write -P 90 {at} 1k");
    run("qemu-io", &["--object", SECRET, "--image-opts", "-c", &io, &image]);
    bytes[at as usize..at as usize + 1024].fill(90);
    let disk = open(&env, &path);
    assert!(read_all(&disk) == bytes, "after qemu: {features:?}");
    scribble(&disk, &mut bytes, rng, &features, 10);
    disk.close().unwrap();
    compare_check(&features, &path);
    assert!(qemu_bytes(&features, &path, &folder.path("out"), None) == bytes, "at the end: {features:?}");
}

fn qemu_image_for_us(seed: u64) {
    let rng = &mut Rng(seed);
    let folder = Folder::new(&format!("theirs-{seed}"));
    let features = Features::draw(rng, &folder);
    let env = host_env();
    let path = folder.path("theirs.qcow2");
    let backing = chain(&folder, features.depth, rng, features.size);
    let (size, options) = (features.size.to_string(), features.for_qemu());
    let mut args = vec!["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", &options];
    if let Some((name, format, _)) = &backing {
        args.extend(["-b", name, "-F", format]);
    }
    args.extend([path.as_str(), &size]);
    let output = Command::new("qemu-img").args(&args).current_dir(&folder.0).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = qemu_image(&features, &path);
    let mut commands = vec!["--object".to_owned(), SECRET.to_owned(), "--image-opts".to_owned()];
    for _ in 0..24 {
        let at = rng.below(features.size / 512) * 512;
        let len = (512 * (1 + rng.below(200))).min(features.size - at);
        let value = 1 + rng.below(250);
        let command = match rng.below(6) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            2 if features.version == 3 || features.depth == 0 => format!("discard {at} {len}"),
            3 if features.compress => {
                let cluster: u64 =
                    features.options.iter().find(|o| o.0 == "cluster_size").unwrap().1.parse().unwrap();
                let start = at / cluster * cluster;
                format!("write -c -P {value} {start} {}", cluster.min(features.size - start))
            }
            _ => format!("write -P {value} {at} {len}"),
        };
        commands.extend(["-c".to_owned(), command]);
    }
    commands.push(image);
    // It fails to compress into small clusters by zstd; what it has done then is what is compared.
    let output = Command::new("qemu-io").args(&commands).output().unwrap();
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    if features.snapshots && !features.encrypted {
        run("qemu-img", &["snapshot", "-c", "kept", &path]);
        run(
            "qemu-io",
            &["-f", "qcow2", "-c", &format!("write -P 7 0 {}", features.size / 4 / 512 * 512), &path],
        );
    }
    if features.version == 3 && !features.encrypted {
        run("qemu-img", &["bitmap", "--add", "-g", "64k", &path, "b0"]);
        run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 512", &path]);
    }
    compare_info(&features, &path);
    let sound = || Command::new("qemu-img").args(["check", "-q", "-U", &path]).status().unwrap().success();
    if !features.encrypted && !sound() {
        // qemu-io packs compressed data into a cluster that it has given to plain data since (seed 60).
        eprintln!("seed {seed}: what qemu wrote is corrupt for qemu itself; not compared");
        return;
    }
    compare_check(&features, &path);
    compare_map(&features, &path);
    let bytes = qemu_bytes(&features, &path, &folder.path("out"), None);
    let kept = (features.snapshots && !features.encrypted)
        .then(|| qemu_bytes(&features, &path, &folder.path("out"), Some("kept")));
    let disk = open(&env, &path);
    assert!(read_all(&disk) == bytes, "other bytes: {features:?}");
    if let Some(kept) = kept {
        disk.snapshot_apply(SnapshotTarget::Name("kept")).unwrap();
        assert!(read_all(&disk) == kept, "snapshot: {features:?}");
        disk.snapshot_delete(SnapshotTarget::Name("kept")).unwrap();
    }
    disk.close().unwrap();
    check_ours(&env, &path);
    compare_check(&features, &path);
}

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, other| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(other);
    let first = number("UMBRA_INTERCHANGE_SEED", 1);
    first..first + number("UMBRA_INTERCHANGE_ROUNDS", 12)
}

/// One at a time: a program that another thread is starting holds our locks until it runs.
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn qemu_takes_what_we_write() {
    let _alone = ALONE.lock();
    if has_qemu() {
        seeds().for_each(our_image_for_qemu);
    }
}

#[test]
fn we_take_what_qemu_writes() {
    let _alone = ALONE.lock();
    if has_qemu() {
        seeds().for_each(qemu_image_for_us);
    }
}
