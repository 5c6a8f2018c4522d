//! What all protocols of a user network share: its addresses, what may go where, and frames for the guest.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::outside::Outside;
pub(super) use super::outside::Transport;
use super::spec::UserSpec;
use crate::link::{Offloads, Received, Sink};
use crate::poller::Poller;
use crate::wire::{
    Built, EtherType, Ipv4Fragment, Mac, VnetHeader, ethernet_header, ip_header, ip_header_len,
};

/// Frames that wait for the guest, of those that are no TCP connection's: it may be slow to take what it asked for.
const QUEUE_MAX: usize = 256;
/// Below this many waiting frames, sockets are read.
const QUEUE_LOW: usize = 32;
/// Addresses of guests that are kept: a guest may have a few, and others behind it.
const NEIGHBOURS_MAX: usize = 64;

/// Whose descriptor an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Owner {
    Commands = 0,
    Tcp = 1,
    Flow = 2,
    Forward = 3,
}

impl Owner {
    fn token(self, number: u32) -> u64 {
        u64::from(self as u8) << 32 | u64::from(number)
    }

    /// Whose, and which.
    pub(super) fn of(token: u64) -> Option<(Self, u32)> {
        let owner = match token >> 32 {
            0 => Self::Commands,
            1 => Self::Tcp,
            2 => Self::Flow,
            3 => Self::Forward,
            _ => return None,
        };
        Some((owner, token as u32))
    }
}

/// The shared part.
#[derive(Debug)]
pub(super) struct Net {
    pub spec: UserSpec,
    outside: Box<dyn Outside>,
    poller: Option<Poller>,
    guest_offloads: Offloads,
    queue: VecDeque<(VnetHeader, Vec<u8>)>,
    neighbours: VecDeque<(IpAddr, Mac)>,
    /// The resolver that is asked.
    resolver: usize,
    fragment_id: u32,
}

impl Net {
    pub(super) fn new(spec: UserSpec, outside: Box<dyn Outside>) -> Self {
        Self {
            spec,
            outside,
            poller: None,
            guest_offloads: Offloads::empty(),
            queue: VecDeque::new(),
            neighbours: VecDeque::new(),
            resolver: 0,
            fragment_id: 0,
        }
    }

    /// The gateway's Ethernet address: locally administered, and telling of the IP address.
    pub(super) fn mac(&self) -> Mac {
        let [a, b, c, d] = self.spec.gateway.octets();
        [0x52, 0x55, a, b, c, d]
    }

    /// The gateway's address on the link.
    pub(super) fn link_local(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)
    }

    /// Whether an address is one of ours.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.spec.is_gateway(address)
            || self.spec.is_dns(address)
            || (self.spec.prefix6.is_some() && address == IpAddr::V6(self.link_local()))
    }

    pub(super) fn attach(&mut self, poller: &Poller) {
        self.poller = Some(poller.clone());
    }

    /// Watches a descriptor; false if the host refuses.
    pub(super) fn watch(&self, fd: impl AsFd, owner: Owner, number: u32) -> bool {
        self.poller.as_ref().is_some_and(|poller| poller.add(fd, owner.token(number)).is_ok())
    }

    pub(super) fn guest_offloads(&self) -> Offloads {
        self.guest_offloads
    }

    pub(super) fn set_guest_offloads(&mut self, offloads: Offloads) {
        self.guest_offloads = offloads;
    }

    /// Largest TCP payload of one packet to this address.
    pub(super) fn mss(&self, address: IpAddr) -> u16 {
        self.spec.mtu - 20 - ip_header_len(address) as u16
    }

    /// The guest, or one behind it, has sent something from here.
    pub(super) fn learn(&mut self, address: IpAddr, mac: Mac) {
        if self.neighbours.front() == Some(&(address, mac)) || !self.spec.on_link(address) {
            return;
        }
        self.neighbours.retain(|(known, _)| *known != address);
        self.neighbours.truncate(NEIGHBOURS_MAX - 1);
        self.neighbours.push_front((address, mac));
    }

    /// Whom to send frames to for an address: who was last there, or else the guest's card, or whoever sent anything at all.
    pub(super) fn neighbour(&self, address: IpAddr) -> Option<Mac> {
        let known = self.neighbours.iter().find(|(known, _)| *known == address).map(|(_, mac)| *mac);
        known.or(self.spec.guest_mac).or_else(|| self.neighbours.front().map(|(_, mac)| *mac))
    }

    /// Where on the host's side the guest's packets for `remote` go, if anywhere.
    pub(super) fn map(&self, transport: Transport, remote: SocketAddr) -> Option<SocketAddr> {
        let address = remote.ip();
        let needs_port = transport != Transport::Ping;
        if self.spec.restricted || (needs_port && remote.port() == 0) {
            return None;
        }
        if self.spec.is_dns(address) {
            let asks = needs_port && remote.port() == 53;
            return asks.then(|| self.resolver()).flatten();
        }
        if self.spec.is_gateway(address) {
            let loopback = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            return self.spec.host_loopback.then(|| SocketAddr::new(loopback, remote.port()));
        }
        (!self.spec.on_link(address) && is_outside(address)).then_some(remote)
    }

    /// Whether packets for `remote` ask for names.
    pub(super) fn asks_names(&self, remote: SocketAddr) -> bool {
        self.spec.is_dns(remote.ip()) && remote.port() == 53
    }

    fn resolver(&self) -> Option<SocketAddr> {
        let count = self.spec.resolvers.len();
        self.spec.resolvers.get(self.resolver % count.max(1)).copied()
    }

    /// The resolver does not answer: the next one is asked from now on.
    pub(super) fn next_resolver(&mut self) {
        self.resolver = self.resolver.wrapping_add(1);
    }

    /// A socket to an address that [`Net::map`] has allowed.
    pub(super) fn open(&mut self, transport: Transport, to: SocketAddr) -> Option<OwnedFd> {
        self.outside.open(transport, to).ok()
    }

    /// Ethernet and IP headers of a packet for the guest.
    pub(super) fn ip_headers(
        &self,
        mac: Mac,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        len: usize,
    ) -> Built {
        let mut out = Built::new();
        ethernet_header(&mut out, mac, self.mac(), ether_type(destination));
        ip_header(&mut out, source, destination, protocol, len, None, Ipv4Fragment::WHOLE);
        out
    }

    /// Whether sockets may be read for frames that wait in the queue.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_LOW
    }

    /// A frame for the guest. Dropped if too many wait, as on any link.
    pub(super) fn queue_frame(&mut self, header: VnetHeader, bytes: &[u8]) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back((header, bytes.to_vec()));
        }
    }

    /// An Ethernet frame of our own.
    pub(super) fn queue_ethernet(&mut self, mac: Mac, kind: EtherType, payload: &[u8]) {
        let mut out = Built::new();
        ethernet_header(&mut out, mac, self.mac(), kind);
        self.queue_frame(VnetHeader::default(), &[out.bytes(), payload].concat());
    }

    /// An IP packet, in as many fragments as the MTU asks for.
    pub(super) fn queue_ip(
        &mut self,
        mac: Mac,
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        hop_limit: Option<u8>,
        payload: &[u8],
    ) {
        let room = usize::from(self.spec.mtu) - ip_header_len(destination);
        if payload.len() <= room {
            let mut out = Built::new();
            ethernet_header(&mut out, mac, self.mac(), ether_type(destination));
            let whole = Ipv4Fragment::WHOLE;
            ip_header(&mut out, source, destination, protocol, payload.len(), hop_limit, whole);
            return self.queue_frame(VnetHeader::default(), &[out.bytes(), payload].concat());
        }
        self.fragment_id = self.fragment_id.wrapping_add(1);
        // A fragment of a packet without its others is of no use.
        let step = (room - 8) & !7;
        if self.queue.len() + payload.len().div_ceil(step) > QUEUE_MAX {
            return;
        }
        for (index, chunk) in payload.chunks(step).enumerate() {
            let at = index * step;
            let more = at + chunk.len() < payload.len();
            let out = self.fragment_headers(mac, (source, destination), protocol, chunk.len(), at, more);
            self.queue_frame(VnetHeader::default(), &[out.bytes(), chunk].concat());
        }
    }

    fn fragment_headers(
        &self,
        mac: Mac,
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        len: usize,
        at: usize,
        more: bool,
    ) -> Built {
        let mut out = Built::new();
        ethernet_header(&mut out, mac, self.mac(), ether_type(destination));
        if destination.is_ipv4() {
            let flag = if more { Ipv4Fragment::MORE } else { 0 };
            let cut = Ipv4Fragment { id: self.fragment_id as u16, fragment: flag | (at / 8) as u16 };
            ip_header(&mut out, source, destination, protocol, len, None, cut);
        } else {
            // RFC 8200, section 4.5.
            ip_header(&mut out, source, destination, 44, len + 8, None, Ipv4Fragment::WHOLE);
            let [high, low] = (at as u16 | u16::from(more)).to_be_bytes();
            let [a, b, c, d] = self.fragment_id.to_be_bytes();
            out.push(&[protocol, 0, high, low, a, b, c, d]);
        }
        out
    }

    /// Hands the next frame of the queue to the guest.
    pub(super) fn receive(&mut self, sink: Sink<'_>) -> Received {
        let Some((header, bytes)) = self.queue.front() else { return Received::Nothing };
        if !sink(header, &[bytes]) {
            return Received::Refused;
        }
        self.queue.pop_front();
        Received::Frame
    }
}

fn ether_type(address: IpAddr) -> EtherType {
    if address.is_ipv4() { EtherType::Ipv4 } else { EtherType::Ipv6 }
}

/// Whether this can be somebody on a network. What the host takes for itself is not: its loopback is reached by the gateway's address, where
/// that is allowed, and by no other name.
pub(super) fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(address) => {
            let embeds_ipv4 = matches!(address.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, ..]);
            !address.is_multicast() && !address.is_unicast_link_local() && !embeds_ipv4
        }
    }
}
