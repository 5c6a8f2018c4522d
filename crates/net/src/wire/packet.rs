//! Frames from the guest, taken apart as far as the transport's header. Whatever is wrong makes a frame nothing.

use std::net::IpAddr;

use smoltcp::wire::{
    ArpPacket, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet,
};

use super::checksum::Sum;
use super::headers::Mac;
use crate::link::Frame;

/// Extension headers of IPv6 that are looked through before the packet is given up. Real ones have one or two.
const EXTENSIONS_MAX: usize = 8;

/// What a frame carries.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    Arp(ArpPacket<&'a [u8]>),
    Ip(Packet<'a>),
}

/// Which part of a packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub id: u32,
    /// Byte of the whole packet's payload that this part starts at.
    pub offset: usize,
    pub more: bool,
}

/// An IP packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// Who sent the frame.
    pub mac: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The transport, by its IP protocol number.
    pub protocol: u8,
    pub hop_limit: u8,
    /// The packet from its IP header on, for errors that quote it.
    pub whole: &'a [u8],
    /// What is behind the IP headers.
    pub payload: &'a [u8],
    /// There, if the packet is in parts.
    pub part: Option<Part>,
    /// The transport's checksum need not be looked at.
    pub trusted: bool,
}

/// Takes a frame apart that is for `own` or for many.
pub(crate) fn parse(frame: &Frame, own: Mac) -> Option<Parsed<'_>> {
    let ethernet = EthernetFrame::new_checked(frame.bytes()).ok()?;
    let destination = ethernet.dst_addr();
    if destination.0 != own && !destination.is_multicast() && !destination.is_broadcast() {
        return None;
    }
    if !ethernet.src_addr().is_unicast() {
        return None;
    }
    let mac = ethernet.src_addr().0;
    let trusted = frame.header.checksum_trusted();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => Some(Parsed::Arp(ArpPacket::new_checked(ethernet.payload()).ok()?)),
        EthernetProtocol::Ipv4 => parse_ipv4(ethernet.payload(), mac, trusted).map(Parsed::Ip),
        EthernetProtocol::Ipv6 => parse_ipv6(ethernet.payload(), mac, trusted).map(Parsed::Ip),
        EthernetProtocol::Unknown(_) => None,
    }
}

fn parse_ipv4(bytes: &[u8], mac: Mac, trusted: bool) -> Option<Packet<'_>> {
    let ip = Ipv4Packet::new_checked(bytes).ok()?;
    if ip.version() != 4 || ip.header_len() < 20 {
        return None;
    }
    let mut sum = Sum::default();
    sum.add(bytes.get(..ip.header_len().into())?);
    if !sum.is_valid() || !ip.src_addr().octets().first().is_some_and(|first| (1..224).contains(first)) {
        // Of no sender but the one that has no address yet is anything expected, and that is asking for one.
        if !(sum.is_valid() && ip.src_addr().is_unspecified()) {
            return None;
        }
    }
    let offset = usize::from(ip.frag_offset());
    let part = (ip.more_frags() || offset != 0).then(|| Part {
        id: ip.ident().into(),
        offset,
        more: ip.more_frags(),
    });
    Some(Packet {
        mac,
        source: IpAddr::V4(ip.src_addr()),
        destination: IpAddr::V4(ip.dst_addr()),
        protocol: ip.next_header().into(),
        hop_limit: ip.hop_limit(),
        whole: bytes.get(..ip.total_len().into())?,
        payload: bytes.get(ip.header_len().into()..ip.total_len().into())?,
        part,
        trusted,
    })
}

fn parse_ipv6(bytes: &[u8], mac: Mac, trusted: bool) -> Option<Packet<'_>> {
    let ip = Ipv6Packet::new_checked(bytes).ok()?;
    if ip.version() != 6 || ip.src_addr().is_multicast() {
        return None;
    }
    let mut payload = bytes.get(40..ip.total_len())?;
    let mut next = ip.next_header();
    let mut part = None;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                let len = (usize::from(*payload.get(1)?) + 1) * 8;
                next = IpProtocol::from(*payload.first()?);
                payload = payload.get(len..)?;
            }
            IpProtocol::Ipv6Frag if part.is_none() => {
                next = IpProtocol::from(*payload.first()?);
                let fields = Ipv6FragmentHeader::new_checked(payload.get(2..8)?).ok()?;
                let offset = usize::from(fields.frag_offset()) * 8;
                part = (fields.more_frags() || offset != 0).then(|| Part {
                    id: fields.ident(),
                    offset,
                    more: fields.more_frags(),
                });
                payload = payload.get(8..)?;
                if offset != 0 {
                    break;
                }
            }
            _ => break,
        }
    }
    Some(Packet {
        mac,
        source: IpAddr::V6(ip.src_addr()),
        destination: IpAddr::V6(ip.dst_addr()),
        protocol: next.into(),
        hop_limit: ip.hop_limit(),
        whole: bytes.get(..ip.total_len())?,
        payload,
        part,
        trusted,
    })
}
