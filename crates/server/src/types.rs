//! What goes over the control socket, as JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Processors run.
    Running,
    /// Processors and time stand.
    Paused,
}

/// `GET /v1/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// `kvm` or `soft`.
    pub engine: String,
    /// What it is doing.
    pub state: VmState,
    /// Number of processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Process ID of the broker.
    pub broker_pid: u32,
    /// Process ID of the worker, which is the machine.
    pub worker_pid: u32,
    /// When it was started, in milliseconds since 1970.
    #[serde(default)]
    pub started_ms: u64,
    /// It has no terminal.
    #[serde(default)]
    pub detached: bool,
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to the guest: in `GET /v1/vm/ports`, and the body of `POST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the host listens; port 0 in a request lets the host choose.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// `DELETE /v1/vm/ports`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortName {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
}

/// `GET /v1/vm/wait`: how a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// That of `umbra run`.
    pub exit_code: u8,
    /// `power-off`, `reset`, `stopped`, `panic`, `triple-fault`, `internal-error` or `not-started`.
    pub ending: String,
    /// One sentence more, where there is more to say.
    pub message: Option<String>,
}

/// `PUT /v1/vm/save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaveRequest {
    /// Absolute path of the file to write.
    pub path: PathBuf,
}

/// Counters of one vCPU, by name.
pub type VcpuStats = BTreeMap<String, u64>;

/// HTTP status codes that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 101: what follows on the connection is no HTTP.
    Switching,
    /// 200.
    Ok,
    /// 400.
    BadRequest,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409: not in this state.
    Conflict,
    /// 413.
    TooLarge,
    /// 426: the request must ask for another protocol.
    UpgradeRequired,
    /// 500.
    Internal,
}

impl Status {
    /// Number and phrase.
    pub fn line(self) -> (u16, &'static str) {
        match self {
            Self::Switching => (101, "Switching Protocols"),
            Self::Ok => (200, "OK"),
            Self::BadRequest => (400, "Bad Request"),
            Self::NotFound => (404, "Not Found"),
            Self::MethodNotAllowed => (405, "Method Not Allowed"),
            Self::Conflict => (409, "Conflict"),
            Self::TooLarge => (413, "Content Too Large"),
            Self::UpgradeRequired => (426, "Upgrade Required"),
            Self::Internal => (500, "Internal Server Error"),
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// For the status line.
    pub status: Status,
    /// One sentence for the user.
    pub message: String,
}

impl ApiError {
    /// An error of this status.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}
