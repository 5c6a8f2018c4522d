use super::{Descriptor, EXTENTS_MAX, ExtentLine, Kind, New};

fn line(kind: Kind, word: &str, file: &str) -> ExtentLine {
    ExtentLine { kind, word: word.into(), sectors: 2048, file: file.into(), offset: 0 }
}

#[test]
fn what_is_written_is_read() {
    let extents = [line(Kind::Flat, "FLAT", "a-f001.vmdk"), line(Kind::Sparse, "SPARSE", "a b.vmdk")];
    let new = New {
        cid: 0x1234_abcd,
        parent: Some((7, "base.vmdk")),
        create_type: "custom",
        extents: &extents,
        sectors: 4096,
        adapter: "ide",
        hardware: "4",
        tools: "1",
    };
    let text = new.text();
    let read = Descriptor::parse(&text).unwrap();
    assert_eq!(
        (read.cid, read.parent_cid, read.parent.as_deref()),
        (0x1234_abcd, Some(7), Some("base.vmdk"))
    );
    assert_eq!((read.create_type.as_str(), &read.extents[..]), ("custom", &extents[..]));
    let changed = Descriptor::with_cid(&text, "CID", 0xfeed).unwrap();
    assert_eq!(changed.len(), text.len());
    assert_eq!(Descriptor::parse(&changed).unwrap().cid, 0xfeed);
}

#[test]
fn what_is_wrong_is_refused() {
    let head = "CID=1\nparentCID=ffffffff\ncreateType=\"x\"\n";
    assert_eq!(Descriptor::parse(head).unwrap().parent_cid, None);
    for bad in [
        "RW x SPARSE \"a\"",
        "RW 0 SPARSE \"a\"",
        "RW 18446744073709551615 SPARSE \"a\"",
        "RW 8 SPARSE a",
        "RW 8 MAGIC \"a\"",
        "RW 8 FLAT \"a\" x",
        "RW",
        "parentCID=zz",
    ] {
        assert!(Descriptor::parse(&format!("{head}{bad}\n")).is_err(), "{bad}");
    }
    assert!(Descriptor::parse("createType=\"x\"\n").is_err());
    let many = "RW 8 ZERO\n".repeat(EXTENTS_MAX + 1);
    assert!(Descriptor::parse(&format!("{head}{many}")).is_err());
}
