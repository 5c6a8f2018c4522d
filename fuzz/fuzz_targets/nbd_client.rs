//! Any server for our NBD client: its handshake, its replies. Whatever it says, requests come to an end.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use umbra_block::{Storage, StorageExt};
use umbra_fuzz::{Input, nbd};
use umbra_nbd::NbdStorage;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let read_only = input.u8() & 1 != 0;
    let mut cookie = 1;
    let said = nbd::conversation(&mut input, nbd::server_opening, |input| {
        let next = input.u8() & 1;
        let reply = nbd::reply(input, cookie);
        cookie += u64::from(next);
        reply
    });
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&said).expect("a socket has room for it");
    theirs.shutdown(Shutdown::Write).expect("it is connected");
    let Ok(storage) = NbdStorage::over(ours, "e", "nbd:fuzz", read_only) else { return };
    let size = storage.len().expect("it was told");
    assert!(size <= i64::MAX as u64);
    // Blocks may be as great as a client takes them, so that a read beside one is one of two.
    let _ = storage.read_vec(0, 4096);
    let run = storage.run(0, size);
    if let Ok(run) = run {
        assert!(size == 0 || run.len > 0 && run.len <= size, "a run has a length");
    }
    let _ = storage.read_vec(1000, 1);
    let _ = storage.run(4096, 1);
    if !read_only {
        let _ = storage.write_at(3, &[1; 300]);
        let _ = storage.write_zeroes(0, size.min(100_000), true);
        let _ = storage.discard(512, 10_000);
        let _ = storage.flush();
    }
    assert!(storage.write_at(size, &[1]).is_err(), "it does not grow");
});
