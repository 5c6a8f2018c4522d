//! Any bytes as a record and as tagged fields of every shape.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Input;
use umbra_state::{Field, Reader, Record, Saved, Writer};

umbra_state::saved! {
    struct EverythingV1: "everything", 1 {
        1 small: u8,
        2 flag: bool,
        3 words: [u16; 3],
        4 pairs: Vec<(u32, Vec<u8>)>,
        5 maybe: Option<u64>,
        6 text: String,
        7 nested: Vec<Vec<Option<bool>>>,
        8 wide: u128,
        9 signed: i64,
        10 record: Record,
    }
}

/// What decodes must encode to something that decodes to the same.
fn field<T: Field + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let mut rest = bytes;
    let Ok(value) = T::take(&mut rest, "field") else { return };
    let mut out = Vec::new();
    value.put(&mut out);
    assert_eq!(out, bytes[..bytes.len() - rest.len()], "one value has one form");
}

/// Optional fields of unknown tags are skipped, wherever they are.
fn optional(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    for tag in [2, 0x8003, 7, 7, 0x7fff] {
        if reader.optional::<Vec<u8>>(tag, "optional").is_err() {
            return;
        }
    }
    let _ = reader.finish();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    let bytes = input.rest();
    match kind % 8 {
        0 => field::<Record>(bytes),
        1 => field::<Vec<(u32, u64)>>(bytes),
        2 => field::<Vec<Option<[u8; 5]>>>(bytes),
        3 => field::<(String, Vec<Vec<u8>>)>(bytes),
        4 => optional(bytes),
        _ => {
            let record =
                Record { id: "x".into(), kind: "everything".into(), version: 1, bytes: bytes.to_vec() };
            let Ok(state) = EverythingV1::from_record(&record) else { return };
            let mut out = Writer::new();
            state.encode(&mut out);
            let again = Record { bytes: out.finish(), ..record };
            assert_eq!(EverythingV1::from_record(&again), Ok(state));
        }
    }
});
