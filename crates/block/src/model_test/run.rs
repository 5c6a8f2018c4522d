//! One series: an image, or a chain of them, and the array of bytes that each must read as.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::coverage::Coverage;
use super::features::{BACKING, BITMAP, CRYPT, DATA, DETECT, DISCARD, Features};
use super::operations::{OPERATIONS, Operation};
use crate::test_help::{MemoryFiles, Rng, env};
use crate::{
    Access, BackingRef, BackingSpec, CreateOptions, DetectZeroes, Discard, Disk, Environment, Error,
    FileSpec, FileStorageSpec, MemoryStorage, Node, NodeSpec, Preallocation, Registry, Repair, SnapshotInfo,
    SnapshotTarget, Storage, StorageExt, Task,
};

/// Bytes of the disk for one bit of the bitmap.
const GRANULE: u64 = 4096;
const SNAPSHOTS_MAX: usize = 4;
const DEPTH_MAX: usize = 4;
const SLOTS_MAX: u32 = 8;

/// An image of the chain, and what must be read from it.
pub(super) struct Level {
    pub name: String,
    pub format: &'static str,
    pub features: Features,
    pub bytes: Vec<u8>,
    pub snapshots: Vec<Snapshot>,
    /// Granules that were written while the bitmap recorded.
    written: BTreeSet<u64>,
    slots: u32,
}

/// What a snapshot must give back.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub name: String,
    bytes: Vec<u8>,
    vm_state: Vec<u8>,
}

/// A series under way.
pub(super) struct Run<'a> {
    pub disk: Option<Disk>,
    /// The top first.
    pub levels: Vec<Level>,
    pub files: Arc<MemoryFiles>,
    pub env: Environment,
    pub rng: Rng,
    pub trace: Vec<String>,
    pub coverage: &'a mut Coverage,
    /// Files that were made, for their names.
    made: u32,
    /// What was written behind the disk and no snapshot has yet.
    pub vm_state: Vec<u8>,
}

impl<'a> Run<'a> {
    pub(super) fn new(seed: u64, coverage: &'a mut Coverage) -> Self {
        let mut rng = Rng(seed);
        let files = Arc::new(MemoryFiles::default());
        let mut env = env();
        env.secrets.add("other", b"another".to_vec());
        env.opener = files.clone();
        let mut run = Self {
            disk: None,
            levels: Vec::new(),
            files,
            env,
            rng: rng.clone(),
            trace: Vec::new(),
            coverage,
            made: 0,
            vm_state: Vec::new(),
        };
        let backing = rng.below(3) as usize;
        run.rng = rng;
        if backing > 0 {
            let base = run.new_base(backing == 1);
            run.levels.push(base);
        }
        let features = Features::draw(&mut run.rng, backing);
        let top = run.new_qcow2(features, None);
        run.levels.insert(0, top);
        run.reopen();
        run.mark_fresh();
        run
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("n{}", self.made)
    }

    /// A base with random content.
    pub(super) fn new_base(&mut self, raw: bool) -> Level {
        if raw {
            let name = self.new_name();
            let len = (1 + self.rng.below(600)) * 512;
            let mut bytes = vec![0; len as usize];
            let used = self.rng.below(len) as usize;
            self.rng.fill(&mut bytes[..used]);
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(&name, &bytes));
            self.files.0.lock().expect("files").insert(name.clone(), storage);
            let features = Features::draw(&mut self.rng, 0);
            return Level::new(name, "raw", features, bytes);
        }
        let features = Features::draw(&mut self.rng, 0);
        let mut level = self.new_qcow2(features, Some(&[]));
        let disk = Disk::open(&self.env, &level.spec().writable()).expect("a base opens");
        for _ in 0..6 {
            let offset = self.rng.below(level.bytes.len() as u64);
            let len = (1 + self.rng.below(3 * features.cluster())).min(level.bytes.len() as u64 - offset);
            let at = offset as usize..(offset + len) as usize;
            self.rng.fill(&mut level.bytes[at.clone()]);
            disk.write(offset, &level.bytes[at]).expect("a base is written");
        }
        disk.close().expect("a base closes");
        level
    }

    /// A new image over the levels that there are, or over none.
    pub(super) fn new_qcow2(&mut self, features: Features, below: Option<&[Level]>) -> Level {
        let name = self.new_name();
        let size = features.size(&mut self.rng);
        let below = below.unwrap_or(&self.levels);
        let mut bytes = vec![0; size as usize];
        let mut create =
            CreateOptions { size, options: features.options(&format!("{name}.data")), ..Default::default() };
        if let Some(base) = below.first() {
            let len = base.bytes.len().min(bytes.len());
            bytes[..len].copy_from_slice(&base.bytes[..len]);
            create.backing =
                Some(BackingRef { name: base.name.clone(), format: Some(base.format.to_owned()) });
        }
        let storage = self.env.opener.create(&FileSpec::file(&name)).expect("a file");
        let made = Registry::builtin()
            .get("qcow2")
            .and_then(|driver| driver.create(storage, &name, &create, &self.env, &Task::quiet()));
        made.unwrap_or_else(|error| panic!("{features:?}: {error}"));
        Level::new(name, "qcow2", features, bytes)
    }

    /// How the chain from a level down is opened: all of it to be read.
    fn spec_of(&self, level: usize) -> NodeSpec {
        let mut spec = self.levels[level].spec();
        if level + 1 < self.levels.len() {
            spec.backing = BackingSpec::Node(Box::new(self.spec_of(level + 1)));
        }
        spec
    }

    pub(super) fn close(&mut self) {
        if let Some(disk) = self.disk.take() {
            disk.close().expect("closing");
        }
    }

    pub(super) fn reopen(&mut self) {
        self.close();
        let disk = Disk::open(&self.env, &self.spec_of(0).writable());
        let disk = disk.unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        let features = &self.levels[0].features;
        let discard = if features.has(DISCARD) { Discard::Unmap } else { Discard::Ignore };
        let detect = [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap][features.0[DETECT]];
        self.disk = Some(disk.with_policy(discard, detect));
    }

    /// A level that has just become the top.
    pub(super) fn mark_fresh(&mut self) {
        self.vm_state.clear();
        let wanted = self.levels[0].features.has(BITMAP);
        let there = !self.disk().bitmaps().expect("bitmaps").is_empty();
        if wanted && !there {
            let added = self.disk().drained(|node| match node.format().bitmaps() {
                Some(bitmaps) => bitmaps.add("b", GRANULE, true),
                None => Ok(()),
            });
            added.expect("a bitmap");
        }
    }

    /// The two disks of a commit: the top, and the level `depth` below it, both for writing, sharing nodes.
    pub(super) fn open_two(&mut self, depth: usize) -> (Disk, Disk) {
        self.close();
        let mut below: Option<Arc<Node>> = None;
        let mut base = None;
        for level in (0..self.levels.len()).rev() {
            let spec = NodeSpec { backing: BackingSpec::None, ..self.levels[level].spec() };
            let spec = if level == 0 || level == depth { spec.writable() } else { spec };
            let disk = Disk::open(&self.env, &spec).expect("a level opens");
            disk.drain().exchange_backing(below.take());
            if level == depth {
                base = Some(Disk::over(disk.node()));
            }
            below = Some(disk.node());
        }
        (Disk::over(below.expect("a top")), base.expect("a base"))
    }

    pub(super) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it is open")
    }

    pub(super) fn size(&self) -> u64 {
        self.levels[0].bytes.len() as u64
    }

    /// The top holds other bytes now. A bitmap need not have what was written as it was.
    fn wrote(&mut self, offset: u64, data: &[u8]) {
        let top = &mut self.levels[0];
        let mut at = offset as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(rest.len().min(GRANULE as usize - at % GRANULE as usize));
            let there = &mut top.bytes[at..at + part.len()];
            if top.features.has(BITMAP) && there != part {
                top.written.insert(at as u64 / GRANULE);
            }
            there.copy_from_slice(part);
            at += part.len();
            rest = behind;
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let unit = self.disk().geometry().unit;
        let grain = [1, 512, unit][self.rng.below(3) as usize];
        let max = if unit > 1 << 17 { unit + unit / 2 } else { 4 * unit }.max(2 * grain);
        let size = self.size();
        let offset = self.rng.below(size / grain + 1) * grain;
        let offset = offset.min(size.saturating_sub(1) / grain * grain);
        let len = (1 + self.rng.below(max / grain)) * grain;
        (offset, len.min(size - offset))
    }

    pub(super) fn step(&mut self) {
        let total: u64 = OPERATIONS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.below(total);
        let mut operation = Operation::Write;
        for &(one, weight) in OPERATIONS {
            if drawn < weight {
                operation = one;
                break;
            }
            drawn -= weight;
        }
        let (offset, len) = self.range();
        self.trace.push(format!("{operation:?} {offset} {len}"));
        let features = self.levels[0].features;
        if self.act(operation, offset, len) {
            self.coverage.note(operation, &features);
        }
    }

    /// Whether there was something to do.
    fn act(&mut self, operation: Operation, offset: u64, len: u64) -> bool {
        match operation {
            Operation::Write => self.write(offset, len),
            Operation::Read => self.read(offset, len),
            Operation::Zero => self.zero(offset, len),
            Operation::Discard => self.discard(offset, len),
            Operation::Flush => self.disk().flush().expect("a flush"),
            Operation::Reopen => {
                self.reopen();
                self.compare_bitmap();
            }
            Operation::Compressed => return self.compressed(),
            Operation::Status => self.status(offset, len),
            Operation::SnapshotCreate => return self.snapshot_create(),
            Operation::SnapshotApply => return self.snapshot_apply(),
            Operation::SnapshotDelete => return self.snapshot_delete(),
            Operation::VmState => return self.write_vm_state(),
            Operation::Resize => return self.resize(),
            Operation::Overlay => return self.overlay(DEPTH_MAX),
            Operation::Commit => return self.commit(1),
            Operation::CommitFar => {
                let depth = 1 + self.rng.below(self.levels.len() as u64) as usize;
                return self.commit(depth);
            }
            Operation::Rebase => return self.rebase(),
            Operation::RebaseUnsafe => return self.rebase_unsafe(),
            Operation::Empty => return self.empty(),
            Operation::Amend => return self.amend(),
            Operation::AddKey => return self.change_keys(),
            Operation::Bitmap => return self.clear_bitmap(),
            Operation::Check => self.check(),
        }
        true
    }

    fn write(&mut self, offset: u64, len: u64) {
        let mut data = vec![0; len as usize];
        if self.rng.below(5) > 0 {
            self.rng.fill(&mut data);
            if self.rng.below(4) == 0 {
                let half = data.len() / 2;
                data[half..].fill(0);
            }
        }
        self.disk().write(offset, &data).unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        self.wrote(offset, &data);
    }

    pub(super) fn read(&mut self, offset: u64, len: u64) {
        let mut data = vec![0xa5; len as usize];
        self.disk().read(offset, &mut data).unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        let expected = &self.levels[0].bytes[offset as usize..(offset + len) as usize];
        if data != expected {
            let first = data.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
            let features = self.levels[0].features;
            panic!("differs at {}: {features:?} after {:#?}", offset + first as u64, self.trace);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let unmap = self.rng.below(2) == 0;
        self.disk().write_zeroes(offset, len, unmap).expect("zeroes");
        self.wrote(offset, &vec![0; len as usize]);
    }

    /// A discarded sector reads as zeroes or as before.
    fn discard(&mut self, offset: u64, len: u64) {
        self.disk().discard(offset, len).expect("a discard");
        let mut data = vec![0; len as usize];
        self.disk().read(offset, &mut data).expect("a read");
        let old = &mut self.levels[0].bytes[offset as usize..(offset + len) as usize];
        let sound = data.iter().zip(old.iter()).all(|(new, old)| *new == 0 || new == old);
        old.copy_from_slice(&data);
        assert!(sound, "a discard shows other data: {:?} after {:#?}", self.levels[0].features, self.trace);
    }

    fn compressed(&mut self) -> bool {
        let Some(compression) = self.disk().geometry().compression else { return false };
        let unit = compression.unit;
        let size = self.size();
        let offset = self.rng.below(size.div_ceil(unit)) * unit;
        let len = unit.min(size - offset) as usize;
        let mut data = vec![0; len];
        let (fill, used) = (self.rng.below(256) as u8, self.rng.below(len as u64 + 1) as usize);
        data.fill(fill);
        self.rng.fill(&mut data[..used / 2]);
        self.disk().write_compressed(offset, &data).expect("a compressed write");
        self.wrote(offset, &data);
        true
    }

    /// What the map says is what is there: zeroes where it says zeroes, and the file's bytes where it names a place.
    fn status(&mut self, offset: u64, len: u64) {
        self.read(offset, len);
        let status = self.disk().block_status(offset, len).expect("a status");
        assert!(len == 0 || status.len > 0 && status.len <= len, "{status:?}");
        let there = &self.levels[0].bytes[offset as usize..(offset + status.len) as usize];
        if status.zero || !status.present {
            assert!(there.iter().all(|&byte| byte == 0), "{status:?} after {:#?}", self.trace);
        }
        if let (Some((place, file)), true, false) = (&status.offset, status.data, status.zero) {
            let how = FileStorageSpec::new(Access::Read);
            let file = self.env.opener.open(&FileSpec::file(file), &how).expect("the file that holds it");
            let bytes = file.read_vec(*place, status.len as usize).expect("its bytes");
            let features = self.levels[0].features;
            assert!(bytes == there, "{status:?}: {features:?} after {:#?}", self.trace);
        }
    }

    fn has_snapshots(&self) -> bool {
        self.disk().node().format().snapshots().is_some() && !self.levels[0].features.has(DATA)
    }

    fn snapshot_create(&mut self) -> bool {
        if !self.has_snapshots() || self.levels[0].snapshots.len() >= SNAPSHOTS_MAX {
            return false;
        }
        let name = format!("s{}", self.rng.below(1 << 40));
        let vm_state_size = self.vm_state.len() as u64;
        let info = SnapshotInfo { name: name.clone(), vm_state_size, ..SnapshotInfo::default() };
        match self.disk().snapshot_create(&info) {
            Ok(_) => {
                let vm_state = std::mem::take(&mut self.vm_state);
                let bytes = self.levels[0].bytes.clone();
                self.levels[0].snapshots.push(Snapshot { name, bytes, vm_state });
                true
            }
            // One or two bits do not count so many.
            Err(Error::Refused(_)) => false,
            Err(error) => panic!("snapshot: {error} after {:#?}", self.trace),
        }
    }

    fn pick_snapshot(&mut self) -> Option<usize> {
        let count = self.levels[0].snapshots.len() as u64;
        (count > 0).then(|| self.rng.below(count) as usize)
    }

    fn snapshot_apply(&mut self) -> bool {
        let Some(index) = self.pick_snapshot() else { return false };
        let snapshot = self.levels[0].snapshots[index].clone();
        self.trace.push(format!("apply {}", snapshot.name));
        match self.disk().snapshot_apply(SnapshotTarget::Name(&snapshot.name)) {
            Ok(()) => {
                self.levels[0].bytes = snapshot.bytes;
                self.levels[0].forget_behind();
                let mut state = vec![0; snapshot.vm_state.len()];
                self.disk().read_vm_state(0, &mut state).expect("the VM state");
                assert!(state == snapshot.vm_state, "another VM state after {:#?}", self.trace);
                self.vm_state = state;
                true
            }
            Err(Error::Refused(_) | Error::Unsupported(_)) => false,
            Err(error) => panic!("apply: {error} after {:#?}", self.trace),
        }
    }

    fn snapshot_delete(&mut self) -> bool {
        let Some(index) = self.pick_snapshot() else { return false };
        let snapshot = self.levels[0].snapshots.remove(index);
        self.trace.push(format!("delete {}", snapshot.name));
        self.disk().snapshot_delete(SnapshotTarget::Name(&snapshot.name)).expect("deleting");
        true
    }

    /// Snapshots show the backing file where they have nothing, so they go before that changes.
    pub(super) fn drop_snapshots(&mut self) {
        while self.snapshot_delete() {}
    }

    fn write_vm_state(&mut self) -> bool {
        if !self.has_snapshots() {
            return false;
        }
        let mut state = vec![0; (1 + self.rng.below(3 * self.levels[0].features.cluster())) as usize];
        self.rng.fill(&mut state);
        // What an earlier, longer one has left is no part of it.
        let old = self.vm_state.len();
        self.disk().write_vm_state(0, &state).expect("a VM state");
        if state.len() < old {
            state.extend_from_slice(&self.vm_state[state.len()..]);
        }
        self.vm_state = state;
        true
    }

    fn resize(&mut self) -> bool {
        let features = self.levels[0].features;
        let size = features.size(&mut self.rng);
        let old = self.size();
        let mode = match self.rng.below(8) {
            0 if size > old => Preallocation::Metadata,
            1 if size > old => Preallocation::Falloc,
            2 if size > old => Preallocation::Full,
            _ => Preallocation::Off,
        };
        self.trace.push(format!("resize {old} to {size} {mode:?}"));
        let has_snapshots = !self.levels[0].snapshots.is_empty();
        match self.disk().resize(size, mode, true, &Task::quiet()) {
            Ok(()) => {
                self.levels[0].bytes.resize(size as usize, 0);
                self.levels[0].forget_behind();
                // The state lies behind the disk, which has another end now.
                self.vm_state.clear();
                true
            }
            Err(Error::Unsupported(_)) => {
                assert!(has_snapshots || mode != Preallocation::Off, "{:#?}", self.trace);
                false
            }
            Err(error) => panic!("{error} after {:#?}", self.trace),
        }
    }

    fn empty(&mut self) -> bool {
        if self.levels[0].features.word(DATA) == "raw" {
            return false;
        }
        self.disk().make_empty().expect("emptying");
        self.vm_state.clear();
        let below = self.levels.get(1).map(|level| level.bytes.clone()).unwrap_or_default();
        let len = self.levels[0].bytes.len().min(below.len());
        self.levels[0].bytes.fill(0);
        self.levels[0].bytes[..len].copy_from_slice(&below[..len]);
        true
    }

    fn clear_bitmap(&mut self) -> bool {
        if !self.levels[0].features.has(BITMAP) {
            return false;
        }
        self.compare_bitmap();
        let cleared = self.disk().drained(|node| match node.format().bitmaps() {
            Some(bitmaps) => bitmaps.clear("b"),
            None => Ok(()),
        });
        cleared.expect("a bitmap is cleared");
        self.levels[0].written.clear();
        true
    }

    /// All that was written is dirty.
    pub(super) fn compare_bitmap(&mut self) {
        let top = &self.levels[0];
        if !top.features.has(BITMAP) {
            return;
        }
        let node = self.disk().node();
        let bitmaps = node.format().bitmaps().expect("bitmaps");
        let size = self.size();
        for &granule in top.written.iter().filter(|&&granule| granule * GRANULE < size) {
            let dirty = bitmaps.next_dirty("b", granule * GRANULE).expect("dirty granules");
            assert!(
                dirty.is_some_and(|(start, _)| start <= granule * GRANULE),
                "granule {granule} is not dirty: {:?} after {:#?}",
                top.features,
                self.trace
            );
        }
    }

    fn change_keys(&mut self) -> bool {
        let level = &mut self.levels[0];
        if !level.features.has(CRYPT) {
            return false;
        }
        let mut options = crate::Options::new();
        match level.slots {
            1..SLOTS_MAX => {
                options.set("encrypt.state", "active").set("encrypt.new-secret", "other");
                options.set("encrypt.iter-time", "1");
                level.slots += 1;
            }
            _ => {
                options.set("encrypt.state", "inactive").set("encrypt.old-secret", "other");
                level.slots = 1;
            }
        }
        self.change(&options).expect("key slots");
        true
    }

    pub(super) fn change(&self, options: &crate::Options) -> crate::Result<()> {
        self.disk().drained(|node| match node.format().write() {
            Some(write) => write.amend(options, &Task::quiet()),
            None => Err(Error::ReadOnly("amend".to_owned())),
        })
    }

    fn check(&mut self) {
        let report = self.disk().drained(|node| node.format().check(Repair::None, &Task::quiet()));
        let report = report.expect("a check");
        assert!(report.is_clean(), "{report:#?} {:?} after {:#?}", self.levels[0].features, self.trace);
    }

    /// Looks at everything once more: the disk, each image's check, and every snapshot.
    pub(super) fn finish(mut self) {
        let len = self.size();
        self.read(0, len);
        self.reopen();
        self.read(0, len);
        self.compare_bitmap();
        self.check();
        self.close();
        for level in self.levels.iter().filter(|level| level.format == "qcow2") {
            let spec = NodeSpec { backing: BackingSpec::None, for_check: true, ..level.spec() };
            let disk = Disk::open(&self.env, &spec).expect("a level opens");
            let report = disk.drained(|node| node.format().check(Repair::None, &Task::quiet()));
            let report = report.expect("a check");
            assert!(report.is_clean(), "{report:#?} {:?} after {:#?}", level.features, self.trace);
        }
        self.reopen();
        while !self.levels[0].snapshots.is_empty() {
            if self.snapshot_apply() {
                let len = self.size();
                self.read(0, len);
            }
            self.snapshot_delete();
        }
        self.check();
        self.close();
    }
}

impl Level {
    fn new(name: String, format: &'static str, features: Features, bytes: Vec<u8>) -> Self {
        Self { name, format, features, bytes, snapshots: Vec::new(), written: BTreeSet::new(), slots: 1 }
    }

    /// How it is opened, without what is below it.
    fn spec(&self) -> NodeSpec {
        let mut spec = NodeSpec::new(&self.name, Some(self.format));
        if self.format == "qcow2" {
            spec.options.set("encrypt.key-secret", "s");
        }
        spec.backing = BackingSpec::None;
        spec
    }

    /// A bitmap ends where the disk does.
    fn forget_behind(&mut self) {
        let size = self.bytes.len() as u64;
        self.written.retain(|granule| granule * GRANULE < size);
    }

    pub(super) fn set_backing_kind(&mut self, below: Option<&'static str>) {
        self.features.set(BACKING, below.unwrap_or("none"));
    }
}
