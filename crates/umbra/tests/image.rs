//! `umbra image` beside the real `qemu-img`: the same words give the same answers, and each reads what the other writes.
//!
//! The reference is `qemu-img` 10.0 (Debian package qemu-utils): `$UMBRA_QEMU_IMG`, the one that `cargo xtask deps` has
//! unpacked, or that of the machine. Where there is none the tests say so.

#[path = "image/tools.rs"]
mod tools;

use std::process::{Command, Stdio};
use std::time::Duration;

use tools::{Pair, Tool, pattern, plain};

/// Words of a command line, in which apostrophes and quotes may stand.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (None, '\'' | '"') => (quote, word) = (Some(letter), Some(word.unwrap_or_default())),
            (Some(open), _) if letter == open => quote = None,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[test]
fn the_same_words_give_the_same_answers() {
    let Some(pair) = Pair::new() else { return };
    pair.write("source.raw", &pattern(3 << 20));
    let mut wrong = Vec::new();
    for line in include_str!("image/commands.txt").lines().filter(|line| !line.starts_with('#')) {
        let (mark, command) = line.split_at(2);
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (ours, theirs) = (pair.ours.run(&words), pair.theirs.run(&words));
        let same_errors = ours.errors == theirs.errors || mark.starts_with('~');
        if ours.code != theirs.code || plain(&ours.output) != plain(&theirs.output) || !same_errors {
            wrong.push(format!("{command}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Formats and options that both tools write.
const KINDS: [(&str, &str); 18] = [
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "compat=0.10"),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=2M,refcount_bits=64"),
    ("qcow2", "extended_l2=on"),
    ("qcow2", "refcount_bits=1"),
    ("qcow2", "preallocation=metadata"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("vmdk", ""),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
];

fn convert(tool: &Tool, from: &str, format: &str, options: &str, to: &str, more: &[&str]) {
    let mut words = vec!["convert", "-f", from, "-O", format];
    if !options.is_empty() {
        words.extend(["-o", options]);
    }
    words.extend(more);
    words.extend(["source", to]);
    tool.succeed(&words);
}

#[test]
fn each_reads_what_the_other_writes() {
    let Some(pair) = Pair::new() else { return };
    let source = pattern(5 << 20);
    for (format, options) in KINDS {
        let (writers, readers) = ([&pair.ours, &pair.theirs], [&pair.theirs, &pair.ours]);
        for (writer, reader) in writers.into_iter().zip(readers) {
            writer.write("source", &source);
            convert(writer, "raw", format, options, "image", &[]);
            let image = writer.path("image");
            reader.write("source", &source);
            let what = format!("{format} {options} by {}", writer.name);
            let done = reader.run(&["compare", "-f", "raw", "-F", format, "source", &image]);
            assert_eq!(done.code, 0, "{what}: {done:?}");
            let done = reader.run(&["check", "-f", format, &image]);
            assert!([0, 63].contains(&done.code), "{what}: {done:?}");
            if format != "vhdx" {
                // VHDX images have no map with qemu-img.
                let words = ["map", "-f", format, "--output=json", &image];
                let (ours, theirs) = (pair.ours.run(&words), pair.theirs.run(&words));
                let (ours, theirs) = (data_of(&ours.output), data_of(&theirs.output));
                assert!(covers(&ours, &source), "{what}: ours {ours:?}, theirs {theirs:?}");
                assert!(covers(&theirs, &source), "{what}: ours {ours:?}, theirs {theirs:?}");
            }
        }
    }
}

/// Whether everything that is not zero is told as data. Where zeroes are told as data differs: either asks the file for its
/// holes where it expects many.
fn covers(runs: &[(u64, u64)], source: &[u8]) -> bool {
    source.chunks(512).enumerate().filter(|(_, sector)| sector.iter().any(|&byte| byte != 0)).all(
        |(number, _)| {
            let at = number as u64 * 512;
            runs.iter().any(|run| run.0 <= at && at < run.1)
        },
    )
}

/// Where data is, by offsets of the disk.
fn data_of(map: &str) -> Vec<(u64, u64)> {
    let list: serde_json::Value = serde_json::from_str(map).expect(map);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for entry in list.as_array().expect("an array") {
        if entry["zero"] == true {
            continue;
        }
        let start = entry["start"].as_u64().expect("a number");
        let end = start + entry["length"].as_u64().expect("a number");
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

#[test]
fn compressed_images_are_read_by_the_other() {
    let Some(pair) = Pair::new() else { return };
    let noise = pattern(4 << 20);
    // What does not get smaller stays as it is in qcow2, and has no place in a stream.
    let text = b"text to compress".repeat(1 << 16);
    for (format, options) in
        [("qcow2", ""), ("qcow2", "compression_type=zstd"), ("vmdk", "subformat=streamOptimized")]
    {
        for (writer, reader) in [(&pair.ours, &pair.theirs), (&pair.theirs, &pair.ours)] {
            let mut source = if format == "qcow2" { noise.clone() } else { vec![0; 4 << 20] };
            source[1 << 20..2 << 20].copy_from_slice(&text);
            writer.write("source", &source);
            convert(writer, "raw", format, options, "image", &["-c"]);
            reader.write("source", &source);
            let image = writer.path("image");
            let done = reader.run(&["compare", "-f", "raw", "-F", format, "source", &image]);
            assert_eq!(done.code, 0, "{format} {options} by {}: {done:?}", writer.name);
            assert!(std::fs::metadata(&image).unwrap().len() < source.len() as u64);
        }
    }
}

#[test]
fn encrypted_images_are_read_by_the_other() {
    let Some(pair) = Pair::new() else { return };
    let source = pattern(3 << 20);
    let secret = "secret,id=s,data=abc";
    for (format, options, key) in [
        ("luks", "key-secret=s,iter-time=10", "key-secret"),
        ("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "encrypt.key-secret"),
    ] {
        for (writer, reader) in [(&pair.ours, &pair.theirs), (&pair.theirs, &pair.ours)] {
            writer.write("source", &source);
            convert(writer, "raw", format, options, "image", &["--object", secret]);
            let (plain, image) = (writer.path("source"), writer.path("image"));
            let first = format!("driver=raw,file.filename={plain}");
            let second = format!("driver={format},{key}=s,file.filename={image}");
            let done = reader.run(&["compare", "--object", secret, "--image-opts", &first, &second]);
            assert_eq!(done.code, 0, "{format} by {}: {done:?}", writer.name);
            let head = std::fs::read(&image).unwrap();
            assert!(!head.windows(512).any(|window| window == &source[..512]), "it is encrypted");
        }
    }
}

#[test]
fn a_copy_over_a_backing_file_has_only_its_own() {
    let Some(pair) = Pair::new() else { return };
    let ours = &pair.ours;
    ours.write("source", &pattern(2 << 20));
    convert(ours, "raw", "qcow2", "", "base", &[]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"]);
    ours.write("source", &[7; 65536]);
    ours.succeed(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", "top"]);
    for (name, words) in [
        ("one", &["convert", "-O", "qcow2", "-B", "base", "-F", "qcow2", "top", "one"][..]),
        ("two", &["convert", "-O", "qcow2", "-o", "backing_file=base,backing_fmt=qcow2", "top", "two"][..]),
    ] {
        ours.succeed(words);
        let same = pair.theirs.run(&["compare", &ours.path("top"), &ours.path(name)]);
        assert_eq!(same.code, 0, "{name}: {same:?}");
        assert!(std::fs::metadata(ours.path(name)).unwrap().len() < 1 << 20, "{name} has its own data only");
    }
}

#[test]
fn images_that_qemu_made_are_written_into() {
    let Some(pair) = Pair::new() else { return };
    for (format, options) in KINDS.into_iter().filter(|(format, _)| *format != "raw") {
        let options = if options.is_empty() { "size=6M".to_owned() } else { format!("{options},size=6M") };
        pair.theirs.succeed(&["create", "-q", "-f", format, "-o", &options, "image"]);
        let image = pair.theirs.path("image");
        let source = pattern(6 << 20);
        pair.ours.write("source", &source);
        pair.ours.succeed(&["convert", "-n", "-f", "raw", "-O", format, "source", &image]);
        pair.theirs.write("source", &source);
        let done = pair.theirs.run(&["compare", "-f", "raw", "-F", format, "source", &image]);
        assert_eq!(done.code, 0, "{format} {options}: {done:?}");
        let done = pair.theirs.run(&["check", "-f", format, &image]);
        assert!([0, 63].contains(&done.code), "{format} {options}: {done:?}");
    }
}

#[test]
fn commit_and_rebase_keep_the_content() {
    let Some(pair) = Pair::new() else { return };
    let ours = &pair.ours;
    ours.write("source", &pattern(3 << 20));
    convert(ours, "raw", "qcow2", "", "base.qcow2", &[]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "4M"]);
    let other = pattern(2 << 20).into_iter().map(|byte| byte ^ 0x55).collect::<Vec<u8>>();
    ours.write("source", &other);
    ours.succeed(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", "top.qcow2"]);
    ours.succeed(&["convert", "-O", "raw", "top.qcow2", "before"]);
    // To another base, and to none.
    ours.succeed(&["create", "-q", "-f", "qcow2", "empty.qcow2", "4M"]);
    for (backing, format) in [("empty.qcow2", "qcow2"), ("base.qcow2", "qcow2")] {
        ours.succeed(&["rebase", "-b", backing, "-F", format, "top.qcow2"]);
        let same = pair.theirs.run(&["compare", "-f", "raw", &ours.path("before"), &ours.path("top.qcow2")]);
        assert_eq!(same.code, 0, "{same:?}");
        ours.succeed(&["check", "top.qcow2"]);
    }
    ours.succeed(&["commit", "-q", "-d", "top.qcow2"]);
    let same = pair.theirs.run(&["compare", "-f", "raw", &ours.path("before"), &ours.path("base.qcow2")]);
    assert_eq!(same.code, 0, "{same:?}");
    ours.succeed(&["check", "base.qcow2"]);
    ours.succeed(&["rebase", "-b", "", "top.qcow2"]);
    assert!(!ours.succeed(&["info", "top.qcow2"]).contains("backing file"));
    let same = pair.theirs.run(&["compare", "-f", "raw", &ours.path("before"), &ours.path("top.qcow2")]);
    assert_eq!(same.code, 0, "{same:?}");
}

/// Bytes of data that the image at the top of a chain has itself.
fn own_data(tool: &Tool, name: &str) -> u64 {
    let map = tool.succeed(&["map", "--output=json", name]);
    let list: serde_json::Value = serde_json::from_str(&map).expect(&map);
    let own = |entry: &&serde_json::Value| entry["depth"] == 0 && entry["data"] == true;
    list.as_array().expect("an array").iter().filter(own).filter_map(|entry| entry["length"].as_u64()).sum()
}

#[test]
fn a_commit_takes_what_lies_between() {
    let Some(pair) = Pair::new() else { return };
    for tool in [&pair.ours, &pair.theirs] {
        tool.write("source", &pattern(3 << 20));
        convert(tool, "raw", "qcow2", "", "base", &[]);
        // Between them is a smaller one, behind whose end the top reads as zeroes.
        for (below, name, size) in [("base", "between", "2M"), ("between", "top", "4M")] {
            tool.succeed(&["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name, size]);
        }
        for (name, own) in [("between", [5; 200_000].as_slice()), ("top", &[9; 70_000])] {
            tool.write("source", own);
            tool.succeed(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", name]);
        }
        tool.succeed(&["convert", "-O", "raw", "top", "before"]);
        tool.succeed(&["commit", "-q", "-b", "base", "top"]);
        for name in ["top", "base"] {
            tool.succeed(&["compare", "-f", "raw", "before", name]);
            tool.succeed(&["check", name]);
        }
        // What was committed into the image right below is there only.
        assert_eq!(own_data(tool, "top"), 131_072);
        tool.succeed(&["commit", "-q", "-d", "top"]);
        assert_eq!(own_data(tool, "top"), 131_072);
        tool.succeed(&["commit", "-q", "top"]);
        assert_eq!(own_data(tool, "top"), 0);
        tool.succeed(&["compare", "-f", "raw", "before", "top"]);
        tool.succeed(&["check", "top"]);
    }
    let same = pair.theirs.run(&["compare", &pair.theirs.path("base"), &pair.ours.path("base")]);
    assert_eq!(same.code, 0, "{same:?}");
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let ours = Tool::ours();
    let source = pattern(8 << 20);
    ours.write("source", &source);
    for (format, option) in [("qcow2", "lazy_refcounts=off"), ("vmdk", "subformat=twoGbMaxExtentFlat")] {
        let mut child = Command::new(&ours.program)
            .args(["convert", "-f", "raw", "-r", "1M", "-O", format, "-o", option, "source", "target"])
            .current_dir(&ours.folder)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        while !std::path::Path::new(&ours.path("target")).exists()
            && began.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(200));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{format}");
        let left: Vec<_> =
            std::fs::read_dir(&ours.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let left: Vec<_> = left.into_iter().filter(|name| name != "qemu-img" && name != "source").collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(std::fs::read(ours.path("source")).unwrap() == source);
    }
}

/// A child that copies slowly, once it has begun and then been interrupted: its exit code and what it said.
fn interrupt(tool: &Tool, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(&tool.program);
    command.args(["convert", "-f", "raw", "-r", "1M", "-O"]).args(words).current_dir(&tool.folder);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_interruption_says_what_it_leaves() {
    let ours = Tool::ours();
    ours.write("source", &pattern(8 << 20));
    // A target that was not made by the copy stays, and is told to be incomplete.
    ours.succeed(&["create", "-q", "-f", "qcow2", "target", "8M"]);
    let said = interrupt(&ours, &["qcow2", "-n", "source", "target"]);
    assert_eq!(said, (Some(130), "qemu-img: interrupted; 'target' is not complete\n".to_owned()));
    ours.succeed(&["check", "target"]);
    // One that a link leads to is removed as the file that it is.
    std::fs::create_dir(ours.path("folder")).unwrap();
    std::os::unix::fs::symlink("folder/real", ours.path("link")).unwrap();
    let said = interrupt(&ours, &["qcow2", "source", "link"]);
    assert_eq!(said, (Some(130), "qemu-img: interrupted; nothing is lost\n".to_owned()));
    assert_eq!(std::fs::read_dir(ours.path("folder")).unwrap().count(), 0);
}

#[test]
fn every_long_command_can_be_interrupted() {
    let ours = Tool::ours();
    ours.write("source", &pattern(16 << 20));
    ours.succeed(&["create", "-q", "-f", "qcow2", "base", "16M"]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"]);
    ours.succeed(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", "top"]);
    for line in [
        "commit -r 4M top",
        "resize -q --preallocation=full top 64G",
        "create -q -f qcow2 -o preallocation=full new 64G",
        "create -q -f raw -o preallocation=full new 64G",
        "bench -q -w -f qcow2 -c 1000000000 -s 4096 -S 0 scratch",
    ] {
        ours.succeed(&["create", "-q", "-f", "qcow2", "scratch", "1M"]);
        let mut command = Command::new(&ours.program);
        let child = command.args(line.split(' ')).current_dir(&ours.folder).stdin(Stdio::null());
        let child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{line}: {output:?}");
        assert!(!std::path::Path::new(&ours.path("new")).exists(), "{line}");
        for image in ["base", "top", "scratch"] {
            ours.succeed(&["check", image]);
        }
        ours.succeed(&["compare", "-f", "raw", "-F", "qcow2", "source", "top"]);
    }
}

/// A command that is interrupted after some time: its exit code, and none where the signal came before it looked for one.
fn interrupted(tool: &Tool, words: &[&str], after: Duration) -> Option<i32> {
    let mut command = Command::new(&tool.program);
    command.args(words).current_dir(&tool.folder).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    // It has ended already, perhaps.
    let _ =
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT);
    child.wait().unwrap().code()
}

#[test]
fn an_interruption_loses_nothing_whenever_it_comes() {
    let ours = Tool::ours();
    let source = pattern(48 << 20);
    ours.write("source", &source);
    ours.succeed(&["convert", "-f", "raw", "-O", "qcow2", "source", "one"]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "two", "48M"]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "one", "-F", "qcow2", "top"]);
    let password = ["--object", "secret,id=s,data=abc", "--object", "secret,id=n,data=new"];
    let luks = [&password[..], &["-f", "luks", "-o", "key-secret=s,iter-time=10", "locked", "1M"]].concat();
    ours.succeed(&[&["create", "-q"][..], &luks].concat());
    let mut stopped = [0; 4];
    for round in 0..12 {
        let after = Duration::from_millis(2 + 6 * round);
        let to = if round % 2 == 0 { "two" } else { "one" };
        let compat = if round % 2 == 0 { "compat=0.10" } else { "compat=1.1" };
        let new_slot =
            [&["amend"][..], &password, &["--image-opts", "-o", "state=active,new-secret=n,iter-time=200"]];
        let new_slot = [&new_slot.concat()[..], &["driver=luks,file.filename=locked,key-secret=s"]].concat();
        let lines: [&[&str]; 4] = [
            &["rebase", "-f", "qcow2", "-b", to, "-F", "qcow2", "top"],
            &["amend", "-f", "qcow2", "-o", compat, "top"],
            &["dd", "-f", "raw", "-O", "qcow2", "bs=64k", "if=source", "of=copy"],
            &new_slot,
        ];
        for (line, count) in lines.iter().zip(&mut stopped) {
            let code = interrupted(&ours, line, after);
            assert!(matches!(code, None | Some(0 | 130)), "{line:?}: {code:?}");
            *count += u32::from(code == Some(130));
            if line[0] == "dd" && code == Some(130) {
                assert!(!std::path::Path::new(&ours.path("copy")).exists(), "the copy is left");
            }
        }
        // There are eight slots: the new one, where it was made, makes room again.
        let old_slot = [&["amend"][..], &password, &["--image-opts", "-o", "state=inactive,old-secret=n"]];
        ours.run(&[&old_slot.concat()[..], &["driver=luks,file.filename=locked,key-secret=s"]].concat());
        ours.succeed(&["check", "-q", "top"]);
        ours.succeed(&["compare", "-f", "raw", "-F", "qcow2", "source", "top"]);
        let open =
            [&["compare"][..], &password, &["--image-opts", "driver=luks,file.filename=locked,key-secret=s"]];
        ours.succeed(&[&open.concat()[..], &["driver=luks,file.filename=locked,key-secret=s"]].concat());
    }
    assert!(std::fs::read(ours.path("source")).unwrap() == source);
    // Of an amendment of a header there is not much to interrupt.
    assert!(stopped[0] > 0 && stopped[2] > 0, "{stopped:?} interruptions");
}

#[test]
fn an_image_outlives_a_mistake_in_its_successor_s_options() {
    let ours = Tool::ours();
    ours.write("source", &pattern(1 << 20));
    ours.write("old", b"an image that somebody needs");
    for words in [
        "create -f qcow2 -o cluster_size=3 old 1M",
        "create -f luks -o key-secret=none old 1M",
        "create -f raw -o preallocation=metadata old 1M",
        "create -f vdi -o static=perhaps old 1M",
        "create -f vhdx old 100T",
        "create -f vpc old 100T",
        "create -f vmdk -o subformat=none old 1M",
        "convert -f raw -O vmdk -o subformat=none source old",
        "convert -f raw -O qcow2 -B nowhere -F qcow2 source old",
        "dd -f raw -O nothing if=source of=old",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let done = ours.run(&words);
        assert_eq!(done.code, 1, "{words:?}: {done:?}");
        assert!(std::fs::read(ours.path("old")).unwrap() == b"an image that somebody needs", "{words:?}");
    }
    // What is right takes its place, with nothing left of it.
    ours.succeed(&["create", "-q", "-f", "raw", "old", "1M"]);
    assert!(std::fs::read(ours.path("old")).unwrap() == vec![0; 1 << 20]);
}

#[test]
fn output_that_cannot_be_written_is_told() {
    let ours = Tool::ours();
    ours.write("source", &pattern(1 << 20));
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |words: &[&str], errors: Stdio| {
        let mut command = Command::new(&ours.program);
        command.args(words).current_dir(&ours.folder).stdin(Stdio::null()).stdout(full()).stderr(errors);
        command.output().unwrap()
    };
    let info = run(&["info", "-f", "raw", "source"], Stdio::piped());
    assert_eq!(info.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&info.stderr), "standard output: No space left on device\n");
    // How far it is matters less than the copy.
    let copy = run(&["convert", "-p", "-f", "raw", "-O", "qcow2", "source", "copy"], full().into());
    assert_eq!(copy.status.code(), Some(0));
    ours.succeed(&["compare", "-f", "raw", "-F", "qcow2", "source", "copy"]);
    // A warning that nobody can read ends nothing.
    let resized = run(&["resize", "-q", "source", "2M"], full().into());
    assert_eq!(resized.status.code(), Some(0));
}

#[test]
fn it_answers_by_both_names() {
    let umbra = Command::new(env!("CARGO_BIN_EXE_umbra")).args(["image", "bogus"]).output().unwrap();
    let text = String::from_utf8_lossy(&umbra.stderr);
    assert_eq!(text, "umbra image: Command not found: bogus\nTry 'umbra image --help' for more info\n");
    let ours = Tool::ours();
    assert!(ours.succeed(&["--version"]).starts_with("qemu-img version 10.0"));
    assert!(ours.succeed(&["convert", "--help"]).contains("--target-is-zero"));
    ours.succeed(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    ours.succeed(&["snapshot", "-c", "first", "a.qcow2"]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2"]);
    let tree = ours.succeed(&["tree", "b.qcow2"]);
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[0].starts_with("a.qcow2 (qcow2, 1 MiB;"), "{tree}");
    assert!(lines[1].starts_with("├─ snapshot 1 'first', 20"), "{tree}");
    assert!(lines[2].starts_with("└─ b.qcow2 (qcow2, 1 MiB;"), "{tree}");
    let before = std::fs::read(ours.path("a.qcow2")).unwrap();
    assert!(ours.succeed(&["resize", "--dry-run", "a.qcow2", "2M"]).contains("from 1 MiB to 2 MiB"));
    assert!(std::fs::read(ours.path("a.qcow2")).unwrap() == before, "a dry run changes nothing");
}

#[test]
fn an_image_may_not_name_files_where_that_is_refused() {
    let ours = Tool::ours();
    ours.succeed(&["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    ours.succeed(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    ours.succeed(&["map", "top.qcow2"]);
    let refused = ours.run(&["map", "--no-implicit-backing", "top.qcow2"]);
    assert_eq!(refused.code, 1);
    assert!(refused.errors.contains("base.qcow2"), "{refused:?}");
}
