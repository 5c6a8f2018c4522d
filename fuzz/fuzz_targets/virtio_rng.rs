//! The entropy device under any driver.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_virtio::rng::Rng;

fuzz_target!(|bytes: &[u8]| {
    umbra_fuzz::virtio::run(bytes, &|| Box::new(Rng::new().expect("a thread")));
});
