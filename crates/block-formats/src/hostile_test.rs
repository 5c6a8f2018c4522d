//! Images whose parts lie on each other: they are refused, or what is written to them is there.

use std::sync::Arc;

use umbra_block::{
    Access, Disk, Environment, Error, FileSpec, FileStorageSpec, NodeSpec, Result, Storage, StorageExt,
};

use crate::model_test::{create, environment, open};

const SIZE: u64 = 20 << 20;

/// An image of the format with one unit of data, and its file.
fn image(format: &str) -> (Environment, Arc<dyn Storage>) {
    let environment = environment();
    create(&environment, format, &[], SIZE);
    let disk = open(&environment, format);
    disk.write(0, &[1; 4096]).unwrap();
    disk.close().unwrap();
    let file = environment.opener.open(&FileSpec::file("image"), &FileStorageSpec::new(Access::ReadWrite));
    (environment, file.unwrap())
}

/// Opens it for writing, and writes to its first bytes and its middle.
fn write(environment: &Environment, format: &str) -> Result<()> {
    let disk = Disk::open(environment, &NodeSpec::new("image", Some(format)).writable())?;
    for offset in [0, SIZE / 2] {
        disk.write(offset, &[7; 4096])?;
        let mut back = [0; 4096];
        disk.read(offset, &mut back)?;
        assert_eq!(back, [7; 4096], "what was written at {offset} is there");
    }
    disk.close()
}

#[track_caller]
fn refused(environment: &Environment, format: &str) {
    let error = write(environment, format).expect_err("it is refused");
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
}

fn word(file: &dyn Storage, offset: u64) -> u64 {
    let mut bytes = [0; 4];
    file.read_at(offset, &mut bytes).unwrap();
    u32::from_le_bytes(bytes).into()
}

/// Sets a little-endian word, lets `check` look at what comes of it, and puts the old one back.
fn with_word(file: &dyn Storage, offset: u64, value: u32, check: impl FnOnce()) {
    let old = file.read_vec(offset, 4).unwrap();
    file.write_at(offset, &value.to_le_bytes()).unwrap();
    check();
    file.write_at(offset, &old).unwrap();
}

#[test]
fn a_vmdk_whose_directory_is_its_header_is_not_written() {
    // What a fuzzer found: the first new grain would have got the place whose number means "zeroes".
    let mut header = vec![0; 512];
    header[..4].copy_from_slice(b"KDMV");
    for (at, byte) in [(4, 1), (8, 0x27), (13, 0x48), (20, 0x80), (44, 0xae), (49, 0x2f), (50, 0xdb), (54, 9)]
    {
        header[at] = byte;
    }
    let environment = environment();
    let file = environment.opener.create(&FileSpec::file("image")).unwrap();
    file.write_at(0, &header).unwrap();
    refused(&environment, "vmdk");
    assert!(Disk::open(&environment, &NodeSpec::new("image", Some("vmdk"))).is_ok(), "it can be read");
}

#[test]
fn grains_and_tables_of_vmdk_keep_off_each_other() {
    let (environment, file) = image("vmdk");
    let directory = word(&*file, 56) * 512;
    let table = word(&*file, directory) * 512;
    write(&environment, "vmdk").unwrap();
    let behind = u32::try_from(file.len().unwrap().next_multiple_of(65536) / 512).unwrap();
    // A grain on the descriptor, the directory, its own table, and behind the file's end.
    for sector in [2, directory as u32 / 512, table as u32 / 512, behind] {
        with_word(&*file, table, sector, || refused(&environment, "vmdk"));
    }
    // A table on the descriptor, on another table, on the directory, behind the end.
    let other = word(&*file, word(&*file, 48) * 512) as u32;
    for sector in [1, other, directory as u32 / 512, u32::MAX] {
        with_word(&*file, directory, sector, || refused(&environment, "vmdk"));
    }
    write(&environment, "vmdk").unwrap();
}

#[test]
fn a_file_is_a_part_of_a_vmdk_once() {
    let environment = environment();
    let text = environment.opener.create(&FileSpec::file("image")).unwrap();
    let flat = environment.opener.create(&FileSpec::file("flat")).unwrap();
    flat.set_len(SIZE).unwrap();
    let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n";
    let line = |file: &str| format!("RW {} FLAT \"{file}\" 0\n", SIZE / 1024);
    for (files, good) in [(["flat", "image"], false), (["flat", "flat"], false), (["flat", "other"], true)] {
        if good {
            environment.opener.create(&FileSpec::file("other")).unwrap().set_len(SIZE).unwrap();
        }
        let lines: String = files.iter().map(|file| line(file)).collect();
        text.set_len(0).unwrap();
        text.write_at(0, format!("{head}{lines}").as_bytes()).unwrap();
        assert_eq!(write(&environment, "vmdk").is_ok(), good, "{files:?}");
    }
}

#[test]
fn blocks_of_vdi_keep_off_the_table_and_new_ones_off_them() {
    let (environment, file) = image("vdi");
    let (table, data) = (word(&*file, 340), word(&*file, 344));
    assert_eq!(table, 512);
    // Block 1, behind the end of the file: a new block goes behind it.
    with_word(&*file, table + 4, 5, || {
        write(&environment, "vdi").unwrap();
        assert_eq!(word(&*file, table + 4 * 10), 6, "the block in the middle");
    });
    with_word(&*file, 344, data as u32 - 512, || {
        let error = write(&environment, "vdi").unwrap_err();
        assert!(error.to_string().contains("table"), "{error}");
    });
}

#[test]
fn blocks_of_vhd_keep_off_its_tables() {
    let (environment, file) = image("vpc");
    for sector in [0u32, 1, 2] {
        with_word(&*file, 1536, sector.swap_bytes(), || refused(&environment, "vpc"));
    }
    write(&environment, "vpc").unwrap();
}

#[test]
fn blocks_of_vhdx_keep_off_its_regions() {
    let (environment, file) = image("vhdx");
    let table = 3 << 20;
    let entry = word(&*file, table);
    assert_eq!(entry & 0xf_ffff, 6, "a block that is present");
    // The log, the metadata, the table.
    for mib in [1, 2, 3] {
        with_word(&*file, table, mib << 20 | 6, || refused(&environment, "vhdx"));
    }
    write(&environment, "vhdx").unwrap();
}
