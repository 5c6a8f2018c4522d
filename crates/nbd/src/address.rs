//! Where an export is: `nbd://host:port/export`, `nbd+unix:///export?socket=path`, the same by TLS (`nbds`), QEMU's older
//! `nbd:host:port:exportname=name`, and the options of a node (`server.type=unix,server.path=..,export=..`).
//!
//! Authority: `doc/uri.md` of the NetworkBlockDevice project; for the options QEMU's `BlockdevOptionsNbd`.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use umbra_block::Options;

use crate::wire::{PORT, STRING_MAX};
use crate::{Error, Result};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A host, by name or number, and a port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Where a client's certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The authorities that the host trusts, and no certificate of its own.
    Host,
    /// In a folder.
    Folder(PathBuf),
    /// In an object of this name, which the program knows.
    Object(String),
}

/// That and how a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsChoice {
    /// The certificates.
    pub credentials: Credentials,
    /// The name that the server's certificate has to have; the host's where there is none.
    pub hostname: Option<String>,
    /// Whether the server's certificate is looked at.
    pub verify: bool,
}

/// An export, and how to get to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server.
    pub endpoint: Endpoint,
    /// The export's name; empty for the server's own choice.
    pub export: String,
    /// Encryption.
    pub tls: Option<TlsChoice>,
    /// For how long connecting is tried again and again.
    pub open_timeout: Duration,
    /// For how long a connection that was lost is tried to be made anew.
    pub reconnect_delay: Duration,
}

/// What a name begins with, and whether that is a Unix socket and encrypted.
const SCHEMES: [(&str, bool, bool); 6] = [
    ("nbd", false, false),
    ("nbd+tcp", false, false),
    ("nbd+unix", true, false),
    ("nbds", false, true),
    ("nbds+tcp", false, true),
    ("nbds+unix", true, true),
];

/// Options that stand on every node and say nothing about the connection.
const OF_EVERY_NODE: [&str; 8] = [
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "discard",
    "detect-zeroes",
    "cache.direct",
    "cache.no-flush",
];

/// Options of a socket that the host chooses well by itself.
const OF_SOCKETS: [&str; 6] = ["to", "numeric", "keep-alive", "mptcp", "ipv4", "ipv6"];

impl Address {
    /// Whether a name is that of an export.
    pub fn is_name(name: &str) -> bool {
        name.split_once(':').is_some_and(|(scheme, _)| SCHEMES.iter().any(|(known, ..)| *known == scheme))
    }

    /// An export of a server, without encryption.
    pub fn new(endpoint: Endpoint, export: impl Into<String>) -> Self {
        Self {
            endpoint,
            export: export.into(),
            tls: None,
            open_timeout: Duration::ZERO,
            reconnect_delay: Duration::ZERO,
        }
    }

    /// The same by TLS, with the authorities that the host trusts.
    #[must_use]
    pub fn by_tls(self) -> Self {
        let tls = TlsChoice { credentials: Credentials::Host, hostname: None, verify: true };
        Self { tls: Some(tls), ..self }
    }

    fn checked(endpoint: Endpoint, export: String) -> Result<Self> {
        match export.len() > STRING_MAX {
            true => Err(Error::address(format!("export name is longer than {STRING_MAX} bytes"))),
            false => Ok(Self::new(endpoint, export)),
        }
    }

    /// From a name.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn from_name(name: &str) -> Result<Self> {
        let Some((scheme, rest)) = name.split_once(':') else {
            return Err(Error::address(format!("'{name}' is no NBD address")));
        };
        let Some((_, is_unix, is_tls)) = SCHEMES.iter().find(|(known, ..)| *known == scheme) else {
            return Err(Error::address(format!("Unknown protocol '{scheme}'")));
        };
        match rest.strip_prefix("//") {
            Some(rest) => Self::from_uri(rest, *is_unix, *is_tls),
            None if scheme == "nbd" => Self::from_words(rest),
            None => Err(Error::address(format!("'{name}': an address begins with {scheme}://"))),
        }
    }

    fn from_uri(text: &str, is_unix: bool, is_tls: bool) -> Result<Self> {
        let text = text.split_once('#').map_or(text, |(text, _)| text);
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let export = decoded(path.trim_start_matches('/'))?;
        let mut tls = TlsChoice { credentials: Credentials::Host, hostname: None, verify: true };
        let mut socket = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)?;
            match key {
                "socket" if is_unix => socket = Some(value),
                "tls-certificates" if is_tls => tls.credentials = Credentials::Folder(value.into()),
                "tls-hostname" if is_tls => tls.hostname = Some(value),
                "tls-verify-peer" if is_tls => tls.verify = truth(key, &value)?,
                _ => return Err(Error::address(format!("unknown parameter '{key}' in an NBD address"))),
            }
        }
        let endpoint = match (is_unix, socket) {
            (true, Some(path)) if authority.is_empty() && !path.is_empty() => Endpoint::Unix(path.into()),
            (true, _) => {
                return Err(Error::address("No valid URL specified: it is nbd+unix:///export?socket=path"));
            }
            (false, _) => host_and_port(authority)?,
        };
        Ok(Self { tls: is_tls.then_some(tls), ..Self::checked(endpoint, export)? })
    }

    /// `host:port[:exportname=name]` and `unix:path[:exportname=name]`.
    fn from_words(text: &str) -> Result<Self> {
        let (place, export) = text.split_once(":exportname=").unwrap_or((text, ""));
        let endpoint = match place.strip_prefix("unix:") {
            Some("") => return Err(Error::address("File name missing in the address of an NBD server")),
            Some(path) => Endpoint::Unix(path.into()),
            None if !place.contains(':') => {
                return Err(Error::address(format!("error parsing address '{place}'")));
            }
            None => host_and_port(place)?,
        };
        Self::checked(endpoint, export.to_owned())
    }

    /// From the options of a node; what is left over is an error.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn from_options(mut options: Options) -> Result<Self> {
        for name in OF_EVERY_NODE {
            options.take(name);
        }
        let mut server = options.take_prefixed("server.");
        let of_socket = !server.is_empty();
        for (name, kind) in [("path", "unix"), ("host", "inet"), ("port", "")] {
            if let Some(value) = options.take(name) {
                if of_socket {
                    return Err(Error::address(format!(
                        "'server' and '{name}' cannot be used at the same time"
                    )));
                }
                server.set(name, value);
                if !kind.is_empty() && server.get("type").is_some() {
                    return Err(Error::address("path and host may not be used at the same time"));
                }
                if !kind.is_empty() {
                    server.set("type", kind);
                }
            }
        }
        let endpoint = endpoint_of(server)?;
        let mut address = Self::checked(endpoint, options.take("export").unwrap_or_default())?;
        let hostname = options.take("tls-hostname");
        address.tls = options.take("tls-creds").map(|id| TlsChoice {
            credentials: Credentials::Object(id),
            hostname: hostname.clone(),
            verify: true,
        });
        if address.tls.is_none() && hostname.is_some() {
            return Err(Error::address("tls-hostname needs tls-creds"));
        }
        address.open_timeout = Duration::from_secs(number(&mut options, "open-timeout")?);
        address.reconnect_delay = Duration::from_secs(number(&mut options, "reconnect-delay")?);
        match options.iter().next() {
            None => Ok(address),
            Some((name, _)) => {
                Err(Error::address(format!("Block protocol 'nbd' doesn't support the option '{name}'")))
            }
        }
    }

    /// The name that the server's certificate has to have.
    pub fn tls_host(&self) -> Option<&str> {
        match (&self.tls, &self.endpoint) {
            (Some(TlsChoice { hostname: Some(name), .. }), _) => Some(name),
            (_, Endpoint::Tcp { host, .. }) => Some(host),
            (_, Endpoint::Unix(_)) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = match &self.tls {
            Some(TlsChoice { credentials: Credentials::Folder(folder), .. }) => Some(folder),
            _ => None,
        };
        f.write_str(if self.tls.is_some() { "nbds" } else { "nbd" })?;
        let mut separator = '?';
        match &self.endpoint {
            Endpoint::Tcp { .. } => write!(f, "://{}", self.endpoint)?,
            Endpoint::Unix(_) => f.write_str("+unix://")?,
        }
        if !self.export.is_empty() {
            write!(f, "/{}", encoded(&self.export))?;
        }
        if let Endpoint::Unix(path) = &self.endpoint {
            write!(f, "{separator}socket={}", encoded(&path.display().to_string()))?;
            separator = '&';
        }
        if let Some(folder) = folder {
            write!(f, "{separator}tls-certificates={}", encoded(&folder.display().to_string()))?;
        }
        Ok(())
    }
}

fn endpoint_of(mut server: Options) -> Result<Endpoint> {
    let missing = |name: &str| Error::address(format!("Parameter '{name}' is missing"));
    if server.is_empty() {
        return Err(Error::address("NBD server address missing"));
    }
    let kind = server.take("type").ok_or_else(|| missing("type"))?;
    let endpoint = match kind.as_str() {
        "unix" => Endpoint::Unix(server.take("path").ok_or_else(|| missing("path"))?.into()),
        "inet" => {
            for name in OF_SOCKETS {
                server.take(name);
            }
            let host = server.take("host").ok_or_else(|| missing("host"))?;
            let port = server.take("port").map_or(Ok(PORT), |text| port(&text))?;
            Endpoint::Tcp { host, port }
        }
        other => {
            return Err(Error::address(format!("server.type is inet or unix; '{other}' is not known here")));
        }
    };
    match server.iter().next() {
        None => Ok(endpoint),
        Some((name, _)) => Err(Error::address(format!("Parameter 'server.{name}' is unexpected"))),
    }
}

fn number(options: &mut Options, name: &str) -> Result<u64> {
    let Some(text) = options.take(name) else { return Ok(0) };
    let seconds: Option<u32> = text.parse().ok();
    seconds.map(u64::from).ok_or_else(|| Error::address(format!("Parameter '{name}' expects a number")))
}

fn truth(name: &str, text: &str) -> Result<bool> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(Error::address(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

fn port(text: &str) -> Result<u16> {
    text.parse().map_err(|_| Error::address(format!("'{text}' is no port")))
}

fn host_and_port(text: &str) -> Result<Endpoint> {
    let text = text.rsplit_once('@').map_or(text, |(_, text)| text);
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => {
            inner.split_once(']').ok_or_else(|| Error::address(format!("error parsing address '{text}'")))?
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => PORT,
        None => return Err(Error::address(format!("error parsing address '{text}'"))),
        Some("") => PORT,
        Some(text) => port(text)?,
    };
    let host = if host.is_empty() { "localhost".to_owned() } else { decoded(host)? };
    Ok(Endpoint::Tcp { host, port })
}

/// RFC 3986, section 2.1.
fn decoded(text: &str) -> Result<String> {
    let wrong = || Error::address(format!("'{text}' is no text of an address"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = &rest[2..];
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(wrong()),
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | b'?' | b'#' | b'&' | 0..=b' ' | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            byte => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
#[path = "address_test.rs"]
mod address_test;
