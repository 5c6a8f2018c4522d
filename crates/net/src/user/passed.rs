//! Sockets opened by another process, which passes them: the one that holds the guest can open none, and who opens them looks at
//! each address itself, so that a guest which has taken its process over gets no further than its network does.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use zerocopy::big_endian::U16;
use zerocopy::native_endian::{I32, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::net::is_outside;
use super::{Direct, Outside, Transport, UserSpec};

/// What is asked for.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wanted {
    /// 0, 1, 2: TCP, UDP, echo.
    transport: u8,
    /// 4 or 6.
    version: u8,
    port: U16,
    /// The address; of IPv4 the first four bytes.
    address: [u8; 16],
    scope: U32,
}

impl Wanted {
    fn new(transport: Transport, remote: SocketAddr) -> Self {
        let mut address = [0; 16];
        let mut scope = 0;
        let version = match remote {
            SocketAddr::V4(remote) => {
                address[..4].copy_from_slice(&remote.ip().octets());
                4
            }
            SocketAddr::V6(remote) => {
                address = remote.ip().octets();
                scope = remote.scope_id();
                6
            }
        };
        let port = U16::new(remote.port());
        Self { transport: transport as u8, version, port, address, scope: U32::new(scope) }
    }

    fn read(&self) -> Option<(Transport, SocketAddr)> {
        let transport = match self.transport {
            0 => Transport::Tcp,
            1 => Transport::Udp,
            2 => Transport::Ping,
            _ => return None,
        };
        let port = self.port.get();
        let [a, b, c, d, ..] = self.address;
        let remote = match self.version {
            4 => SocketAddr::from((Ipv4Addr::new(a, b, c, d), port)),
            6 => SocketAddrV6::new(Ipv6Addr::from(self.address), port, 0, self.scope.get()).into(),
            _ => return None,
        };
        Some((transport, remote))
    }
}

/// Where a network's sockets may lead to: what its guest may reach, and nothing else.
#[derive(Debug, Clone)]
pub struct Gate {
    restricted: bool,
    host_loopback: bool,
    resolvers: Vec<SocketAddr>,
}

impl Gate {
    /// That of a network like this.
    pub fn new(spec: &UserSpec) -> Self {
        let UserSpec { restricted, host_loopback, resolvers, .. } = spec;
        Self { restricted: *restricted, host_loopback: *host_loopback, resolvers: resolvers.clone() }
    }

    fn allows(&self, transport: Transport, remote: SocketAddr) -> bool {
        let loopback = match remote.ip() {
            IpAddr::V4(address) => address == Ipv4Addr::LOCALHOST,
            IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
        };
        let is_resolver = transport != Transport::Ping && self.resolvers.contains(&remote);
        !self.restricted && (is_resolver || (loopback && self.host_loopback) || is_outside(remote.ip()))
    }

    /// Opens and passes sockets, until the other side ends. `asking` is one end of [`Passed::pair`].
    ///
    /// # Errors
    /// The host's, or the other side does not keep to what is agreed on.
    pub fn serve(&self, asking: impl AsFd) -> io::Result<()> {
        let mut wanted = Wanted::new_zeroed();
        loop {
            let (read, len) = match rustix::net::recv(&asking, wanted.as_mut_bytes(), RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if read == 0 {
                return Ok(());
            }
            if len != size_of::<Wanted>() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let opened = match wanted.read() {
                Some((transport, remote)) if self.allows(transport, remote) => Direct.open(transport, remote),
                _ => Err(rustix::io::Errno::ACCESS.into()),
            };
            answer(&asking, opened)?;
        }
    }
}

fn answer(asking: impl AsFd, opened: io::Result<OwnedFd>) -> io::Result<()> {
    let refused = rustix::io::Errno::IO.raw_os_error();
    let code = opened.as_ref().map_or_else(|error| error.raw_os_error().unwrap_or(refused), |_| 0);
    let code = I32::new(code);
    let descriptors: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(asking, &[IoSlice::new(code.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Asks a [`Gate`] for sockets.
#[derive(Debug)]
pub struct Passed {
    asked: OwnedFd,
}

impl Passed {
    /// Who asks by this end of a [`Passed::pair`].
    pub fn new(asked: OwnedFd) -> Self {
        Self { asked }
    }

    /// Both ends: of who asks, and of who answers.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
    }
}

impl Outside for Passed {
    fn open(&mut self, transport: Transport, remote: SocketAddr) -> io::Result<OwnedFd> {
        rustix::net::send(&self.asked, Wanted::new(transport, remote).as_bytes(), SendFlags::NOSIGNAL)?;
        let mut code = I32::new(0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(code.as_mut_bytes())];
        let got = loop {
            match recvmsg(&self.asked, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?.bytes,
            }
        };
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptor = descriptors.next().and_then(|mut descriptors| descriptors.next());
        match (got, code.get(), descriptor) {
            (4, 0, Some(descriptor)) => Ok(descriptor),
            (4, code, _) if code != 0 => Err(io::Error::from_raw_os_error(code)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
#[path = "passed_test.rs"]
mod passed_test;
