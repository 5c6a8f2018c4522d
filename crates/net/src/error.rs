//! What can go wrong outside of frames. A frame that is wrong is dropped, and is no error.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a network could not be made or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The host refuses something that every network needs.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// A port of the host could not be opened for the guest.
    #[error("cannot listen on {address} for the guest; choose another port, or stop who has it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the host says.
        source: io::Error,
    },
    /// A setting is wrong, or asks for what is not there.
    #[error("{0}")]
    Spec(String),
    /// The thread of the link has ended.
    #[error("the network of this machine has stopped")]
    Stopped,
}

impl Error {
    /// For `map_err`: names what was being done.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { what, source: source.into() }
    }
}
