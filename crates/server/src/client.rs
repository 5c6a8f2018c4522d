//! The control socket's client side.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;

use crate::http::{read_response, write_request, write_upgrade};
use crate::types::{Ended, Port, PortName, SaveRequest, Status, VmInfo};

/// Why a request had no success.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no running machine answers at {0}")]
    NotRunning(String),
    /// The connection broke.
    #[error("the machine's control socket: {0}")]
    Io(#[from] io::Error),
    /// The machine said no.
    #[error("{0}")]
    Refused(String),
    /// The answer is no JSON of the expected shape.
    #[error("the machine's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A machine's control socket.
pub struct Client<'a> {
    path: &'a Path,
}

impl<'a> Client<'a> {
    /// The machine that listens at `path`.
    pub fn new(path: &'a Path) -> Self {
        Self { path }
    }

    fn request<T: DeserializeOwned>(&self, method: &str, path: &str, body: &Value) -> Result<T, ClientError> {
        let mut stream = self.connect()?;
        write_request(&mut stream, method, path, body.to_string().as_bytes())?;
        let (code, body) = read_response(&mut stream)?;
        if code == 200 { Ok(serde_json::from_slice(&body)?) } else { Err(refused(&body)?) }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(self.path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.path.display().to_string())
            }
            _ => ClientError::Io(e),
        })
    }

    /// What the machine is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.request("GET", "/v1/vm", &json!({}))
    }

    /// Does `PUT /v1/vm/{action}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn act(&self, action: &str) -> Result<(), ClientError> {
        self.request::<Value>("PUT", &format!("/v1/vm/{action}"), &json!({})).map(drop)
    }

    /// Saves the machine to an absolute path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn save(&self, path: &Path) -> Result<(), ClientError> {
        let body = serde_json::to_value(SaveRequest { path: path.to_owned() })?;
        self.request::<Value>("PUT", "/v1/vm/save", &body).map(drop)
    }

    /// Waits for the machine's end.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::Io`] if it ended without a word.
    pub fn wait(&self) -> Result<Ended, ClientError> {
        self.request("GET", "/v1/vm/wait", &json!({}))
    }

    /// The ports of the host that lead to the guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ports(&self) -> Result<Vec<Port>, ClientError> {
        let mut answer: Value = self.request("GET", "/v1/vm/ports", &json!({}))?;
        Ok(serde_json::from_value(answer["ports"].take())?)
    }

    /// Opens a port; the answer has its number.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_port(&self, port: &Port) -> Result<Port, ClientError> {
        self.request("POST", "/v1/vm/ports", &serde_json::to_value(port)?)
    }

    /// Closes a port.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_port(&self, port: &PortName) -> Result<(), ClientError> {
        self.request::<Value>("DELETE", "/v1/vm/ports", &serde_json::to_value(port)?).map(drop)
    }

    /// The serial console: the connection, and what of it has been read.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn console(&self) -> Result<(UnixStream, Vec<u8>), ClientError> {
        let mut stream = self.connect()?;
        write_upgrade(&mut stream, "/v1/vm/console")?;
        let (code, body) = read_response(&mut stream)?;
        if code == Status::Switching.line().0 { Ok((stream, body)) } else { Err(refused(&body)?) }
    }
}

/// What an answer that is no success says.
fn refused(body: &[u8]) -> Result<ClientError, ClientError> {
    let value: Value = serde_json::from_slice(body)?;
    let message = value["error"].as_str().unwrap_or("it gave no reason");
    Ok(ClientError::Refused(message.to_owned()))
}
