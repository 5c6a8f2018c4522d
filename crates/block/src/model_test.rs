//! Random operations on an image against a plain array of bytes, with reopening, and a clean check after each series.

use std::sync::Arc;

use crate::test_help::{Rng, env, open, open_over};
use crate::{
    CreateOptions, DetectZeroes, Discard, Disk, MemoryStorage, Options, Preallocation, Registry, Repair,
    SnapshotInfo, SnapshotTarget, Storage, Task,
};

/// An image's features.
#[derive(Debug, Clone)]
struct Case {
    options: &'static [(&'static str, &'static str)],
    size: u64,
    backing: bool,
    compress: bool,
}

fn cases() -> Vec<Case> {
    let case = |options, size, backing, compress| Case { options, size, backing, compress };
    vec![
        case(&[("cluster_size", "512")], 300 * 1024, false, true),
        case(&[("cluster_size", "4k"), ("refcount_bits", "64")], 1 << 20, true, true),
        case(&[("cluster_size", "64k")], 8 << 20, true, true),
        case(&[("cluster_size", "16k"), ("extended_l2", "on")], 4 << 20, true, true),
        case(
            &[("cluster_size", "64k"), ("extended_l2", "on"), ("lazy_refcounts", "on")],
            4 << 20,
            false,
            false,
        ),
        case(&[("cluster_size", "512"), ("refcount_bits", "1")], 200 * 1024, false, true),
        case(
            &[("cluster_size", "1k"), ("refcount_bits", "2"), ("lazy_refcounts", "on")],
            300 * 1024,
            true,
            true,
        ),
        case(&[("cluster_size", "2k"), ("compat", "0.10")], 600 * 1024, true, true),
        case(&[("cluster_size", "1k"), ("compat", "0.10")], 300 * 1024, false, false),
        case(
            &[("cluster_size", "32k"), ("compression_type", "zstd"), ("refcount_bits", "8")],
            2 << 20,
            true,
            true,
        ),
        case(&[("cluster_size", "2M")], 16 << 20, false, true),
        case(&[("cluster_size", "4k"), ("data_file", "data")], 1 << 20, true, false),
        case(
            &[("cluster_size", "4k"), ("data_file", "data"), ("data_file_raw", "on")],
            1 << 20,
            false,
            false,
        ),
        case(&[("cluster_size", "16k"), ("data_file", "data"), ("extended_l2", "on")], 1 << 20, true, false),
        case(
            &[
                ("cluster_size", "4k"),
                ("encrypt.format", "luks"),
                ("encrypt.key-secret", "s"),
                ("encrypt.iter-time", "1"),
            ],
            1 << 20,
            true,
            false,
        ),
        case(
            &[("cluster_size", "4k"), ("preallocation", "metadata"), ("refcount_bits", "4")],
            1 << 20,
            false,
            true,
        ),
        case(&[("cluster_size", "4k"), ("preallocation", "full")], 512 << 10, false, true),
    ]
}

struct Model {
    bytes: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

struct Run {
    disk: Option<Disk>,
    model: Model,
    env: crate::Environment,
    case: Case,
    backing: Option<Arc<dyn Storage>>,
    rng: Rng,
    trace: Vec<String>,
}

impl Run {
    fn new(case: &Case, seed: u64) -> Self {
        let env = env();
        let mut rng = Rng(seed);
        let mut options = CreateOptions { size: case.size, ..CreateOptions::default() };
        options.options = case.options.iter().copied().collect::<Options>();
        let storage = env.opener.create(&crate::FileSpec::file("image")).expect("a file");
        let mut bytes = vec![0; case.size as usize];
        let backing = case.backing.then(|| {
            let len = (case.size / 2 + 512) as usize;
            let mut content = vec![0; len];
            rng.fill(&mut content[..len / 2]);
            bytes[..len].copy_from_slice(&content);
            Arc::new(MemoryStorage::with_bytes("base", &content)) as Arc<dyn Storage>
        });
        Registry::builtin()
            .get("qcow2")
            .and_then(|driver| driver.create(storage, "image", &options, &env, &Task::quiet()))
            .expect("an image");
        let mut run = Self {
            disk: None,
            model: Model { bytes, snapshots: Vec::new() },
            env,
            case: case.clone(),
            backing,
            rng,
            trace: Vec::new(),
        };
        run.reopen();
        run
    }

    fn reopen(&mut self) {
        if let Some(disk) = self.disk.take() {
            disk.close().expect("closing");
        }
        let disk = match &self.backing {
            Some(backing) => open_over(&self.env, "image", backing.clone()),
            None => open(&self.env, "image"),
        };
        let detect = if self.rng.below(3) == 0 { DetectZeroes::Unmap } else { DetectZeroes::Off };
        self.disk = Some(disk.with_policy(Discard::Unmap, detect));
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it is open")
    }

    fn range(&mut self, grain: u64, max: u64) -> (u64, u64) {
        let size = self.model.bytes.len() as u64;
        let offset = self.rng.below(size / grain + 1) * grain;
        let offset = offset.min(size.saturating_sub(1) / grain * grain);
        let len = (1 + self.rng.below(max / grain)) * grain;
        (offset, len.min(size - offset))
    }

    fn step(&mut self) {
        let unit = self.disk().geometry().unit;
        let kind = self.rng.below(100);
        let grain = [1, 512, unit][self.rng.below(3) as usize];
        let (offset, len) = self.range(grain, (4 * unit).max(grain));
        self.trace.push(format!("{kind} {offset} {len}"));
        let at = offset as usize..(offset + len) as usize;
        match kind {
            0..=39 => {
                let mut data = vec![0; len as usize];
                if self.rng.below(5) > 0 {
                    self.rng.fill(&mut data);
                }
                self.disk().write(offset, &data).expect("a write");
                self.model.bytes[at].copy_from_slice(&data);
            }
            40..=54 => self.read(offset, len),
            55..=64 => {
                let unmap = self.rng.below(2) == 0;
                self.disk().write_zeroes(offset, len, unmap).expect("zeroes");
                self.model.bytes[at].fill(0);
            }
            65..=71 => self.discard(offset, len),
            72..=77 => self.disk().flush().expect("a flush"),
            78..=80 => self.reopen(),
            81..=88 => self.compressed(unit),
            89..=96 => self.snapshot(),
            _ => self.resize(),
        }
    }

    fn read(&mut self, offset: u64, len: u64) {
        let mut data = vec![0xa5; len as usize];
        self.disk().read(offset, &mut data).expect("a read");
        let at = offset as usize..(offset + len) as usize;
        if data != self.model.bytes[at.clone()] {
            let first = data.iter().zip(&self.model.bytes[at]).position(|(a, b)| a != b).unwrap_or(0);
            panic!("differs at {} after {:#?}", offset + first as u64, self.trace);
        }
    }

    /// A discarded sector reads as zeroes or as before.
    fn discard(&mut self, offset: u64, len: u64) {
        self.disk().discard(offset, len).expect("a discard");
        let mut data = vec![0; len as usize];
        self.disk().read(offset, &mut data).expect("a read");
        let at = offset as usize..(offset + len) as usize;
        for (new, old) in data.iter().zip(&self.model.bytes[at.clone()]) {
            assert!(*new == 0 || new == old, "a discard shows other data: {:#?}", self.trace);
        }
        self.model.bytes[at].copy_from_slice(&data);
    }

    fn compressed(&mut self, unit: u64) {
        if !self.case.compress {
            return;
        }
        let size = self.model.bytes.len() as u64;
        let offset = self.rng.below(size.div_ceil(unit)) * unit;
        let len = unit.min(size - offset) as usize;
        let mut data = vec![0; len];
        let (fill, used) = (self.rng.below(256) as u8, self.rng.below(len as u64 + 1) as usize);
        data.fill(fill);
        self.rng.fill(&mut data[..used / 2]);
        self.trace.push(format!("compressed {offset} {len}"));
        self.disk().write_compressed(offset, &data).expect("a compressed write");
        self.model.bytes[offset as usize..offset as usize + len].copy_from_slice(&data);
    }

    fn snapshot(&mut self) {
        if self.case.options.iter().any(|(name, _)| *name == "data_file") {
            return;
        }
        let count = self.model.snapshots.len() as u64;
        match self.rng.below(3) {
            0 if count < 4 => {
                let name = format!("s{}", self.rng.below(1 << 40));
                let info = SnapshotInfo { name: name.clone(), ..SnapshotInfo::default() };
                match self.disk().snapshot_create(&info) {
                    Ok(_) => self.model.snapshots.push((name, self.model.bytes.clone())),
                    // One or two bits do not count so many.
                    Err(crate::Error::Refused(_)) => {}
                    Err(error) => panic!("snapshot: {error} after {:#?}", self.trace),
                }
            }
            1 if count > 0 => {
                let (name, bytes) = self.model.snapshots[self.rng.below(count) as usize].clone();
                self.trace.push(format!("apply {name}"));
                match self.disk().snapshot_apply(SnapshotTarget::Name(&name)) {
                    Ok(()) => self.model.bytes = bytes,
                    Err(crate::Error::Refused(_) | crate::Error::Unsupported(_)) => {}
                    Err(error) => panic!("apply: {error} after {:#?}", self.trace),
                }
            }
            2 if count > 0 => {
                let (name, _) = self.model.snapshots.remove(self.rng.below(count) as usize);
                self.trace.push(format!("delete {name}"));
                self.disk().snapshot_delete(SnapshotTarget::Name(&name)).expect("deleting");
            }
            _ => {}
        }
    }

    fn resize(&mut self) {
        let old = self.model.bytes.len() as u64;
        let size = ((self.case.size / 2 + self.rng.below(self.case.size)) / 512).max(1) * 512;
        self.trace.push(format!("resize {size}"));
        match self.disk().resize(size, Preallocation::Off, true, &Task::quiet()) {
            Ok(()) => self.model.bytes.resize(size as usize, 0),
            Err(crate::Error::Unsupported(_)) => assert!(!self.model.snapshots.is_empty()),
            Err(error) => panic!("resize {old} to {size}: {error}"),
        }
    }

    fn finish(mut self) {
        let len = self.model.bytes.len() as u64;
        self.read(0, len);
        self.reopen();
        self.read(0, len);
        let report =
            self.disk().drained(|node| node.format().check(Repair::None, &Task::quiet())).expect("a check");
        assert!(report.is_clean(), "{:#?} {:?} after {:#?}", report, self.case, self.trace);
        for (name, bytes) in std::mem::take(&mut self.model.snapshots) {
            match self.disk().snapshot_apply(SnapshotTarget::Name(&name)) {
                Ok(()) => {
                    self.model.bytes = bytes;
                    let len = self.model.bytes.len() as u64;
                    self.read(0, len);
                }
                Err(crate::Error::Refused(_) | crate::Error::Unsupported(_)) => {}
                Err(error) => panic!("apply: {error}"),
            }
        }
        if let Some(disk) = self.disk.take() {
            disk.close().expect("closing");
        }
    }
}

fn series(case: &Case, seed: u64, steps: u32) {
    let mut run = Run::new(case, seed);
    for _ in 0..steps {
        run.step();
    }
    run.finish();
}

/// Steps of each series; `UMBRA_MODEL_ROUNDS` runs further seeds.
const STEPS: u32 = 250;

#[test]
fn random_operations_agree_with_an_array() {
    let rounds = std::env::var("UMBRA_MODEL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let first = std::env::var("UMBRA_MODEL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in first..first + rounds {
        for case in cases() {
            eprintln!("seed {seed} {case:?}");
            series(&case, seed, STEPS);
        }
    }
}
