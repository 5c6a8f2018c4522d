//! The guest's agent, and the host's side of what it does: commands and files over a virtio socket.
//!
//! The agent itself is a program of its own, in `guest/`, which is built with this crate and handed out by [`agent_binary`].
//! A guest is hostile: what comes from there is bounded by a frame's length, and taken as data.
#![forbid(unsafe_code)]

mod client;
mod command;
pub mod protocol;

use std::io;

use thiserror::Error;

pub use client::Agent;
pub use command::{Command, Input, Output, Running};

/// The agent as an ELF program for x86-64 Linux, linked statically; it is to be executable, and started once by a guest's
/// administrator when `/dev` is there and the module `vmw_vsock_virtio_transport` is loaded, without arguments and in the background. It
/// stays, takes no terminal, writes nothing, and serves the host at port [`protocol::PORT`]. Terminals need a `devpts` at `/dev/pts`.
///
/// Whoever makes an initramfs or an image puts it in under any name, such as `/usr/lib/umbra/agent`.
pub fn agent_binary() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/umbra-agent"))
}

/// Why something in the guest was not done.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Nobody answers on the host's side of the machine's sockets.
    #[error("cannot reach the machine's sockets: {0}")]
    Unreachable(#[source] io::Error),
    /// The guest has nobody at the port.
    #[error("no agent answers in the guest")]
    NoAgent,
    /// The guest took the connection, and said nothing.
    #[error("the guest does not answer")]
    Silent,
    /// The guest says what makes no sense.
    #[error("the guest's agent makes no sense: {0}")]
    Nonsense(&'static str),
    /// The connection broke.
    #[error("the connection to the guest broke: {0}")]
    Broken(#[from] io::Error),
    /// The command is too large for one request.
    #[error("the command line and its variables are larger than 64 KiB or more than 1000")]
    TooLarge,
    /// The agent could not do it.
    #[error("{what}: {source}")]
    Failed {
        /// The step, as in [`protocol::step`].
        step: u32,
        /// What it was about.
        what: &'static str,
        /// The guest's error.
        source: io::Error,
    },
}

impl AgentError {
    /// The guest's error of a step that failed.
    fn failed(body: &[u8]) -> Self {
        use protocol::step;
        let Some((code, step)) = pair(body) else { return Self::Nonsense("a failure without a reason") };
        let what = match step {
            step::USER => "the guest has no such user, or cannot become it",
            step::TERMINAL => "the guest has no terminal to give",
            step::FOLDER => "cannot enter the folder in the guest",
            step::PROGRAM => "cannot run it in the guest",
            step::PROCESS => "the guest cannot make a process",
            step::OPEN => "cannot open the file in the guest",
            step::READ => "cannot read the file in the guest",
            step::WRITE => "cannot write the file in the guest",
            step::IS_FOLDER => "it is a folder",
            _ => "the guest's agent refuses",
        };
        let source = io::Error::from_raw_os_error(code as i32);
        Self::Failed { step, what, source }
    }

    /// The step that failed, if the agent has said one.
    pub fn step(&self) -> Option<u32> {
        match self {
            Self::Failed { step, .. } => Some(*step),
            _ => None,
        }
    }
}

/// Two numbers, if a body is that.
fn pair(body: &[u8]) -> Option<(u32, u32)> {
    body.try_into().ok().map(protocol::read_pair)
}
