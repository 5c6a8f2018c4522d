//! The way out: sockets of the host, opened for the guest.
//!
//! Behind a trait, because the process that holds the guest may be one that can open none: then somebody else opens them and
//! passes them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

/// What kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// A UDP flow.
    Udp,
    /// ICMP echo, by the sockets that need no privilege; the port is meaningless.
    Ping,
}

/// Opens sockets.
pub trait Outside: Send + fmt::Debug {
    /// A socket that does not block and is connected to `remote`, or has begun to connect, if it is TCP.
    ///
    /// # Errors
    /// The host's.
    fn open(&mut self, transport: Transport, remote: SocketAddr) -> io::Result<OwnedFd>;
}

/// Opens them itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

impl Outside for Direct {
    fn open(&mut self, transport: Transport, remote: SocketAddr) -> io::Result<OwnedFd> {
        let family = if remote.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let (kind, protocol) = match transport {
            Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
            Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
            Transport::Ping if remote.is_ipv4() => (SocketType::DGRAM, ipproto::ICMP),
            Transport::Ping => (SocketType::DGRAM, ipproto::ICMPV6),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, kind, flags, Some(protocol))?;
        if transport == Transport::Tcp {
            // The guest has gathered small segments already, if it wanted to.
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_keepalive(&socket, true)?;
        }
        match rustix::net::connect(&socket, &remote) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }
}
