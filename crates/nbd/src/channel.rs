//! A connection's bytes, plain or by TLS, for one thread that reads and any that write at the same time.
//!
//! What comes before TLS is read without a byte more than is asked for: whoever sits between client and server can put
//! nothing before the handshake that would be taken for what came after it.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, Connection, ServerConnection};

use umbra_block::Cancel;

use crate::socket::Socket;
use crate::tls::{TlsClient, TlsServer};
use crate::{Error, Result, lock};

/// Bytes that are encrypted before they are sent.
const PIECE: usize = 64 << 10;
/// Encrypted bytes that are taken from the socket at once: a record and a bit.
const RECEIVED: usize = 32 << 10;
/// How long the last words to a peer may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Channel {
    socket: Arc<Socket>,
    tls: Option<Arc<Tls>>,
}

#[derive(Debug)]
struct Tls {
    state: Mutex<Connection>,
    received: Mutex<Received>,
    /// Encrypted and not sent; the lock keeps what is sent in the order in which it was encrypted.
    sending: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

fn tls_error(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Channel {
    /// Over a socket, plain.
    pub fn plain(socket: impl Into<Socket>) -> Self {
        Self { socket: Arc::new(socket.into()), tls: None }
    }

    /// The socket below.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// A peer that is silent for a while when `cancel` is set has lost the connection.
    pub fn give_up_when(&self, cancel: Cancel) -> io::Result<()> {
        self.socket.give_up_when(cancel)
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The same connection, encrypted from here on; this end is the client.
    pub fn into_tls_client(self, tls: &TlsClient, host: Option<&str>) -> Result<Self> {
        let name = tls.server_name(host)?;
        let state = ClientConnection::new(tls.config(), name).map_err(|e| Error::Tls(e.to_string()))?;
        self.into_tls(state.into())
    }

    /// The same connection, encrypted from here on; this end is the server.
    pub fn into_tls_server(self, tls: &TlsServer) -> Result<Self> {
        let state = ServerConnection::new(tls.config()).map_err(|e| Error::Tls(e.to_string()))?;
        self.into_tls(state.into())
    }

    fn into_tls(self, mut state: Connection) -> Result<Self> {
        let mut socket = &*self.socket;
        while state.is_handshaking() {
            state.complete_io(&mut socket).map_err(|error| match error.get_ref() {
                Some(inner) if inner.is::<rustls::Error>() => Error::Tls(inner.to_string()),
                _ => Error::Connection(error),
            })?;
        }
        while state.wants_write() {
            state.write_tls(&mut socket)?;
        }
        let received = Received { bytes: vec![0; RECEIVED], start: 0, end: 0 };
        let tls = Tls { state: state.into(), received: received.into(), sending: Mutex::default() };
        Ok(Self { tls: Some(Arc::new(tls)), ..self })
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        (&*self).read_exact(bytes)
    }

    /// Sends all of the parts, one behind the other. Whoever calls it from several threads keeps whole messages apart.
    pub fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        match &self.tls {
            None => send_plain(&self.socket, parts),
            Some(tls) => parts.iter().try_for_each(|part| tls.send(&self.socket, part)),
        }
    }

    /// Says `parts` and that nothing more comes, as far as the peer listens, and ends the connection.
    pub fn end(&self, parts: &[&[u8]]) {
        // The peer may be gone, or take nothing more.
        let listens =
            self.socket.set_deadline(Some(Instant::now() + LAST_WORDS)).is_ok() && self.send(parts).is_ok();
        if let Some(tls) = self.tls.as_ref().filter(|_| listens) {
            lock(&tls.state).send_close_notify();
            let _ = tls.send(&self.socket, &[]);
        }
        self.socket.shutdown(Shutdown::Both);
    }
}

fn send_plain(mut socket: &Socket, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match socket.write_vectored(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => IoSlice::advance_slices(&mut rest, sent),
        }
    }
    Ok(())
}

impl Tls {
    fn send(&self, mut socket: &Socket, bytes: &[u8]) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        let mut rest = bytes;
        loop {
            {
                let mut state = lock(&self.state);
                let taken = state.writer().write(&rest[..rest.len().min(PIECE)])?;
                rest = &rest[taken..];
                while state.wants_write() {
                    state.write_tls(&mut *sending)?;
                }
            }
            // Without the lock on the state: whoever reads goes on while the peer takes its time.
            socket.write_all(&sending)?;
            sending.clear();
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn receive(&self, mut socket: &Socket, bytes: &mut [u8]) -> io::Result<usize> {
        let mut received = lock(&self.received);
        let received = &mut *received;
        loop {
            {
                let mut state = lock(&self.state);
                match state.reader().read(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                if received.start < received.end {
                    let mut rest = &received.bytes[received.start..received.end];
                    received.start += state.read_tls(&mut rest)?;
                    if let Err(error) = state.process_new_packets() {
                        return Err(tls_error(error));
                    }
                    continue;
                }
            }
            (received.start, received.end) = (0, 0);
            received.end = socket.read(&mut received.bytes)?;
            if received.end == 0 {
                // So that a connection which was cut is told from one that was ended.
                let mut state = lock(&self.state);
                state.read_tls(&mut io::empty())?;
                state.process_new_packets().map_err(tls_error)?;
            }
        }
    }
}

impl Read for &Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match &self.tls {
            None => (&*self.socket).read(bytes),
            Some(tls) => tls.receive(&self.socket, bytes),
        }
    }
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}
