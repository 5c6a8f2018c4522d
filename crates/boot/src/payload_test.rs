use std::io::Write;

use crate::error::BootError;
use crate::payload::unpack;
use crate::testdata::{elf, lz4, with_size};

const MAX: u64 = 64 << 20;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

fn liblzma(stream: liblzma::stream::Stream, data: &[u8]) -> Vec<u8> {
    let mut e = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    e.write_all(data).unwrap();
    with_size(e.finish().unwrap(), data)
}

/// As kernels pack it: CRC32, the x86 filter, LZMA2.
fn xz(data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let mut filters = Filters::new();
    filters.x86();
    filters.lzma2(LzmaOptions::new_preset(1).unwrap().dict_size(1 << 20));
    liblzma(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap(), data)
}

fn lzma(data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{LzmaOptions, Stream};
    liblzma(Stream::new_lzma_encoder(&LzmaOptions::new_preset(6).unwrap()).unwrap(), data)
}

fn zstd(data: &[u8]) -> Vec<u8> {
    with_size(ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest), data)
}

fn all(data: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    [("gzip", gzip(data)), ("xz", xz(data)), ("LZMA", lzma(data)), ("LZ4", lz4(data)), ("zstd", zstd(data))]
}

#[test]
fn every_format_unpacks() {
    let data = elf();
    assert_eq!(unpack(&data, MAX).unwrap(), data);
    for (name, packed) in all(&data) {
        assert!(unpack(&packed, MAX).unwrap() == data, "{name}");
        assert!(unpack(&packed, data.len() as u64).unwrap() == data, "{name}, exactly the limit");
    }
}

#[test]
fn output_is_bounded() {
    let zeroes = vec![0; 3 << 20];
    for (name, packed) in all(&zeroes) {
        let e = unpack(&packed, (3 << 20) - 1).unwrap_err();
        assert!(matches!(e, BootError::UnpacksTooLarge { format, .. } if format == name), "{name}: {e}");
    }
}

#[test]
fn lz4_in_several_blocks() {
    let data: Vec<u8> = (0..(17u32 << 20)).map(|i| (i >> 12) as u8).collect();
    assert!(unpack(&lz4(&data), MAX).unwrap() == data);
    // Two archives, one after the other, are one.
    let mut twice = lz4(b"one ");
    twice.truncate(twice.len() - 4);
    twice.extend(lz4(b"two"));
    assert_eq!(unpack(&twice, MAX).unwrap(), b"one two");
}

#[test]
fn cut_data_never_passes_for_whole() {
    let data = elf();
    for (name, packed) in all(&data) {
        // The appended size may be missing, nothing else; gzip's trailer is checked. LZ4 has no end mark, but its
        // last block is cut.
        for length in (1..packed.len() - 8).step_by(7) {
            match unpack(&packed[..length], MAX) {
                Ok(out) => assert!(out.len() < data.len(), "{name} cut at {length}"),
                Err(BootError::Unpack { .. } | BootError::UnknownCompression(_)) => {}
                Err(e) => panic!("{name} cut at {length}: {e}"),
            }
        }
    }
}

#[test]
fn damage_does_not_panic() {
    let data = elf();
    for (_, packed) in all(&data) {
        for at in (0..packed.len()).step_by(packed.len() / 400 + 1) {
            for value in [0, 0xff, packed[at] ^ 0x10] {
                let mut damaged = packed.clone();
                damaged[at] = value;
                if let Ok(out) = unpack(&damaged, 1 << 20) {
                    assert!(out.len() <= 1 << 20);
                }
            }
        }
    }
}

#[test]
fn a_huge_dictionary_is_refused() {
    // LZMA alone: properties, dictionary size, unknown length.
    let mut packed = vec![0x5d, 0, 0, 0, 0x7f];
    packed.extend_from_slice(&[0xff; 8]);
    packed.extend_from_slice(&[0; 32]);
    let e = unpack(&packed, MAX).unwrap_err();
    assert!(matches!(e, BootError::Unpack { format: "LZMA", .. }), "{e}");
}

#[test]
fn unknown_formats_are_named() {
    let e = unpack(b"BZh91AY", MAX).unwrap_err().to_string();
    assert!(e.contains("packed with bzip2"), "{e}");
    let e = unpack(b"\x89LZO\0", MAX).unwrap_err().to_string();
    assert!(e.contains("packed with LZO"), "{e}");
    let e = unpack(b"", MAX).unwrap_err();
    assert!(matches!(e, BootError::UnknownCompression(_)), "{e}");
}
