//! Loss of power at any moment: nothing that was flushed is lost, and no block is another's.
//!
//! Writes, zeroes, flushes and reopenings run on a recording storage; then the power goes after any number of its changes,
//! with any part of what was not flushed, torn at sectors.

use std::sync::Arc;

use umbra_block::{
    Access, Disk, Environment, FileSpec, FileStorageSpec, MemoryStorage, NodeSpec, Recorder, Repair, Storage,
    StorageExt, Task,
};

use crate::model_test::{Files, Random, create, environment, open};

const SECTOR: usize = 512;

/// The disk after an operation, and the record's length before and after it.
struct Event {
    began: usize,
    ended: usize,
    bytes: Vec<u8>,
    durable: bool,
}

/// An environment with one image, `image`, in this storage.
fn with_image(storage: Arc<dyn Storage>) -> (Environment, Arc<Files>) {
    let mut environment = environment();
    let files = Arc::new(Files::default());
    files.put("image", storage);
    environment.opener = files.clone();
    (environment, files)
}

/// A series of operations, all of them recorded.
fn act(format: &str, options: &[(&str, &str)], random: &mut Random) -> (Recorder, Vec<Event>) {
    let made = environment();
    create(&made, format, options, 6 << 20);
    let image = made.opener.open(&FileSpec::file("image"), &FileStorageSpec::new(Access::Read)).unwrap();
    let bytes = image.read_vec(0, image.len().unwrap() as usize).unwrap();
    let recorder = Recorder::new();
    let (environment, _files) = with_image(recorder.storage("image", &bytes));
    let mut disk = open(&environment, format);
    let size = disk.size();
    let mut bytes = vec![0; size as usize];
    let start = recorder.len();
    let mut events = vec![Event { began: start, ended: start, bytes: bytes.clone(), durable: true }];
    for _ in 0..14 {
        let began = recorder.len();
        let offset = random.below(size / 512) * 512;
        let len = ((1 + random.below(300)) * 512).min(size - offset);
        let at = offset as usize..(offset + len) as usize;
        let mut durable = false;
        match random.below(10) {
            0..6 => {
                bytes[at.clone()].fill(1 + random.below(250) as u8);
                disk.write(offset, &bytes[at]).unwrap();
            }
            6 => {
                bytes[at].fill(0);
                disk.write_zeroes(offset, len, true).unwrap();
            }
            7 | 8 => {
                disk.flush().unwrap();
                durable = true;
            }
            _ => {
                disk.close().unwrap();
                disk = open(&environment, format);
                durable = true;
            }
        }
        events.push(Event { began, ended: recorder.len(), bytes: bytes.clone(), durable });
    }
    let began = recorder.len();
    disk.close().unwrap();
    events.push(Event { began, ended: recorder.len(), bytes, durable: true });
    (recorder, events)
}

/// Every sector holds what it held at the last flush, or what was written since.
fn compare(events: &[Event], at: usize, disk: &Disk, context: &str) {
    let last = events.iter().rposition(|event| event.durable && event.ended <= at).unwrap();
    let possible: Vec<&[u8]> = events[last..]
        .iter()
        .enumerate()
        .take_while(|(index, event)| *index == 0 || event.began < at)
        .map(|(_, event)| event.bytes.as_slice())
        .collect();
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).unwrap_or_else(|error| panic!("{context}: {error}"));
    for (sector, now) in bytes.chunks(SECTOR).enumerate() {
        let range = sector * SECTOR..sector * SECTOR + now.len();
        let held = possible.iter().any(|bytes| bytes[range.clone()] == *now);
        assert!(held, "{context}: sector {sector} holds what was never written there");
    }
}

fn judge(format: &str, recorder: &Recorder, events: &[Event], at: usize, random: &mut Random, context: &str) {
    let left = recorder.after_power_loss(at, &mut |limit| random.below(limit));
    let (environment, _files) = with_image(Arc::new(MemoryStorage::with_bytes("image", &left[0])));
    // As it is, without a change, and then for writing, which replays a log.
    let look = Disk::open(&environment, &NodeSpec::new("image", Some(format)));
    compare(events, at, &look.unwrap_or_else(|error| panic!("{context}: {error}")), context);
    let disk = open(&environment, format);
    compare(events, at, &disk, context);
    if let Ok(report) = disk.drained(|node| node.format().check(Repair::None, &Task::quiet())) {
        // A count of blocks that is too high wastes space only.
        let grave = report
            .findings
            .iter()
            .find(|finding| finding.corruption && !finding.what.contains("header says"));
        assert!(grave.is_none(), "{context}: {report:#?}");
    }
    // And it can be used: what is new keeps off what is there.
    let mut before = vec![0; disk.size() as usize];
    disk.read(0, &mut before).unwrap();
    for offset in (0..disk.size()).step_by(1 << 20) {
        disk.write(offset, &[7; 512]).unwrap();
        before[offset as usize..offset as usize + 512].fill(7);
    }
    disk.close().unwrap();
    let disk = Disk::open(&environment, &NodeSpec::new("image", Some(format))).unwrap();
    let mut after = vec![0; before.len()];
    disk.read(0, &mut after).unwrap();
    assert!(before == after, "{context}: new blocks lie on old ones");
}

#[test]
fn a_loss_of_power_loses_nothing_that_was_flushed() {
    let number =
        |name: &str, other| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(other);
    let (first, rounds, cuts) =
        (number("UMBRA_POWER_SEED", 1), number("UMBRA_POWER_ROUNDS", 3), number("UMBRA_POWER_CUTS", 25));
    let kinds: [(&str, &[(&str, &str)]); 6] = [
        ("vdi", &[]),
        ("vmdk", &[]),
        ("vmdk", &[("zeroed_grain", "on")]),
        ("vpc", &[]),
        ("vhdx", &[("block_size", "1M")]),
        ("vhdx", &[("block_size", "1M"), ("block_state_zero", "off")]),
    ];
    for seed in first..first + rounds {
        for (index, (format, options)) in kinds.into_iter().enumerate() {
            let mut random = Random(seed * 1000 + index as u64 + 1);
            let (recorder, events) = act(format, options, &mut random);
            let start = events[0].ended;
            for _ in 0..cuts {
                let at = start + random.below((recorder.len() - start) as u64 + 1) as usize;
                let context = format!("seed {seed}, {format} {options:?}, power lost at {at}");
                judge(format, &recorder, &events, at, &mut random, &context);
            }
        }
    }
}
