use crate::bzimage::BzImage;
use crate::error::BootError;
use crate::testdata;

#[test]
fn a_good_image_is_read() {
    let file = testdata::bzimage();
    let image = BzImage::parse(&file).unwrap();
    assert_eq!(image.header().version.get(), 0x20f);
    assert_eq!(image.entry_64(), Ok(0x200));
    assert!(image.reaches_above_4g());
    assert_eq!(image.unpacked_max(), 0x40_0000);
    assert_eq!(image.payload().unwrap().unwrap(), testdata::lz4(&testdata::elf()));
}

#[test]
fn other_files_are_named_by_their_first_bytes() {
    let e = BzImage::parse(b"#!/bin/sh\nexec true\n").unwrap_err().to_string();
    assert!(e.contains("expected a bzImage or an ELF file, but it starts with 23 21 2f 62"), "{e}");
    let e = BzImage::parse(b"").unwrap_err().to_string();
    assert!(e.contains("it is empty"), "{e}");
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let file = testdata::bzimage();
    // All but the last paragraph, which some builds leave unfilled.
    for length in 0..=file.len() - 16 {
        let e = BzImage::parse(&file[..length]).unwrap_err();
        match e {
            BootError::NotAKernel { .. } => assert!(length < 0x206, "{length}: {e}"),
            BootError::Truncated { has, .. } => assert_eq!(has, length as u64),
            _ => panic!("{length}: {e}"),
        }
    }
}

#[test]
fn the_last_paragraph_may_be_short() {
    let file = testdata::bzimage_of(testdata::header(), &[1; 17]);
    let cut = &file[..file.len() - 15];
    let image = BzImage::parse(cut).unwrap();
    assert_eq!(image.payload().unwrap().unwrap(), [1; 17]);
}

#[test]
fn a_signature_after_the_code_does_not_matter() {
    let mut file = testdata::bzimage();
    let whole = file.len();
    file.extend_from_slice(&[0x30; 100]);
    let image = BzImage::parse(&file).unwrap();
    assert_eq!(image.code().len(), whole - 5 * 512);
}

#[test]
fn contradictions_are_refused() {
    let with = |change: fn(&mut crate::bzimage::SetupHeader)| {
        let mut header = testdata::header();
        change(&mut header);
        testdata::bzimage_of(header, b"payload")
    };
    let old = with(|h| h.version = 0x202.into());
    assert_eq!(BzImage::parse(&old).unwrap_err(), BootError::OldProtocol { major: 2, minor: 2 });
    let unflagged = with(|h| h.boot_flag = 0.into());
    assert!(matches!(BzImage::parse(&unflagged), Err(BootError::Damaged(_))));
    let zimage = with(|h| h.loadflags = 0);
    assert!(matches!(BzImage::parse(&zimage), Err(BootError::Damaged(_))));
}

#[test]
fn fields_beyond_the_headers_end_are_zero() {
    let mut header = testdata::header();
    header.version = 0x206.into();
    // Ends after cmdline_size.
    header.jump = [0xeb, 0x3a];
    let file = testdata::bzimage_of(header, b"payload");
    let image = BzImage::parse(&file).unwrap();
    assert_eq!(image.header().cmdline_size.get(), 2047);
    assert_eq!(image.header().init_size.get(), 0);
    assert_eq!(image.payload(), Ok(None));
    assert_eq!(image.entry_64(), Err(BootError::No64BitEntry));
    assert_eq!(image.unpacked_max(), 512 << 20);
}

#[test]
fn a_32_bit_kernel_has_no_64_bit_entry() {
    let mut header = testdata::header();
    header.xloadflags = 0.into();
    let file = testdata::bzimage_of(header, b"payload");
    assert_eq!(BzImage::parse(&file).unwrap().entry_64(), Err(BootError::No64BitEntry));
}

#[test]
fn a_payload_outside_the_code_is_refused() {
    let mut file = testdata::bzimage();
    file[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
    let image = BzImage::parse(&file).unwrap();
    assert!(matches!(image.payload(), Err(BootError::Truncated { what: "the packed kernel", .. })));
    file[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(BzImage::parse(&file).unwrap().payload().is_err());
}
