//! DHCP for the guest (RFC 2131): one address a card, the same as long as the machine runs.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, UdpPacket};

use super::icmp::UDP;
use super::net::Net;
use crate::wire::{Mac, Packet, l4_checksum};

/// Where servers listen, and where clients do.
pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Addresses that are given out. Cards behind a bridge in the guest get some too.
const LEASES_MAX: u32 = 16;
/// A day: the address never changes, asking again only tells that we are there.
const LEASE_S: u32 = 86_400;
/// Options by number (RFC 2132).
const OPTION_HOSTNAME: u8 = 12;
const OPTION_DOMAIN: u8 = 15;
const OPTION_MTU: u8 = 26;

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Place in the list: how far from the first address.
    cards: Vec<Mac>,
}

impl Leases {
    /// The address of a card, one that is free if it has none yet.
    fn address(&mut self, net: &Net, mac: Mac) -> Option<Ipv4Addr> {
        let index = self.cards.iter().position(|known| *known == mac).or_else(|| {
            let room = (self.cards.len() as u32) < LEASES_MAX;
            room.then(|| {
                self.cards.push(mac);
                self.cards.len() - 1
            })
        })?;
        let address = Ipv4Addr::from(u32::from(net.spec.guest).checked_add(index as u32)?);
        let broadcast = u32::from(net.spec.gateway) | !net.spec.mask();
        let taken = net.is_ours(address.into()) || u32::from(address) >= broadcast;
        (!taken && net.spec.on_link(address.into())).then_some(address)
    }

    /// A message to the server's port.
    pub(super) fn input(&mut self, net: &mut Net, packet: &Packet<'_>, payload: &[u8]) {
        let Ok(message) = DhcpPacket::new_checked(payload) else { return };
        let Ok(request) = DhcpRepr::parse(&message) else { return };
        let mac = request.client_hardware_address;
        let Some(address) = self.address(net, mac.0) else { return };
        let gateway = net.spec.gateway;
        let kind = match request.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Inform => DhcpMessageType::Ack,
            DhcpMessageType::Request => {
                if request.server_identifier.is_some_and(|server| server != gateway) {
                    return;
                }
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                if wanted == address { DhcpMessageType::Ack } else { DhcpMessageType::Nak }
            }
            _ => return,
        };
        let given = if kind == DhcpMessageType::Nak || request.message_type == DhcpMessageType::Inform {
            Ipv4Addr::UNSPECIFIED
        } else {
            address
        };
        if kind == DhcpMessageType::Ack {
            net.learn(address.into(), packet.mac);
        }
        let mtu = net.spec.mtu.to_be_bytes();
        let (domain, hostname) = (net.spec.domain.clone(), net.spec.hostname.clone());
        let mut options = vec![DhcpOption { kind: OPTION_MTU, data: &mtu }];
        options.extend(domain.as_ref().map(|text| DhcpOption { kind: OPTION_DOMAIN, data: text.as_bytes() }));
        options.extend(
            hostname.as_ref().map(|text| DhcpOption { kind: OPTION_HOSTNAME, data: text.as_bytes() }),
        );
        let restricted = net.spec.restricted;
        let told = kind != DhcpMessageType::Nak;
        let answer = DhcpRepr {
            message_type: kind,
            your_ip: given,
            server_ip: gateway,
            router: (told && !restricted).then_some(gateway),
            subnet_mask: told.then(|| Ipv4Addr::from(net.spec.mask())),
            client_identifier: None,
            requested_ip: None,
            parameter_request_list: None,
            server_identifier: Some(gateway),
            dns_servers: (told && !restricted).then(|| smoltcp_vec(net.spec.dns)),
            max_size: None,
            lease_duration: (told && request.message_type != DhcpMessageType::Inform).then_some(LEASE_S),
            renew_duration: None,
            rebind_duration: None,
            additional_options: if told { &options } else { &[] },
            ..request
        };
        send(net, packet.mac, &answer);
    }
}

fn smoltcp_vec<V: FromIterator<Ipv4Addr>>(address: Ipv4Addr) -> V {
    std::iter::once(address).collect()
}

/// Answers go to everybody: who asks cannot take others yet, and nobody else is there.
fn send(net: &mut Net, mac: Mac, answer: &DhcpRepr<'_>) {
    let mut bytes = vec![0; 8 + answer.buffer_len()];
    let Some(payload) = bytes.get_mut(8..) else { return };
    if answer.emit(&mut DhcpPacket::new_unchecked(payload)).is_err() {
        return;
    }
    let len = bytes.len();
    let (source, destination) = (IpAddr::V4(net.spec.gateway), IpAddr::V4(Ipv4Addr::BROADCAST));
    let mut udp = UdpPacket::new_unchecked(&mut bytes);
    udp.set_src_port(SERVER_PORT);
    udp.set_dst_port(CLIENT_PORT);
    udp.set_len(len as u16);
    let mut sum = l4_checksum(source, destination, UDP, len);
    udp.set_checksum(0);
    sum.add(&bytes);
    UdpPacket::new_unchecked(&mut bytes).set_checksum(u16::from_be_bytes(sum.finish()));
    net.queue_ip(mac, (source, destination), UDP, None, &bytes);
}
