//! Sockets of both kinds, with a deadline for the whole of a handshake: a peer that sends one byte a second gets no
//! further than one that sends none.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a connection may be silent before the host asks whether the peer is still there, and between two questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 3;

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected socket. Reading and writing go on at once, from different threads.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    /// Whether there is a deadline: a socket without one costs no look at it.
    timed: AtomicBool,
    deadline: Mutex<Option<Instant>>,
}

macro_rules! on {
    ($socket:expr, $stream:ident => $what:expr) => {
        match &$socket.kind {
            Kind::Tcp($stream) => $what,
            Kind::Unix($stream) => $what,
        }
    };
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self { kind: Kind::Unix(stream), timed: AtomicBool::new(false), deadline: Mutex::new(None) }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        // None of these is needed for the connection to work.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE);
        let _ = rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL);
        let _ = rustix::net::sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES);
        Self { kind: Kind::Tcp(stream), timed: AtomicBool::new(false), deadline: Mutex::new(None) }
    }
}

impl Socket {
    /// Connects to a Unix socket.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(UnixStream::connect(path)?.into())
    }

    /// Connects to the first address of a host that answers.
    pub fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => return Ok(stream.into()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Everything has to be done by then; `None` lifts it.
    pub fn set_deadline(&self, deadline: Option<Instant>) -> io::Result<()> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
        self.timed.store(deadline.is_some(), Ordering::Release);
        if deadline.is_none() {
            on!(self, stream => {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)?;
            });
        }
        Ok(())
    }

    /// No write takes longer: for the last words to a peer that may not listen.
    pub fn limit_writes(&self, timeout: Duration) -> io::Result<()> {
        on!(self, stream => stream.set_write_timeout(Some(timeout)))
    }

    /// Ends it in one direction or both. A thread that waits in it comes back.
    pub fn shutdown(&self, how: Shutdown) {
        // The peer may have done so before.
        let _ = on!(self, stream => stream.shutdown(how));
    }

    fn limit_write(&self) -> io::Result<()> {
        match self.left()? {
            Some(left) => self.limit_writes(left),
            None => Ok(()),
        }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        if !self.timed.load(Ordering::Acquire) {
            return Ok(None);
        }
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(deadline) = deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        // The host takes no timeout of zero.
        if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// A signal is no reason to give up: with a timeout the host does not go on by itself.
fn again<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        again(|| {
            if let Some(left) = self.left()? {
                on!(self, stream => stream.set_read_timeout(Some(left))?);
            }
            on!(self, stream => (&*stream).read(bytes))
        })
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        again(|| {
            self.limit_write()?;
            on!(self, stream => (&*stream).write(bytes))
        })
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        again(|| {
            self.limit_write()?;
            on!(self, stream => (&*stream).write_vectored(parts))
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
