//! Everything but connections: addresses, names, datagrams, echoes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use smoltcp::socket::{dhcpv4, dns, icmp};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress, Ipv4Packet, Ipv6Packet, UdpPacket,
};

use super::test_help::{Bench, GUEST_MAC, bench, host};
use super::{Forward, ForwardProtocol, Transport, read_resolvers};
use crate::wire::Sum;

/// Answers each datagram by `answer`, until the test is over.
fn serve_udp(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&answer(&bytes[..len]), from);
        }
    });
    address
}

/// A name server that knows one address.
fn answer_name(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..8].copy_from_slice(&[0, 1]);
    answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 33]);
    answer
}

#[test]
fn dhcp_gives_the_address_that_everybody_knows() {
    let mut bench = bench(|spec| {
        spec.resolvers.push("127.0.0.1:53".parse().unwrap());
        spec.domain = Some("example.org".to_owned());
        spec.hostname = Some("web".to_owned());
    });
    bench.interface.update_ip_addrs(|addresses| addresses.clear());
    let handle = bench.sockets.add(dhcpv4::Socket::new());
    let (address, router, dns) =
        bench.until("an address", |bench| match bench.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router, Some(Ipv4Addr::new(10, 0, 2, 2)));
    assert_eq!(dns, [Ipv4Addr::new(10, 0, 2, 3)]);
}

fn query(bench: &mut Bench) -> IpAddress {
    let socket = dns::Socket::new(&[IpAddress::v4(10, 0, 2, 3)], vec![]);
    let handle = bench.sockets.add(socket);
    let context = bench.interface.context();
    let socket = bench.sockets.get_mut::<dns::Socket<'_>>(handle);
    let query = socket.start_query(context, "umbra.test", smoltcp::wire::DnsQueryType::A).unwrap();
    bench.until("a name's address", |bench| {
        let socket = bench.sockets.get_mut::<dns::Socket<'_>>(handle);
        socket.get_query_result(query).ok().and_then(|found| found.first().copied())
    })
}

/// The double leads every socket to the loopback, whatever its address, so the port says which server is meant.
#[test]
fn names_are_asked_of_the_hosts_resolver() {
    let server = serve_udp(answer_name);
    let mut bench = bench(|spec| spec.resolvers.push(server));
    assert_eq!(query(&mut bench), IpAddress::v4(192, 0, 2, 33));
    assert_eq!(*bench.outside.opened.lock().unwrap(), [(Transport::Udp, server)]);
}

#[test]
fn a_resolver_that_is_silent_or_not_there_is_left_for_the_next() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let absent = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = serve_udp(answer_name);
    for first in [silent.local_addr().unwrap(), absent] {
        let mut bench = bench(|spec| spec.resolvers.extend([first, server]));
        assert_eq!(query(&mut bench), IpAddress::v4(192, 0, 2, 33));
    }
}

#[test]
fn names_are_asked_by_tcp_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let mut bench = bench(|spec| spec.resolvers.push(server));
    let handle = bench.connect("10.0.2.3:53".parse().unwrap(), 4096);
    bench.established(handle);
    listener.accept().unwrap();
}

#[test]
fn datagrams_both_ways() {
    let server = serve_udp(|bytes| bytes.iter().rev().copied().collect());
    let mut bench = bench(|_| {});
    let handle = bench.udp(5000);
    for port in [server.port(), server.port()] {
        bench.udp_send(handle, host(port), b"abc");
        assert_eq!(bench.udp_receive(handle), (b"cba".to_vec(), host(port)));
    }
    assert_eq!(bench.user.status().flows, 1);
    assert_eq!(bench.outside.opened.lock().unwrap()[0].1, SocketAddr::from(([127, 0, 0, 1], server.port())));
    // Anybody else's address is taken as it is, and the answer comes from there.
    let elsewhere = SocketAddr::from(([192, 0, 2, 9], server.port()));
    bench.udp_send(handle, elsewhere, b"12");
    assert_eq!(bench.udp_receive(handle), (b"21".to_vec(), elsewhere));
    assert_eq!(bench.outside.opened.lock().unwrap()[1].1, elsewhere);
}

#[test]
fn beyond_the_limit_the_oldest_flow_goes() {
    let server = serve_udp(<[u8]>::to_vec);
    let mut bench = bench(|spec| spec.limits.flows_max = 3);
    for port in 5000..5010 {
        let handle = bench.udp(port);
        bench.udp_send(handle, host(server.port()), &port.to_be_bytes());
        assert_eq!(bench.udp_receive(handle).0, port.to_be_bytes());
    }
    assert_eq!(bench.user.status().flows, 3);
}

#[test]
fn ports_lead_to_the_guest_by_udp() {
    let mut bench = bench(|_| {});
    let handle = bench.udp(53);
    bench.udp_send(handle, host(9), b"hello");
    bench.run_for(Duration::from_millis(5));
    let forward = Forward {
        protocol: ForwardProtocol::Udp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: None,
        guest_port: 53,
    };
    let control = bench.control.clone();
    let adding = std::thread::spawn(move || control.add_forward(forward.listen().unwrap()).unwrap().host);
    bench.until("the forward", |_| adding.is_finished().then_some(()));
    let address = adding.join().unwrap();
    let clients = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.2:0").unwrap()];
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(b"question", address).unwrap();
        let (bytes, from) = bench.udp_receive(handle);
        assert_eq!((bytes.as_slice(), from.ip()), (&b"question"[..], host(0).ip()));
        bench.udp_send(handle, from, b"answer");
        bench.run_for(Duration::from_millis(5));
        let mut answer = [0; 16];
        let (len, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..len], from), (&b"answer"[..], address));
    }
}

/// An Ethernet frame of the guest's with an IPv4 packet in it.
fn ipv4(to: Ipv4Addr, protocol: u8, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 34 + payload.len()];
    frame[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
    frame[6..12].copy_from_slice(&GUEST_MAC);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[6..8].copy_from_slice(&fragment.to_be_bytes());
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&[10, 0, 2, 15]);
    ip[16..20].copy_from_slice(&to.octets());
    let mut sum = Sum::default();
    sum.add(ip);
    ip[10..12].copy_from_slice(&sum.finish());
    frame[34..].copy_from_slice(payload);
    frame
}

/// A UDP datagram without a checksum.
fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

#[test]
fn large_datagrams_go_in_parts_both_ways() {
    let server = serve_udp(<[u8]>::to_vec);
    let mut bench = bench(|_| {});
    let payload: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    let whole = datagram(5000, server.port(), &payload);
    // Out of order, as a network may.
    for (index, more) in [(3, false), (0, true), (2, true), (1, true)] {
        let part = whole.chunks(1480).nth(index).unwrap();
        let fragment = if more { 0x2000 } else { 0 } | (index * 1480 / 8) as u16;
        bench.send(&ipv4(Ipv4Addr::new(10, 0, 2, 2), 17, 77, fragment, part));
    }
    let mut parts = Vec::new();
    bench.until("the answer", |bench| {
        bench.step_network();
        for frame in bench.card.received.drain(..) {
            let ethernet = EthernetFrame::new_checked(&frame).unwrap();
            if ethernet.ethertype() == EthernetProtocol::Ipv4 {
                assert!(frame.len() <= 1514);
                let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                assert!(ip.verify_checksum());
                parts.push((ip.frag_offset(), ip.more_frags(), ip.payload().to_vec()));
            }
        }
        parts.iter().any(|(_, more, _)| !more).then_some(())
    });
    let mut got = Vec::new();
    for (offset, _, part) in &parts {
        assert_eq!(usize::from(*offset), got.len());
        got.extend(part);
    }
    let udp = UdpPacket::new_checked(&got).unwrap();
    assert!(udp.verify_checksum(&IpAddress::v4(10, 0, 2, 2), &IpAddress::v4(10, 0, 2, 15)));
    assert_eq!(udp.payload(), payload);
}

/// The ICMP messages among frames.
fn icmp_messages(frames: &[Vec<u8>]) -> Vec<(u8, u8)> {
    frames
        .iter()
        .filter_map(|frame| {
            let ethernet = EthernetFrame::new_checked(frame).unwrap();
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let is_icmp = ethernet.ethertype() == EthernetProtocol::Ipv4 && u8::from(ip.next_header()) == 1;
            let message = Icmpv4Packet::new_checked(ip.payload()).ok().filter(|_| is_icmp)?;
            assert!(message.verify_checksum());
            Some((message.msg_type().into(), message.msg_code()))
        })
        .collect()
}

#[test]
fn who_cannot_be_reached_is_told() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bench = bench(|spec| spec.host_loopback = false);
    let told = |bench: &mut Bench, to: Ipv4Addr, port: u16| {
        bench.send(&ipv4(to, 17, 1, 0, &datagram(5000, port, b"x")));
        bench.until("to be told", |bench| icmp_messages(&bench.take_frames()).first().copied())
    };
    // The socket's error comes from the kernel.
    assert_eq!(told(&mut bench, Ipv4Addr::new(192, 0, 2, 1), nobody.port()), (3, 3));
    for refused in [[10, 0, 2, 2], [10, 0, 2, 77], [127, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]] {
        let opened = bench.outside.opened.lock().unwrap().len();
        if refused != [0, 0, 0, 0] {
            assert_eq!(told(&mut bench, refused.into(), 80), (3, 3), "{refused:?}");
        }
        assert_eq!(bench.outside.opened.lock().unwrap().len(), opened);
    }
}

fn ping(bench: &mut Bench, to: Ipv4Addr) -> Option<()> {
    let new = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = bench.sockets.add(icmp::Socket::new(new(), new()));
    let request = Icmpv4Repr::EchoRequest { ident: 0x22b, seq_no: 7, data: b"are you there" };
    let socket = bench.sockets.get_mut::<icmp::Socket<'_>>(handle);
    socket.bind(icmp::Endpoint::Ident(0x22b)).unwrap();
    let buffer = socket.send(request.buffer_len(), to.into()).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(buffer), &Default::default());
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        bench.step();
        let socket = bench.sockets.get_mut::<icmp::Socket<'_>>(handle);
        if let Ok((bytes, from)) = socket.recv() {
            assert_eq!(from, to.into());
            let reply =
                Icmpv4Repr::parse(&Icmpv4Packet::new_checked(bytes).unwrap(), &Default::default()).unwrap();
            let wanted = Icmpv4Repr::EchoReply { ident: 0x22b, seq_no: 7, data: b"are you there" };
            assert_eq!(reply, wanted);
            bench.sockets.remove(handle);
            return Some(());
        }
    }
    None
}

#[test]
fn our_own_addresses_answer_echoes() {
    let mut bench = bench(|_| {});
    ping(&mut bench, Ipv4Addr::new(10, 0, 2, 2)).unwrap();
    ping(&mut bench, Ipv4Addr::new(10, 0, 2, 3)).unwrap();
}

#[test]
fn echoes_go_out_and_come_back_with_the_guests_identifier() {
    // As the kernel does it for a ping socket: another identifier, no IP header.
    let server = serve_udp(|request| {
        assert_eq!(request[0], 8);
        let mut reply = request.to_vec();
        reply[0] = 0;
        reply[4..6].copy_from_slice(&[0xab, 0xcd]);
        reply
    });
    let mut bench = bench(|spec| {
        spec.domain = Some("ping.test".to_owned());
        spec.resolvers.push(server);
    });
    ping(&mut bench, Ipv4Addr::new(192, 0, 2, 80)).unwrap();
    assert!(!bench.user.status().ping_refused);
}

#[test]
fn echoes_that_the_host_refuses_are_told_of() {
    let mut bench = bench(|_| {});
    let mut request = vec![8, 0, 0, 0, 1, 2, 0, 1];
    let mut sum = Sum::default();
    sum.add(&request);
    request[2..4].copy_from_slice(&sum.finish());
    bench.send(&ipv4(Ipv4Addr::new(192, 0, 2, 80), 1, 1, 0, &request));
    assert_eq!(icmp_messages(&bench.take_frames()), [(3, 13)]);
    assert!(bench.user.status().ping_refused);
}

#[test]
fn ipv6_has_a_router_and_addresses() {
    let server = serve_udp(<[u8]>::to_vec);
    let mut bench = bench(|_| {});
    // The router says by itself that it is there.
    let frames = bench.take_frames();
    let is_advertisement = |frame: &Vec<u8>| {
        let ip = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((ip.hop_limit(), &frame[..6]), (255, &[0x33, 0x33, 0, 0, 0, 1][..]));
        let message = smoltcp::wire::Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(message.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        let repr = smoltcp::wire::NdiscRepr::parse(&message).unwrap();
        let smoltcp::wire::NdiscRepr::RouterAdvert { prefix_info: Some(prefix), mtu, .. } = repr else {
            panic!("{repr:?}");
        };
        assert_eq!((prefix.prefix.to_string().as_str(), prefix.prefix_len, mtu), ("fec0::", 64, Some(1500)));
        true
    };
    assert!(frames.iter().any(is_advertisement));
    let handle = bench.udp(5000);
    let to = SocketAddr::new("fec0::2".parse().unwrap(), server.port());
    bench.udp_send(handle, to, b"six");
    assert_eq!(bench.udp_receive(handle), (b"six".to_vec(), to));
    assert_eq!(bench.outside.opened.lock().unwrap()[0].1.ip(), "::1".parse::<IpAddr>().unwrap());
}

#[test]
fn without_ipv6_there_is_none() {
    let mut bench = bench(|spec| spec.prefix6 = None);
    assert!(bench.take_frames().is_empty());
    let handle = bench.udp(5000);
    bench.udp_send(handle, "[fec0::2]:7".parse().unwrap(), b"six");
    bench.run_for(Duration::from_millis(20));
    assert!(bench.outside.opened.lock().unwrap().is_empty());
}

#[test]
fn restricted_still_has_addresses_and_nothing_else() {
    let mut bench = bench(|spec| {
        spec.restricted = true;
        spec.resolvers.push("127.0.0.1:53".parse().unwrap());
    });
    for to in [host(53), "10.0.2.3:53".parse().unwrap(), "192.0.2.1:53".parse().unwrap()] {
        let handle = bench.udp(5000 + to.ip().to_string().len() as u16);
        bench.udp_send(handle, to, b"out");
    }
    bench.run_for(Duration::from_millis(20));
    assert!(bench.outside.opened.lock().unwrap().is_empty());
    bench.interface.update_ip_addrs(|addresses| addresses.clear());
    let handle = bench.sockets.add(dhcpv4::Socket::new());
    let router =
        bench.until("an address", |bench| match bench.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => Some(config.router),
            _ => None,
        });
    assert_eq!(router, None);
}

#[test]
fn no_name_leads_to_the_hosts_loopback_but_the_gateways() {
    let bench = bench(|_| {});
    let map =
        |address: &str| bench.user.net.map(Transport::Tcp, SocketAddr::new(address.parse().unwrap(), 80));
    for refused in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "10.0.2.3",
        "10.0.2.99",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "ff02::1",
        "fe80::5",
        "fec0::3",
        "fec0::99",
    ] {
        assert_eq!(map(refused), None, "{refused}");
    }
    assert_eq!(map("10.0.2.2"), Some("127.0.0.1:80".parse().unwrap()));
    assert_eq!(map("fec0::2"), Some("[::1]:80".parse().unwrap()));
    assert_eq!(map("192.0.2.1"), Some("192.0.2.1:80".parse().unwrap()));
    assert_eq!(map("2001:db8::1"), Some("[2001:db8::1]:80".parse().unwrap()));
}

#[test]
fn two_cards_get_two_addresses() {
    let mut bench = bench(|_| {});
    let mut addresses = Vec::new();
    for last in [1, 2, 1] {
        bench.interface.set_hardware_addr(smoltcp::wire::EthernetAddress([2, 0, 0, 0, 0, last]).into());
        bench.interface.update_ip_addrs(|addresses| addresses.clear());
        let handle = bench.sockets.add(dhcpv4::Socket::new());
        addresses.push(bench.until("an address", |bench| {
            match bench.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(config.address),
                _ => None,
            }
        }));
        bench.sockets.remove(handle);
    }
    let wanted = [15, 16, 15].map(|last| smoltcp::wire::Ipv4Cidr::new(Ipv4Addr::new(10, 0, 2, last), 24));
    assert_eq!(addresses, wanted);
}

#[test]
fn the_hosts_resolvers_are_read() {
    let text =
        "# no\nsearch x\nnameserver 192.0.2.53\nnameserver\tfe80::1%2\nnameserver nonsense\n options y\n";
    let found: Vec<String> = read_resolvers(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.0.2.53:53", "[fe80::1%2]:53"]);
}
