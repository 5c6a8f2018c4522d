//! Differencing images: made here of plain ones, as other programs make them.

use umbra_block::{
    Access, Disk, Environment, Error, FileSpec, FileStorageSpec, NodeSpec, Storage, StorageExt,
};

use super::super::layout::{self, FILE_PARAMETERS, Header, LOCATOR_VHDX, PARENT_LOCATOR};
use crate::model_test::{Files, create, environment, open};

/// Where the locator is put in the region of metadata: behind what is there.
const LOCATOR_AT: u32 = 0x2_0000;

/// A locator with these pairs.
fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = LOCATOR_VHDX.to_vec();
    bytes.extend([0, 0]);
    bytes.extend((pairs.len() as u16).to_le_bytes());
    let mut texts = Vec::new();
    let start = 20 + 12 * pairs.len();
    for (key, value) in pairs {
        let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (key, value) = (units(key), units(value));
        bytes.extend(((start + texts.len()) as u32).to_le_bytes());
        bytes.extend(((start + texts.len() + key.len()) as u32).to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend((value.len() as u16).to_le_bytes());
        texts.extend([key, value].concat());
    }
    bytes.extend(texts);
    bytes
}

/// Makes an empty image one with a parent.
fn give_parent(top: &dyn Storage, pairs: &[(&str, &str)]) {
    let (_, region) = layout::regions(top).unwrap();
    let mut table = top.read_vec(region.offset, 4096).unwrap();
    let count = usize::from(u16::from_le_bytes([table[10], table[11]]));
    let entries = 32..32 + 32 * count;
    let parameters =
        table[entries.clone()].chunks_exact(32).find(|entry| entry[..16] == FILE_PARAMETERS).unwrap();
    let at = u32::from_le_bytes(parameters[16..20].try_into().unwrap());
    // The flag of a parent.
    top.write_at(region.offset + u64::from(at) + 4, &[2]).unwrap();
    let bytes = locator(pairs);
    top.write_at(region.offset + u64::from(LOCATOR_AT), &bytes).unwrap();
    let entry = [
        &PARENT_LOCATOR[..],
        &LOCATOR_AT.to_le_bytes(),
        &(bytes.len() as u32).to_le_bytes(),
        &[4, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    table[entries.end..entries.end + 32].copy_from_slice(&entry);
    table[10..12].copy_from_slice(&(count as u16 + 1).to_le_bytes());
    top.write_at(region.offset, &table).unwrap();
}

/// `{01234567-89AB-...}` of a GUID.
fn text_of(guid: &[u8; 16]) -> String {
    let digits = super::of_guid(guid);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("{{{}}}", parts.join("-").to_uppercase())
}

/// An image `base` that begins with ones, and an empty one, `image`, over it.
fn chain(linkage: Option<&str>) -> Environment {
    let mut environment = environment();
    create(&environment, "vhdx", &[], 4 << 20);
    let disk = open(&environment, "vhdx");
    disk.write(0, &[1; 5000]).unwrap();
    disk.close().unwrap();
    let how = FileStorageSpec::new(Access::ReadWrite);
    let base = environment.opener.open(&FileSpec::file("image"), &how).unwrap();
    let own = text_of(&Header::read(&*base).unwrap().1.data_write);
    // What is not there shows the parent; the usual state of blocks here is "zero".
    create(&environment, "vhdx", &[("block_state_zero", "off")], 4 << 20);
    let top = environment.opener.open(&FileSpec::file("image"), &how).unwrap();
    let linkage = linkage.unwrap_or(&own);
    let pairs = [
        ("absolute_win32_path", r"\\?\C:\disks\base"),
        ("parent_linkage", linkage),
        ("relative_path", r".\base"),
    ];
    give_parent(&*top, &pairs);
    let files = Files::default();
    files.put("image", top);
    files.put("base", base);
    environment.opener = std::sync::Arc::new(files);
    environment
}

#[test]
fn a_differencing_image_shows_its_parent() {
    let environment = chain(None);
    let disk = Disk::open(&environment, &NodeSpec::new("image", Some("vhdx"))).unwrap();
    let mut bytes = [9; 6000];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes[..5000] == [1; 5000] && bytes[5000..] == [0; 1000]);
    assert_eq!(disk.backing().unwrap().node().name(), "base");
    // It is only read.
    assert!(Disk::open(&environment, &NodeSpec::new("image", Some("vhdx")).writable()).is_err());
}

#[test]
fn a_parent_that_was_written_since_is_refused() {
    let environment = chain(None);
    let base = Disk::open(&environment, &NodeSpec::new("base", Some("vhdx")).writable()).unwrap();
    base.write(0, &[2; 512]).unwrap();
    base.close().unwrap();
    let error = Disk::open(&environment, &NodeSpec::new("image", Some("vhdx"))).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherParent { .. }), "{error}");
    let environment = chain(Some("{00112233-4455-6677-8899-AABBCCDDEEFF}"));
    let error = Disk::open(&environment, &NodeSpec::new("image", Some("vhdx"))).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherParent { .. }), "{error}");
}
