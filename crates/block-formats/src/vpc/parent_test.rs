//! Differencing images: made here of growing ones, as other programs make them.

use umbra_block::{Access, Disk, Environment, Error, FileSpec, FileStorageSpec, NodeSpec, StorageExt};
use zerocopy::{FromBytes, IntoBytes};

use super::super::header::{DIFFERENCING, Dynamic, Footer};
use crate::model_test::{Files, create, environment, open};

/// The sum of [MS-VHD]: ours is private to its module, and another opinion is worth more here.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>()
}

/// An image `base` that begins with ones, and an empty one, `image`, over it; by the parent's name in UTF-16 of either
/// kind.
fn chain(locator: bool, uuid: Option<[u8; 16]>) -> Environment {
    let mut environment = environment();
    create(&environment, "vpc", &[], 4 << 20);
    let disk = open(&environment, "vpc");
    disk.write(0, &[1; 5000]).unwrap();
    disk.close().unwrap();
    let how = FileStorageSpec::new(Access::ReadWrite);
    let base = environment.opener.open(&FileSpec::file("image"), &how).unwrap();
    let read = |at: u64| Footer::read_from_bytes(&base.read_vec(at, 512).unwrap()).unwrap();
    let uuid = uuid.unwrap_or(read(0).uuid);
    create(&environment, "vpc", &[], 4 << 20);
    let top = environment.opener.open(&FileSpec::file("image"), &how).unwrap();
    let mut footer = Footer::read_from_bytes(&top.read_vec(0, 512).unwrap()).unwrap();
    footer.kind = DIFFERENCING.into();
    footer.checksum = 0.into();
    footer.checksum = checksum(footer.as_bytes()).into();
    let mut header = Dynamic::read_from_bytes(&top.read_vec(512, 1024).unwrap()).unwrap();
    header.parent_uuid = uuid;
    let name: Vec<u16> = if locator { r".\base" } else { r"C:\disks\base" }.encode_utf16().collect();
    if locator {
        let bytes: Vec<u8> = name.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let at = top.len().unwrap();
        top.write_at(at, &bytes).unwrap();
        header.locators[0].platform = *b"W2ru";
        header.locators[0].len = (bytes.len() as u32).into();
        header.locators[0].offset = at.into();
    } else {
        let bytes = name.iter().flat_map(|unit| unit.to_be_bytes());
        header.parent_name.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }
    header.checksum = 0.into();
    header.checksum = checksum(header.as_bytes()).into();
    top.write_at(0, footer.as_bytes()).unwrap();
    top.write_at(512, header.as_bytes()).unwrap();
    let files = Files::default();
    files.put("image", top);
    files.put("base", base);
    environment.opener = std::sync::Arc::new(files);
    environment
}

#[test]
fn a_differencing_image_shows_its_parent() {
    for locator in [true, false] {
        let environment = chain(locator, None);
        let disk = Disk::open(&environment, &NodeSpec::new("image", Some("vpc"))).unwrap();
        let mut bytes = [9; 6000];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes[..5000] == [1; 5000] && bytes[5000..] == [0; 1000], "locator {locator}");
        assert_eq!(disk.backing().unwrap().node().name(), "base");
        // It is only read.
        assert!(Disk::open(&environment, &NodeSpec::new("image", Some("vpc")).writable()).is_err());
    }
}

#[test]
fn a_parent_of_another_identity_is_refused() {
    let environment = chain(true, Some([7; 16]));
    let error = Disk::open(&environment, &NodeSpec::new("image", Some("vpc"))).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherParent { .. }), "{error}");
}
