//! How a running machine is managed: HTTP/1.1 with JSON on a Unix socket, versioned by path (`/v1/…`).
//!
//! | request | what it does |
//! |---|---|
//! | `GET /v1/version` | the program's and the protocol's version |
//! | `GET /v1/vm` | name, engine, state, processors, memory, processes, ports, when it was started |
//! | `GET /v1/stats` | counters of each vCPU |
//! | `PUT /v1/vm/pause`, `resume` | stops and continues processors and time |
//! | `PUT /v1/vm/save` with `{"path": "…"}` | pauses, writes the whole machine to a file, and stays paused |
//! | `PUT /v1/vm/power-button` | presses the power button |
//! | `PUT /v1/vm/stop` | ends the machine at once |
//! | `GET /v1/vm/wait` | answers when the machine has ended: `{"exit_code": 0, "ending": "power-off", "message": null}` |
//! | `GET /v1/vm/ports` | the ports of the host that lead to the guest: `{"ports": [{"protocol": "tcp", "host": "127.0.0.1:8080", "guest_port": 80}]}` |
//! | `POST /v1/vm/ports` with such a port | opens one; the answer is the port, with the number that the host chose for 0 |
//! | `DELETE /v1/vm/ports` with `{"protocol": "tcp", "host": "127.0.0.1:8080"}` | closes one; connections that came through it live on |
//! | `GET /v1/vm/console` with `Upgrade: umbra-console` | the connection becomes the guest's serial line (RFC 9110, section 7.8) |
//!
//! A console's connection gets what the guest showed last and then all that it writes, and what the client sends is typed. Each reader has a
//! queue of its own: for one that does not read, bytes are left out, and the guest never waits. It ends with the machine.
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
pub use serve::{Console, Manage, Server};
pub use types::{ApiError, Ended, Port, PortName, Protocol, SaveRequest, Status, VcpuStats, VmInfo, VmState};

#[cfg(test)]
#[path = "server_test.rs"]
mod server_test;
