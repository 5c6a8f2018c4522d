//! ICMP that we say ourselves: echoes of our own addresses, and that something cannot be reached (RFC 792, RFC 4443).

use std::net::IpAddr;

use super::net::Net;
use crate::wire::{Built, Ipv4Fragment, Mac, Packet, Sum, ip_header, l4_checksum};

/// ICMP's IP protocol number.
pub(super) const ICMP4: u8 = 1;
/// ICMPv6's.
pub(super) const ICMP6: u8 = 58;
/// UDP's, for what is quoted.
pub(super) const UDP: u8 = 17;
/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 8;
/// How much of a packet an error quotes: an answer shall never be longer than 576 bytes (RFC 1812, section 4.3.2.3).
const QUOTE_MAX: usize = 520;

/// Why something cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Port,
    Prohibited,
}

/// The type of an echo's request and of its reply, in this family.
pub(super) fn echo_types(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (8, 0) } else { (128, 129) }
}

/// The protocol in this family.
pub(super) fn protocol(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP4 } else { ICMP6 }
}

/// Whether a message is as it was sent.
pub(super) fn is_valid(packet: &Packet<'_>) -> bool {
    let mut sum = pseudo_header(packet.source, packet.destination, packet.payload.len());
    sum.add(packet.payload);
    packet.payload.len() >= HEADER_LEN && (packet.trusted || sum.is_valid())
}

fn pseudo_header(source: IpAddr, destination: IpAddr, len: usize) -> Sum {
    // Only ICMPv6 sums over addresses.
    if source.is_ipv4() { Sum::default() } else { l4_checksum(source, destination, ICMP6, len) }
}

/// Sends a message whose checksum is not filled in yet.
pub(super) fn send(
    net: &mut Net,
    mac: Mac,
    (source, destination): (IpAddr, IpAddr),
    hop_limit: Option<u8>,
    message: &mut [u8],
) {
    let mut sum = pseudo_header(source, destination, message.len());
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    sum.add(message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.finish());
    }
    net.queue_ip(mac, (source, destination), protocol(destination), hop_limit, message);
}

/// Answers an echo request to one of our addresses.
pub(super) fn answer_echo(net: &mut Net, packet: &Packet<'_>) {
    let mut message = packet.payload.to_vec();
    if let Some(kind) = message.first_mut() {
        *kind = echo_types(packet.source).1;
        send(net, packet.mac, (packet.destination, packet.source), None, &mut message);
    }
}

/// Tells the guest that `packet` goes nowhere.
pub(super) fn unreachable(net: &mut Net, packet: &Packet<'_>, why: Unreachable) {
    let quote = packet.whole.get(..packet.whole.len().min(QUOTE_MAX)).unwrap_or_default();
    quote_unreachable(net, packet.mac, packet.source, quote, why);
}

/// Tells the guest that nobody takes what it sent by UDP from and to these ports, a while ago.
pub(super) fn port_unreachable(
    net: &mut Net,
    mac: Mac,
    guest: std::net::SocketAddr,
    remote: std::net::SocketAddr,
) {
    let mut quote = Built::new();
    ip_header(&mut quote, guest.ip(), remote.ip(), UDP, HEADER_LEN, None, Ipv4Fragment::WHOLE);
    quote.push(&guest.port().to_be_bytes());
    quote.push(&remote.port().to_be_bytes());
    quote.push(&[0, 8, 0, 0]);
    quote_unreachable(net, mac, guest.ip(), quote.bytes(), Unreachable::Port);
}

fn quote_unreachable(net: &mut Net, mac: Mac, guest: IpAddr, quote: &[u8], why: Unreachable) {
    let Some(gateway) = net.spec.gateway_like(guest) else { return };
    let (kind, code) = match (guest, why) {
        (IpAddr::V4(_), Unreachable::Network) => (3, 0),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13),
        (IpAddr::V6(_), Unreachable::Network) => (1, 0),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1),
    };
    let mut message = [&[kind, code, 0, 0, 0, 0, 0, 0], quote].concat();
    send(net, mac, (gateway, guest), None, &mut message);
}
