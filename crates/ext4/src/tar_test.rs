//! Archives as programs write them, and such as nobody should.

use std::io::{Cursor, Read};

use tar::{EntryType, Header};

use crate::tar::{Archive, Kind};
use crate::{Builder, Error, Spec, Special};

fn header(path: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o100_644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    // Not through the crate, which refuses what is hostile.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    header
}

fn put(to: &mut Vec<u8>, header: &Header, content: &[u8]) {
    to.extend(header.as_bytes());
    to.extend(content);
    to.resize(to.len().next_multiple_of(512), 0);
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| len.to_string().len() + rest == *len).unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

#[test]
fn entries_and_their_contents_are_read() {
    let mut bytes = Vec::new();
    put(&mut bytes, &header("folder/", EntryType::Directory, 0), b"");
    put(&mut bytes, &header("file", EntryType::Regular, 5), b"hello");
    let mut link = header("link", EntryType::Symlink, 0);
    link.set_link_name("file").unwrap();
    link.set_cksum();
    put(&mut bytes, &link, b"");
    let mut device = header("null", EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    put(&mut bytes, &device, b"");
    bytes.resize(bytes.len() + 1024, 0);
    let mut archive = Archive::new(bytes.as_slice());
    let mut kinds = Vec::new();
    while let Some(entry) = archive.next_entry().unwrap() {
        let mut content = String::new();
        archive.read_to_string(&mut content).unwrap();
        assert_eq!((entry.metadata.mode, entry.metadata.uid, entry.metadata.gid), (0o644, 1, 2));
        kinds.push((String::from_utf8(entry.path).unwrap(), entry.kind, content));
    }
    let is = |path: &str, kind, content: &str| (path.to_owned(), kind, content.to_owned());
    assert_eq!(
        kinds,
        [
            is("folder/", Kind::Directory, ""),
            is("file", Kind::File(5), "hello"),
            is("link", Kind::Symlink(b"file".to_vec()), ""),
            is("null", Kind::Special(Special::Character { major: 1, minor: 3 }), ""),
        ]
    );
}

#[test]
fn pax_records_count_more_than_the_header() {
    let records = [
        record("path", b"another/name"),
        record("uid", b"4000000"),
        record("size", b"3"),
        record("mtime", b"-1.25"),
        record("SCHILY.xattr.user.x", b"\0\n="),
    ]
    .concat();
    let mut bytes = Vec::new();
    put(&mut bytes, &header("pax", EntryType::XHeader, records.len() as u64), &records);
    put(&mut bytes, &header("file", EntryType::Regular, 0), b"abc");
    put(&mut bytes, &header("next", EntryType::Regular, 0), b"");
    let mut archive = Archive::new(bytes.as_slice());
    let entry = archive.next_entry().unwrap().unwrap();
    assert_eq!((entry.path.as_slice(), entry.kind), (b"another/name".as_slice(), Kind::File(3)));
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (4_000_000, 2));
    assert_eq!(entry.metadata.modified, (-2, 750_000_000));
    assert_eq!(entry.metadata.xattrs, [(b"user.x".to_vec(), b"\0\n=".to_vec())]);
    assert_eq!(archive.next_entry().unwrap().unwrap().path, b"next");
    assert_eq!(archive.next_entry().unwrap(), None);
}

#[test]
fn archives_that_are_none_are_refused() {
    let fails = |bytes: &[u8]| {
        let mut archive = Archive::new(bytes);
        loop {
            match archive.next_entry() {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    };
    assert!(fails(&[b'x'; 512]) && fails(&[0x20; 100]));
    let mut truncated = Vec::new();
    put(&mut truncated, &header("file", EntryType::Regular, 1 << 40), b"abc");
    assert!(fails(&truncated));
    let mut long = Vec::new();
    put(&mut long, &header("long", EntryType::GNULongName, 1 << 40), &[b'a'; 4096]);
    assert!(fails(&long));
    let mut sparse = Vec::new();
    put(&mut sparse, &header("sparse", EntryType::GNUSparse, 0), b"");
    assert!(fails(&sparse));
    // What is behind the greatest size, which a header tells in binary, has no place in a file.
    let mut endless = header("endless/", EntryType::Directory, 0);
    endless.as_old_mut().size = [0xff; 12];
    endless.set_cksum();
    let mut directory = Vec::new();
    put(&mut directory, &endless, b"");
    put(&mut directory, &header("file", EntryType::Regular, 0), b"");
    assert!(fails(&directory));
    let bad = record("mtime", b"tomorrow");
    let mut time = Vec::new();
    put(&mut time, &header("pax", EntryType::XHeader, bad.len() as u64), &bad);
    put(&mut time, &header("file", EntryType::Regular, 0), b"");
    assert!(fails(&time));
}

#[test]
fn an_archive_that_climbs_out_makes_nothing_outside() {
    let spec = Spec { size: 16 << 20, uuid: [1; 16], label: String::new(), time: 0 };
    let mut builder = Builder::new(Cursor::new(Vec::new()), &spec).unwrap();
    let mut bytes = Vec::new();
    put(&mut bytes, &header("../../etc/passwd", EntryType::Regular, 1), b"x");
    let mut archive = Archive::new(bytes.as_slice());
    let entry = archive.next_entry().unwrap().unwrap();
    assert!(matches!(builder.entry(&entry, &mut archive), Err(Error::Name { .. })));
}
