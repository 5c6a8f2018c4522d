//! What has no connections: UDP, and ICMP echo. A flow is a pair of addresses that talk, with a socket connected to the far one, so
//! that the kernel lets nobody else in and tells when nobody listens.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use smoltcp::wire::UdpPacket;

use super::forward::Forwards;
use super::icmp::{self, UDP, Unreachable};
use super::net::{Net, Owner, Transport};
use super::slots::Slots;
use super::tcp::SEND;
use crate::wire::{Mac, Packet, l4_checksum};

/// How long a flow is kept in silence: RFC 4787, section 4.3, wants two minutes at least.
const SILENCE: Duration = Duration::from_secs(180);
/// How long that of a question to a name server is.
const SILENCE_NAMES: Duration = Duration::from_secs(20);
/// How often those are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// After how long the next resolver is asked, when a guest asks again.
const RESOLVER_PATIENCE: Duration = Duration::from_millis(900);
/// A UDP header.
const UDP_HEADER_LEN: usize = 8;

/// Who talks to whom, as the guest sees it. An echo has its identifier for the guest's port, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    transport: Transport,
    guest: SocketAddr,
    remote: SocketAddr,
}

#[derive(Debug)]
enum Via {
    /// Its own socket, connected.
    Own(OwnedFd),
    /// The socket of a port that leads to the guest, and who is at the far end.
    Forward(u32, SocketAddr),
}

#[derive(Debug)]
struct Flow {
    key: Key,
    mac: Mac,
    via: Via,
    last_used: Instant,
    /// Since when a resolver has left a question unanswered.
    asked: Option<Instant>,
    queued: bool,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Flows {
    slots: Slots<Flow>,
    by_key: HashMap<Key, usize>,
    by_peer: HashMap<(u32, SocketAddr), usize>,
    /// Those whose sockets may have something.
    readable: VecDeque<u32>,
    sweep_at: Option<Instant>,
    buffer: Vec<u8>,
    /// The host refuses sockets for echoes.
    ping_refused: bool,
}

impl Flows {
    pub(super) fn new(max: usize) -> Self {
        Self {
            slots: Slots::new(max),
            by_key: HashMap::new(),
            by_peer: HashMap::new(),
            readable: VecDeque::new(),
            sweep_at: None,
            buffer: Vec::new(),
            ping_refused: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether the host has refused to send echoes for the guest: then only our own addresses answer.
    pub(super) fn ping_refused(&self) -> bool {
        self.ping_refused
    }

    /// A datagram of the guest's.
    pub(super) fn input_udp(
        &mut self,
        net: &mut Net,
        forwards: &Forwards,
        now: Instant,
        packet: &Packet<'_>,
        udp: &UdpPacket<&[u8]>,
    ) {
        let key = Key {
            transport: Transport::Udp,
            guest: SocketAddr::new(packet.source, udp.src_port()),
            remote: SocketAddr::new(packet.destination, udp.dst_port()),
        };
        self.send(net, forwards, now, packet, key, udp.payload());
    }

    /// An echo request of the guest's to somebody outside.
    pub(super) fn input_echo(
        &mut self,
        net: &mut Net,
        forwards: &Forwards,
        now: Instant,
        packet: &Packet<'_>,
    ) {
        let Some(&[high, low]) = packet.payload.get(4..6) else { return };
        let key = Key {
            transport: Transport::Ping,
            guest: SocketAddr::new(packet.source, u16::from_be_bytes([high, low])),
            remote: SocketAddr::new(packet.destination, 0),
        };
        self.send(net, forwards, now, packet, key, packet.payload);
    }

    fn send(
        &mut self,
        net: &mut Net,
        forwards: &Forwards,
        now: Instant,
        packet: &Packet<'_>,
        key: Key,
        bytes: &[u8],
    ) {
        let names = key.transport == Transport::Udp && net.asks_names(key.remote);
        let mut known = self.by_key.get(&key).copied();
        if let Some(index) = known.filter(|_| names)
            && self.slots.get_mut(index).is_some_and(|flow| flow.is_left_waiting(now))
        {
            net.next_resolver();
            self.remove(index);
            known = None;
        }
        let Some(index) = known.or_else(|| self.open(net, now, packet, key)) else { return };
        let Some(flow) = self.slots.get_mut(index) else { return };
        flow.mac = packet.mac;
        flow.last_used = now;
        if names && flow.asked.is_none() {
            flow.asked = Some(now);
        }
        // An error that is told now is of an earlier datagram; this one is sent after it.
        for _ in 0..2 {
            let result = match &flow.via {
                Via::Own(socket) => rustix::net::send(socket, bytes, SEND),
                Via::Forward(token, peer) => match forwards.udp_socket(*token) {
                    Some(socket) => rustix::net::sendto(socket, bytes, SEND, peer),
                    None => return self.remove(index),
                },
            };
            match result {
                Err(rustix::io::Errno::CONNREFUSED) => {
                    if names {
                        net.next_resolver();
                    }
                    icmp::port_unreachable(net, packet.mac, key.guest, key.remote);
                }
                Err(rustix::io::Errno::NETUNREACH | rustix::io::Errno::HOSTUNREACH) => {
                    return icmp::unreachable(net, packet, Unreachable::Network);
                }
                // Whatever else: datagrams may be lost.
                _ => return,
            }
        }
    }

    fn open(&mut self, net: &mut Net, now: Instant, packet: &Packet<'_>, key: Key) -> Option<usize> {
        let Some(to) = net.map(key.transport, key.remote) else {
            let why = if net.spec.restricted { Unreachable::Prohibited } else { Unreachable::Port };
            icmp::unreachable(net, packet, why);
            return None;
        };
        let Some(socket) = net.open(key.transport, to) else {
            let why = if key.transport == Transport::Ping {
                self.ping_refused = true;
                Unreachable::Prohibited
            } else {
                Unreachable::Network
            };
            icmp::unreachable(net, packet, why);
            return None;
        };
        let flow =
            Flow { key, mac: packet.mac, via: Via::Own(socket), last_used: now, asked: None, queued: false };
        self.insert(net, flow)
    }

    fn insert(&mut self, net: &Net, flow: Flow) -> Option<usize> {
        if self.slots.is_full() {
            let oldest = self.slots.iter().min_by_key(|(_, flow)| flow.last_used).map(|(index, _)| index);
            self.remove(oldest?);
        }
        let key = flow.key;
        let index = self.slots.insert(flow)?;
        self.by_key.insert(key, index);
        let token = self.slots.token(index);
        let watched = match &self.slots.get_mut(index)?.via {
            Via::Own(socket) => net.watch(socket, Owner::Flow, token),
            Via::Forward(forward, peer) => {
                self.by_peer.insert((*forward, *peer), index);
                true
            }
        };
        if !watched {
            self.remove(index);
        }
        watched.then_some(index)
    }

    fn remove(&mut self, index: usize) {
        if let Some(flow) = self.slots.remove(index) {
            self.by_key.remove(&flow.key);
            if let Via::Forward(token, peer) = flow.via {
                self.by_peer.remove(&(token, peer));
            }
        }
    }

    pub(super) fn clear(&mut self) {
        for index in 0..self.slots.capacity() {
            self.remove(index);
        }
    }

    /// A datagram from outside to a port that leads to the guest at `guest`.
    pub(super) fn deliver(
        &mut self,
        net: &mut Net,
        now: Instant,
        (forward, peer): (u32, SocketAddr),
        mut remote: SocketAddr,
        guest: SocketAddr,
        bytes: &[u8],
    ) {
        let index = self.by_peer.get(&(forward, peer)).copied().or_else(|| {
            let mac = net.neighbour(guest.ip())?;
            let mut key = Key { transport: Transport::Udp, guest, remote };
            // Several peers may look the same to the guest, as the gateway.
            for step in 0..64u16 {
                if !self.by_key.contains_key(&key) {
                    break;
                }
                remote.set_port(remote.port().wrapping_add(step * 7 + 1).max(1024));
                key.remote = remote;
            }
            if self.by_key.contains_key(&key) {
                return None;
            }
            let via = Via::Forward(forward, peer);
            self.insert(net, Flow { key, mac, via, last_used: now, asked: None, queued: false })
        });
        if let Some(flow) = index.and_then(|index| self.slots.get_mut(index)) {
            flow.last_used = now;
            flow.receive(net, bytes);
        }
    }

    /// A flow's socket is readable.
    pub(super) fn event(&mut self, token: u32) {
        let Some(flow) = self.slots.index_of(token).and_then(|index| self.slots.get_mut(index)) else {
            return;
        };
        if !flow.queued {
            flow.queued = true;
            self.readable.push_back(token);
        }
    }

    /// Reads sockets, while there is room for what they have. Whether anything was read.
    pub(super) fn pull(&mut self, net: &mut Net, now: Instant) -> bool {
        let mut any = false;
        while net.has_room() {
            let Some(token) = self.readable.pop_front() else { break };
            let Some(index) = self.slots.index_of(token) else { continue };
            let Some(flow) = self.slots.get_mut(index) else { continue };
            let Via::Own(socket) = &flow.via else { continue };
            self.buffer.resize(1 << 16, 0);
            match rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((read, _)) => {
                    any = true;
                    flow.last_used = now;
                    flow.asked = None;
                    flow.receive(net, self.buffer.get(..read).unwrap_or_default());
                    self.readable.push_back(token);
                }
                Err(rustix::io::Errno::AGAIN) => flow.queued = false,
                Err(error) => {
                    self.readable.push_back(token);
                    if error == rustix::io::Errno::CONNREFUSED && flow.key.transport == Transport::Udp {
                        let (mac, key) = (flow.mac, flow.key);
                        if net.asks_names(key.remote) {
                            net.next_resolver();
                            self.remove(index);
                        }
                        icmp::port_unreachable(net, mac, key.guest, key.remote);
                    }
                }
            }
        }
        any
    }

    /// Ends flows that are silent.
    pub(super) fn tick(&mut self, net: &Net, now: Instant) -> Option<Instant> {
        if self.by_key.is_empty() {
            self.sweep_at = None;
            // Nobody talks: the memory is given back.
            self.buffer = Vec::new();
        } else if self.sweep_at.is_none_or(|at| at <= now) {
            let silent = |flow: &Flow| {
                let patience = if net.asks_names(flow.key.remote) { SILENCE_NAMES } else { SILENCE };
                now.saturating_duration_since(flow.last_used) >= patience
            };
            let ended: Vec<usize> =
                self.slots.iter().filter(|(_, flow)| silent(flow)).map(|(index, _)| index).collect();
            ended.into_iter().for_each(|index| self.remove(index));
            self.sweep_at = Some(now + SWEEP_EVERY);
        }
        self.sweep_at
    }
}

impl Flow {
    fn is_left_waiting(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= RESOLVER_PATIENCE)
    }

    /// Hands what came from outside to the guest.
    fn receive(&self, net: &mut Net, bytes: &[u8]) {
        let (source, destination) = (self.key.remote, self.key.guest);
        match self.key.transport {
            Transport::Udp => {
                // The longest that a packet holds; the host's is never longer, but its network may differ.
                let len = bytes.len() + UDP_HEADER_LEN;
                if len > 65_535 - 20 {
                    return;
                }
                let mut datagram = Vec::with_capacity(len);
                datagram.extend(source.port().to_be_bytes());
                datagram.extend(destination.port().to_be_bytes());
                datagram.extend((len as u16).to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend(bytes);
                let mut sum = l4_checksum(source.ip(), destination.ip(), UDP, len);
                sum.add(&datagram);
                // Zero would say that there is none (RFC 768).
                let checksum = if sum.finish() == [0, 0] { [0xff, 0xff] } else { sum.finish() };
                datagram[6..8].copy_from_slice(&checksum);
                net.queue_ip(self.mac, (source.ip(), destination.ip()), UDP, None, &datagram);
            }
            Transport::Ping => {
                let is_reply = bytes.first() == Some(&icmp::echo_types(source.ip()).1);
                if is_reply && bytes.len() >= icmp::HEADER_LEN {
                    let mut message = bytes.to_vec();
                    message[4..6].copy_from_slice(&destination.port().to_be_bytes());
                    icmp::send(net, self.mac, (source.ip(), destination.ip()), None, &mut message);
                }
            }
            Transport::Tcp => {}
        }
    }
}

/// A datagram of the guest's. `None` if it is broken.
pub(super) fn parse_udp<'a>(packet: &Packet<'a>) -> Option<UdpPacket<&'a [u8]>> {
    let udp = UdpPacket::new_checked(packet.payload).ok()?;
    let absent = udp.checksum() == 0 && matches!(packet.source, IpAddr::V4(_));
    if !packet.trusted && !absent {
        let bytes = packet.payload.get(..udp.len().into())?;
        let mut sum = l4_checksum(packet.source, packet.destination, UDP, bytes.len());
        sum.add(bytes);
        if !sum.is_valid() {
            return None;
        }
    }
    Some(udp)
}
