//! Our client with `qemu-nbd`, and the clients of QEMU and libnbd with our server.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use umbra_block::{Storage, StorageExt};

use crate::test_help::{Folder, Ours, Rng, certificates, export, program, qcow2_disk, run};
use crate::{Address, Endpoint, Export, Listener, NbdStorage, Server, TlsClient, TlsServer};

/// `qemu-nbd`, until it is dropped.
struct Theirs(Child);

impl Theirs {
    fn serve(socket: &str, words: &[&str]) -> Self {
        let mut command = program("qemu-nbd");
        command.args(["-t", "-e", "8", "-k", socket]).args(words).stdin(Stdio::null());
        let child = Self(command.spawn().unwrap());
        let began = Instant::now();
        while UnixStream::connect(socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "qemu-nbd listens");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Data, zeroes and holes by turns.
fn pattern(size: usize) -> Vec<u8> {
    let mut rng = Rng(99);
    let mut bytes = vec![0; size];
    for piece in bytes.chunks_mut(96 << 10) {
        if rng.below(3) > 0 {
            let noise = rng.bytes(piece.len());
            piece.copy_from_slice(&noise);
        }
    }
    bytes
}

/// A raw image with holes where there are zeroes.
fn write_sparse(path: &str, bytes: &[u8]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, piece) in bytes.chunks(4096).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, number as u64 * 4096).unwrap();
        }
    }
}

/// What a client can do with a server: all of it is read, parts are written, and it is read again.
fn use_storage(storage: &NbdStorage, plain: &mut [u8]) {
    assert_eq!(storage.len().unwrap(), plain.len() as u64);
    assert!(storage.read_vec(0, plain.len()).unwrap() == plain);
    let mut at = 0;
    let mut holes = 0;
    while at < plain.len() as u64 {
        let run = storage.run(at, plain.len() as u64 - at).unwrap();
        if !run.data {
            holes += run.len;
            assert!(plain[at as usize..(at + run.len) as usize].iter().all(|&byte| byte == 0));
        }
        at += run.len;
    }
    assert!(holes > 0, "the server tells of holes");
    let mut rng = Rng(5);
    for _ in 0..60 {
        let at = rng.below(plain.len() as u64) as usize;
        let len = (1 + rng.below(3_000_000) as usize).min(plain.len() - at);
        match rng.below(3) {
            0 => {
                storage.write_zeroes(at as u64, len as u64, rng.below(2) == 0).unwrap();
                plain[at..at + len].fill(0);
            }
            _ => {
                let bytes = rng.bytes(len);
                storage.write_at(at as u64, &bytes).unwrap();
                plain[at..at + len].copy_from_slice(&bytes);
            }
        }
    }
    storage.discard(0, 1).unwrap();
    storage.flush().unwrap();
    assert!(storage.read_vec(0, plain.len()).unwrap() == plain);
}

#[test]
fn our_client_with_qemu_nbd() {
    let folder = Folder::new();
    let (raw, socket) = (folder.path("raw"), folder.path("s"));
    let mut plain = pattern(8 << 20);
    write_sparse(&raw, &plain);
    for (format, options) in [("raw", "size=8M"), ("qcow2", "cluster_size=4k"), ("qcow2", "extended_l2=on")] {
        let image = folder.path("image");
        run("qemu-img", &["convert", "-f", "raw", "-O", format, "-o", options, &raw, &image]);
        let server = Theirs::serve(&socket, &["-f", format, "-x", "an export", &image]);
        let address = Address::from_name(&format!("nbd+unix:///an%20export?socket={socket}")).unwrap();
        let storage = NbdStorage::open(&address, None, false).unwrap();
        use_storage(&storage, &mut plain);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (storage, plain) = (&storage, &plain);
                scope.spawn(move || {
                    let at = number << 20;
                    assert!(storage.read_vec(at, 1 << 20).unwrap() == plain[at as usize..][..1 << 20]);
                });
            }
        });
        let missing = Address::from_name(&format!("nbd+unix:///none?socket={socket}")).unwrap();
        let error = NbdStorage::open(&missing, None, true).unwrap_err().to_string();
        assert_eq!(error, "Requested export not available\nserver reported: export 'none' not present");
        drop(storage);
        drop(server);
        write_sparse(&raw, &plain);
        run("qemu-img", &["compare", "-f", "raw", "-F", format, &raw, &image]);
    }
}

#[test]
fn our_client_keeps_to_a_server_s_blocks() {
    let folder = Folder::new();
    let (raw, socket) = (folder.path("raw"), folder.path("s"));
    let mut plain = pattern(4 << 20);
    write_sparse(&raw, &plain);
    // O_DIRECT: whole blocks only.
    let image = format!("driver=raw,file.driver=file,file.filename={raw},cache.direct=on");
    let server = Theirs::serve(&socket, &["--image-opts", &image]);
    let address = Address::from_name(&format!("nbd+unix://?socket={socket}")).unwrap();
    let storage = NbdStorage::open(&address, None, false).unwrap();
    use_storage(&storage, &mut plain);
    drop(storage);
    drop(server);
    assert!(fs::read(&raw).unwrap() == plain);
}

#[test]
fn a_qemu_nbd_that_dies_is_told() {
    let folder = Folder::new();
    let (raw, socket) = (folder.path("raw"), folder.path("s"));
    fs::write(&raw, [1; 1 << 20]).unwrap();
    let server = Theirs::serve(&socket, &["-f", "raw", &raw]);
    let address = Address::from_name(&format!("nbd:unix:{socket}")).unwrap();
    let storage = NbdStorage::open(&address, None, false).unwrap();
    assert_eq!(storage.read_vec(0, 2).unwrap(), [1, 1]);
    drop(server);
    let error = storage.read_vec(0, 2).unwrap_err().to_string();
    assert!(error.ends_with("the NBD peer has closed the connection"), "{error}");
}

#[test]
fn our_client_with_qemu_nbd_by_tls() {
    let folder = Folder::new();
    certificates(&folder.0);
    let (raw, socket) = (folder.path("raw"), folder.path("s"));
    let mut plain = pattern(4 << 20);
    write_sparse(&raw, &plain);
    let object = format!("tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir={}", folder.0.display());
    let server =
        Theirs::serve(&socket, &["--object", &object, "--tls-creds", "t", "-f", "raw", "-x", "e", &raw]);
    let name = format!("nbds+unix:///e?socket={socket}&tls-hostname=localhost");
    let address = Address::from_name(&name).unwrap();
    let tls = TlsClient::load(Some(&folder.0), true).unwrap();
    let storage = NbdStorage::open(&address, Some(&tls), false).unwrap();
    use_storage(&storage, &mut plain);
    drop(storage);
    let plain_address = Address::from_name(&format!("nbd+unix:///e?socket={socket}")).unwrap();
    let error = NbdStorage::open(&plain_address, None, false).unwrap_err().to_string();
    assert!(error.contains("wants TLS"), "{error}");
    drop(server);
    assert!(fs::read(&raw).unwrap() == plain);
}

/// Every client does its work with an export of ours.
fn use_ours(uri: &str, raw: &str, disk: &umbra_block::Disk, plain: &mut [u8]) {
    fs::write(raw, &*plain).unwrap();
    let map: String = run("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
    assert!(map.contains("\"zero\": true, \"data\": false") && map.contains("\"data\": true"), "{map}");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, uri]);
    let size = run("nbdinfo", &["--size", uri]);
    assert_eq!(size.trim(), plain.len().to_string());
    let told = run("nbdinfo", &["--json", uri]);
    for fact in [
        "\"is_read_only\": false",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"base:allocation\"",
        "\"protocol\": \"newstyle-fixed\"",
    ] {
        assert!(told.contains(fact), "{fact}: {told}");
    }
    let map = run("nbdinfo", &["--map", uri]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    let copy = format!("{raw}.copy");
    run("nbdcopy", &[uri, &copy]);
    assert!(fs::read(&copy).unwrap() == *plain, "nbdcopy reads what is there");
    // They write.
    plain.rotate_left(1 << 20);
    fs::write(raw, &*plain).unwrap();
    run("nbdcopy", &["--flush", raw, uri]);
    let mut bytes = vec![0; plain.len()];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes == *plain, "what nbdcopy wrote is there");
    let script = [
        "write -P 17 1000 3000",
        "write -f -P 18 1M 65537",
        "write -z 2M 100k",
        "write -z -u 3M 64k",
        "aio_write -P 19 3500k 64k",
        "aio_flush",
        "flush",
        "read -P 18 1M 65537",
        "read -P 0 2M 100k",
    ];
    let mut words = vec!["-f", "raw"];
    script.iter().for_each(|line| words.extend(["-c", line]));
    words.push(uri);
    let output = run("qemu-io", &words);
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    for (at, len, byte) in [
        (1000, 3000, 17),
        (1 << 20, 65537, 18),
        (2 << 20, 100 << 10, 0),
        (3 << 20, 64 << 10, 0),
        (3500 << 10, 64 << 10, 19),
    ] {
        plain[at..at + len].fill(byte);
    }
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes == *plain, "what qemu-io wrote is there");
}

#[test]
fn other_clients_with_our_server() {
    let folder = Folder::new();
    let (image, socket) = (folder.path("image"), folder.path("s"));
    let disk = qcow2_disk(&image, 8 << 20);
    let mut plain = pattern(8 << 20);
    for (number, piece) in plain.chunks(32 << 10).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            disk.write((number * (32 << 10)) as u64, piece).unwrap();
        }
    }
    let server = Server::new(vec![export("e", &disk), export("other", &disk)], None).unwrap();
    let _server = Ours::serve(server, Listener::unix(socket.as_ref()).unwrap());
    use_ours(&format!("nbd+unix:///e?socket={socket}"), &folder.path("raw"), &disk, &mut plain);
    let list = run("nbdinfo", &["--list", "--json", &format!("nbd+unix://?socket={socket}")]);
    assert!(list.contains("\"export-name\": \"e\"") && list.contains("\"export-name\": \"other\""), "{list}");
    let output =
        program("qemu-img").args(["info", &format!("nbd+unix:///x?socket={socket}")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Requested export not available"), "{text}");
    disk.flush().unwrap();
    run("qemu-img", &["check", "-U", "-f", "qcow2", &image]);
}

#[test]
fn other_clients_with_our_server_by_tls() {
    let folder = Folder::new();
    certificates(&folder.0);
    let disk = qcow2_disk(&folder.path("image"), 8 << 20);
    let mut plain = pattern(8 << 20);
    disk.write(0, &plain).unwrap();
    disk.write_zeroes(7 << 20, 1 << 20, true).unwrap();
    plain[7 << 20..].fill(0);
    let tls = TlsServer::load(&folder.0, true).unwrap();
    let server = Server::new(vec![export("e", &disk)], Some(tls)).unwrap();
    let server = Ours::serve(server, Listener::tcp("127.0.0.1", 0).unwrap());
    let Endpoint::Tcp { port, .. } = server.endpoint else { panic!("a port") };
    let uri = format!("nbds://localhost:{port}/e?tls-certificates={}", folder.0.display());
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), plain.len().to_string());
    let copy = folder.path("copy");
    run("nbdcopy", &[&uri, &copy]);
    assert!(fs::read(&copy).unwrap() == plain);
    plain.rotate_left(12345);
    fs::write(&copy, &plain).unwrap();
    let object = format!("tls-creds-x509,id=t,endpoint=client,verify-peer=yes,dir={}", folder.0.display());
    let options = format!("driver=nbd,host=localhost,port={port},export=e,tls-creds=t");
    let target = ["convert", "-n", "--object", &object, "-f", "raw", "--target-image-opts", &copy, &options];
    run("qemu-img", &target);
    let mut bytes = vec![0; plain.len()];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes == plain, "what qemu-img wrote is there");
    // Who does not do TLS gets nothing.
    let output = program("nbdinfo").arg(format!("nbd://localhost:{port}/e")).output().unwrap();
    assert!(!output.status.success());
}

/// What a backup asks: which parts are dirty since the last one.
#[test]
fn qemu_sees_the_dirty_bitmaps_of_an_export_of_ours() {
    let folder = Folder::new();
    let (image, socket) = (folder.path("image"), folder.path("s"));
    let disk = qcow2_disk(&image, 1 << 20);
    let changed = disk.drained(|node| {
        let bitmaps = node.format().bitmaps().unwrap();
        bitmaps.add("since monday", 65536, true)?;
        bitmaps.add("empty", 65536, false)
    });
    changed.unwrap();
    disk.write(130 << 10, &[1; 1000]).unwrap();
    disk.write(512 << 10, &[2; 130 << 10]).unwrap();
    let bitmaps = vec!["since monday".to_owned(), "empty".to_owned()];
    let server = Server::new(vec![Export { bitmaps, ..export("e", &disk) }], None).unwrap();
    let _server = Ours::serve(server, Listener::unix(socket.as_ref()).unwrap());
    let uri = format!("nbd+unix:///e?socket={socket}");
    let told = run("nbdinfo", &["--json", &uri]);
    for context in ["base:allocation", "qemu:dirty-bitmap:since monday", "qemu:dirty-bitmap:empty"] {
        assert!(told.contains(context), "{context}: {told}");
    }
    let options = "driver=nbd,export=e,server.type=unix,server.path=";
    let map = |bitmap: &str| {
        let options = format!("{options}{socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}");
        let map = run("qemu-img", &["map", "--output=json", "--image-opts", &options]);
        let number = |line: &str, name: &str| -> u64 {
            let (_, rest) = line.split_once(&format!("\"{name}\": ")).unwrap();
            rest.split(',').next().unwrap().parse().unwrap()
        };
        // Where QEMU says that there is no data, the bitmap is dirty.
        let dirty = map.lines().filter(|line| line.contains("\"data\": false"));
        dirty.map(|line| (number(line, "start"), number(line, "length"))).collect::<Vec<_>>()
    };
    assert_eq!(map("since monday"), [(128 << 10, 64 << 10), (512 << 10, 192 << 10)]);
    assert_eq!(map("empty"), []);
}

#[test]
fn a_server_that_comes_back_is_used_again() {
    let folder = Folder::new();
    let (raw, socket) = (folder.path("raw"), folder.path("s"));
    fs::write(&raw, vec![1; 1 << 20]).unwrap();
    let server = Theirs::serve(&socket, &["-f", "raw", "-x", "e", &raw]);
    let mut address = Address::from_name(&format!("nbd+unix:///e?socket={socket}")).unwrap();
    address.reconnect_delay = Duration::from_secs(20);
    let storage = NbdStorage::open(&address, None, false).unwrap();
    storage.write_at(100, &[2; 5]).unwrap();
    storage.flush().unwrap();
    drop(server);
    let _ = fs::remove_file(&socket);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| storage.read_vec(98, 5));
        std::thread::sleep(Duration::from_millis(300));
        let _server = Theirs::serve(&socket, &["-f", "raw", "-x", "e", &raw]);
        assert_eq!(reads.join().unwrap().unwrap(), [1, 1, 2, 2, 2]);
        storage.write_at(0, &[3; 4]).unwrap();
        storage.flush().unwrap();
    });
    assert_eq!(fs::read(&raw).unwrap()[..5], [3, 3, 3, 3, 1]);
    // Patience has an end, and an export of another size is not taken for this one.
    let _ = fs::remove_file(&socket);
    let server = Theirs::serve(&socket, &["-f", "raw", "-x", "e", &raw]);
    let impatient = Address { reconnect_delay: Duration::from_millis(300), ..address };
    let storage = NbdStorage::open(&impatient, None, true).unwrap();
    drop(server);
    let _ = fs::remove_file(&socket);
    let began = Instant::now();
    assert!(storage.read_vec(0, 5).is_err());
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(15));
    fs::write(&raw, vec![1; 2 << 20]).unwrap();
    let _larger = Theirs::serve(&socket, &["-f", "raw", "-x", "e", &raw]);
    assert!(storage.read_vec(0, 5).is_err());
}
