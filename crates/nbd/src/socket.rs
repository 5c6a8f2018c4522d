//! Sockets of both kinds, with a deadline for the whole of a handshake: a peer that sends one byte a second gets no
//! further than one that sends none.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use umbra_block::Cancel;

use crate::lock;

/// How long a connection may be silent before the host asks whether the peer is still there, and between two questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 3;
/// How often it is looked whether the user wants an end, and how long a peer may then be silent.
const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

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
    /// Ends the patience with a silent peer.
    cancel: OnceLock<Cancel>,
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
        Self::new(Kind::Unix(stream))
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
        Self::new(Kind::Tcp(stream))
    }
}

impl Socket {
    fn new(kind: Kind) -> Self {
        let (timed, deadline) = (AtomicBool::new(false), Mutex::new(None));
        Self { kind, timed, deadline, cancel: OnceLock::new() }
    }

    /// A peer that is silent for a while when `cancel` is set has lost the connection. For after the handshake.
    pub fn give_up_when(&self, cancel: Cancel) -> io::Result<()> {
        // Who was first stays.
        let _ = self.cancel.set(cancel);
        on!(self, stream => {
            stream.set_read_timeout(Some(LOOK))?;
            stream.set_write_timeout(Some(LOOK))
        })
    }

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
        *lock(&self.deadline) = deadline;
        self.timed.store(deadline.is_some(), Ordering::Release);
        if deadline.is_none() {
            on!(self, stream => {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)?;
            });
        }
        Ok(())
    }

    /// Ends it in one direction or both. A thread that waits in it comes back.
    pub fn shutdown(&self, how: Shutdown) {
        // The peer may have done so before.
        let _ = on!(self, stream => stream.shutdown(how));
    }

    /// Does `work` again where a signal interrupted it, and while there is patience: with a timeout the host does not go
    /// on by itself.
    fn again<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut asked = None;
        loop {
            match work() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Some(cancel) = self.cancel.get() else { return Err(error) };
                    if cancel.is_cancelled() && asked.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                done => return done,
            }
        }
    }

    fn limit_write(&self) -> io::Result<()> {
        match self.left()? {
            Some(left) => on!(self, stream => stream.set_write_timeout(Some(left))),
            None => Ok(()),
        }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        if !self.timed.load(Ordering::Acquire) {
            return Ok(None);
        }
        let deadline = *lock(&self.deadline);
        let Some(deadline) = deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        // The host takes no timeout of zero.
        if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for &Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.again(|| {
            if let Some(left) = self.left()? {
                on!(self, stream => stream.set_read_timeout(Some(left))?);
            }
            on!(self, stream => (&*stream).read(bytes))
        })
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.again(|| {
            self.limit_write()?;
            on!(self, stream => (&*stream).write(bytes))
        })
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.again(|| {
            self.limit_write()?;
            on!(self, stream => (&*stream).write_vectored(parts))
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
