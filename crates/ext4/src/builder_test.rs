//! File systems that are made, as e2fsprogs sees them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use crate::{Builder, Error, Metadata, Spec, Special};

/// A file that goes away with the value.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("umbra-ext4-{}-{name}", std::process::id())))
    }

    fn begin(&self, size: u64) -> Builder<File> {
        let file = File::options().create(true).truncate(true).write(true).open(&self.0).unwrap();
        file.set_len(size).unwrap();
        Builder::new(file, &spec(size)).unwrap()
    }

    /// What `debugfs` says.
    fn ask(&self, request: &str) -> String {
        let output = Command::new("debugfs").args(["-R", request]).arg(&self.0).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether `e2fsck` finds nothing.
    fn check(&self) {
        let output = Command::new("e2fsck").args(["-fn"]).arg(&self.0).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!said.contains("WARNING") && !said.contains("Fix"), "{said}");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn spec(size: u64) -> Spec {
    Spec { size, uuid: *b"0123456789abcdef", label: "a test".into(), time: 1_700_000_000 }
}

fn meta(mode: u16) -> Metadata {
    Metadata { mode, uid: 70_000, gid: 5, modified: (5_000_000_000, 123), xattrs: Vec::new() }
}

/// Whether the tools are here; on a host without e2fsprogs the boot tests judge.
fn tools() -> bool {
    let found = Command::new("e2fsck").arg("-V").output().is_ok()
        && Command::new("debugfs").arg("-V").output().is_ok();
    if !found {
        eprintln!("skipped: e2fsck and debugfs of the package e2fsprogs are not here");
    }
    found
}

#[test]
fn an_empty_file_system_of_every_size_is_clean() {
    if !tools() {
        return;
    }
    let image = Image::new("empty");
    let (mib, gib) = (1u64 << 20, 1u64 << 30);
    // One group, a last group that is left out, one that is kept, one leader of a flexible group, copies of the superblock.
    for size in
        [16 * mib, 100 * mib, 128 * mib, 129 * mib, 200 * mib, 2 * gib + 3 * mib, 8 * gib + 4097, 100 * gib]
    {
        let (_, summary) = image.begin(size).finish().unwrap();
        assert_eq!(summary.files, 2);
        image.check();
    }
}

#[test]
fn sizes_have_bounds() {
    for size in [0, 8 << 20, (16 << 40) + 1, u64::MAX] {
        assert!(matches!(Builder::new(std::io::Cursor::new(Vec::new()), &spec(size)), Err(Error::Size(_))));
    }
}

#[test]
fn all_kinds_of_files_are_there() {
    if !tools() {
        return;
    }
    let image = Image::new("kinds");
    let mut it = image.begin(256 << 20);
    it.directory(b"/etc/", &meta(0o755)).unwrap();
    let text = b"umbra\n";
    it.file(b"./etc/hostname", &meta(0o640), 6, &mut &text[..]).unwrap();
    it.hard_link(b"etc/name", b"/etc/hostname").unwrap();
    it.symlink(b"short", &meta(0o777), b"etc/hostname").unwrap();
    it.symlink(b"long", &meta(0o777), &[b'x'; 4095]).unwrap();
    it.symlink(b"sixty", &meta(0o777), &[b'y'; 60]).unwrap();
    it.special(b"dev/null", &meta(0o666), Special::Character { major: 1, minor: 3 }).unwrap();
    it.special(b"dev/big", &meta(0o660), Special::Block { major: 259, minor: 70_000 }).unwrap();
    it.special(b"run/pipe", &meta(0o600), Special::Fifo).unwrap();
    it.special(b"run/sock", &meta(0o600), Special::Socket).unwrap();
    let capability = (
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let small = Metadata { xattrs: vec![capability.clone()], ..meta(0o4755) };
    it.file(b"bin/ping", &small, 0, &mut std::io::empty()).unwrap();
    let many = vec![capability, (b"user.long".to_vec(), vec![7; 3000]), (b"user.a".to_vec(), b"b".to_vec())];
    it.file(b"bin/many", &Metadata { xattrs: many, ..meta(0o755) }, 0, &mut std::io::empty()).unwrap();
    let (_, summary) = it.finish().unwrap();
    assert_eq!(summary.files, 2 + 4 + 1 + 3 + 4 + 2);
    image.check();
    assert_eq!(image.ask("cat /etc/name"), "umbra\n");
    let stat = image.ask("stat /etc/hostname");
    for words in ["Links: 2", "Mode:  0640", "User: 70000", "Group:     5", "Size: 6", "crtime: 0x2a05f200"] {
        assert!(stat.contains(words), "{words} in {stat}");
    }
    assert!(image.ask("stat /dev/big").contains("259:70000"), "{}", image.ask("stat /dev/big"));
    assert!(image.ask("stat /dev/null").contains("01:03"), "{}", image.ask("stat /dev/null"));
    assert!(image.ask("stat /short").contains("Fast link dest: \"etc/hostname\""));
    assert!(image.ask("ea_get /bin/many user.a").contains('b'));
    assert!(image.ask("ea_list /bin/ping").contains("security.capability (20)"));
}

#[test]
fn large_files_and_folders_are_clean() {
    if !tools() {
        return;
    }
    let image = Image::new("large");
    let mut it = image.begin(1 << 30);
    // Beyond a group, so that the inode's four runs are not enough where metadata lies between.
    let size = 700u64 << 20;
    let mut pattern = std::io::Read::take(std::io::repeat(0x5a), size);
    it.file(b"large", &meta(0o600), size, &mut pattern).unwrap();
    for number in 0..3000 {
        let name = format!("many/a file with a long name, which is number {number}");
        it.file(name.as_bytes(), &meta(0o600), 3, &mut &b"abc"[..]).unwrap();
        it.directory(format!("folders/{number}").as_bytes(), &meta(0o700)).unwrap();
    }
    it.finish().unwrap();
    image.check();
    assert!(image.ask("stat /large").contains("Size: 734003200"));
    assert_eq!(image.ask("cat \"/many/a file with a long name, which is number 2999\""), "abc");
}

#[test]
fn holes_make_no_blocks_and_many_runs_a_tree() {
    if !tools() {
        return;
    }
    let image = Image::new("holes");
    let mut it = image.begin(1 << 30);
    let mut content = vec![0u8; 512 << 20];
    content.chunks_mut(512 << 10).for_each(|chunk| chunk[0] = 1);
    it.file(b"holes", &meta(0o600), content.len() as u64, &mut content.as_slice()).unwrap();
    let (_, summary) = it.finish().unwrap();
    image.check();
    // Every other chunk of 256 KiB is a hole.
    assert!(summary.used < 350 << 20, "{summary:?}");
    let copy = std::env::temp_dir().join(format!("umbra-ext4-{}-copy", std::process::id()));
    image.ask(&format!("dump /holes {}", copy.display()));
    let same = std::fs::read(&copy).unwrap() == content;
    std::fs::remove_file(copy).unwrap();
    assert!(same);
}

#[test]
fn what_is_replaced_and_removed_gives_its_blocks_back() {
    if !tools() {
        return;
    }
    let image = Image::new("replaced");
    let mut it = image.begin(64 << 20);
    let big = vec![9u8; 4 << 20];
    for _ in 0..3 {
        it.file(b"a/b/file", &meta(0o600), big.len() as u64, &mut big.as_slice()).unwrap();
    }
    it.hard_link(b"kept", b"a/b/file").unwrap();
    it.remove(b"a").unwrap();
    it.file(b"a", &meta(0o600), 5, &mut &b"plain"[..]).unwrap();
    it.hard_link(b"kept", b"kept").unwrap();
    let (_, summary) = it.finish().unwrap();
    image.check();
    assert_eq!(image.ask("cat /a"), "plain");
    assert!(image.ask("stat /kept").contains("Links: 1"));
    assert!(summary.used < 20 << 20, "{summary:?}");
}

#[test]
fn a_full_file_system_says_so() {
    let mut it = Builder::new(std::io::Cursor::new(Vec::new()), &spec(16 << 20)).unwrap();
    let mut endless = std::io::repeat(1);
    assert!(matches!(it.file(b"f", &meta(0o600), 17 << 20, &mut endless), Err(Error::Full)));
    assert!(matches!(it.file(b"f", &meta(0o600), 15 << 20, &mut endless), Err(Error::Full)));
    let mut it = Builder::new(std::io::Cursor::new(Vec::new()), &spec(16 << 20)).unwrap();
    let all = (0..).map(|n| it.symlink(format!("l{n}").as_bytes(), &meta(0o777), b"x")).find(Result::is_err);
    assert!(matches!(all, Some(Err(Error::TooManyFiles(8181)))));
    // What ends before its size is no file.
    let mut it = Builder::new(std::io::Cursor::new(Vec::new()), &spec(16 << 20)).unwrap();
    assert!(matches!(it.file(b"f", &meta(0o600), 6, &mut &b"short"[..]), Err(Error::Content { .. })));
}
