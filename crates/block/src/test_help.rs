//! What tests share: random numbers, files in memory by name, and opening images over them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::{
    Access, BackingSpec, Disk, Environment, Error, FileSpec, FileStorageSpec, MemoryStorage, Node, NodeSpec,
    Opener, Raw, Registry, Result, Secrets, Storage,
};

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Files in memory, by name.
#[derive(Debug, Default)]
pub(crate) struct MemoryFiles(pub Mutex<HashMap<String, Arc<dyn Storage>>>);

impl Opener for MemoryFiles {
    fn open(&self, file: &FileSpec, _spec: &FileStorageSpec) -> Result<Arc<dyn Storage>> {
        let files = self.0.lock().unwrap();
        let found = files.get(&file.name).cloned();
        found.ok_or_else(|| Error::io("open", &file.name, std::io::ErrorKind::NotFound.into()))
    }

    fn create(&self, file: &FileSpec) -> Result<Arc<dyn Storage>> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(&file.name));
        self.0.lock().unwrap().insert(file.name.clone(), storage.clone());
        Ok(storage)
    }
}

/// An environment with files in memory and the secret `s`.
pub(crate) fn env() -> Environment {
    let mut env = Environment::new(Registry::builtin());
    env.opener = Arc::new(MemoryFiles::default());
    let mut secrets = Secrets::default();
    secrets.add("s", b"password".to_vec());
    env.secrets = secrets;
    env
}

pub(crate) fn spec(name: &str) -> NodeSpec {
    let mut spec = NodeSpec::new(name, Some("qcow2")).writable();
    spec.options.set("encrypt.key-secret", "s");
    spec
}

/// Opens a qcow2 image for writing.
pub(crate) fn open(env: &Environment, name: &str) -> Disk {
    Disk::open(env, &NodeSpec { backing: BackingSpec::None, ..spec(name) }).expect("it opens")
}

/// Opens a qcow2 image for writing, over a raw one.
pub(crate) fn open_over(env: &Environment, name: &str, backing: Arc<dyn Storage>) -> Disk {
    let disk = open(env, name);
    let raw = Raw::over(backing).expect("raw opens");
    let mut base = NodeSpec::new("base", Some("raw"));
    base.access = Access::Read;
    disk.drain().exchange_backing(Some(Node::new(Box::new(raw), "raw", base, None)));
    disk
}
