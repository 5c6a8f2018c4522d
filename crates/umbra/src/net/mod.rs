//! Networks of a machine: the options `--net`, `-p` and `--pcap`, and how what they need comes to the worker.
//!
//! The worker is the guest's network, because what the guest sends is hostile, and can open no socket. The broker opens the ports
//! that lead to the guest beforehand, and each socket that the guest causes when it is asked for, if the network may have it ([`umbra_net::user::Gate`]).

pub mod open;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use umbra_machine::NetworkSpec;
use umbra_net::user::{Forward, ForwardProtocol};
use umbra_server::{Port, Protocol};

use crate::disk::{parse_switch, split};

/// What `--net` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOption {
    /// No network card.
    None,
    /// A card at a network in user space.
    User(UserOption),
}

/// A network in user space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserOption {
    /// Nothing gets out.
    pub restricted: bool,
    /// The guest reaches the host's loopback at the gateway's address.
    pub host_loopback: bool,
    /// There is IPv6.
    pub ipv6: bool,
    /// The longest packet.
    pub mtu: u16,
    /// The card's address, if not one of ours.
    pub mac: Option<String>,
}

impl Default for UserOption {
    fn default() -> Self {
        Self { restricted: false, host_loopback: true, ipv6: true, mtu: 1500, mac: None }
    }
}

/// What `-p` says: a port of the host that leads to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: ForwardProtocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// The options of `--net user`.
const USER_OPTIONS: &str = "restrict=, host=, ipv6=, mtu= and mac=";

/// Reads `none` or `user[,restrict=on|off][,host=on|off][,ipv6=on|off][,mtu=N][,mac=ADDRESS]`.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse(text: &str) -> Result<NetOption, String> {
    let mut parts = split(text).into_iter();
    let kind = parts.next().unwrap_or_default();
    match kind.as_str() {
        "none" => match parts.next() {
            Some(part) => Err(format!("`none` has no options, and `{part}` is given")),
            None => Ok(NetOption::None),
        },
        "user" => parse_user(parts).map(NetOption::User),
        _ => Err(format!("`{kind}` is no network; there are user and none")),
    }
}

fn parse_user(parts: impl Iterator<Item = String>) -> Result<UserOption, String> {
    let mut option = UserOption::default();
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is no option of a network; they are {USER_OPTIONS}"))?;
        if seen.iter().any(|other| other == name) {
            return Err(format!("{name}= is given twice"));
        }
        seen.push(name.to_owned());
        match name {
            "restrict" => option.restricted = parse_switch(name, value)?,
            "host" => option.host_loopback = parse_switch(name, value)?,
            "ipv6" => option.ipv6 = parse_switch(name, value)?,
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (1280..=65_520).contains(mtu));
                option.mtu = mtu.ok_or_else(|| format!("`{value}` is no MTU; give 1280 to 65520"))?;
            }
            "mac" => {
                let spec = NetworkSpec { mac: value.to_owned() };
                spec.mac_bytes().map_err(|e| e.to_string())?;
                option.mac = Some(spec.mac);
            }
            _ => return Err(format!("`{name}=` is no option of a network; they are {USER_OPTIONS}")),
        }
    }
    Ok(option)
}

/// Reads `[ADDRESS:]PORT:GUEST_PORT[/tcp|/udp]`. Without an address only this host reaches the port.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse_publish(text: &str) -> Result<Publish, String> {
    let publish = parse_live(text)?;
    match publish.host.port() {
        0 => Err(wrong_port("`0` is no port")),
        _ => Ok(publish),
    }
}

/// The same for a machine that runs: 0 lets the host choose the port.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse_live(text: &str) -> Result<Publish, String> {
    let (protocol, ports) = parse_protocol(text)?;
    let (host, guest) =
        ports.rsplit_once(':').ok_or_else(|| wrong_port(&format!("`{text}` names no port of the guest")))?;
    let guest_port = guest.parse().ok().filter(|port| *port != 0u16);
    let guest_port = guest_port.ok_or_else(|| wrong_port(&format!("`{guest}` is no port")))?;
    Ok(Publish { protocol, host: parse_host(host)?, guest_port })
}

/// Reads `[ADDRESS:]PORT[:GUEST_PORT][/tcp|/udp]`, of a port that is to be closed.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse_removed(text: &str) -> Result<(ForwardProtocol, SocketAddr), String> {
    if let Ok(publish) = parse_publish(text) {
        return Ok((publish.protocol, publish.host));
    }
    let (protocol, host) = parse_protocol(text)?;
    Ok((protocol, parse_host(host)?))
}

fn wrong_port(what: &str) -> String {
    format!("{what}; give [ADDRESS:]PORT:GUEST_PORT, such as 8080:80, 0.0.0.0:8080:80 or 5353:53/udp")
}

fn parse_protocol(text: &str) -> Result<(ForwardProtocol, &str), String> {
    match text.split_once('/') {
        None => Ok((ForwardProtocol::Tcp, text)),
        Some((ports, "tcp")) => Ok((ForwardProtocol::Tcp, ports)),
        Some((ports, "udp")) => Ok((ForwardProtocol::Udp, ports)),
        Some((_, other)) => Err(wrong_port(&format!("`{other}` is neither tcp nor udp"))),
    }
}

fn parse_host(text: &str) -> Result<SocketAddr, String> {
    let (address, port) = match text.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), text),
        Some((address, port)) => {
            let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            let read = plain.parse().map_err(|_| wrong_port(&format!("`{address}` is no IP address")));
            (read?, port)
        }
    };
    let port = port.parse().map_err(|_| wrong_port(&format!("`{port}` is no port")))?;
    Ok(SocketAddr::new(address, port))
}

/// What the control socket calls a protocol, as the network does.
pub fn forward_protocol(protocol: Protocol) -> ForwardProtocol {
    match protocol {
        Protocol::Tcp => ForwardProtocol::Tcp,
        Protocol::Udp => ForwardProtocol::Udp,
    }
}

/// An open port, as the control socket tells it.
pub fn port_of(forward: &Forward) -> Port {
    let protocol = match forward.protocol {
        ForwardProtocol::Tcp => Protocol::Tcp,
        ForwardProtocol::Udp => Protocol::Udp,
    };
    Port { protocol, host: forward.host, guest_port: forward.guest_port }
}

/// The card's address of the network with this number, of a machine with this UUID: always the same.
pub fn mac_of(uuid: [u8; 16], number: usize) -> String {
    let [.., a, b, c] = uuid;
    format!("52:54:00:{a:02x}:{b:02x}:{:02x}", c.wrapping_add(number as u8))
}

#[cfg(test)]
#[path = "../net_test.rs"]
mod net_test;
