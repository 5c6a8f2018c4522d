//! Both sides: what the broker prepares for a network, and what the worker makes of it.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use umbra_machine::NetworkSpec;
use umbra_net::user::{
    Forward, ForwardProtocol, Gate, Listening, Passed, User, UserControl, UserSpec, system_resolvers,
};
use umbra_net::{Backend, Capture, SNAP_LEN};
use umbra_server::Port;

use super::{NetOption, Publish, UserOption};
use crate::cli::Cable;
use crate::protocol::{NetworkStart, PortStart};

/// Ports that lead to the guest from the start; more would not fit into one message.
const PUBLISH_MAX: usize = 64;
/// DHCP has no room for a longer name.
const HOSTNAME_MAX: usize = 63;

/// What the broker has prepared for all networks.
#[derive(Default)]
pub struct Prepared {
    /// For the worker.
    pub networks: Vec<NetworkStart>,
    /// For the worker, behind its other descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// Ports that lead to the guest.
    pub ports: Vec<Port>,
}

/// The networks that the options ask for; without any, one in user space. `wanted` says that something else asks for one.
///
/// # Errors
/// Ports without a network that they lead to.
pub fn networks_of(options: &[NetOption], wanted: bool) -> anyhow::Result<Vec<UserOption>> {
    if options.is_empty() {
        return Ok(vec![UserOption::default()]);
    }
    if options.len() > 1 && options.contains(&NetOption::None) {
        bail!("--net none says that there is no network, and another is given");
    }
    let users = options.iter().filter_map(|option| match option {
        NetOption::None => None,
        NetOption::User(user) => Some(user.clone()),
    });
    let users: Vec<_> = users.collect();
    if users.is_empty() && wanted {
        bail!("-p and --pcap need a network; leave --net none out");
    }
    Ok(users)
}

/// Opens ports and the capture's file, and serves the worker with sockets from now on. Ports and capture are the first network's.
///
/// # Errors
/// A port that is taken, a file that cannot be written.
pub fn prepare(users: &[UserOption], cable: &Cable, hostname: &str) -> anyhow::Result<Prepared> {
    let (publish, pcap) = (cable.publish.as_slice(), cable.pcap.as_deref());
    if publish.len() > PUBLISH_MAX {
        bail!("{} ports are given with -p; at most {PUBLISH_MAX} are there from the start", publish.len());
    }
    let mut prepared = Prepared::default();
    for (index, user) in users.iter().enumerate() {
        let (publish, pcap) = if index == 0 { (publish, pcap) } else { (&[][..], None) };
        let UserOption { restricted, host_loopback, ipv6, mtu, mac: _ } = *user;
        let hostname = hostname.chars().take(HOSTNAME_MAX).collect();
        let mut network = NetworkStart {
            restricted,
            host_loopback,
            ipv6,
            mtu,
            resolvers: system_resolvers(),
            hostname,
            ports: Vec::new(),
            captured: pcap.is_some(),
        };
        prepared.descriptors.push(serve(&network.spec(None))?);
        for Publish { protocol, host, guest_port } in publish.iter().copied() {
            let listening = Forward { protocol, host, guest: None, guest_port }.listen()?;
            let udp = protocol == ForwardProtocol::Udp;
            network.ports.push(PortStart { udp, host: listening.forward().host, guest_port });
            prepared.ports.push(super::port_of(&listening.forward()));
            prepared.descriptors.push(listening.into_socket());
        }
        if let Some(path) = pcap {
            let file = File::create(path)
                .with_context(|| format!("cannot write the capture to {}", path.display()))?;
            prepared.descriptors.push(file.into());
        }
        prepared.networks.push(network);
    }
    Ok(prepared)
}

/// Opens sockets for a network like this in a thread of its own; the end at which it is asked.
fn serve(spec: &UserSpec) -> anyhow::Result<OwnedFd> {
    let gate = Gate::new(spec);
    let (asks, answers) = Passed::pair().context("cannot make the socket of a network")?;
    // It ends when the worker does.
    std::thread::Builder::new()
        .name("sockets".into())
        .spawn(move || gate.serve(answers))
        .context("cannot start the thread of a network")?;
    Ok(asks)
}

impl NetworkStart {
    fn spec(&self, mac: Option<[u8; 6]>) -> UserSpec {
        let default = UserSpec::default();
        UserSpec {
            restricted: self.restricted,
            host_loopback: self.host_loopback,
            prefix6: default.prefix6.filter(|_| self.ipv6),
            mtu: self.mtu,
            resolvers: self.resolvers.clone(),
            hostname: Some(self.hostname.clone()).filter(|name| !name.is_empty()),
            guest_mac: mac,
            ..default
        }
    }
}

/// What a port of the worker's speaks.
pub fn protocol(udp: bool) -> ForwardProtocol {
    if udp { ForwardProtocol::Udp } else { ForwardProtocol::Tcp }
}

/// A port that the broker has opened.
pub fn listening(port: &PortStart, socket: OwnedFd) -> Listening {
    let PortStart { udp, host, guest_port } = *port;
    Listening::from_socket(Forward { protocol: protocol(udp), host, guest: None, guest_port }, socket)
}

/// The worker's networks: what the machine gets, and what they are controlled by.
pub type Made = (Vec<Box<dyn Backend>>, Vec<UserControl>);

/// Makes the worker's networks. `cards` are those of the specification.
///
/// # Errors
/// A descriptor is missing, or the host refuses.
pub fn make(
    networks: &[NetworkStart],
    cards: &[NetworkSpec],
    descriptors: &mut dyn Iterator<Item = OwnedFd>,
) -> anyhow::Result<Made> {
    let (mut backends, mut controls) = Made::default();
    for (index, network) in networks.iter().enumerate() {
        let mut next = || descriptors.next().context("the broker sent no descriptor for a network");
        let mac = cards.get(index).map(NetworkSpec::mac_bytes).transpose()?;
        let outside = Passed::new(next()?);
        let (mut user, control) = User::new(network.spec(mac), Box::new(outside))?;
        for port in &network.ports {
            user.add_forward(listening(port, next()?));
        }
        let mut backend: Box<dyn Backend> = Box::new(user);
        if network.captured {
            let file = Box::new(File::from(next()?));
            backend = Box::new(Capture::new(backend, file, SNAP_LEN).context("cannot write the capture")?);
        }
        backends.push(backend);
        controls.push(control);
    }
    Ok((backends, controls))
}
