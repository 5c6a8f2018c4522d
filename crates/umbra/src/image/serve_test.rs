use std::io;

use super::{LINES, Named, Quota, named};

#[test]
fn names_stand_before_the_image() {
    for (word, name, image) in [
        ("disk.qcow2", "", "disk.qcow2"),
        ("a=disk.qcow2", "a", "disk.qcow2"),
        ("a b=x=y", "a b", "x=y"),
        ("./a=b", "", "./a=b"),
        ("/tmp/a=b", "", "/tmp/a=b"),
        ("nbd+unix:///e?socket=s", "", "nbd+unix:///e?socket=s"),
        ("a=nbd+unix:///e?socket=s", "a", "nbd+unix:///e?socket=s"),
        ("json:{\"driver\":\"raw\",\"x\":\"a=b\"}", "", "json:{\"driver\":\"raw\",\"x\":\"a=b\"}"),
        ("=a", "", "=a"),
    ] {
        assert_eq!(named(word, false), Named { name: name.into(), image }, "{word}");
    }
    for (word, name, image) in [
        ("driver=raw,file.filename=a", "", "driver=raw,file.filename=a"),
        ("file.filename=a", "", "file.filename=a"),
        ("x=driver=raw,file.filename=a", "x", "driver=raw,file.filename=a"),
    ] {
        assert_eq!(named(word, true), Named { name: name.into(), image }, "{word}");
    }
}

#[test]
fn mistakes_of_clients_do_not_fill_a_log() {
    let quota = Quota::default();
    let error = umbra_nbd::Error::Connection(io::ErrorKind::TimedOut.into());
    let lines = (0..10_000).filter_map(|_| quota.admit(&error)).count();
    assert_eq!(lines, LINES as usize + 1);
}
