//! Disk images for the targets: bytes in memory as the only file that there is.

use std::sync::Arc;

use umbra_block::{
    BackingSpec, Environment, Error, FileSpec, FileStorageSpec, MemoryStorage, NodeSpec, Opener, Registry,
    Result, Storage,
};

/// The one file.
#[derive(Debug)]
struct OneFile(Arc<MemoryStorage>);

impl Opener for OneFile {
    fn open(&self, file: &FileSpec, _spec: &FileStorageSpec) -> Result<Arc<dyn Storage>> {
        if file.name == "image" {
            Ok(self.0.clone())
        } else {
            Err(Error::io("open", &file.name, std::io::ErrorKind::NotFound.into()))
        }
    }

    fn create(&self, file: &FileSpec) -> Result<Arc<dyn Storage>> {
        Err(Error::io("create", &file.name, std::io::ErrorKind::PermissionDenied.into()))
    }
}

/// An environment in which `image` has these bytes.
pub fn environment(bytes: &[u8]) -> Environment {
    let mut environment = Environment::new(Registry::builtin());
    environment.opener = Arc::new(OneFile(Arc::new(MemoryStorage::with_bytes("image", bytes))));
    environment.secrets.add("s", b"password".to_vec());
    environment
}

/// How to open it, read-only.
pub fn spec(for_check: bool) -> NodeSpec {
    let mut spec = NodeSpec::new("image", Some("qcow2"));
    spec.backing = BackingSpec::None;
    spec.metadata_only = for_check;
    spec.for_check = for_check;
    spec
}
