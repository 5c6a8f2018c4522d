//! A network in user space: the guest's packets become sockets of this process, so that no privilege and no set-up of the host
//! is needed.
//!
//! The guest has a network of its own behind an address translation ([`UserSpec`]): a gateway that is the host, a name server that
//! passes questions on to the host's resolvers, DHCP, and router advertisements for IPv6. TCP and UDP to anybody else go out by
//! sockets of the host; nobody gets in but by a [`Forward`].
//!
//! Whatever the guest says is looked at here for the first time, and by one thread. Frames that make no sense are dropped
//! without a word, as a network does. Tables and queues are bounded ([`Limits`]).

mod control;
mod dhcp;
mod flow;
mod forward;
mod fragments;
#[cfg(test)]
mod hostile_test;
mod icmp;
mod ndp;
mod net;
mod outside;
mod passed;
mod resolvers;
mod slots;
mod spec;
#[cfg(test)]
mod stack_test;
mod tcp;
#[cfg(test)]
mod tcp_test;
#[cfg(test)]
mod test_cut;
#[cfg(test)]
mod test_help;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

pub use control::{UserControl, UserStatus};
pub use forward::{Forward, ForwardProtocol, Listening};
pub use outside::{Direct, Outside, Transport};
pub use passed::{Gate, Passed};
pub use resolvers::{read_resolvers, system_resolvers};
pub use spec::{Limits, UserSpec};

use control::Commands;
use dhcp::{Leases, SERVER_PORT};
use flow::Flows;
use forward::{Arrival, Forwards};
use fragments::Fragments;
use icmp::{ICMP4, ICMP6, UDP, Unreachable};
use ndp::Router;
use net::{Net, Owner};
use tcp::{TCP, Tcp};

use crate::Result;
use crate::link::{Backend, Frame, Offloads, Received, Sent, Sink};
use crate::poller::{Poller, Ready};
use crate::wire::{EtherType, Packet, Parsed, parse};

/// Arrivals from outside between two frames for the guest.
const ARRIVALS_AT_ONCE: usize = 16;
/// The longest datagram.
const DATAGRAM_MAX: usize = 1 << 16;

/// A user network, as a backend.
#[derive(Debug)]
pub struct User {
    net: Net,
    tcp: Tcp,
    flows: Flows,
    forwards: Forwards,
    fragments: Fragments,
    leases: Leases,
    router: Router,
    commands: Commands,
    buffer: Vec<u8>,
    /// Ports that were given before there was a poller.
    early: Vec<Listening>,
    /// Connections had the last turn.
    tcp_last: bool,
}

impl User {
    /// A network like this. Sockets are opened by `outside`; the [`UserControl`] changes the network while it runs.
    ///
    /// # Errors
    /// The specification makes no sense, or the host has no descriptor left.
    pub fn new(spec: UserSpec, outside: Box<dyn Outside>) -> Result<(Self, UserControl)> {
        spec.check()?;
        let (control, commands) = control::pair()?;
        let limits = spec.limits;
        let user = Self {
            net: Net::new(spec, outside),
            tcp: Tcp::new(limits.connections_max, limits.buffer_max),
            flows: Flows::new(limits.flows_max),
            forwards: Forwards::new(),
            fragments: Fragments::default(),
            leases: Leases::default(),
            router: Router::default(),
            commands,
            buffer: Vec::new(),
            early: Vec::new(),
            tcp_last: false,
        };
        Ok((user, control))
    }

    /// Lets a port of the host lead to the guest from the start. What is wrong with it shows when the network is attached.
    pub fn add_forward(&mut self, listening: Listening) {
        self.early.push(listening);
    }

    fn status(&self) -> UserStatus {
        UserStatus {
            forwards: self.forwards.list(),
            connections: self.tcp.len(),
            flows: self.flows.len(),
            ping_refused: self.flows.ping_refused(),
        }
    }

    fn input_arp(&mut self, packet: &ArpPacket<&[u8]>) {
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(packet)
        else {
            return;
        };
        let source = IpAddr::V4(source_protocol_addr);
        if !source_hardware_addr.is_unicast() || self.net.is_ours(source) {
            return;
        }
        if !source_protocol_addr.is_unspecified() {
            self.net.learn(source, source_hardware_addr.0);
        }
        if operation == ArpOperation::Request && self.net.is_ours(IpAddr::V4(target_protocol_addr)) {
            let answer = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(self.net.mac()),
                source_protocol_addr: target_protocol_addr,
                target_hardware_addr: source_hardware_addr,
                target_protocol_addr: source_protocol_addr,
            };
            let mut bytes = vec![0; answer.buffer_len()];
            answer.emit(&mut ArpPacket::new_unchecked(&mut bytes));
            self.net.queue_ethernet(source_hardware_addr.0, EtherType::Arp, &bytes);
        }
    }

    fn input_ip(&mut self, now: Instant, packet: &Packet<'_>) {
        if packet.source.is_ipv6() && self.net.spec.prefix6.is_none() {
            return;
        }
        let Some(part) = packet.part else { return self.input_whole(now, packet) };
        if let Some(payload) = self.fragments.add(now, packet, part) {
            self.input_whole(now, &Packet { payload: &payload, part: None, ..*packet });
        }
    }

    fn input_whole(&mut self, now: Instant, packet: &Packet<'_>) {
        // Nobody has our addresses, and who has none yet can be answered only by what says so.
        if self.net.is_ours(packet.source) {
            return;
        }
        let nameless = packet.source.is_unspecified();
        if !nameless {
            self.net.learn(packet.source, packet.mac);
        }
        match packet.protocol {
            TCP if !nameless && !is_for_many(packet.destination) => {
                self.tcp.input(&mut self.net, now, packet);
            }
            UDP => self.input_udp(now, packet),
            ICMP4 if packet.source.is_ipv4() && !nameless => self.input_icmp(now, packet),
            ICMP6 if packet.source.is_ipv6() && icmp::is_valid(packet) => {
                let about_neighbours = ndp::input(&mut self.net, packet);
                if !about_neighbours && !nameless {
                    self.input_icmp(now, packet);
                }
            }
            _ => {}
        }
    }

    fn input_udp(&mut self, now: Instant, packet: &Packet<'_>) {
        let Some(udp) = flow::parse_udp(packet) else { return };
        let broadcast = packet.destination == IpAddr::V4(Ipv4Addr::BROADCAST);
        let to_server = broadcast || self.net.spec.is_gateway(packet.destination);
        if udp.dst_port() == SERVER_PORT && to_server && packet.source.is_ipv4() {
            return self.leases.input(&mut self.net, packet, udp.payload());
        }
        if packet.source.is_unspecified() || is_for_many(packet.destination) {
            return;
        }
        self.flows.input_udp(&mut self.net, &self.forwards, now, packet, &udp);
    }

    fn input_icmp(&mut self, now: Instant, packet: &Packet<'_>) {
        let is_request = packet.payload.first() == Some(&icmp::echo_types(packet.source).0);
        if !is_request || !icmp::is_valid(packet) || is_for_many(packet.destination) {
            return;
        }
        if self.net.is_ours(packet.destination) {
            icmp::answer_echo(&mut self.net, packet);
        } else if self.net.spec.restricted {
            icmp::unreachable(&mut self.net, packet, Unreachable::Prohibited);
        } else {
            self.flows.input_echo(&mut self.net, &self.forwards, now, packet);
        }
    }

    /// Lets in what comes through ports that lead to the guest.
    fn pull_arrivals(&mut self, now: Instant) {
        for _ in 0..ARRIVALS_AT_ONCE {
            if !self.net.has_room() || self.forwards.is_empty() {
                return;
            }
            self.buffer.resize(DATAGRAM_MAX, 0);
            let Some((token, forward, arrival)) = self.forwards.next(&mut self.buffer) else { return };
            let guest = forward::guest_address(&self.net, &forward);
            match arrival {
                Arrival::Connection(socket, peer) => {
                    if let Some(remote) = forward::seen_by_guest(&self.net, peer, guest.ip()) {
                        self.tcp.accept(&mut self.net, now, socket, remote, guest);
                    }
                }
                Arrival::Datagram(read, peer) => {
                    if let Some(remote) = forward::seen_by_guest(&self.net, peer, guest.ip()) {
                        let bytes = self.buffer.get(..read).unwrap_or_default();
                        self.flows.deliver(&mut self.net, now, (token, peer), remote, guest, bytes);
                    }
                }
            }
        }
    }
}

/// Several may have this address.
fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) || address.is_unspecified()
}

impl Backend for User {
    fn attach(&mut self, poller: &Poller) -> io::Result<()> {
        self.net.attach(poller);
        poller.add(self.commands.wake(), Owner::Commands as u64)?;
        for listening in std::mem::take(&mut self.early) {
            self.forwards.add(&self.net, listening).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_guest_offloads(&mut self, offloads: Offloads) {
        self.net.set_guest_offloads(offloads);
    }

    fn mtu(&self) -> u16 {
        self.net.spec.mtu
    }

    fn link_up(&self) -> bool {
        true
    }

    fn event(&mut self, now: Instant, token: u64, ready: Ready) {
        match Owner::of(token) {
            Some((Owner::Commands, _)) => self.obey(),
            Some((Owner::Tcp, token)) => self.tcp.event(now, token, ready),
            Some((Owner::Flow, token)) if ready.contains(Ready::READ) => self.flows.event(token),
            Some((Owner::Forward, token)) if ready.contains(Ready::READ) => self.forwards.event(token),
            _ => {}
        }
    }

    fn tick(&mut self, now: Instant) -> Option<Instant> {
        self.pull_arrivals(now);
        self.flows.pull(&mut self.net, now);
        let due = [self.tcp.tick(now), self.flows.tick(&self.net, now), self.router.tick(&mut self.net, now)];
        due.into_iter().flatten().min()
    }

    fn send(&mut self, now: Instant, frame: &Frame) -> Sent {
        match parse(frame, self.net.mac()) {
            Some(Parsed::Arp(packet)) => self.input_arp(&packet),
            Some(Parsed::Ip(packet)) => self.input_ip(now, &packet),
            None => {}
        }
        Sent::Taken
    }

    fn receive(&mut self, now: Instant, sink: Sink<'_>) -> Received {
        // The queue and the connections take turns, so that neither starves the other.
        self.tcp_last = !self.tcp_last;
        if self.tcp_last {
            match self.tcp.receive(&self.net, now, &mut *sink) {
                Received::Nothing => self.net.receive(sink),
                other => other,
            }
        } else {
            match self.net.receive(&mut *sink) {
                Received::Nothing => self.tcp.receive(&self.net, now, sink),
                other => other,
            }
        }
    }
}
