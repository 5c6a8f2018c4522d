//! How a running machine is managed: HTTP/1.1 with JSON on a Unix socket, versioned by path (`/v1/…`).
//!
//! | request | what it does |
//! |---|---|
//! | `GET /v1/version` | the program's and the protocol's version |
//! | `GET /v1/vm` | name, engine, state, processors, memory, processes |
//! | `GET /v1/stats` | counters of each vCPU |
//! | `PUT /v1/vm/pause`, `resume` | stops and continues processors and time |
//! | `PUT /v1/vm/save` with `{"path": "…"}` | pauses, writes the whole machine to a file, and stays paused |
//! | `PUT /v1/vm/power-button` | presses the power button |
//! | `PUT /v1/vm/stop` | ends the machine at once |
//!
//! An error is `{"error": "one sentence"}` with a status of 400 or above. Clients are not trusted: requests are bounded in
//! size, number and time.
#![forbid(unsafe_code)]

mod client;
mod deadline;
mod http;
mod serve;
mod types;

pub use client::{Client, ClientError};
pub use serve::{Manage, Server};
pub use types::{ApiError, SaveRequest, Status, VcpuStats, VmInfo, VmState};

#[cfg(test)]
#[path = "server_test.rs"]
mod server_test;
