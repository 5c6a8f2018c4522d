//! A connection that is made anew when it is lost, where that is wanted (`reconnect-delay`): requests wait for as long, and
//! are made once more.
//!
//! A server that comes back has to offer the same export. Whether it still has what was not flushed is its own affair, as
//! after any loss of power.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use umbra_block::{Cancel, IoBuf, IoSrc};

use super::connection::Connection;
use super::handshake::ExportFacts;
use crate::address::{Address, Endpoint};
use crate::channel::Channel;
use crate::socket::Socket;
use crate::tls::TlsClient;
use crate::wire::CommandFlags;
use crate::{Error, Result, lock};

/// How long connecting and the handshake may take, each.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(100);

/// How a connection is made anew.
#[derive(Debug)]
struct Again {
    address: Address,
    tls: Option<TlsClient>,
    /// Nobody came back in time: requests fail sooner from then on.
    given_up: AtomicBool,
}

/// A connection to an export, or one after the other.
#[derive(Debug)]
pub struct Link {
    /// What the server said of the export first, and each later one has to say.
    facts: ExportFacts,
    connection: Mutex<Arc<Connection>>,
    again: Option<Again>,
    cancel: Mutex<Option<Cancel>>,
}

fn try_connect(endpoint: &Endpoint) -> io::Result<Socket> {
    match endpoint {
        Endpoint::Unix(path) => Socket::connect_unix(path),
        Endpoint::Tcp { host, port } => Socket::connect_tcp(host, *port, HANDSHAKE),
    }
}

fn connect(address: &Address) -> Result<Socket> {
    let began = Instant::now();
    loop {
        match try_connect(&address.endpoint) {
            Ok(socket) => return Ok(socket),
            Err(_) if began.elapsed() < address.open_timeout => std::thread::sleep(RETRY),
            Err(source) => {
                return Err(Error::Connect { address: address.endpoint.to_string(), source });
            }
        }
    }
}

fn shake(channel: Channel, tls: Option<(&TlsClient, Option<&str>)>, export: &str) -> Result<Connection> {
    Connection::open(channel, tls, export, Instant::now() + HANDSHAKE)
}

impl Link {
    /// Connects to an export.
    pub fn open(address: &Address, tls: Option<&TlsClient>) -> Result<Self> {
        let with = tls.map(|tls| (tls, address.tls_host()));
        let connection = shake(Channel::plain(connect(address)?), with, &address.export)?;
        let again = (!address.reconnect_delay.is_zero()).then(|| Again {
            address: address.clone(),
            tls: tls.cloned(),
            given_up: AtomicBool::new(false),
        });
        Ok(Self { again, ..Self::over(connection) })
    }

    /// Over a channel that is there; when it is lost, so is the link.
    pub fn over_channel(channel: Channel, export: &str) -> Result<Self> {
        Ok(Self::over(shake(channel, None, export)?))
    }

    fn over(connection: Connection) -> Self {
        Self {
            facts: connection.facts().clone(),
            connection: Mutex::new(Arc::new(connection)),
            again: None,
            cancel: Mutex::default(),
        }
    }

    /// What the server said of the export.
    pub fn facts(&self) -> &ExportFacts {
        &self.facts
    }

    /// A server that is silent for a while when `cancel` is set has lost the connection, and nobody waits for another.
    pub fn give_up_when(&self, cancel: Cancel) -> Result<()> {
        *lock(&self.cancel) = Some(cancel.clone());
        lock(&self.connection).give_up_when(cancel)
    }

    /// As [`Connection::read`].
    pub fn read(&self, offset: u64, len: u32, bufs: &[IoBuf<'_>]) -> io::Result<()> {
        self.run(|connection| connection.read(offset, len, bufs))
    }

    /// As [`Connection::write`].
    pub fn write(&self, offset: u64, len: u32, srcs: &[IoSrc<'_>]) -> io::Result<()> {
        self.run(|connection| connection.write(offset, len, srcs))
    }

    /// As [`Connection::command`].
    pub fn command(&self, command: u16, flags: CommandFlags, offset: u64, len: u32) -> io::Result<()> {
        self.run(|connection| connection.command(command, flags, offset, len))
    }

    /// As [`Connection::status`].
    pub fn status(&self, offset: u64, len: u32, context: u32) -> io::Result<Vec<(u32, u32)>> {
        self.run(|connection| connection.status(offset, len, context))
    }

    /// Makes a request; once more by another connection where one was lost.
    fn run<T>(&self, request: impl Fn(&Connection) -> io::Result<T>) -> io::Result<T> {
        loop {
            let connection = lock(&self.connection).clone();
            match (request(&connection), &self.again) {
                // No server answers so: it is the connection that was lost.
                (Err(error), Some(again)) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    self.reconnect(again, &connection, error)?;
                }
                (done, _) => return done,
            }
        }
    }

    /// Sees that there is another connection than `lost`; the error that lost it where nobody comes back in time.
    fn reconnect(&self, again: &Again, lost: &Arc<Connection>, error: io::Error) -> io::Result<()> {
        let mut current = lock(&self.connection);
        if !Arc::ptr_eq(&current, lost) {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            if let Ok(connection) = self.another(again) {
                *current = Arc::new(connection);
                again.given_up.store(false, Ordering::Relaxed);
                return Ok(());
            }
            let cancelled = lock(&self.cancel).as_ref().is_some_and(Cancel::is_cancelled);
            let late = began.elapsed() >= again.address.reconnect_delay;
            if cancelled || late || again.given_up.load(Ordering::Relaxed) {
                again.given_up.store(true, Ordering::Relaxed);
                return Err(error);
            }
            std::thread::sleep(RETRY);
        }
    }

    fn another(&self, again: &Again) -> Result<Connection> {
        let socket = try_connect(&again.address.endpoint).map_err(Error::host("connect again"))?;
        let with = again.tls.as_ref().map(|tls| (tls, again.address.tls_host()));
        let connection = shake(Channel::plain(socket), with, &again.address.export)?;
        if *connection.facts() != self.facts {
            return Err(Error::protocol("the export is another one now"));
        }
        if let Some(cancel) = lock(&self.cancel).clone() {
            connection.give_up_when(cancel)?;
        }
        Ok(connection)
    }
}
