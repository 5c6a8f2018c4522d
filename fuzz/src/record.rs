//! Saved states that are wrong: what every device promises when it loads one.

use umbra_device::Device;
use umbra_state::Record;

use crate::Input;

/// Loads `record`. A device that takes it must save what it can load again and be the same then; one that refuses it must be as before.
///
/// # Panics
/// A promise is broken.
pub fn load_record(device: &mut dyn Device, record: &Record) -> bool {
    let before = device.save().expect("it can be saved");
    if device.load(record).is_ok() {
        let after = device.save().expect("it can be saved");
        assert_eq!(device.load(&after), Ok(()), "it refuses what it saved");
        assert_eq!(device.save().expect("it can be saved"), after, "what was loaded is not what is saved");
        true
    } else {
        assert_eq!(device.save().expect("it can be saved"), before, "a refusal changed something");
        false
    }
}

/// Loads the device's own state with changes out of `input`, or bytes out of it as they are.
///
/// # Panics
/// As [`load_record`].
pub fn load_altered(device: &mut dyn Device, input: &mut Input<'_>) -> bool {
    let mut record = device.save().expect("it can be saved");
    let how = input.u8();
    if how & 1 != 0 {
        let len = input.u8();
        record.bytes = input.bytes(len.into()).to_vec();
    } else {
        alter(&mut record.bytes, input);
    }
    load_record(device, &record)
}

/// Changes some bytes, and now and then cuts the end off.
pub fn alter(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let how = input.u8();
    for _ in 0..how % 16 {
        let (at, value) = (usize::from(input.u16()), input.u8());
        let len = bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at % len) {
            *byte = value;
        }
    }
    if how & 0x80 != 0 {
        bytes.truncate(input.u16().into());
    }
}

/// Makes the checksums of a saved file right, as far as its chunks can be told apart (see `umbra_state::Container`).
pub fn repair_checksums(file: &mut [u8]) {
    fn put(file: &mut [u8], sum: std::ops::Range<usize>, at: usize) {
        let crc = crc32fast::hash(&file[sum]);
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    if file.len() < 16 {
        return;
    }
    put(file, 0..12, 12);
    let mut at = 16;
    while let Some(head) = file.get(at..at + 24) {
        let len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
        let Some(end) = (at + 24).checked_add(len).filter(|end| *end <= file.len()) else { return };
        put(file, at + 24..end, at + 16);
        put(file, at..at + 20, at + 20);
        at = end;
    }
}
