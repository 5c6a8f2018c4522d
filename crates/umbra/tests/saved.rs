//! Saved machines: they go on where they were, and a file that is not what was written is refused whatever is wrong with it.

mod common;

use std::fs;

use common::process::Running;
use common::tiny::console;
use common::{Home, accel, one_sentence, text};
use umbra_state::{ChunkKind, Container, ContainerWriter};

/// A machine named `web` that has counted to two.
fn counted(home: &Home) -> Running {
    let mut vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    vm.send(b"cc");
    vm.says("aAbB");
    vm
}

fn restore(home: &Home, file: &str, more: &[&str]) -> Running {
    let accel = accel();
    let all = [&["restore", file, "--quiet", "--accel", &accel], more].concat();
    Running::start(home.umbra(&all))
}

/// The bytes of a machine that was saved and ended.
fn saved(home: &Home) -> Vec<u8> {
    let vm = counted(home);
    home.succeed(&["save", "web", "saved"]);
    assert_eq!(vm.end().status.code(), Some(0));
    home.nothing_left();
    fs::read(home.path("saved")).unwrap()
}

#[test]
fn a_restored_machine_goes_on_where_it_was() {
    let home = Home::new();
    let bytes = saved(&home);
    assert!(bytes.len() < 1 << 20, "memory that was never touched takes no room: {} bytes", bytes.len());
    let mut vm = restore(&home, "saved", &["--events", "events"]);
    vm.send(b"c");
    vm.says("cC");
    assert!(!vm.written().contains("ready"), "it does not start again");
    let events = fs::read_to_string(home.path("events")).unwrap();
    let names = ["created", "restored"];
    assert!(
        events.lines().zip(names).all(|(line, name)| line.contains(&format!("\"event\":\"{name}\""))),
        "{events}"
    );
    assert_eq!(events.lines().count(), 2, "{events}");
    assert_eq!(home.info("web").unwrap()["memory"], 16 << 20);
    // And once more from there.
    home.succeed(&["save", "web", "saved-again"]);
    assert_eq!(vm.end().status.code(), Some(0));
    let mut vm = restore(&home, "saved-again", &["--name", "other"]);
    vm.send(b"c");
    vm.says("dD");
    assert!(home.info("other").is_some() && home.info("web").is_none());
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    assert_eq!(fs::read(home.path("saved")).unwrap(), bytes, "restoring changes nothing");
    home.nothing_left();
}

#[test]
fn saving_can_leave_the_machine_running_or_paused() {
    let home = Home::new();
    let mut vm = counted(&home);
    home.succeed(&["save", "web", "saved", "--then", "resume"]);
    vm.send(b"c");
    vm.says("cC");
    home.succeed(&["save", "web", "saved", "--then", "pause"]);
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    home.succeed(&["resume", "web"]);
    vm.send(b"c");
    vm.says("dD");
    // The name is in use; another one is not.
    let refused = restore(&home, "saved", &[]).end();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("a machine named `web` is running"));
    let mut twin = restore(&home, "saved", &["--name", "twin"]);
    twin.send(b"c");
    twin.says("dD");
    for vm in [&mut vm, &mut twin] {
        vm.send(b"p");
        assert_eq!(vm.wait().code(), Some(0));
    }
    home.nothing_left();
}

#[test]
fn a_machine_that_is_restored_paused_waits() {
    let home = Home::new();
    saved(&home);
    let mut vm = restore(&home, "saved", &["--paused"]);
    common::wait_until("the machine", || home.info("web").is_some());
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    home.succeed(&["resume", "web"]);
    vm.send(b"cp");
    vm.says("cC");
    assert_eq!(vm.wait().code(), Some(0));
}

#[test]
fn a_machine_that_cannot_be_saved_goes_on() {
    let home = Home::new();
    let mut vm = counted(&home);
    fs::create_dir(home.path("folder")).unwrap();
    for (file, words) in [
        ("no-such-folder/saved", "cannot write"),
        ("folder", "cannot write"),
        ("/dev/full/x", "cannot write"),
    ] {
        let output = home.end(&["save", "web", file]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        one_sentence(&said);
        assert!(said.contains(words), "{said}");
        assert_eq!(home.info("web").unwrap()["state"], "running", "after {file}");
    }
    assert_eq!(fs::read_dir(home.path("folder")).unwrap().count(), 0);
    // What was paused stays so.
    home.succeed(&["pause", "web"]);
    assert_eq!(home.end(&["save", "web", "no-such-folder/saved"]).status.code(), Some(1));
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    home.succeed(&["resume", "web"]);
    vm.send(b"c");
    vm.says("cC");
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    home.nothing_left();
}

/// Starts the console guest with a folder `small` that only it sees, on a disk of 16 KiB; `None` if this host does not let us.
fn with_small_disk(home: &Home) -> Option<Running> {
    fs::create_dir(home.path("small")).unwrap();
    let script = "mount -t tmpfs -o size=16k none small && exec \"$@\"";
    let kernel = home.file("kernel", &console());
    let accel = accel();
    let mut all = vec!["-rm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_umbra")];
    all.extend(home.run_arguments(&accel, &kernel, &["--name", "web"]));
    let allowed = home.at_home("unshare", &["-rm", "mount", "-t", "tmpfs", "none", "small"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this host does not allow a mount namespace");
        return None;
    }
    Some(Running::start(home.at_home("unshare", &all)))
}

#[test]
fn a_full_disk_keeps_the_older_file_and_the_machine() {
    let home = Home::new();
    let Some(mut vm) = with_small_disk(&home) else { return };
    vm.says("ready");
    // The folder as the machine sees it.
    let small = std::path::PathBuf::from(format!("/proc/{}/root", vm.id()))
        .join(home.path("small").strip_prefix("/").unwrap());
    fs::write(small.join("saved"), b"older").unwrap();
    let output = home.end(&["save", "web", "small/saved"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("No space left on device"), "{said}");
    let left: Vec<_> = fs::read_dir(&small).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["saved"]);
    assert_eq!(fs::read(small.join("saved")).unwrap(), b"older");
    vm.send(b"c");
    vm.says("aA");
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    home.nothing_left();
}

#[test]
fn an_older_file_is_replaced_only_by_a_whole_one() {
    let home = Home::new();
    fs::write(home.path("saved"), b"old").unwrap();
    saved(&home);
    let mut vm = restore(&home, "saved", &[]);
    vm.send(b"cp");
    vm.says("cC");
    assert_eq!(vm.end().status.code(), Some(0));
}

#[test]
fn a_reset_after_restoring_needs_the_kernel() {
    let home = Home::new();
    saved(&home);
    let mut vm = restore(&home, "saved", &[]);
    vm.send(b"r");
    let output = vm.end();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    one_sentence(&said);
    assert!(said.contains("--kernel"), "{said}");
    let kernel = home.file("kernel", &console());
    let mut vm = restore(&home, "saved", &["--kernel", &kernel]);
    vm.send(b"r");
    vm.says("ready");
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    let mut vm = restore(&home, "saved", &["--no-reboot"]);
    vm.send(b"r");
    assert_eq!(vm.end().status.code(), Some(0));
}

#[test]
fn processors_show_after_a_reset_what_they_showed_when_they_were_saved() {
    use umbra_engine::CpuState;
    use umbra_state::{Field, Record, Saved};
    let home = Home::new();
    let other = rewritten(&saved(&home), |chunks| {
        let records = chunks.iter_mut().filter(|(kind, ..)| *kind == ChunkKind::Record);
        let read = |bytes: &[u8]| Record::take(&mut &*bytes, "record").unwrap();
        let (_, _, bytes) = records.into_iter().find(|(.., bytes)| read(bytes).id.contains("cpu")).unwrap();
        let record = read(bytes);
        let mut state = CpuState::from_record(&record).unwrap();
        // A letter of the processor's name, which nothing depends on.
        let name = state.cpuid.iter_mut().find(|entry| entry.0.leaf == 0x8000_0002).unwrap();
        name.0.eax ^= 1;
        bytes.clear();
        state.to_record(&record.id).put(bytes);
    });
    let (file, kernel) = (home.file("other", &other), home.file("kernel", &console()));
    let mut vm = restore(&home, &file, &["--kernel", &kernel]);
    vm.send(b"r");
    vm.says("ready");
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
}

/// Restoring this file is refused with these words, and leaves it as it is.
fn refuse(home: &Home, bytes: &[u8], words: &[&str]) -> String {
    let file = home.file("damaged", bytes);
    let said = home.refuse(&["restore", &file, "--quiet", "--accel", &accel()], words);
    assert!(fs::read(file).unwrap() == bytes, "the file is as it was");
    said
}

#[test]
fn a_file_that_is_no_saved_machine_is_refused() {
    let home = Home::new();
    home.refuse(&["restore", "absent"], &["cannot read the saved machine absent", "No such file"]);
    home.refuse(&["restore", "."], &["."]);
    refuse(&home, b"", &["not a saved Umbra machine"]);
    refuse(&home, b"UMBRA", &["not a saved Umbra machine"]);
    refuse(&home, b"#!/bin/sh\n", &["not a saved Umbra machine"]);
    refuse(&home, &console(), &["not a saved Umbra machine"]);
    refuse(&home, &[0; 100_000], &["not a saved Umbra machine"]);
}

#[test]
fn a_saved_file_that_was_cut_anywhere_is_refused() {
    let home = Home::new();
    let whole = saved(&home);
    for len in spread(whole.len()).filter(|len| *len >= 8) {
        refuse(&home, &whole[..len], &["truncated", "save the machine again"]);
    }
    let more = [whole.as_slice(), b"x"].concat();
    refuse(&home, &more, &["corrupt"]);
}

#[test]
fn a_saved_file_that_was_altered_anywhere_is_refused() {
    let home = Home::new();
    let whole = saved(&home);
    for (number, at) in spread(whole.len()).enumerate() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (number % 8);
        refuse(&home, &bytes, &[]);
    }
}

/// The first and last bytes, and some between.
fn spread(len: usize) -> impl Iterator<Item = usize> {
    (0..24).chain((24..len - 24).step_by(len / 40)).chain(len - 24..len)
}

#[test]
fn a_file_of_another_version_is_told_as_such() {
    let home = Home::new();
    let mut bytes = saved(&home);
    bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    refuse(&home, &bytes, &["file format 7", "this version of Umbra reads"]);
}

/// Writes a saved file again, with its chunks changed: whole and with right checksums, but not what was written.
fn rewritten(whole: &[u8], mut change: impl FnMut(&mut Vec<(ChunkKind, u64, Vec<u8>)>)) -> Vec<u8> {
    let mut container = Container::open(whole).unwrap();
    let (mut chunks, mut payload) = (Vec::new(), Vec::new());
    while let Some((kind, address)) = container.next(&mut payload).unwrap() {
        chunks.push((kind, address, payload.clone()));
    }
    change(&mut chunks);
    let mut writer = ContainerWriter::new(Vec::new()).unwrap();
    for (kind, address, payload) in chunks {
        writer.chunk(kind, address, &payload).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_file_whose_parts_do_not_fit_together_is_refused() {
    let home = Home::new();
    let whole = saved(&home);
    assert_eq!(rewritten(&whole, |_| {}), whole);
    let count = rewritten_count(&whole);
    for missing in 0..count {
        refuse(&home, &rewritten(&whole, |chunks| drop(chunks.remove(missing))), &[]);
    }
    refuse(&home, &rewritten(&whole, Vec::clear), &["no specification"]);
    refuse(&home, &rewritten(&whole, |chunks| chunks.reverse()), &["no specification"]);
    refuse(&home, &rewritten(&whole, |chunks| chunks.push(chunks[1].clone())), &["order"]);
    let far = (ChunkKind::Memory, u64::MAX - 4095, vec![1; 4096]);
    refuse(&home, &rewritten(&whole, |chunks| chunks.push(far.clone())), &[]);
    let outside = (ChunkKind::Memory, 16 << 20, vec![1; 4096]);
    refuse(&home, &rewritten(&whole, |chunks| chunks.push(outside.clone())), &[]);
}

/// States that are whole but nonsense, in files whose checksums are right: refused or taken, but nothing falls over.
#[test]
fn a_state_that_was_made_up_harms_nobody() {
    let home = Home::new();
    let whole = saved(&home);
    let (mut random, mut taken, mut refused) = (0x9e37_79b9_7f4a_7c15_u64, 0, 0);
    for record in 1..rewritten_count(&whole) {
        for _ in 0..4 {
            let made_up = rewritten(&whole, |chunks| {
                let bytes = &mut chunks[record].2;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (random >> 33) as usize % bytes.len();
                bytes[at] ^= 1 << (random >> 24 & 7) | 0x80;
            });
            let file = home.file("made-up", &made_up);
            let mut vm = restore(&home, &file, &["--paused", "--name", "web"]);
            common::wait_until("an answer", || vm.has_ended() || home.info("web").is_some());
            if !vm.has_ended() {
                taken += 1;
                assert!(home.end(&["stop", "--force", "web"]).status.success());
                assert_eq!(vm.end().status.code(), Some(0));
                continue;
            }
            refused += 1;
            let output = vm.end();
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            one_sentence(&text(&output.stderr));
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    home.nothing_left();
}

/// How many chunks are no memory: without memory a machine is a machine whose memory is zero.
fn rewritten_count(whole: &[u8]) -> usize {
    let mut count = 0;
    rewritten(whole, |chunks| count = chunks.iter().filter(|(kind, ..)| *kind != ChunkKind::Memory).count());
    count
}

#[test]
fn a_specification_that_was_replaced_is_refused() {
    let home = Home::new();
    let whole = saved(&home);
    let with = |key: &str, value: serde_json::Value| {
        rewritten(&whole, |chunks| {
            let mut spec: serde_json::Value = serde_json::from_slice(&chunks[0].2).unwrap();
            spec[key] = value.clone();
            chunks[0].2 = serde_json::to_vec(&spec).unwrap();
        })
    };
    refuse(&home, &with("version", 2.into()), &["version 2"]);
    refuse(&home, &with("machine", "umbra-99".into()), &["machine type `umbra-99` is unknown"]);
    refuse(&home, &with("cpus", 0.into()), &["0 processors"]);
    refuse(&home, &with("cpus", 2.into()), &["lacks the state"]);
    refuse(&home, &with("cpus", u32::MAX.into()), &["processors"]);
    refuse(&home, &with("memory", (1 << 20).into()), &["memory"]);
    refuse(&home, &with("memory", u64::MAX.into()), &["memory"]);
    refuse(&home, &with("name", "../../etc/passwd".into()), &["a name has"]);
    refuse(&home, &with("name", 7.into()), &[]);
    refuse(&home, &with("colour", "red".into()), &["colour"]);
    refuse(&home, &rewritten(&whole, |chunks| chunks[0].2 = b"{".repeat(5000)), &[]);
}
