//! The host's resolvers (`resolv.conf(5)`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

/// Lines that are looked at; the C library itself takes three servers.
const RESOLVERS_MAX: usize = 8;
/// Where names are asked for.
const PORT: u16 = 53;

/// The host's resolvers, as `/etc/resolv.conf` names them; the host itself, if it names none.
pub fn system_resolvers() -> Vec<SocketAddr> {
    // Without the file the C library asks the host itself, too.
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let found = read_resolvers(&text);
    if found.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))] } else { found }
}

/// The resolvers that a file like that names.
pub fn read_resolvers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(|address| {
            // `fe80::1%2`: an address of the link names the interface.
            let (address, scope) = address.split_once('%').unwrap_or((address, ""));
            Some(match address.parse().ok()? {
                IpAddr::V6(address) if !scope.is_empty() => {
                    SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, scope.parse().ok()?))
                }
                address => SocketAddr::new(address, PORT),
            })
        })
        .take(RESOLVERS_MAX)
        .collect()
}
