//! Where the bytes of images come from: files of the host, and exports of NBD servers.

use std::sync::Arc;

use umbra_block::{
    Access, Cancel, Error, FileSpec, FileStorageSpec, HostFiles, NodeSpec, Opener, Result as BlockResult,
    Storage,
};
use umbra_nbd::{Address, Credentials, NbdStorage, TlsClient};

use super::open::{file_spec, from_options};
use super::tls::TlsObjects;
use super::{json_read, keyval};

/// Files and exports.
#[derive(Debug)]
pub struct Files {
    tls: TlsObjects,
    cancel: Cancel,
}

impl Files {
    /// With the certificates that exports may need, and what ends the patience with a server that does not answer.
    pub fn new(tls: TlsObjects, cancel: Cancel) -> Files {
        Files { tls, cancel }
    }

    fn connect(&self, file: &FileSpec, read_only: bool) -> umbra_nbd::Result<NbdStorage> {
        let address = match file.options.is_empty() {
            true => Address::from_name(&file.name)?,
            false => Address::from_options(file.options.clone())?,
        };
        let tls = match &address.tls {
            None => None,
            Some(choice) => Some(match &choice.credentials {
                Credentials::Object(id) => self.tls.client(id)?,
                Credentials::Folder(folder) => TlsClient::load(Some(folder), choice.verify)?,
                Credentials::Host => TlsClient::load(None, choice.verify)?,
            }),
        };
        let storage = NbdStorage::open(&address, tls.as_ref(), read_only)?;
        storage.give_up_when(self.cancel.clone())?;
        Ok(storage)
    }
}

/// Whether it is an export.
pub fn is_export(file: &FileSpec) -> bool {
    Address::is_name(&format!("{}:", file.protocol))
}

impl Opener for Files {
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> BlockResult<Arc<dyn Storage>> {
        match is_export(file) {
            true => Ok(Arc::new(self.connect(file, spec.access == Access::Read)?)),
            false => HostFiles.open(file, spec),
        }
    }

    fn create(&self, file: &FileSpec) -> BlockResult<Arc<dyn Storage>> {
        match is_export(file) {
            // It is there, and as large as it is.
            true => Ok(Arc::new(self.connect(file, false)?)),
            false => HostFiles.create(file),
        }
    }

    fn node_of_name(&self, name: &str) -> BlockResult<Option<NodeSpec>> {
        if let Some(text) = name.strip_prefix("json:") {
            let value = json_read::read(text).map_err(|error| {
                Error::InvalidOption(format!(
                    "Could not open '{name}': Could not parse the JSON options: {error}"
                ))
            })?;
            let options = keyval::flatten(&value).map_err(Error::InvalidOption)?;
            return from_options(options).map(Some).map_err(|failure| Error::InvalidOption(failure.message));
        }
        if !Address::is_name(name) {
            return Ok(None);
        }
        Ok(Some(NodeSpec { file: file_spec(name), ..NodeSpec::new(name, None) }))
    }
}
