//! `--object tls-creds-x509`: folders with certificates, for NBD.
//!
//! Properties are those of QEMU's object (`endpoint`, `dir`, `verify-peer`); `priority` is GnuTLS's own, and is not taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use umbra_nbd::{TlsClient, TlsServer};

use super::failure::{Failure, Outcome, reason};
use super::secret;

/// The type that such an object has.
const KIND: &str = "tls-creds-x509";

/// Folders with certificates, by the names of their objects.
#[derive(Debug, Clone, Default)]
pub struct TlsObjects(BTreeMap<String, TlsObject>);

#[derive(Debug, Clone)]
struct TlsObject {
    folder: PathBuf,
    is_server: bool,
    verify: bool,
}

/// The definitions that are of another type, and the objects of this one.
pub fn split<'a>(definitions: impl Iterator<Item = &'a str>) -> Outcome<(Vec<&'a str>, TlsObjects)> {
    let mut others = Vec::new();
    let mut objects = TlsObjects::default();
    for definition in definitions {
        let mut options = secret::properties(definition).map_err(Failure::new)?;
        if options.get("qom-type") != Some(KIND) {
            others.push(definition);
            continue;
        }
        options.take("qom-type");
        let id = options.take("id").ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
        secret::check_id(&id)?;
        let folder = options.take("dir").ok_or_else(|| Failure::new("Parameter 'dir' is missing"))?;
        let is_server = match options.take("endpoint").as_deref() {
            None | Some("client") => false,
            Some("server") => true,
            Some(other) => {
                return Err(Failure::new(format!("Parameter 'endpoint' does not accept value '{other}'")));
            }
        };
        let verify = options.take_bool("verify-peer")?.unwrap_or(true);
        if let Some((name, _)) = options.iter().next() {
            return Err(Failure::new(format!("Property '{KIND}.{name}' not found")));
        }
        let authority = Path::new(&folder).join("ca-cert.pem");
        std::fs::File::open(&authority).map_err(|error| {
            Failure::new(format!("Unable to access credentials {}: {}", authority.display(), reason(&error)))
        })?;
        let object = TlsObject { folder: folder.into(), is_server, verify };
        if objects.0.insert(id.clone(), object).is_some() {
            return Err(Failure::new(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
    }
    Ok((others, objects))
}

impl TlsObjects {
    fn get(&self, id: &str, is_server: bool) -> umbra_nbd::Result<&TlsObject> {
        let found = self.0.get(id);
        let found =
            found.ok_or_else(|| umbra_nbd::Error::Address(format!("No TLS credentials with id '{id}'")))?;
        match found.is_server == is_server {
            true => Ok(found),
            false => Err(umbra_nbd::Error::Address(format!(
                "Expecting TLS credentials with a {} endpoint",
                if is_server { "server" } else { "client" }
            ))),
        }
    }

    /// What a client needs, by the object's name.
    pub fn client(&self, id: &str) -> umbra_nbd::Result<TlsClient> {
        let object = self.get(id, false)?;
        TlsClient::load(Some(&object.folder), object.verify)
    }

    /// What a server needs: by an object's name, or from a folder. Clients have to show a certificate, unless
    /// `any_client` or the object says otherwise.
    pub fn server(&self, name: &str, any_client: bool) -> umbra_nbd::Result<TlsServer> {
        match self.0.contains_key(name) {
            true => {
                let object = self.get(name, true)?;
                TlsServer::load(&object.folder, object.verify && !any_client)
            }
            false => TlsServer::load(Path::new(name), !any_client),
        }
    }
}
