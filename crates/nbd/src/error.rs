//! What can go wrong between a client and a server, said so that the reader knows what to do next.

use std::io;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the address.
    #[error("Failed to connect to '{address}': {}", plain(.source))]
    Connect {
        /// Where it was tried.
        address: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The connection was lost.
    #[error("{}", lost(.0))]
    Connection(#[source] io::Error),
    /// The peer says what the protocol does not allow, or more than the limits here.
    #[error("the NBD peer breaks the protocol: {0}")]
    Protocol(String),
    /// The server does not do what it was asked for.
    #[error("{what}{}", reported(.message))]
    Refused {
        /// What is not done.
        what: String,
        /// The server's own words, without control characters; empty where it has none.
        message: String,
    },
    /// Certificates that cannot be used, or a peer whose certificate is not good.
    #[error("TLS: {0}")]
    Tls(String),
    /// An address or an option that is wrong.
    #[error("{0}")]
    Address(String),
    /// The host refused something at this end.
    #[error("cannot {doing}: {}", plain(.source))]
    Host {
        /// What was tried.
        doing: String,
        /// The host's reason.
        source: io::Error,
    },
}

fn reported(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!("\nserver reported: {message}") }
}

fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the NBD peer has closed the connection".to_owned()
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "the NBD peer took too long to answer".to_owned()
        }
        _ => format!("the connection to the NBD peer is lost: {}", plain(error)),
    }
}

/// The system's words for an error, without its number.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl Error {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }

    pub(crate) fn address(what: impl Into<String>) -> Self {
        Self::Address(what.into())
    }

    pub(crate) fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Host { doing, source }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<Error> for umbra_block::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Address(text) => Self::InvalidOption(text),
            other => Self::Refused(other.to_string()),
        }
    }
}
