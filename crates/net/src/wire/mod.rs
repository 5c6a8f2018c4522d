//! Frames as they are on the wire: what `smoltcp` does not have, or not fast enough.

mod checksum;
mod headers;
mod packet;
mod vnet;

pub(crate) use checksum::Sum;
pub(crate) use headers::{
    Built, ETHERNET_LEN, EtherType, Ipv4Fragment, Mac, ethernet_header, ip_header, ip_header_len, l4_checksum,
};
pub(crate) use packet::{Packet, Parsed, Part, parse};
pub use vnet::{Gso, VnetHeader};
