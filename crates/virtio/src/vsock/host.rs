//! The host's side: a Unix socket on which the host connects, and a way to connect where the guest wants to.

use std::io;
use std::os::fd::OwnedFd;

/// Connects for the guest.
pub trait Outside: Send {
    /// A stream to whoever listens for the guest's connections to `port` of the host. Called on the device's thread, so it is not
    /// to wait for anybody.
    ///
    /// # Errors
    /// Nobody listens, or the host refuses.
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd>;
}

/// What a socket device is joined to.
pub struct Host {
    /// A Unix socket that listens. Who connects says `CONNECT port` and a newline, and is answered `OK port` and a newline, with the
    /// port that the connection has on the host's side, when somebody in the guest has taken it; else it is closed.
    pub listener: Option<OwnedFd>,
    /// Where the guest's own connections lead.
    pub outside: Box<dyn Outside>,
}

/// The longest line that begins a connection of the host's, with its newline: the word, a blank and ten digits.
const GREETING_MAX: usize = 32;

/// What has been read of the line that begins a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// More is to come.
    Unfinished,
    /// The guest's port, and how long the line is.
    Port(u32, usize),
    /// It is no such line.
    Wrong,
}

/// Reads the line that begins a connection.
pub(super) fn greeting(bytes: &[u8]) -> Greeting {
    let Some(len) = bytes.iter().take(GREETING_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() < GREETING_MAX { Greeting::Unfinished } else { Greeting::Wrong };
    };
    let line = bytes.get(..len).unwrap_or_default();
    let digits = line.strip_prefix(b"CONNECT ").filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let port = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.trim().parse().ok());
    port.map_or(Greeting::Wrong, |port| Greeting::Port(port, len + 1))
}
