//! TCP segments, from the guest and for it (RFC 9293; options: RFC 7323, section 2).

use std::net::SocketAddr;

use bitflags::bitflags;
use smoltcp::wire::{TcpOption, TcpPacket};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{Immutable, Unaligned};

use crate::link::Offloads;
use crate::user::net::Net;
use crate::wire::{Built, ETHERNET_LEN, Gso, Mac, Packet, Sum, VnetHeader, ip_header_len, l4_checksum};

/// TCP's IP protocol number.
pub(in crate::user) const TCP: u8 = 6;
/// Bytes of a header without options.
const HEADER_LEN: usize = 20;
/// Where the checksum is in it.
const CHECKSUM_AT: usize = 16;

bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Flags: u8 {
        const FIN = 1;
        const SYN = 2;
        const RST = 4;
        const PSH = 8;
        const ACK = 16;
    }
}

/// Whom a connection is between, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

/// A segment without its payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: Flags,
    /// Largest segment that the sender takes; in a SYN.
    pub mss: Option<u16>,
    /// Places that windows are shifted by; in a SYN.
    pub scale: Option<u8>,
}

/// A segment that the guest sent, and its payload. `None` if it is broken.
pub(super) fn parse<'a>(packet: &Packet<'a>) -> Option<(Key, Segment, &'a [u8])> {
    let tcp = TcpPacket::new_checked(packet.payload).ok()?;
    if !packet.trusted {
        let mut sum: Sum = l4_checksum(packet.source, packet.destination, TCP, packet.payload.len());
        sum.add(packet.payload);
        if !sum.is_valid() {
            return None;
        }
    }
    let key = Key {
        guest: SocketAddr::new(packet.source, tcp.src_port()),
        remote: SocketAddr::new(packet.destination, tcp.dst_port()),
    };
    let mut flags = Flags::empty();
    flags.set(Flags::FIN, tcp.fin());
    flags.set(Flags::SYN, tcp.syn());
    flags.set(Flags::RST, tcp.rst());
    flags.set(Flags::PSH, tcp.psh());
    flags.set(Flags::ACK, tcp.ack());
    let (mut mss, mut scale) = (None, None);
    if tcp.syn() {
        let mut options = tcp.options();
        while !options.is_empty() {
            let (rest, option) = TcpOption::parse(options).ok()?;
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(size) => mss = Some(size),
                // More than 14 counts as 14 (RFC 7323, section 2.3).
                TcpOption::WindowScale(shift) => scale = Some(shift.min(14)),
                _ => {}
            }
            options = rest;
        }
    }
    let segment = Segment {
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack_number().0 as u32,
        window: tcp.window_len(),
        flags,
        mss,
        scale,
    };
    Some((key, segment, tcp.payload()))
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    source: U16,
    destination: U16,
    seq: U32,
    ack: U32,
    words: u8,
    flags: u8,
    window: U16,
    checksum: [u8; 2],
    urgent: U16,
}

/// Headers of a segment for the guest, and what they leave to be done. A payload longer than `mss` is for the guest to cut.
pub(super) fn build(
    net: &Net,
    mac: Mac,
    key: &Key,
    segment: &Segment,
    payload: [&[u8]; 2],
    mss: usize,
) -> (Built, VnetHeader) {
    let mut options = Built::new();
    if let Some(mss) = segment.mss {
        let [high, low] = mss.to_be_bytes();
        options.push(&[2, 4, high, low]);
    }
    if let Some(scale) = segment.scale {
        options.push(&[1, 3, 3, scale]);
    }
    let header_len = HEADER_LEN + options.bytes().len();
    let payload_len: usize = payload.iter().map(|part| part.len()).sum();
    let mut header = Header {
        source: U16::new(key.remote.port()),
        destination: U16::new(key.guest.port()),
        seq: U32::new(segment.seq),
        ack: U32::new(segment.ack),
        words: (header_len as u8 / 4) << 4,
        flags: segment.flags.bits(),
        window: U16::new(segment.window),
        checksum: [0; 2],
        urgent: U16::new(0),
    };
    let mut vnet = VnetHeader::default();
    let mut sum = l4_checksum(key.remote.ip(), key.guest.ip(), TCP, header_len + payload_len);
    let l4_start = ETHERNET_LEN + ip_header_len(key.guest.ip());
    if net.guest_offloads().contains(Offloads::CHECKSUM) {
        header.checksum = sum.partial();
        vnet.flags = VnetHeader::NEEDS_CHECKSUM;
        vnet.checksum_start.set(l4_start as u16);
        vnet.checksum_offset.set(CHECKSUM_AT as u16);
        if payload_len > mss {
            vnet.gso_type = if key.guest.is_ipv4() { Gso::Tcp4 } else { Gso::Tcp6 } as u8;
            vnet.gso_size.set(mss as u16);
            vnet.header_len.set((l4_start + header_len) as u16);
        }
    } else {
        sum.add(header.as_bytes());
        sum.add(options.bytes());
        payload.iter().for_each(|part| sum.add(part));
        header.checksum = sum.finish();
    }
    let mut out = net.ip_headers(mac, key.remote.ip(), key.guest.ip(), TCP, header_len + payload_len);
    out.push(header.as_bytes());
    out.push(options.bytes());
    (out, vnet)
}
