//! Listening, taking clients in, and ending: when it is asked to, or when the last client has left.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use umbra_block::Cancel;

use super::Server;
use crate::address::Endpoint;
use crate::channel::Channel;
use crate::socket::Socket;
use crate::{Error, Result, lock};

/// How often it is looked whether it shall end.
const LOOK: Duration = Duration::from_millis(100);
/// For how long clients may take what they have ordered when the server ends.
const GRACE: Duration = Duration::from_secs(5);
/// How long no client is taken in after the host refused one.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    /// With the socket's identity, so that nobody else's is removed.
    Unix(UnixListener, PathBuf, (u64, u64)),
}

/// A place where clients come in. Its socket is removed with it.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
}

/// When a server ends, and how many it serves.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Clients at once; further ones wait.
    pub clients_max: usize,
    /// It goes on when the last client has left.
    pub persistent: bool,
    /// Asks it to end.
    pub stop: Cancel,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// It was asked to.
    pub stopped: bool,
    /// Clients that have opened an export. Who only looked around is none.
    pub clients: u64,
}

impl Listener {
    /// On a Unix socket. One that is there and that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// The host's; somebody listens there.
    pub fn unix(path: &Path) -> Result<Self> {
        let doing = || format!("listen on '{}'", path.display());
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path).map_err(Error::host(doing()))?;
        }
        let listener = UnixListener::bind(path).map_err(Error::host(doing()))?;
        listener.set_nonblocking(true).map_err(Error::host(doing()))?;
        let meta = std::fs::symlink_metadata(path).map_err(Error::host(doing()))?;
        Ok(Self { kind: Kind::Unix(listener, path.to_owned(), (meta.dev(), meta.ino())) })
    }

    /// On a TCP port of an address of this host; a free one where it is 0.
    ///
    /// # Errors
    /// The host's.
    pub fn tcp(host: &str, port: u16) -> Result<Self> {
        let doing = || format!("listen on {host}:{port}");
        let addresses: Vec<_> = (host, port).to_socket_addrs().map_err(Error::host(doing()))?.collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(Error::host(doing()))?;
        listener.set_nonblocking(true).map_err(Error::host(doing()))?;
        Ok(Self { kind: Kind::Tcp(listener) })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> Endpoint {
        match &self.kind {
            Kind::Unix(_, path, _) => Endpoint::Unix(path.clone()),
            Kind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => Endpoint::Tcp { host: address.ip().to_string(), port: address.port() },
                // It was bound, so it has one.
                Err(_) => Endpoint::Tcp { host: String::new(), port: 0 },
            },
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener, ..) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(stream.into())
            }
            Kind::Unix(listener, ..) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(stream.into())
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix(_, path, identity) = &self.kind
            && std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *identity)
        {
            // Whoever removed it meanwhile did what is done here.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Clients that are connected.
#[derive(Debug)]
struct Clients {
    live: Mutex<BTreeMap<u64, Client>>,
    /// Those that have opened an export, now or before.
    served: AtomicU64,
    /// Wakes who takes clients in.
    wake: UnixStream,
}

#[derive(Debug)]
struct Client {
    socket: Arc<Socket>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Client>> {
        lock(&self.live)
    }
}

impl Server {
    /// Takes clients in and serves them until it shall end; then waits until all has been carried out, and flushes.
    /// `tell` is called with what ended a connection that was not ended in order.
    ///
    /// # Errors
    /// The host's; a disk that cannot be flushed.
    pub fn run(
        self: &Arc<Self>,
        listeners: &[Listener],
        options: &ServeOptions,
        tell: Arc<dyn Fn(&Error) + Send + Sync>,
    ) -> Result<Ended> {
        let (wake, mut woken) = UnixStream::pair().map_err(Error::host("make a pair of sockets"))?;
        for end in [&wake, &woken] {
            end.set_nonblocking(true).map_err(Error::host("set up a pair of sockets"))?;
        }
        let clients = Arc::new(Clients { live: Mutex::default(), served: AtomicU64::new(0), wake });
        let ended = self.take_all_in(listeners, options, &clients, &mut woken, &tell);
        dismiss(&clients);
        for export in &self.exports {
            export.disk.flush().map_err(|error| Error::Refused {
                what: format!("cannot flush export '{}': {error}", export.name),
                message: String::new(),
            })?;
        }
        ended
    }

    fn take_all_in(
        self: &Arc<Self>,
        listeners: &[Listener],
        options: &ServeOptions,
        clients: &Arc<Clients>,
        woken: &mut UnixStream,
        tell: &Arc<dyn Fn(&Error) + Send + Sync>,
    ) -> Result<Ended> {
        let clients_max = options.clients_max.max(1);
        let mut number = 0;
        loop {
            // In this order: a client is counted before it leaves.
            let live = clients.lock().len();
            let served = clients.served.load(Ordering::SeqCst);
            let stopped = options.stop.is_cancelled();
            if stopped || !options.persistent && served > 0 && live == 0 {
                return Ok(Ended { stopped, clients: served });
            }
            let open = if live < clients_max { listeners } else { &[] };
            for listener in wait(open, woken)? {
                match listener.accept() {
                    Ok(socket) => {
                        number += 1;
                        self.take_in(socket, number, clients, tell);
                    }
                    // It has left before, or another process has taken it.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                        ) => {}
                    Err(error) => {
                        tell(&Error::host("take a client in")(error));
                        std::thread::sleep(PAUSE);
                    }
                }
                if clients.lock().len() >= clients_max {
                    break;
                }
            }
            // That something came is all there is to know.
            while woken.read(&mut [0; 64]).is_ok_and(|len| len > 0) {}
        }
    }

    fn take_in(
        self: &Arc<Self>,
        socket: Socket,
        number: u64,
        clients: &Arc<Clients>,
        tell: &Arc<dyn Fn(&Error) + Send + Sync>,
    ) {
        let channel = Channel::plain(socket);
        let socket = channel.socket().clone();
        clients.lock().insert(number, Client { socket: socket.clone(), thread: None });
        let leaves = Leaves { number, clients: clients.clone() };
        let (server, told) = (self.clone(), tell.clone());
        let serve = move || {
            let opened = || {
                leaves.clients.served.fetch_add(1, Ordering::SeqCst);
            };
            if let Err(error) = server.serve_channel(channel, opened) {
                told(&error);
            }
        };
        match std::thread::Builder::new().name("nbd-client".to_owned()).spawn(serve) {
            Ok(thread) => {
                if let Some(client) = clients.lock().get_mut(&number) {
                    client.thread = Some(thread);
                }
            }
            Err(error) => {
                // The closure, and `leaves` with it, is gone by now.
                socket.shutdown(Shutdown::Both);
                tell(&Error::host("begin a thread for a client")(error));
            }
        }
    }
}

/// Takes a client off the list when its thread ends, however that comes about.
struct Leaves {
    number: u64,
    clients: Arc<Clients>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.clients.lock().remove(&self.number);
        // When there is no room, enough has come to wake it.
        let _ = (&self.clients.wake).write(&[0]);
    }
}

/// Waits until a client comes, one leaves or it is time to look around; where clients have come.
fn wait<'l>(listeners: &'l [Listener], woken: &UnixStream) -> Result<Vec<&'l Listener>> {
    let mut fds: Vec<PollFd<'_>> =
        listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN)).collect();
    fds.push(PollFd::new(woken, PollFlags::IN));
    let timeout = Timespec::try_from(LOOK).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(Error::host("wait for clients")(error.into())),
    }
    Ok(listeners.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(one, _)| one).collect())
}

/// Lets every client have what it has ordered, and sees it out.
fn dismiss(clients: &Clients) {
    for client in clients.lock().values() {
        client.socket.shutdown(Shutdown::Read);
    }
    let began = Instant::now();
    while began.elapsed() < GRACE && !clients.lock().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let threads: Vec<JoinHandle<()>> = {
        let mut live = clients.lock();
        live.values_mut()
            .filter_map(|client| {
                client.socket.shutdown(Shutdown::Both);
                client.thread.take()
            })
            .collect()
    };
    for thread in threads {
        // What it was about has been told.
        let _ = thread.join();
    }
}
