//! What a user network is to be like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Error, Result};

/// A network of one guest behind an address translation of ours. The default is the network that users of other monitors know:
/// 10.0.2.0/24 with the host at .2, name service at .3 and the guest at .15, and `fec0::/64` beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// Where the host is. Also answers DHCP.
    pub gateway: Ipv4Addr,
    /// Where names are asked for.
    pub dns: Ipv4Addr,
    /// What the first guest that asks by DHCP gets; more get the addresses that follow.
    pub guest: Ipv4Addr,
    /// Bits of an address that are the network's.
    pub prefix_len: u8,
    /// The network of IPv6, of 64 bits, with the host at `::2` and name service at `::3`; `None` for no IPv6.
    pub prefix6: Option<Ipv6Addr>,
    /// Whom a port of the host leads to when no other address is named, before it has sent anything.
    pub guest_mac: Option<[u8; 6]>,
    /// The longest IP packet.
    pub mtu: u16,
    /// Nothing gets out: only DHCP is answered, and ports of the host lead to the guest.
    pub restricted: bool,
    /// The guest reaches the host's own loopback addresses at the gateway's address.
    pub host_loopback: bool,
    /// Whom names are asked of, the first first; see [`crate::user::system_resolvers`].
    pub resolvers: Vec<SocketAddr>,
    /// The domain that DHCP tells.
    pub domain: Option<String>,
    /// The name that DHCP tells the guest for itself.
    pub hostname: Option<String>,
    /// What a guest may use up.
    pub limits: Limits,
}

/// What a guest may use up on the host. Beyond a limit the one that was silent for longest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections; each is a descriptor.
    pub connections_max: usize,
    /// Pairs of addresses that talk by UDP, or by ICMP echo; each is a descriptor.
    pub flows_max: usize,
    /// Bytes of TCP connections under way, beside what the kernel keeps.
    pub buffer_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Below the 1,024 descriptors that a process may usually have.
        Self { connections_max: 512, flows_max: 256, buffer_max: 32 << 20 }
    }
}

impl Default for UserSpec {
    fn default() -> Self {
        Self {
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            prefix_len: 24,
            prefix6: Some(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0)),
            guest_mac: None,
            mtu: 1500,
            restricted: false,
            host_loopback: true,
            resolvers: Vec::new(),
            domain: None,
            hostname: None,
            limits: Limits::default(),
        }
    }
}

impl UserSpec {
    /// Looks whether this can be a network.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Spec(what));
        if !(8..=30).contains(&self.prefix_len) {
            return wrong(format!("a network of /{} has no room; use /8 to /30", self.prefix_len));
        }
        // IPv6 wants 1,280 (RFC 8200, section 5).
        if self.mtu < 1280 {
            return wrong(format!("an MTU of {} is below 1280, the least that IPv6 allows", self.mtu));
        }
        let mask = self.mask();
        for address in [self.dns, self.guest] {
            if u32::from(address) & mask != u32::from(self.gateway) & mask {
                return wrong(format!(
                    "{address} is not in the network of {}/{}",
                    self.gateway, self.prefix_len
                ));
            }
        }
        if self.gateway == self.dns || self.gateway == self.guest || self.dns == self.guest {
            return wrong("gateway, name server and guest need an address each".to_owned());
        }
        if self.limits.connections_max > 1 << 16 || self.limits.flows_max > 1 << 16 {
            return wrong("at most 65536 connections and flows can be told apart".to_owned());
        }
        let text = |text: &Option<String>| text.as_ref().is_none_or(|text| (1..=200).contains(&text.len()));
        if !text(&self.domain) || !text(&self.hostname) {
            return wrong("domain and host name have 1 to 200 bytes".to_owned());
        }
        Ok(())
    }

    pub(super) fn mask(&self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix_len.clamp(1, 32)))
    }

    /// Whether an address is on the guest's network.
    pub(super) fn on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => (u32::from(address) ^ u32::from(self.gateway)) & self.mask() == 0,
            IpAddr::V6(address) => address.is_unicast_link_local() || self.is_prefix6(address),
        }
    }

    fn is_prefix6(&self, address: Ipv6Addr) -> bool {
        self.prefix6.is_some_and(|prefix| prefix.octets()[..8] == address.octets()[..8])
    }

    /// The address with this number in the network of IPv6.
    pub(super) fn address6(&self, number: u16) -> Option<Ipv6Addr> {
        self.prefix6.map(|prefix| {
            let [a, b, c, d, ..] = prefix.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, number)
        })
    }

    /// Where the host is, in the network of this address's family.
    pub(super) fn gateway_like(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => Some(IpAddr::V4(self.gateway)),
            IpAddr::V6(_) => self.address6(2).map(IpAddr::V6),
        }
    }

    /// Whether this is the host's address.
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway_like(address) == Some(address)
    }

    /// Whether this is where names are asked for.
    pub(super) fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.dns,
            IpAddr::V6(address) => self.address6(3) == Some(address),
        }
    }
}
