//! Any client of our NBD server: its handshake, its requests. Whatever it says, it is answered or let go.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use umbra_block::{Disk, MemoryStorage, Node, NodeSpec, Raw, Storage, StorageExt};
use umbra_fuzz::{Input, nbd};
use umbra_nbd::{Export, Server};

fn server(storage: &Arc<MemoryStorage>, read_only: bool) -> Server {
    storage.set_len(nbd::SIZE).expect("memory grows");
    storage.write_at(0x1000, &[7; 0x8000]).expect("memory is written");
    let raw = Raw::over(storage.clone()).expect("memory has a length");
    let disk = Disk::over(Node::new(Box::new(raw), "raw", NodeSpec::new("memory", Some("raw")), None));
    let export = Export {
        name: "e".into(),
        description: "a disk".into(),
        disk: Arc::new(disk),
        read_only,
        bitmaps: Vec::new(),
    };
    Server::new(vec![export], None).expect("an export")
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let read_only = input.u8() & 1 != 0;
    let said = nbd::conversation(&mut input, nbd::client_opening, nbd::request);
    let storage = Arc::new(MemoryStorage::new("memory"));
    let server = server(&storage, read_only);
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.write_all(&said).expect("a socket has room for it");
    ours.shutdown(Shutdown::Write).expect("it is connected");
    ours.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
    std::thread::scope(|scope| {
        let served = scope.spawn(|| server.serve(theirs));
        let mut head = [0; 18];
        // A server that gives up early resets the connection, with what it had said before.
        if ours.read_exact(&mut head).is_ok() {
            assert_eq!(&head[..16], b"NBDMAGICIHAVEOPT");
        }
        let mut part = [0; 1 << 16];
        loop {
            match ours.read(&mut part) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    assert!(error.kind() != std::io::ErrorKind::WouldBlock, "the server does not end it");
                    break;
                }
            }
        }
        let _ = served.join().expect("it does not panic");
    });
    assert_eq!(storage.len().expect("memory has a length"), nbd::SIZE, "a disk does not grow");
    if read_only {
        let kept = storage.read_vec(0x1000, 0x8000).expect("memory is read");
        assert!(kept == [7; 0x8000], "what is read-only stays");
    }
});
