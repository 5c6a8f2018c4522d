//! Operations on chains, and changes of an image's options.

use super::features::{DATA, FEATURES, Features, LAZY, REFCOUNT, VERSION};
use super::run::Run;
use crate::{
    BackingRef, Copy, CopySource, Disk, Error, NodeSpec, Options, Preallocation, Task, commit,
    copy_differences,
};

impl Run<'_> {
    /// A new image over the top.
    pub(super) fn overlay(&mut self, depth_max: usize) -> bool {
        if self.levels.len() >= depth_max {
            return false;
        }
        self.drop_snapshots();
        self.close();
        let features = Features::draw(&mut self.rng, 2);
        let top = self.new_qcow2(features, None);
        self.levels.insert(0, top);
        self.reopen();
        self.mark_fresh();
        true
    }

    /// Writes what the `depth` images at the top have into the one below them.
    pub(super) fn commit(&mut self, depth: usize) -> bool {
        // A file that has its disk's size for ever cannot take a larger one, nor what it was not made for.
        if depth >= self.levels.len() || self.levels[0].features.word(DATA) == "raw" {
            return false;
        }
        self.drop_snapshots();
        let shape =
            |level: &super::run::Level| format!("{} {} {}", level.name, level.format, level.bytes.len());
        let chain: Vec<String> = self.levels.iter().map(shape).collect();
        self.trace.push(format!("commit {depth} down {chain:?}"));
        let (top, base) = self.open_two(depth);
        commit(&top, &base, depth, None, &Task::quiet())
            .unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        let empties = depth == 1 && self.rng.below(2) == 0;
        if empties {
            top.make_empty().expect("emptying");
            self.vm_state.clear();
        }
        top.close().expect("closing");
        base.close().expect("closing");
        let bytes = self.levels[0].bytes.clone();
        let level = &mut self.levels[depth];
        let len = level.bytes.len().max(bytes.len());
        level.bytes.resize(len, 0);
        level.bytes[..bytes.len()].copy_from_slice(&bytes);
        // Images between show the base where they have nothing: they are given up, as the top may be.
        if depth > 1 && self.levels[depth].format == "qcow2" {
            self.levels.drain(..depth);
            self.reopen();
            self.mark_fresh();
        } else if depth > 1 {
            self.levels.drain(1..depth);
            self.reopen_over("a base that was committed into");
        } else {
            self.reopen();
        }
        let len = self.size();
        self.read(0, len);
        true
    }

    /// Changes the name of the backing file to that of the level below, and opens the chain again.
    fn reopen_over(&mut self, why: &str) {
        self.trace.push(format!("reopen over {why}"));
        let below = self.levels.get(1).map(|level| (level.name.clone(), level.format));
        self.levels[0].set_backing_kind(below.as_ref().map(|(_, format)| *format));
        let backing = below.map(|(name, format)| BackingRef { name, format: Some(format.to_owned()) });
        self.reopen();
        let set = self.disk().drained(|node| match node.format().write() {
            Some(write) => write.set_backing(backing.as_ref()),
            None => Err(Error::ReadOnly("rebase".to_owned())),
        });
        set.unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        self.reopen();
    }

    /// Another backing file, of other content.
    pub(super) fn rebase(&mut self) -> bool {
        if self.levels[0].features.word(DATA) == "raw" {
            return false;
        }
        self.drop_snapshots();
        let kind = self.rng.below(3);
        let new = (kind > 0).then(|| self.new_base(kind == 1));
        let mut base = None;
        if let Some(level) = new {
            // It stands for itself: what is below the old one is not below it.
            let mut spec = NodeSpec::new(&level.name, Some(level.format));
            if level.format == "qcow2" {
                spec.options.set("encrypt.key-secret", "s");
            }
            base = Some((Disk::open(&self.env, &spec).expect("a base opens"), level));
        }
        let compress = self.disk().geometry().compression.is_some() && self.rng.below(3) == 0;
        let disk = base.as_ref().map(|(disk, _)| disk);
        copy_differences(self.disk(), disk, compress, &Task::quiet())
            .unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        self.levels.truncate(1);
        self.levels.extend(base.map(|(_, level)| level));
        // All that the image was written by is the old content, so no bitmap is wrong that has it as written.
        self.reopen_over("another base");
        let len = self.size();
        self.read(0, len);
        true
    }

    /// Another backing file of the same content: a copy.
    pub(super) fn rebase_unsafe(&mut self) -> bool {
        if self.levels.len() < 2 || self.levels[0].features.word(DATA) == "raw" {
            return false;
        }
        self.drop_snapshots();
        let features = Features::draw(&mut self.rng, 0);
        let mut copied = self.new_qcow2(features, Some(&[]));
        let mut spec = NodeSpec::new(&copied.name, Some("qcow2")).writable();
        spec.options.set("encrypt.key-secret", "s");
        let target = Disk::open(&self.env, &spec).expect("a copy opens");
        let source = self.disk().backing().expect("a backing disk");
        target
            .resize(source.size().next_multiple_of(512), Preallocation::Off, true, &Task::quiet())
            .expect("a copy's size");
        let compress = target.geometry().compression.is_some() && self.rng.below(2) == 0;
        let copy = Copy {
            sources: vec![CopySource { disk: &source, start: 0, len: source.size() }],
            target: &target,
            target_start: 0,
            target_is_zero: self.rng.below(2) == 0,
            from_top: None,
            compress,
            sparse: [0, 4096, 65536][self.rng.below(3) as usize],
            threads: Some(1 + self.rng.below(2) as usize),
            rate: None,
            salvage: None,
        };
        copy.run(&Task::quiet()).unwrap_or_else(|error| panic!("{error} after {:#?}", self.trace));
        target.close().expect("closing");
        copied.bytes = self.levels[1].bytes.clone();
        let len = copied.bytes.len().next_multiple_of(512);
        copied.bytes.resize(len, 0);
        self.levels.truncate(1);
        self.levels.push(copied);
        self.reopen_over("a copy of the base");
        let len = self.size();
        self.read(0, len);
        true
    }

    /// Changes an option of the top.
    pub(super) fn amend(&mut self) -> bool {
        let feature = [VERSION, REFCOUNT, LAZY][self.rng.below(3) as usize];
        let values = FEATURES[feature].1;
        let word = values[self.rng.below(values.len() as u64) as usize];
        let mut options = Options::new();
        options.set(FEATURES[feature].0, word);
        self.trace.push(format!("{} {word}", FEATURES[feature].0));
        match self.change(&options) {
            Ok(()) => {
                let features = &mut self.levels[0].features;
                features.set(feature, word);
                true
            }
            // Version 2 has not all that version 3 has, and few bits count few references.
            Err(Error::Refused(_) | Error::Unsupported(_) | Error::InvalidOption(_)) => {
                let features = self.levels[0].features;
                assert!(feature != LAZY || features.word(VERSION) == "0.10", "{:#?}", self.trace);
                false
            }
            Err(error) => panic!("{error} after {:#?}", self.trace),
        }
    }
}
