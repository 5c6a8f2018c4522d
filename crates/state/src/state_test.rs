use crate::{
    ChunkKind, Container, ContainerError, ContainerWriter, Reader, Record, Saved, StateError, Writer,
};

crate::saved! {
    /// A device for the tests.
    struct LampV1: "lamp", 1 { 1 lit: bool, 2 colour: [u16; 3], 5 name: String, 6 past: Vec<(u8, u64)>, 9 cap: Option<u32> }
}

fn lamp() -> LampV1 {
    LampV1 {
        lit: true,
        colour: [1, 2, 0xfff0],
        name: "hall".into(),
        past: vec![(1, 2), (3, u64::MAX)],
        cap: Some(7),
    }
}

#[test]
fn round_trip() {
    let record = lamp().to_record("lamp0");
    assert_eq!(LampV1::from_record(&record), Ok(lamp()));
}

#[test]
fn every_truncation_is_refused() {
    let record = lamp().to_record("lamp0");
    for len in 0..record.bytes.len() {
        let cut = Record { bytes: record.bytes[..len].to_vec(), ..record.clone() };
        assert!(LampV1::from_record(&cut).is_err(), "{len} bytes were accepted");
    }
}

#[test]
fn another_version_is_refused() {
    let record = Record { version: 2, ..lamp().to_record("lamp0") };
    assert!(matches!(LampV1::from_record(&record), Err(StateError::WrongKind { version: 2, .. })));
}

#[test]
fn unknown_fields() {
    let mut w = Writer::new();
    w.field(1, &1u8);
    w.field(0x8002, &2u8);
    w.field(3, &3u8);
    let bytes = w.finish();
    let mut r = Reader::new(&bytes);
    assert_eq!(r.required::<u8>(1, "a"), Ok(1));
    assert_eq!(r.required::<u8>(3, "c"), Ok(3), "an optional field in between is skipped");
    assert_eq!(r.finish(), Ok(()));
    let mut r = Reader::new(&bytes);
    assert_eq!(r.required::<u8>(1, "a"), Ok(1));
    assert_eq!(r.finish(), Err(StateError::UnknownRequired(3)));
}

#[test]
fn a_hostile_count_reserves_nothing() {
    let mut w = Writer::new();
    w.field(1, &u32::MAX);
    let bytes = w.finish();
    assert_eq!(Reader::new(&bytes).required::<Vec<u64>>(1, "v"), Err(StateError::Truncated("v")));
}

fn file() -> Vec<u8> {
    let mut w = ContainerWriter::new(Vec::new()).unwrap();
    w.chunk(ChunkKind::Spec, 0, b"{}").unwrap();
    w.chunk(ChunkKind::Memory, 0x10_0000, &[7; 100]).unwrap();
    w.finish().unwrap()
}

fn read(bytes: &[u8]) -> Result<Vec<(ChunkKind, u64, Vec<u8>)>, ContainerError> {
    let mut c = Container::open(bytes)?;
    let (mut all, mut payload) = (Vec::new(), Vec::new());
    while let Some((kind, address)) = c.next(&mut payload)? {
        all.push((kind, address, payload.clone()));
    }
    Ok(all)
}

#[test]
fn container_round_trip() {
    let all = read(&file()).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1], (ChunkKind::Memory, 0x10_0000, vec![7; 100]));
}

#[test]
fn any_altered_byte_and_any_cut_is_noticed() {
    let good = file();
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x41;
        assert!(read(&bad).is_err(), "byte {i} altered and not noticed");
        assert!(read(&good[..i]).is_err(), "cut at {i} and not noticed");
    }
    let mut long = good.clone();
    long.push(0);
    assert!(read(&long).is_err(), "a byte too many was not noticed");
}
