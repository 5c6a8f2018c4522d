//! Headers of frames for the guest.

use std::net::IpAddr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;

/// Room for Ethernet, IPv6, a fragment header or TCP with its options.
const HEADERS_MAX: usize = 128;

/// Hops of a packet that starts here.
const HOP_LIMIT: u8 = 64;

/// What an Ethernet frame carries (IEEE 802 numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum EtherType {
    Ipv4 = 0x0800,
    Arp = 0x0806,
    Ipv6 = 0x86dd,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Ethernet {
    destination: Mac,
    source: Mac,
    kind: U16,
}

/// RFC 791, section 3.1.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ipv4 {
    version_and_words: u8,
    service: u8,
    total_len: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// RFC 8200, section 3.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Ipv6 {
    version_and_flow: U32,
    payload_len: U16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// Headers of one frame, as they grow.
#[derive(Clone)]
pub(crate) struct Built {
    bytes: [u8; HEADERS_MAX],
    len: usize,
}

impl Built {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; HEADERS_MAX], len: 0 }
    }

    /// Goes on with these bytes. What a caller here builds always fits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

pub(crate) fn ethernet_header(out: &mut Built, destination: Mac, source: Mac, kind: EtherType) {
    out.push(Ethernet { destination, source, kind: U16::new(kind as u16) }.as_bytes());
}

/// Bytes of an IP header of this address's family.
pub(crate) fn ip_header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { size_of::<Ipv4>() } else { size_of::<Ipv6>() }
}

/// A fragment of an IPv4 packet, or a whole one: what the fields say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv4Fragment {
    pub id: u16,
    /// Flags and offset in units of eight bytes.
    pub fragment: u16,
}

impl Ipv4Fragment {
    /// Not to be cut.
    pub(crate) const WHOLE: Self = Self { id: 0, fragment: 0x4000 };
    /// More follow.
    pub(crate) const MORE: u16 = 0x2000;
}

/// Both addresses are of one family; if they are not, nothing is written.
pub(crate) fn ip_header(
    out: &mut Built,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload_len: usize,
    hop_limit: Option<u8>,
    cut: Ipv4Fragment,
) {
    let hop_limit = hop_limit.unwrap_or(HOP_LIMIT);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4 {
                version_and_words: 0x45,
                service: 0,
                total_len: U16::new((payload_len + size_of::<Ipv4>()) as u16),
                id: U16::new(cut.id),
                fragment: U16::new(cut.fragment),
                ttl: hop_limit,
                protocol,
                checksum: [0; 2],
                source: source.octets(),
                destination: destination.octets(),
            };
            let mut sum = Sum::default();
            sum.add(header.as_bytes());
            header.checksum = sum.finish();
            out.push(header.as_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6 {
                version_and_flow: U32::new(6 << 28),
                payload_len: U16::new(payload_len as u16),
                next_header: protocol,
                hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            };
            out.push(header.as_bytes());
        }
        _ => {}
    }
}

/// The sum over the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
pub(crate) fn l4_checksum(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Sum {
    let mut sum = Sum::default();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => sum.add(&address.octets()),
            IpAddr::V6(address) => sum.add(&address.octets()),
        }
    }
    sum.add(&(len as u32).to_be_bytes());
    sum.add(&[0, protocol]);
    sum
}
