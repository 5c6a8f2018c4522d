use std::os::unix::fs::symlink;

use super::grant::Grant;
use super::{DiskOption, parse};
use crate::protocol::{DiskFile, OpenFile};

fn file(name: &str) -> DiskFile {
    DiskFile { name: name.into(), format: None, read_only: false }
}

#[test]
fn options_are_read() {
    let plain = |name: &str| Ok(DiskOption { file: file(name), serial: String::new() });
    assert_eq!(parse("a.qcow2"), plain("a.qcow2"));
    assert_eq!(parse("a=b/c.qcow2,if=virtio,readonly=off"), plain("a=b/c.qcow2"));
    assert_eq!(parse("one,,two.raw"), plain("one,two.raw"));
    let all = DiskFile { name: "d".into(), format: Some("raw".into()), read_only: true };
    assert_eq!(
        parse("d,serial=web-1,format=raw,readonly=on"),
        Ok(DiskOption { file: all, serial: "web-1".into() })
    );
}

#[test]
fn wrong_options_are_refused_with_a_reason() {
    for (text, word) in [
        ("", "name"),
        (",format=raw", "name"),
        ("d,raw", "`raw`"),
        ("d,cache=none", "`cache=`"),
        ("d,readonly=yes", "on or off"),
        ("d,readonly", "`readonly`"),
        ("d,if=ide", "if=virtio"),
        ("d,format=raw,format=qcow2", "twice"),
        (&"d".repeat(2000), "1024"),
    ] {
        let refused = parse(text).unwrap_err();
        assert!(refused.contains(word), "{text}: {refused}");
    }
}

#[test]
fn a_worker_gets_what_the_user_named_and_what_images_name_for_reading() {
    let folder = std::env::temp_dir().join(format!("umbra-grant-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("other")).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for name in ["image", "extent", "read-only", "other/file"] {
        std::fs::write(path(name), name).unwrap();
    }
    symlink(path("other/file"), path("link")).unwrap();
    let read_only = DiskFile { read_only: true, ..file(&path("read-only")) };
    let mut grant = Grant::new(&[file(&path("image")), read_only]);
    let mut may = |disk, name: &str, write| {
        grant.open(&OpenFile { disk, name: path(name), write }).map(drop).map_err(|e| e.to_string())
    };
    for (disk, name, write, allowed) in [
        (0, "image", true, true),
        (0, "image", false, true),
        (0, "extent", true, true),
        (0, "other/file", false, true),
        (0, "other/file", true, false),
        (0, "link", true, false),
        (0, "missing", false, false),
        (0, "other", false, false),
        (1, "read-only", false, true),
        (1, "read-only", true, false),
        (1, "extent", true, false),
        (2, "image", false, false),
    ] {
        let result = may(disk, name, write);
        assert_eq!(result.is_ok(), allowed, "{disk} {name} {write}: {result:?}");
    }
    for _ in 0..4096 {
        let _ = may(0, "image", false);
    }
    assert!(may(0, "image", false).unwrap_err().contains("too many"));
    let mut ended = Grant::new(&[file(&path("image"))]);
    ended.end();
    assert!(ended.open(&OpenFile { disk: 0, name: path("image"), write: false }).is_err());
    std::fs::remove_dir_all(folder).unwrap();
}
