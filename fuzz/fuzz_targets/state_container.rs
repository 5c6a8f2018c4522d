//! Any bytes as a saved file. Checksums are made right half of the time, or nothing but refusals would be seen.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::{Input, repair_checksums};
use umbra_state::{Container, ContainerWriter};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let repair = input.u8() & 1 != 0;
    let mut file = input.rest().to_vec();
    if repair {
        repair_checksums(&mut file);
    }
    let Ok(mut container) = Container::open(file.as_slice()) else { return };
    let mut again = ContainerWriter::new(Vec::new()).expect("a vector takes everything");
    let mut payload = Vec::new();
    loop {
        match container.next(&mut payload) {
            Ok(Some((kind, address))) => {
                again.chunk(kind, address, &payload).expect("it was no longer before");
            }
            Ok(None) => break,
            Err(_) => return,
        }
    }
    assert_eq!(again.finish().expect("a vector takes everything"), file, "one content has one form");
    assert!(matches!(container.next(&mut payload), Ok(None)));
});
