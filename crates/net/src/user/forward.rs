//! Ports of the host that lead to the guest.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::net::{Net, Owner};
use super::slots::Slots;
use crate::{Error, Result};

/// Ports at once: more than a person names, and each is a descriptor.
const FORWARDS_MAX: usize = 256;

/// What a port of the host speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// What it speaks.
    pub protocol: ForwardProtocol,
    /// Where the host listens; port 0 is one that the host chooses.
    pub host: SocketAddr,
    /// Whom in the guest's network it leads to; `None` for the guest that has the first address.
    pub guest: Option<IpAddr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// A port that is open, but leads nowhere yet.
#[derive(Debug)]
pub struct Listening {
    forward: Forward,
    socket: OwnedFd,
}

impl Forward {
    /// Opens the port. This may be done by another process than the one of the network.
    ///
    /// # Errors
    /// The port is taken, or not allowed.
    pub fn listen(mut self) -> Result<Listening> {
        let refused = |source| Error::Listen { address: self.host, source };
        let (socket, address) = match self.protocol {
            ForwardProtocol::Tcp => {
                let socket = TcpListener::bind(self.host).map_err(refused)?;
                let refused =
                    |source: rustix::io::Errno| Error::Listen { address: self.host, source: source.into() };
                rustix::net::sockopt::set_tcp_nodelay(&socket, true).map_err(refused)?;
                let address = socket.local_addr();
                (OwnedFd::from(socket), address)
            }
            ForwardProtocol::Udp => {
                let socket = UdpSocket::bind(self.host).map_err(refused)?;
                let address = socket.local_addr();
                (OwnedFd::from(socket), address)
            }
        };
        let refused = |source| Error::Listen { address: self.host, source };
        let address = address.map_err(refused)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| refused(error.into()))?;
        self.host = address;
        Ok(Listening { forward: self, socket })
    }
}

impl Listening {
    /// What was opened, with the port that the host has chosen.
    pub fn forward(&self) -> Forward {
        self.forward
    }

    /// Of a socket that somebody else has opened, bound (and listening, if it is TCP) and made not to block.
    pub fn from_socket(forward: Forward, socket: OwnedFd) -> Self {
        Self { forward, socket }
    }

    /// The socket, to be passed to who has the network.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

#[derive(Debug)]
struct Port {
    listening: Listening,
    readable: bool,
}

/// All ports that lead to the guest.
#[derive(Debug)]
pub(super) struct Forwards {
    slots: Slots<Port>,
}

/// Somebody or something from outside.
pub(super) enum Arrival {
    Connection(OwnedFd, SocketAddr),
    Datagram(usize, SocketAddr),
}

impl Forwards {
    pub(super) fn new() -> Self {
        Self { slots: Slots::new(FORWARDS_MAX) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().next().is_none()
    }

    pub(super) fn list(&self) -> Vec<Forward> {
        self.slots.iter().map(|(_, port)| port.listening.forward).collect()
    }

    pub(super) fn add(&mut self, net: &Net, listening: Listening) -> Result<()> {
        let forward = listening.forward;
        if forward.guest.is_some_and(|guest| !net.spec.on_link(guest) || net.is_ours(guest)) {
            return Err(Error::Spec(format!(
                "port {} cannot lead to {}, which is not the guest's; leave the address out, or name one of {}/{}",
                forward.host.port(),
                forward.guest.map(|guest| guest.to_string()).unwrap_or_default(),
                net.spec.gateway,
                net.spec.prefix_len
            )));
        }
        let Some(index) = self.slots.insert(Port { listening, readable: true }) else {
            return Err(Error::Spec(format!(
                "{FORWARDS_MAX} ports lead to the guest already; remove one first"
            )));
        };
        let token = self.slots.token(index);
        let watched = self
            .slots
            .get_mut(index)
            .is_some_and(|port| net.watch(&port.listening.socket, Owner::Forward, token));
        if !watched {
            self.slots.remove(index);
            return Err(Error::Spec("the host refuses to watch another socket".to_owned()));
        }
        Ok(())
    }

    /// Closes the port; connections that came through it live on. Whether there was one.
    pub(super) fn remove(&mut self, protocol: ForwardProtocol, host: SocketAddr) -> bool {
        let matches = |forward: &Forward| forward.protocol == protocol && forward.host == host;
        let found =
            self.slots.iter().find(|(_, port)| matches(&port.listening.forward)).map(|(index, _)| index);
        found.and_then(|index| self.slots.remove(index)).is_some()
    }

    pub(super) fn event(&mut self, token: u32) {
        if let Some(port) = self.slots.index_of(token).and_then(|index| self.slots.get_mut(index)) {
            port.readable = true;
        }
    }

    /// The socket of a UDP port.
    pub(super) fn udp_socket(&self, token: u32) -> Option<BorrowedFd<'_>> {
        let index = self.slots.index_of(token)?;
        self.slots.get(index).map(|port| port.listening.socket.as_fd())
    }

    /// What comes next to any port: through which one, and what. Datagrams are put into `buffer`.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<(u32, Forward, Arrival)> {
        for index in 0..self.slots.capacity() {
            let token = self.slots.token(index);
            let Some(port) = self.slots.get_mut(index).filter(|port| port.readable) else { continue };
            let forward = port.listening.forward;
            if let Some(arrival) = port.next(buffer) {
                return Some((token, forward, arrival));
            }
        }
        None
    }
}

impl Port {
    fn next(&mut self, buffer: &mut [u8]) -> Option<Arrival> {
        let socket = &self.listening.socket;
        let result = match self.listening.forward.protocol {
            ForwardProtocol::Tcp => {
                let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
                rustix::net::acceptfrom_with(socket, flags).map(|(socket, peer)| (peer, Some(socket), 0))
            }
            ForwardProtocol::Udp => rustix::net::recvfrom(socket, buffer, rustix::net::RecvFlags::DONTWAIT)
                .map(|(read, _, peer)| (peer, None, read)),
        };
        match result {
            Ok((peer, socket, read)) => {
                let peer = SocketAddr::try_from(peer?).ok()?;
                Some(socket.map_or(Arrival::Datagram(read, peer), |socket| Arrival::Connection(socket, peer)))
            }
            Err(rustix::io::Errno::AGAIN) => {
                self.readable = false;
                None
            }
            // An error of one client, or no descriptor left: the next look tries again.
            Err(_) => None,
        }
    }
}

/// How the guest sees who is outside: as they are, or, where they are the host itself or of another family, as the gateway.
pub(super) fn seen_by_guest(net: &Net, peer: SocketAddr, guest: IpAddr) -> Option<SocketAddr> {
    let address = match peer.ip() {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
        address => address,
    };
    let same_family = address.is_ipv4() == guest.is_ipv4();
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let plain = same_family && !address.is_loopback() && !link_local && !net.spec.on_link(address);
    let address = if plain { address } else { net.spec.gateway_like(guest)? };
    Some(SocketAddr::new(address, peer.port()))
}

/// Whom a port leads to.
pub(super) fn guest_address(net: &Net, forward: &Forward) -> SocketAddr {
    let guest = forward.guest.unwrap_or(IpAddr::V4(net.spec.guest));
    SocketAddr::new(guest, forward.guest_port)
}
