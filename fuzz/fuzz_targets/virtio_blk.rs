//! The disk under any driver, over a small plain image in memory.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use umbra_block::{Disk, NodeSpec};
use umbra_virtio::blk::{Blk, BlkSpec};

fuzz_target!(|bytes: &[u8]| {
    let environment = umbra_fuzz::disk::environment(&[0x5a; 1 << 16]);
    let disk = Disk::open(&environment, &NodeSpec::new("image", Some("raw")).writable()).expect("it opens");
    let disk = Arc::new(disk);
    let read_only = bytes.first().is_some_and(|byte| byte & 1 != 0);
    let spec = BlkSpec { name: "vda".into(), read_only, serial: "serial".into(), queues: 2 };
    umbra_fuzz::virtio::run(bytes, &|| Box::new(Blk::new(spec.clone(), disk.clone()).expect("threads")));
});
