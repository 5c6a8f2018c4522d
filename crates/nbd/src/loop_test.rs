//! Our client with our server: random operations against plain bytes, many requests in flight, TLS, several clients, an
//! end in the middle.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use umbra_block::{Cancel, IoBuf, IoSrc, Storage, StorageExt};

use crate::test_help::{Folder, Rng, certificates, client, connected, export, memory_disk, over, qcow2_disk};
use crate::{
    Address, Endpoint, Error, Export, Listener, NbdStorage, ServeOptions, Server, TlsClient, TlsServer,
};

fn server(exports: Vec<Export>) -> Arc<Server> {
    Arc::new(Server::new(exports, None).unwrap())
}

/// Random operations on a storage, compared with an array.
fn model(storage: &dyn Storage, size: u64, steps: usize, seed: u64) {
    let mut rng = Rng(seed);
    let mut plain = vec![0u8; size as usize];
    for step in 0..steps {
        let offset = rng.below(size);
        let len = (1 + rng.below(300_000)).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match rng.below(6) {
            0 | 1 => {
                let bytes = rng.bytes(len as usize);
                let at = rng.below(len + 1) as usize;
                storage.writev(offset, &[IoSrc::new(&bytes[..at]), IoSrc::new(&bytes[at..])]).unwrap();
                plain[range].copy_from_slice(&bytes);
            }
            2 => {
                storage.write_zeroes(offset, len, rng.below(2) == 0).unwrap();
                plain[range].fill(0);
            }
            3 => {
                let mut at = offset;
                while at < offset + len {
                    let run = storage.run(at, offset + len - at).unwrap();
                    assert!(run.len > 0 && at + run.len <= offset + len);
                    if !run.data {
                        assert!(plain[at as usize..(at + run.len) as usize].iter().all(|&byte| byte == 0));
                    }
                    at += run.len;
                }
            }
            _ => {
                let mut bytes = vec![1; len as usize + 100];
                let (one, other) = bytes.split_at_mut(len as usize / 3);
                storage.readv(offset, &[IoBuf::new(one), IoBuf::new(other)]).unwrap();
                assert!(bytes[..len as usize] == plain[range], "step {step}");
                let behind = (offset + len) as usize..plain.len().min((offset + len) as usize + 100);
                let known = behind.len();
                assert!(
                    bytes[len as usize..][..known] == plain[behind]
                        && bytes[len as usize + known..].iter().all(|&b| b == 0)
                );
            }
        }
    }
    storage.flush().unwrap();
}

#[test]
fn an_export_is_what_was_written_to_it() {
    let folder = Folder::new();
    for (disk, size) in [(memory_disk(3 << 20), 3 << 20), (qcow2_disk(&folder.path("q"), 5 << 20), 5 << 20)] {
        let server = server(vec![export("e", &disk)]);
        let (storage, thread) = client(&server, "e");
        model(&storage, size, 300, 7);
        drop(storage);
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn many_threads_share_a_connection() {
    let disk = memory_disk(32 << 20);
    let server = server(vec![export("", &disk)]);
    let (storage, thread) = client(&server, "");
    std::thread::scope(|scope| {
        for number in 0..24u64 {
            let storage = &storage;
            scope.spawn(move || {
                let mut rng = Rng(number + 1);
                // Each has every 24th MiB's share of its own.
                let base = number * (1 << 20);
                let mut plain = vec![0; 1 << 20];
                for _ in 0..60 {
                    let at = rng.below(1 << 20) as usize;
                    let len = (1 + rng.below(200_000) as usize).min((1 << 20) - at);
                    if rng.below(2) == 0 {
                        let bytes = rng.bytes(len);
                        storage.write_at(base + at as u64, &bytes).unwrap();
                        plain[at..at + len].copy_from_slice(&bytes);
                    } else {
                        let bytes = storage.read_vec(base + at as u64, len).unwrap();
                        assert!(bytes == plain[at..at + len]);
                    }
                }
            });
        }
    });
    drop(storage);
    thread.join().unwrap().unwrap();
}

#[test]
fn allocation_is_told_as_it_is() {
    let folder = Folder::new();
    let disk = qcow2_disk(&folder.path("q"), 1 << 40);
    for number in 0..50u64 {
        disk.write(number << 33, &[7; 65536]).unwrap();
    }
    let server = server(vec![export("", &disk)]);
    let (storage, _thread) = client(&server, "");
    let mut at = 0;
    let mut data = Vec::new();
    while at < 1 << 40 {
        let run = storage.run(at, (1 << 40) - at).unwrap();
        if run.data {
            data.push((at, run.len));
        }
        at += run.len;
    }
    let wanted: Vec<(u64, u64)> = (0..50).map(|number| (number << 33, 65536)).collect();
    assert_eq!(data, wanted);
    // A write is seen at once.
    storage.write_at(1 << 20, &[1]).unwrap();
    assert!(storage.run(1 << 20, 65536).unwrap().data);
}

#[test]
fn an_export_does_not_grow() {
    let server = server(vec![export("", &memory_disk(1 << 20))]);
    let (storage, _thread) = client(&server, "");
    assert_eq!(storage.len().unwrap(), 1 << 20);
    for result in [
        storage.write_at((1 << 20) - 1, &[1, 2]),
        storage.write_zeroes(1 << 20, 1, true),
        storage.allocate(0, (1 << 20) + 1),
        storage.set_len((1 << 20) + 1),
        storage.write_zeroes(u64::MAX, 2, true),
    ] {
        assert!(result.is_err());
    }
    storage.set_len(5).unwrap();
    storage.discard(0, u64::MAX).unwrap();
    assert_eq!(storage.read_vec((1 << 20) + 5, 3).unwrap(), [0; 3]);
}

#[test]
fn read_only_exports_are_not_written() {
    let disk = memory_disk(1 << 20);
    let server = server(vec![Export { read_only: true, ..export("", &disk) }]);
    let (stream, _thread) = connected(&server);
    let refused = NbdStorage::over(stream, "", "nbd:test", false).unwrap_err();
    assert!(refused.to_string().contains("read-only"), "{refused}");
    let (stream, _thread) = connected(&server);
    let storage = NbdStorage::over(stream, "", "nbd:test", true).unwrap();
    let error = storage.write_at(0, &[1]).unwrap_err().to_string();
    assert!(error.contains("the export is read-only"), "{error}");
    assert_eq!(storage.read_vec(0, 1).unwrap(), [0]);
}

#[test]
fn the_export_is_found_by_its_name() {
    let (one, other) = (memory_disk(1 << 20), memory_disk(2 << 20));
    let server = server(vec![export("one", &one), export("other", &other)]);
    for (name, size) in [("one", 1 << 20), ("other", 2 << 20)] {
        assert_eq!(client(&server, name).0.len().unwrap(), size);
    }
    for name in ["", "third"] {
        let (stream, _thread) = connected(&server);
        let error = NbdStorage::over(stream, name, "nbd:test", false).unwrap_err().to_string();
        assert!(error.starts_with("Requested export not available"), "{error}");
    }
    assert!(Server::new(vec![export("one", &one), export("one", &one)], None).is_err());
    assert!(Server::new(Vec::new(), None).is_err());
}

fn options(clients_max: usize, persistent: bool, stop: &Cancel) -> ServeOptions {
    ServeOptions { clients_max, persistent, stop: stop.clone() }
}

fn quiet() -> Arc<dyn Fn(&Error) + Send + Sync> {
    Arc::new(|_| {})
}

#[test]
fn tls_needs_the_right_certificates() {
    let (folder, other) = (Folder::new(), Folder::new());
    certificates(&folder.0);
    certificates(&other.0);
    let disk = memory_disk(4 << 20);
    let tls = TlsServer::load(&folder.0, true).unwrap();
    let server = Arc::new(Server::new(vec![export("e", &disk)], Some(tls)).unwrap());
    let listener = Listener::tcp("127.0.0.1", 0).unwrap();
    let Endpoint::Tcp { port, .. } = listener.endpoint() else { panic!("a port") };
    let stop = Cancel::new();
    let serve = options(8, true, &stop);
    let thread = std::thread::spawn(move || server.run(&[listener], &serve, quiet()));
    let address = |host: &str| Address::from_name(&format!("nbds://{host}:{port}/e")).unwrap();
    let load = |folder: &Path, verify| TlsClient::load(Some(folder), verify).unwrap();
    let storage = NbdStorage::open(&address("127.0.0.1"), Some(&load(&folder.0, true)), false).unwrap();
    model(&storage, 4 << 20, 150, 11);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let storage = &storage;
            scope.spawn(move || {
                for _ in 0..20 {
                    storage.write_at(number << 20, &[number as u8; 300_000]).unwrap();
                    assert!(storage.read_vec(number << 20, 300_000).unwrap() == [number as u8; 300_000]);
                }
            });
        }
    });
    drop(storage);
    // Another authority's certificates, at either end.
    assert!(NbdStorage::open(&address("localhost"), Some(&load(&other.0, true)), false).is_err());
    let unknown = NbdStorage::open(&address("localhost"), Some(&load(&other.0, false)), false);
    assert!(unknown.is_err(), "a client that nobody vouches for");
    // A name that the certificate does not have.
    let named = Address::from_name(&format!("nbds://127.0.0.1:{port}/e?tls-hostname=elsewhere")).unwrap();
    assert!(NbdStorage::open(&named, Some(&load(&folder.0, true)), false).is_err());
    NbdStorage::open(&named, Some(&load(&folder.0, false)), false).expect("whoever answers is taken");
    // Without TLS nothing is told.
    let plain = Address::from_name(&format!("nbd://localhost:{port}/e")).unwrap();
    let error = NbdStorage::open(&plain, None, false).unwrap_err().to_string();
    assert!(error.contains("wants TLS"), "{error}");
    stop.cancel();
    assert!(thread.join().unwrap().unwrap().stopped);
}

#[test]
fn a_server_without_tls_says_so() {
    let folder = Folder::new();
    certificates(&folder.0);
    let server = server(vec![export("e", &memory_disk(1 << 20))]);
    let listener = Listener::unix(&folder.0.join("s")).unwrap();
    let stop = Cancel::new();
    let serve = options(8, true, &stop);
    let thread = std::thread::spawn(move || server.run(&[listener], &serve, quiet()));
    let address =
        Address::from_name(&format!("nbds+unix:///e?socket={}&tls-hostname=localhost", folder.path("s")))
            .unwrap();
    let tls = TlsClient::load(Some(&folder.0), true).unwrap();
    let error = NbdStorage::open(&address, Some(&tls), false).unwrap_err().to_string();
    assert!(error.starts_with("the server does not do TLS"), "{error}");
    stop.cancel();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_server_ends_with_its_last_client() {
    let folder = Folder::new();
    let path = folder.0.join("s");
    // A socket that nobody listens on any more is no obstacle, one that somebody does is.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::unix(&path).unwrap();
    assert!(Listener::unix(&path).is_err());
    let server = server(vec![export("", &memory_disk(1 << 20))]);
    let serve = options(2, false, &Cancel::new());
    let thread = std::thread::spawn(move || server.run(&[listener], &serve, quiet()));
    let address = Address::from_name(&format!("nbd+unix://?socket={}", path.display())).unwrap();
    let open = || NbdStorage::open(&address, None, false).unwrap();
    let (first, second) = (open(), open());
    // The third waits until there is room.
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let third = scope.spawn(|| {
            let third = open();
            done.fetch_add(1, Ordering::SeqCst);
            third
        });
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(done.load(Ordering::SeqCst), 0, "two are served at once");
        first.write_at(0, &[1]).unwrap();
        drop(first);
        drop(third.join().unwrap());
    });
    assert!(path.exists());
    // Who only looks is no client.
    drop(UnixStream::connect(&path).unwrap());
    std::thread::sleep(Duration::from_millis(200));
    drop(second);
    let ended = thread.join().unwrap().unwrap();
    assert!((ended.stopped, ended.clients) == (false, 3), "{ended:?}");
    assert!(!path.exists(), "the socket goes with it");
}

#[test]
fn whoever_asks_a_server_that_is_gone_is_told() {
    let folder = Folder::new();
    let path = folder.0.join("s");
    let listener = Listener::unix(&path).unwrap();
    let server = server(vec![export("", &memory_disk(1 << 20))]);
    let stop = Cancel::new();
    let serve = options(2, true, &stop);
    let thread = std::thread::spawn(move || server.run(&[listener], &serve, quiet()));
    let address = Address::from_name(&format!("nbd+unix://?socket={}", path.display())).unwrap();
    let storage = NbdStorage::open(&address, None, false).unwrap();
    storage.write_at(5, &[1, 2, 3]).unwrap();
    let began = Instant::now();
    stop.cancel();
    thread.join().unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "an idle client delays nothing");
    for _ in 0..2 {
        let error = storage.read_vec(0, 4).unwrap_err().to_string();
        let wanted =
            format!("cannot read 4 bytes at 0 of '{address}': the NBD peer has closed the connection");
        assert_eq!(error, wanted);
    }
    let gone = NbdStorage::open(&address, None, false).unwrap_err().to_string();
    assert!(gone.starts_with(&format!("Failed to connect to '{}'", path.display())), "{gone}");
}

#[test]
fn an_export_is_exported_again() {
    let inner = server(vec![export("", &memory_disk(1 << 20))]);
    let (storage, _thread) = client(&inner, "");
    let outer = server(vec![export("", &over(Arc::new(storage)))]);
    let (storage, _thread) = client(&outer, "");
    model(&storage, 1 << 20, 100, 3);
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let server = server(vec![export("", &memory_disk(1 << 20))]);
    let (stream, thread) = connected(&server);
    let began = Instant::now();
    let error = thread.join().unwrap().unwrap_err().to_string();
    assert_eq!(error, "the NBD peer took too long to answer");
    assert!(began.elapsed() >= Duration::from_secs(9));
    drop::<UnixStream>(stream);
}
