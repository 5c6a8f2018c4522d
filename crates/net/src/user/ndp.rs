//! Neighbours and routers of IPv6 (RFC 4861), as far as there is one router and one name server.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use smoltcp::wire::{Icmpv6Message, Icmpv6Packet, NdiscRepr};

use super::icmp;
use super::net::Net;
use crate::wire::{Mac, Packet};

/// Only a neighbour's packets arrive with all their hops (section 7.1).
const HOP_LIMIT: u8 = 255;
/// How often the router says that it is there.
const ADVERTISE_EVERY: Duration = Duration::from_secs(300);
/// How long it may be believed (section 6.2.1 allows 9,000).
const ROUTER_LIFETIME_S: u16 = 9000;
/// All that listen.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Their Ethernet address (RFC 2464, section 7).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Flags of an answer: a router, asked for, and to be believed.
const ADVERTISEMENT_FLAGS: u8 = 0xe0;

/// Advertisements that nobody asked for.
#[derive(Debug, Default)]
pub(super) struct Router {
    next: Option<Instant>,
}

impl Router {
    /// Says that the router is there, when it is time.
    pub(super) fn tick(&mut self, net: &mut Net, now: Instant) -> Option<Instant> {
        net.spec.prefix6?;
        if self.next.is_none_or(|next| next <= now) {
            self.next = Some(now + ADVERTISE_EVERY);
            advertise(net, ALL_NODES_MAC, ALL_NODES);
        }
        self.next
    }
}

/// A message of the guest's, if it is about neighbours. Whether it was.
pub(super) fn input(net: &mut Net, packet: &Packet<'_>) -> bool {
    let Ok(message) = Icmpv6Packet::new_checked(packet.payload) else { return true };
    let kind = message.msg_type();
    if !kind.is_ndisc() {
        return false;
    }
    let (IpAddr::V6(source), true) = (packet.source, packet.hop_limit == HOP_LIMIT) else { return true };
    match (kind, NdiscRepr::parse(&message)) {
        (Icmpv6Message::RouterSolicit, Ok(_)) => {
            // Who has no address yet is answered as everybody.
            let everybody = source.is_unspecified();
            advertise(
                net,
                if everybody { ALL_NODES_MAC } else { packet.mac },
                if everybody { ALL_NODES } else { source },
            );
        }
        (Icmpv6Message::NeighborSolicit, Ok(NdiscRepr::NeighborSolicit { target_addr, .. })) => {
            let ours = net.is_ours(IpAddr::V6(target_addr));
            if ours && !source.is_unspecified() {
                answer(net, packet.mac, source, target_addr);
            } else if !ours && !source.is_unspecified() {
                net.learn(packet.source, packet.mac);
            }
        }
        _ => {}
    }
    true
}

fn answer(net: &mut Net, mac: Mac, to: Ipv6Addr, target: Ipv6Addr) {
    let mut message = vec![136, 0, 0, 0, ADVERTISEMENT_FLAGS, 0, 0, 0];
    message.extend(target.octets());
    // The target's link-layer address.
    message.extend([2, 1]);
    message.extend(net.mac());
    icmp::send(net, mac, (target.into(), to.into()), Some(HOP_LIMIT), &mut message);
}

fn advertise(net: &mut Net, mac: Mac, to: Ipv6Addr) {
    let (Some(prefix), Some(dns)) = (net.spec.address6(0), net.spec.address6(3)) else { return };
    let [life_high, life_low] = ROUTER_LIFETIME_S.to_be_bytes();
    let mut message = vec![134, 0, 0, 0, 64, 0, life_high, life_low];
    message.extend([0; 8]);
    // Source link-layer address (section 4.6.1).
    message.extend([1, 1]);
    message.extend(net.mac());
    // MTU (section 4.6.4).
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(net.spec.mtu).to_be_bytes());
    // Prefix: on the link, to make addresses of, for ever (section 4.6.2).
    message.extend([3, 4, 64, 0xc0]);
    message.extend([0xff; 8]);
    message.extend([0; 4]);
    message.extend(prefix.octets());
    if !net.spec.restricted {
        // Recursive DNS server (RFC 8106, section 5.1).
        message.extend([25, 3, 0, 0]);
        message.extend(u32::from(ROUTER_LIFETIME_S).to_be_bytes());
        message.extend(dns.octets());
    }
    let from = net.link_local();
    icmp::send(net, mac, (from.into(), to.into()), Some(HOP_LIMIT), &mut message);
}
