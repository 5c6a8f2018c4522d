use crate::cpio::Archive;
use crate::error::BootError;

/// Path, mode, device, data.
type Entry = (String, u32, (u32, u32), Vec<u8>);

/// Each entry, as a kernel reads it.
fn read(mut archive: &[u8]) -> Vec<Entry> {
    let whole = archive.len();
    let mut out = Vec::new();
    loop {
        assert_eq!((whole - archive.len()) % 4, 0, "headers are aligned");
        let (header, rest) = archive.split_at(110);
        assert_eq!(&header[..6], b"070701");
        let field = |i: usize| {
            u32::from_str_radix(std::str::from_utf8(&header[6 + i * 8..14 + i * 8]).unwrap(), 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let name = String::from_utf8(rest[..name_size - 1].to_vec()).unwrap();
        let data_start = (110 + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert!(rest[name_size..].iter().all(|b| *b == 0));
            return out;
        }
        let data = archive[data_start..data_start + size].to_vec();
        out.push((name, mode, (field(9), field(10)), data));
        archive = &archive[(data_start + size).next_multiple_of(4)..];
    }
}

fn sample() -> Archive<'static> {
    Archive::new()
        .dir("proc", 0o555)
        .file("bin/busybox", 0o755, b"\x7fELF.".as_slice())
        .symlink("/bin/sh", "busybox")
        .char_device("dev/console", 0o600, 5, 1)
        .file("etc/deep/er/file", 0o644, vec![b'x'; 1001])
        .dir("etc", 0o700)
}

#[test]
fn what_goes_in_comes_out() {
    let archive = sample().finish().unwrap();
    assert_eq!(archive.len() % 512, 0);
    let entries = read(&archive);
    let listing: Vec<_> = entries.iter().map(|(p, m, d, data)| (p.as_str(), *m, *d, data.len())).collect();
    let expected = [
        ("proc", 0o40555, (0, 0), 0),
        ("bin", 0o40755, (0, 0), 0),
        ("bin/busybox", 0o100755, (0, 0), 5),
        ("bin/sh", 0o120777, (0, 0), 7),
        ("dev", 0o40755, (0, 0), 0),
        ("dev/console", 0o20600, (5, 1), 0),
        ("etc", 0o40755, (0, 0), 0),
        ("etc/deep", 0o40755, (0, 0), 0),
        ("etc/deep/er", 0o40755, (0, 0), 0),
        ("etc/deep/er/file", 0o100644, (0, 0), 1001),
    ];
    assert_eq!(listing, expected);
    assert_eq!(entries[2].3, b"\x7fELF.");
    assert_eq!(entries[3].3, b"busybox");
}

#[test]
fn the_same_entries_are_the_same_bytes() {
    assert_eq!(sample().finish().unwrap(), sample().finish().unwrap());
    // One entry in full: this is the format.
    let one = Archive::new().file("a", 0o644, b"hi".as_slice()).finish().unwrap();
    let text = "07070100000001000081a400000000000000000000000100000000000000020000000000000000\
                00000000000000000000000200000000a\0hi\0\0\x3070701";
    assert_eq!(std::str::from_utf8(&one[..text.len()]).unwrap(), text);
}

#[test]
fn an_empty_archive_is_a_trailer() {
    assert!(read(&Archive::new().finish().unwrap()).is_empty());
}

#[test]
fn impossible_paths_are_refused() {
    for path in ["", "/", "a//b", "../etc/passwd", "a/../b", "a\0b", "TRAILER!!!", &"x".repeat(4096)] {
        let e = Archive::new().file(path, 0o644, b"".as_slice()).finish().unwrap_err();
        assert!(matches!(e, BootError::Archive { .. }), "{path:?}: {e}");
    }
    let twice = Archive::new().file("a", 0o644, b"".as_slice()).symlink("a", "b").finish();
    assert!(matches!(twice, Err(BootError::Archive { reason: "it is there twice", .. })));
}
