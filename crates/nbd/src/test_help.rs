//! What the tests share: folders, disks, certificates, and the other implementations' programs.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use umbra_block::{
    Cancel, CreateOptions, Disk, Environment, FileSpec, MemoryStorage, Node, NodeSpec, Raw, Registry,
    Storage, Task,
};

use crate::{Ended, Endpoint, Export, Listener, NbdStorage, ServeOptions, Server};

/// A folder that goes when the test ends well.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("umbra-nbd-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Numbers that look random, and are the same every time.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(len).collect()
    }
}

/// A raw disk in memory.
pub fn memory_disk(size: u64) -> Arc<Disk> {
    let storage = Arc::new(MemoryStorage::new("memory"));
    storage.set_len(size).unwrap();
    over(storage)
}

/// A raw disk over a storage.
pub fn over(storage: Arc<dyn Storage>) -> Arc<Disk> {
    let spec = NodeSpec::new("memory", Some("raw"));
    Arc::new(Disk::over(Node::new(Box::new(Raw::over(storage).unwrap()), "raw", spec, None)))
}

/// A new qcow2 image, open for writing.
pub fn qcow2_disk(path: &str, size: u64) -> Arc<Disk> {
    let environment = Environment::new(Registry::builtin());
    let storage = environment.opener.create(&FileSpec::file(path)).unwrap();
    let options = CreateOptions { size, ..CreateOptions::default() };
    let driver = environment.registry.get("qcow2").unwrap();
    driver.create(storage, path, &options, &environment, &Task::quiet()).unwrap();
    Arc::new(Disk::open(&environment, &NodeSpec::new(path, Some("qcow2")).writable()).unwrap())
}

pub fn export(name: &str, disk: &Arc<Disk>) -> Export {
    Export {
        name: name.into(),
        description: String::new(),
        disk: disk.clone(),
        read_only: false,
        bitmaps: Vec::new(),
    }
}

/// A connection to a server of our own, and the thread that serves it.
pub fn connected(server: &Arc<Server>) -> (UnixStream, JoinHandle<crate::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = server.clone();
    (ours, std::thread::spawn(move || server.serve(theirs)))
}

/// Disks behind our server, in a thread.
pub struct Ours {
    stop: Cancel,
    thread: Option<JoinHandle<crate::Result<Ended>>>,
    pub endpoint: Endpoint,
}

impl Ours {
    pub fn serve(server: Server, listener: Listener) -> Self {
        let (stop, endpoint) = (Cancel::new(), listener.endpoint());
        let options = ServeOptions { clients_max: 16, persistent: true, stop: stop.clone() };
        let server = Arc::new(server);
        let thread = std::thread::spawn(move || {
            server.run(&[listener], &options, Arc::new(|error| eprintln!("server: {error}")))
        });
        Self { stop, thread: Some(thread), endpoint }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A client of a server of our own.
pub fn client(server: &Arc<Server>, name: &str) -> (NbdStorage, JoinHandle<crate::Result<()>>) {
    let (stream, thread) = connected(server);
    (NbdStorage::over(stream, name, "nbd:test", false).unwrap(), thread)
}

/// An authority, and certificates by it for a server (of `localhost` and 127.0.0.1) and a client, in a folder.
pub fn certificates(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test authority");
    let authority = params.self_signed(&authority_key).unwrap();
    fs::write(folder.join("ca-cert.pem"), authority.pem()).unwrap();
    let issuer = Issuer::new(params, authority_key);
    for side in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, side);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{side}-cert.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{side}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// The programs of the other implementations, from the test cache or the machine. A test that lacks one fails: it would
/// show nothing.
pub fn program(name: &str) -> Command {
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let cache = std::env::var_os("UMBRA_TEST_CACHE").map_or(target.join("test-cache"), PathBuf::from);
    let places = [cache.join("bin").join(name), Path::new("/usr/bin").join(name)];
    let found = places.into_iter().find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| {
        panic!("{name} is not here, so nothing is compared; `cargo xtask deps` unpacks it (Debian: qemu-utils, libnbd-bin)")
    }))
}

/// Runs a program that has to succeed; its output.
pub fn run(name: &str, words: &[&str]) -> String {
    let output = program(name).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {words:?}: {}\n{text}\n{errors}", output.status);
    text
}
