//! A guest to test with: `smoltcp`'s stack at the other end of the cable, in the same thread, and servers of the host on its
//! loopback.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::{Direct, Outside, Transport, User, UserControl, UserSpec};
use crate::link::{Backend, Frame, Offloads, Received};
use crate::poller::Poller;
use crate::wire::VnetHeader;

pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Frames that the guest's card has room for.
const CARD_MAX: usize = 64;
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's card: frames it has got, and frames it has sent.
#[derive(Default)]
pub(crate) struct Card {
    pub received: VecDeque<Vec<u8>>,
    pub sent: VecDeque<Vec<u8>>,
    pub mtu: usize,
}

pub(crate) struct Received1(Vec<u8>);
pub(crate) struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received1 {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push_back(bytes);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received1;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: GuestInstant) -> Option<(Received1, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received1(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: GuestInstant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

/// Sockets to anywhere, that lead to the host's loopback: where, is written down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Everywhere {
    pub opened: Arc<Mutex<Vec<(Transport, SocketAddr)>>>,
    /// Echoes go to this UDP server.
    pub ping: Option<SocketAddr>,
}

impl Outside for Everywhere {
    fn open(&mut self, transport: Transport, remote: SocketAddr) -> io::Result<OwnedFd> {
        self.opened.lock().unwrap().push((transport, remote));
        match (transport, self.ping) {
            (Transport::Ping, None) => Err(io::ErrorKind::PermissionDenied.into()),
            (Transport::Ping, Some(server)) => Direct.open(Transport::Udp, server),
            _ => Direct.open(transport, SocketAddr::from((Ipv4Addr::LOCALHOST, remote.port()))),
        }
    }
}

/// A guest and its network.
pub(crate) struct Bench {
    pub user: User,
    pub control: UserControl,
    pub outside: Everywhere,
    pub card: Card,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    /// Every so many-th frame is lost, each way.
    pub lose_every: usize,
    /// The guest takes frames.
    pub takes: bool,
    /// Headers of frames that the guest has got.
    pub headers: Vec<VnetHeader>,
    poller: Poller,
    frame: Frame,
    started: Instant,
    count: usize,
    next_port: u16,
}

/// The usual network, with settings of the test's own.
pub(crate) fn bench(change: impl FnOnce(&mut UserSpec)) -> Bench {
    let mut spec = UserSpec::default();
    change(&mut spec);
    let mut outside = Everywhere::default();
    if spec.domain.as_deref() == Some("ping.test") {
        outside.ping = spec.resolvers.pop();
    }
    let mtu = spec.mtu.into();
    let (mut user, control) = User::new(spec, Box::new(outside.clone())).unwrap();
    let poller = Poller::new().unwrap();
    user.attach(&poller).unwrap();
    let mut card = Card { mtu, ..Card::default() };
    let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
    let interface = Interface::new(config, &mut card, GuestInstant::ZERO);
    let mut bench = Bench {
        user,
        control,
        outside,
        card,
        interface,
        sockets: SocketSet::new(Vec::new()),
        lose_every: usize::MAX,
        takes: true,
        headers: Vec::new(),
        poller,
        frame: Frame::default(),
        started: Instant::now(),
        count: 0,
        next_port: 40_000,
    };
    bench.interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24)).unwrap();
        addresses.push(IpCidr::new(IpAddress::v6(0xfec0, 0, 0, 0, 0, 0, 0, 15), 64)).unwrap();
    });
    bench.interface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(10, 0, 2, 2)).unwrap();
    bench.interface.routes_mut().add_default_ipv6_route("fec0::2".parse().unwrap()).unwrap();
    bench
}

impl Bench {
    pub(crate) fn offloads(mut self, offloads: Offloads) -> Self {
        self.user.set_guest_offloads(offloads);
        self
    }

    fn is_lost(&mut self) -> bool {
        self.count += 1;
        self.count.is_multiple_of(self.lose_every)
    }

    /// A frame of the guest's.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.frame.set(bytes);
        self.user.send(Instant::now(), &self.frame);
    }

    /// The guest's stack moves by one step: what it sends.
    pub(crate) fn guest_sends(&mut self) -> Vec<Vec<u8>> {
        let now = GuestInstant::from_micros(self.started.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.card.sent.drain(..).collect()
    }

    /// Everything moves by one step, and sleeps for a moment if nothing did.
    pub(crate) fn step(&mut self) {
        let sent = self.guest_sends();
        let mut busy = !sent.is_empty();
        for bytes in sent {
            if !self.is_lost() {
                self.send(&bytes);
            }
        }
        busy |= self.step_network();
        if !busy {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The network's part of a step. Whether the guest got anything.
    pub(crate) fn step_network(&mut self) -> bool {
        let mut events = Vec::new();
        self.poller.wait(Some(Duration::ZERO), &mut events).unwrap();
        let now = Instant::now();
        for (token, ready) in events {
            self.user.event(now, token, ready);
        }
        self.user.tick(now);
        let mut any = false;
        loop {
            let (card, headers, takes) = (&mut self.card, &mut self.headers, self.takes);
            let result = self.user.receive(now, &mut |header, parts| {
                let room = takes && card.received.len() < CARD_MAX;
                if room {
                    headers.push(*header);
                    card.received.push_back(parts.concat());
                }
                room
            });
            if result != Received::Frame {
                return any;
            }
            any = true;
            let got = self.card.received.pop_back().unwrap();
            if !self.is_lost() {
                let header = *self.headers.last().unwrap();
                self.card.received.extend(crate::user::test_cut::cut(&header, got, self.card.mtu));
            }
        }
    }

    /// Steps until something is so.
    #[track_caller]
    pub(crate) fn until<T>(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = is_so(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
            self.step();
        }
    }

    /// Steps for a time.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.step();
        }
    }

    /// A socket of the guest's that connects.
    pub(crate) fn connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let handle = self.tcp_socket(buffer);
        self.next_port += 1;
        let port = self.next_port;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), IpEndpoint::from(to), port).unwrap();
        handle
    }

    pub(crate) fn tcp_socket(&mut self, buffer: usize) -> SocketHandle {
        let new = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(new(), new()))
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp_socket(1 << 16);
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp(&mut self, port: u16) -> SocketHandle {
        let new = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 16]);
        let handle = self.sockets.add(udp::Socket::new(new(), new()));
        self.sockets.get_mut::<udp::Socket<'_>>(handle).bind(port).unwrap();
        handle
    }

    pub(crate) fn udp_send(&mut self, handle: SocketHandle, to: SocketAddr, bytes: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(bytes, IpEndpoint::from(to)).unwrap();
    }

    /// What the guest gets by UDP next, and from whom.
    #[track_caller]
    pub(crate) fn udp_receive(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        self.until("a datagram", |bench| {
            let socket = bench.sockets.get_mut::<udp::Socket<'_>>(handle);
            let (bytes, meta) = socket.recv().ok()?;
            let from = meta.endpoint;
            Some((bytes.to_vec(), SocketAddr::new(from.addr.into(), from.port)))
        })
    }

    #[track_caller]
    pub(crate) fn established(&mut self, handle: SocketHandle) {
        self.until("a connection", |bench| {
            (bench.tcp(handle).state() == tcp::State::Established).then_some(())
        });
    }

    /// Frames for the guest that nobody has looked at yet, without its stack.
    pub(crate) fn take_frames(&mut self) -> Vec<Vec<u8>> {
        self.step_network();
        self.card.received.drain(..).collect()
    }
}

/// The gateway, from the guest.
pub(crate) fn host(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, 2], port))
}
