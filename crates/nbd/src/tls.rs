//! Certificates from a folder as QEMU's `tls-creds-x509` has it: `ca-cert.pem`, `ca-crl.pem` where there is one, and
//! `server-cert.pem` with `server-key.pem` or `client-cert.pem` with `client-key.pem`.
//!
//! Protocol versions 1.2 and 1.3. A server's certificate has to name the host in its subject alternative names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, ServerConfig, SignatureScheme,
};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// Where Debian, Fedora and SUSE keep the authorities that the host trusts.
const HOST_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What a client needs for TLS.
#[derive(Debug, Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    /// Whether the server's certificate is looked at.
    verifies: bool,
}

/// What a server needs for TLS.
#[derive(Debug, Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Tls(what.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unreadable(path: &Path) -> impl FnOnce(pem::Error) -> Error {
    let path = path.display().to_string();
    move |error| match error {
        pem::Error::Io(error) => Error::Host { doing: format!("read '{path}'"), source: error },
        pem::Error::NoItemsFound => wrong(format!("'{path}' has none of what it is named for")),
        other => wrong(format!("'{path}': {other:?}")),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let list = CertificateDer::pem_file_iter(path).map_err(unreadable(path))?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(unreadable(path))?;
    if list.is_empty() { Err(unreadable(path)(pem::Error::NoItemsFound)) } else { Ok(list) }
}

/// The private key of a file. Its bytes are wiped; what the library makes of them is its own.
fn key(path: &Path) -> Result<Arc<dyn SigningKey>> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path)(pem::Error::Io(error)))?;
    let key = PrivateKeyDer::from_pem_slice(&Zeroizing::new(bytes)).map_err(unreadable(path))?;
    let key = Zeroizing::new(key);
    ring::sign::any_supported_type(&key).map_err(|error| wrong(format!("'{}': {error}", path.display())))
}

/// The certificate and key of one side, where they are there.
fn own(folder: &Path, side: &str) -> Result<Option<Arc<SingleCertAndKey>>> {
    let path = folder.join(format!("{side}-cert.pem"));
    if !path.exists() {
        return Ok(None);
    }
    let pair = CertifiedKey::new(certificates(&path)?, key(&folder.join(format!("{side}-key.pem")))?);
    match pair.keys_match() {
        // A key that cannot say of which certificate it is finds out when it is used.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(Some(Arc::new(SingleCertAndKey::from(pair))))
        }
        Err(error) => Err(wrong(format!("'{}': {error}", path.display()))),
    }
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| wrong(format!("'{}': {error}", path.display())))?;
    }
    Ok(Arc::new(store))
}

fn revoked(folder: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let path = folder.join("ca-crl.pem");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let list = CertificateRevocationListDer::pem_file_iter(&path).map_err(unreadable(&path))?;
    list.collect::<Result<_, _>>().map_err(unreadable(&path))
}

impl TlsServer {
    /// From a folder. With `verify_clients` a client has to show a certificate of an authority in `ca-cert.pem`.
    ///
    /// # Errors
    /// Files that are missing or wrong.
    pub fn load(folder: &Path, verify_clients: bool) -> Result<Self> {
        let Some(pair) = own(folder, "server")? else {
            return Err(wrong(format!("there is no 'server-cert.pem' in '{}'", folder.display())));
        };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
        let builder = match verify_clients {
            false => builder.with_no_client_auth(),
            true => {
                let roots = authorities(&folder.join("ca-cert.pem"))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .with_crls(revoked(folder)?)
                    .allow_unknown_revocation_status();
                builder.with_client_cert_verifier(verifier.build().map_err(wrong)?)
            }
        };
        let config = builder.with_cert_resolver(pair);
        Ok(Self { config: Arc::new(config) })
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

impl TlsClient {
    /// From a folder; the authorities that the host trusts where none is given. With `verify` false whoever answers is
    /// taken for the server.
    ///
    /// # Errors
    /// Files that are missing or wrong.
    pub fn load(folder: Option<&Path>, verify: bool) -> Result<Self> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
        let builder = match verify {
            false => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider()))),
            true => {
                let (roots, crls) = match folder {
                    Some(folder) => (authorities(&folder.join("ca-cert.pem"))?, revoked(folder)?),
                    None => (authorities(&host_authorities()?)?, Vec::new()),
                };
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
                    .with_crls(crls)
                    .allow_unknown_revocation_status();
                builder.with_webpki_verifier(verifier.build().map_err(wrong)?)
            }
        };
        let own = folder.map_or(Ok(None), |folder| own(folder, "client"))?;
        let config = match own {
            Some(pair) => builder.with_client_cert_resolver(pair),
            None => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config), verifies: verify })
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// The name that the server's certificate has to have.
    pub(crate) fn server_name(&self, host: Option<&str>) -> Result<ServerName<'static>> {
        match host {
            Some(host) => ServerName::try_from(host.to_owned())
                .map_err(|_| Error::address(format!("'{host}' is no name that a certificate could have"))),
            // It is not compared with anything.
            None if !self.verifies => Ok(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())),
            None => Err(Error::address("No hostname for certificate validation; set tls-hostname")),
        }
    }
}

fn host_authorities() -> Result<PathBuf> {
    let found = HOST_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| wrong("this host has no list of authorities; name a folder with ca-cert.pem"))
}

/// Takes every certificate: for who has asked for that in so many words.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
