//! Queues against an array of bytes: by io_uring and by threads, over every kind of mapping, with others at work.

use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::{Aio, Disk, Queue, Request};
use crate::interchange_test::{Folder, host_env};
use crate::test_help::{Rng, spec};
use crate::{BackingRef, CreateOptions, Environment, FileSpec, IoBuf, IoSrc, NodeSpec, Options, Task};

const SIZE: u64 = 4 << 20;
/// Slots of memory, each for one request.
const SLOTS: usize = 24;
const SLOT: usize = 150_000;

fn create(env: &Environment, format: &str, path: &str, options: &[(&str, &str)], backing: Option<&str>) {
    let mut create = CreateOptions { size: SIZE, ..CreateOptions::default() };
    create.options = options.iter().copied().collect::<Options>();
    create.backing = backing.map(|name| BackingRef { name: name.to_owned(), format: Some("raw".to_owned()) });
    let storage = env.opener.create(&FileSpec::file(path)).unwrap();
    let driver = env.registry.get(format).unwrap();
    driver.create(storage, path, &create, env, &Task::quiet()).unwrap();
}

/// A request under way: which range, and what a write writes.
struct Sent {
    range: std::ops::Range<usize>,
    write: Option<u8>,
}

fn meets(one: &Sent, other: &Sent) -> bool {
    let overlap = one.range.start < other.range.end && other.range.start < one.range.end;
    overlap && (one.write.is_some() || other.write.is_some())
}

/// Random requests that do not meet, each checked when it is done.
fn exercise<'env>(queue: &mut Queue<'_, 'env>, memory: &[IoBuf<'env>], model: &mut [u8], rng: &mut Rng) {
    let mut sent: Vec<Option<Sent>> = (0..SLOTS).map(|_| None).collect();
    let mut done = Vec::new();
    for step in 0..1500 {
        let slot = (step < 1400).then(|| sent.iter().position(Option::is_none)).flatten();
        if let Some(slot) = slot {
            let grain = [1, 512, 4096][rng.below(3) as usize];
            let offset = rng.below(SIZE / grain) * grain;
            let longest = if rng.below(6) == 0 { SLOT as u64 / grain - 1 } else { 2 };
            let len = ((1 + rng.below(longest)) * grain).min(SIZE - offset);
            let range = offset as usize..(offset + len) as usize;
            let new = Sent { range, write: (rng.below(2) == 0).then(|| rng.next() as u8) };
            if !sent.iter().flatten().any(|other| meets(&new, other)) {
                let (first, rest) = memory[slot].split_at(len as usize).0.split_at(len as usize / 3);
                let bufs = [first, rest];
                let request = match new.write {
                    Some(byte) => {
                        bufs.iter().for_each(|buf| buf.copy_from(&vec![byte; buf.len()]));
                        Request::Write { offset, srcs: bufs.iter().map(IoBuf::as_src).collect() }
                    }
                    None => Request::Read { offset, bufs: bufs.to_vec() },
                };
                queue.push(slot as u64, request);
                sent[slot] = Some(new);
            }
            if step % 100 == 0 {
                queue.push(u64::MAX, Request::Flush);
            }
        }
        if slot.is_none() || rng.below(3) == 0 {
            queue.wait(&mut done);
        }
        for done in done.drain(..) {
            done.result.unwrap();
            let Some(sent) = sent.get_mut(done.tag as usize).and_then(Option::take) else { continue };
            let part = &mut model[sent.range];
            match sent.write {
                Some(byte) => part.fill(byte),
                None => {
                    let mut bytes = vec![0; part.len()];
                    memory[done.tag as usize].copy_to(&mut bytes);
                    assert!(bytes == part, "step {step}");
                }
            }
        }
    }
    while queue.under_way() > 0 {
        queue.wait(&mut done);
    }
    assert!(done.iter().all(|done| done.result.is_ok()));
}

/// What is in the image is in the model too, before and after; meanwhile somebody else drains the disk.
fn check(disk: &Disk, what: &str, aio: Aio, seed: u64) {
    let mut model = vec![0; SIZE as usize];
    disk.read(0, &mut model).unwrap();
    let mut memory = vec![0; SLOTS * SLOT];
    let memory: Vec<IoBuf<'_>> = memory.chunks_mut(SLOT).map(IoBuf::new).collect();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                drop(disk.drain());
                disk.drained(|_| Ok(())).unwrap();
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        disk.queue(aio, SLOTS, |queue| exercise(queue, &memory, &mut model, &mut Rng(seed)));
        end.store(true, Ordering::Relaxed);
    });
    let mut bytes = vec![0; SIZE as usize];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes == model, "{what} by {aio:?}");
}

#[test]
fn queues_do_what_single_requests_do() {
    let folder = Folder::new("queue");
    let env = host_env();
    let mut rng = Rng(11);
    let base = folder.path("base");
    create(&env, "raw", &base, &[], None);
    let mut bytes = vec![0; SIZE as usize];
    rng.fill(&mut bytes[..SIZE as usize / 2]);
    std::fs::write(&base, &bytes).unwrap();
    let encrypted = [("encrypt.format", "luks"), ("encrypt.key-secret", "s"), ("encrypt.iter-time", "10")];
    type Image<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Option<&'a str>);
    let images: [Image<'_>; 4] = [
        ("raw", "raw", &[], None),
        ("qcow2", "qcow2", &[], Some(&base)),
        ("extended", "qcow2", &[("extended_l2", "on")], Some(&base)),
        ("encrypted", "qcow2", &encrypted, None),
    ];
    for (name, format, options, backing) in images {
        let path = folder.path(name);
        create(&env, format, &path, options, backing);
        let mut spec =
            if format == "raw" { NodeSpec::new(&path, Some("raw")).writable() } else { spec(&path) };
        for (round, aio) in [Aio::Uring, Aio::Threads].into_iter().enumerate() {
            // With the page cache, and around it.
            spec.direct = round == 1 && name != "encrypted";
            let disk = Disk::open(&env, &spec).unwrap();
            if format == "qcow2" && name == "qcow2" {
                disk.write_compressed(65536 * 3, &[7; 65536]).unwrap();
                disk.write_zeroes(1 << 20, 200_000, true).unwrap();
            }
            check(&disk, name, aio, 5 + round as u64);
            disk.close().unwrap();
        }
    }
}

#[test]
fn what_fails_is_told() {
    let folder = Folder::new("queue-fails");
    let env = host_env();
    let path = folder.path("raw");
    create(&env, "raw", &path, &[], None);
    let disk = Disk::open(&env, &NodeSpec::new(&path, Some("raw"))).unwrap();
    let (mut bytes, source) = ([1; 512], [2; 512]);
    let buf = IoBuf::new(&mut bytes);
    for aio in [Aio::Uring, Aio::Threads] {
        let mut done = Vec::new();
        disk.queue(aio, 4, |queue| {
            queue.push(1, Request::Read { offset: SIZE, bufs: vec![buf] });
            queue.push(2, Request::Write { offset: 0, srcs: vec![IoSrc::new(&source)] });
            queue.push(3, Request::Read { offset: 512, bufs: vec![buf] });
            while queue.under_way() > 0 {
                queue.wait(&mut done);
            }
            queue.wait(&mut done);
        });
        done.sort_by_key(|done| done.tag);
        let good: Vec<(u64, bool)> = done.iter().map(|done| (done.tag, done.result.is_ok())).collect();
        assert_eq!(good, [(1, false), (2, false), (3, true)], "{aio:?}");
    }
    assert_eq!(bytes, [0; 512]);
}

/// Forbids a thread, and those that it begins, some system calls: they answer EPERM, as in containers and jails.
fn forbid(calls: &[i64]) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn threads_do_it_where_a_sandbox_forbids_io_uring() {
    let folder = Folder::new("queue-jailed");
    let env = host_env();
    let forbidden: [&[i64]; 3] =
        [&[libc::SYS_io_uring_setup], &[libc::SYS_io_uring_register], &[libc::SYS_io_uring_enter]];
    for (index, calls) in forbidden.into_iter().enumerate() {
        let path = folder.path(&format!("image{index}"));
        create(&env, "qcow2", &path, &[], None);
        let disk = Disk::open(&env, &spec(&path)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                forbid(calls);
                disk.queue(Aio::Uring, 4, |queue| assert_eq!(queue.aio(), Aio::Threads, "{calls:?}"));
                check(&disk, "jailed", Aio::Uring, 9);
            });
        });
        disk.close().unwrap();
    }
}
