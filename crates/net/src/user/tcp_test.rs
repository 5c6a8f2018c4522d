//! Connections, from a guest to servers of the host and the other way.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use super::test_help::{Bench, bench, host};
use super::{Forward, ForwardProtocol};
use crate::link::Offloads;

/// A server for one client.
fn serve<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (address, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Sends bytes of the guest's as far as its socket takes them.
fn push(bench: &mut Bench, handle: SocketHandle, bytes: &[u8], sent: &mut usize) {
    if bench.tcp(handle).can_send() {
        *sent += bench.tcp(handle).send_slice(&bytes[*sent..]).unwrap();
    }
}

fn pull(bench: &mut Bench, handle: SocketHandle, got: &mut Vec<u8>) {
    if bench.tcp(handle).can_recv() {
        bench.tcp(handle).recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
    }
}

/// Megabytes go to an echo server and come back, all of them.
fn echo(mut bench: Bench, len: usize) -> Bench {
    let (address, server) = serve(|mut stream| {
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap();
    });
    let handle = bench.connect(host(address.port()), 1 << 16);
    let bytes = pattern(len);
    let (mut sent, mut got) = (0, Vec::new());
    bench.until("the echo", |bench| {
        push(bench, handle, &bytes, &mut sent);
        pull(bench, handle, &mut got);
        (got.len() == bytes.len()).then_some(())
    });
    assert!(got == bytes, "bytes were changed");
    bench.tcp(handle).close();
    bench.until("the end", |bench| {
        let state = bench.tcp(handle).state();
        matches!(state, tcp::State::Closed | tcp::State::TimeWait).then_some(())
    });
    server.join().unwrap();
    assert_eq!(bench.user.status().connections, 0);
    bench
}

#[test]
fn megabytes_both_ways() {
    echo(bench(|_| {}), 8 << 20);
}

#[test]
fn megabytes_with_large_segments() {
    let bench = echo(bench(|_| {}).offloads(Offloads::all()), 8 << 20);
    let large = bench.headers.iter().filter(|header| header.gso_type != 0).count();
    assert!(large > 100, "{large} large segments");
}

#[test]
fn megabytes_with_checksums_left_to_the_guest() {
    echo(bench(|_| {}).offloads(Offloads::CHECKSUM), 2 << 20);
}

#[test]
fn frames_that_get_lost_are_sent_again() {
    for lose_every in [211, 46] {
        let mut bench = bench(|_| {});
        bench.lose_every = lose_every;
        echo(bench, 48 << 10);
    }
}

#[test]
fn over_ipv6() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The double leads all sockets to 127.0.0.1, so that the way out is told by what it was asked for.
    let listener4 = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut bench = bench(|_| {});
    let handle = bench.connect(format!("[fec0::2]:{port}").parse().unwrap(), 1 << 14);
    bench.established(handle);
    listener4.accept().unwrap();
    let opened = bench.outside.opened.lock().unwrap().clone();
    assert_eq!(opened, [(super::Transport::Tcp, format!("[::1]:{port}").parse().unwrap())]);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_nothing_piles_up() {
    let (address, server) = serve(|mut stream| {
        std::thread::sleep(Duration::from_millis(600));
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 16);
    let bytes = pattern(24 << 20);
    let mut sent = 0;
    let start = Instant::now();
    let mut stalled = 0;
    bench.until("all to be sent", |bench| {
        push(bench, handle, &bytes, &mut sent);
        if start.elapsed() < Duration::from_millis(500) {
            stalled = sent;
        }
        (sent == bytes.len()).then_some(())
    });
    assert!(stalled < 16 << 20, "{stalled} bytes were taken that nobody read");
    bench.tcp(handle).close();
    let done = |bench: &mut Bench| server.is_finished().then_some(bench.user.status());
    bench.until("the server", done);
    assert!(server.join().unwrap() == bytes);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (address, server) = serve(|mut stream| {
        stream.set_write_timeout(Some(Duration::from_secs(15))).unwrap();
        let bytes = pattern(24 << 20);
        let start = Instant::now();
        stream.write_all(&bytes).unwrap();
        start.elapsed()
    });
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 16);
    bench.established(handle);
    // The guest's window closes, and nothing more is read from the host than fits.
    bench.run_for(Duration::from_millis(800));
    assert!(!server.is_finished());
    let mut got = Vec::new();
    bench.until("the rest", |bench| {
        pull(bench, handle, &mut got);
        (got.len() == 24 << 20).then_some(())
    });
    assert!(got == pattern(24 << 20));
    assert!(server.join().unwrap() > Duration::from_millis(500));
}

#[test]
fn a_card_without_room_stops_the_host() {
    let (address, server) = serve(|mut stream| stream.write_all(&pattern(24 << 20)).unwrap());
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 16);
    bench.established(handle);
    bench.takes = false;
    bench.run_for(Duration::from_millis(300));
    assert!(!server.is_finished());
    bench.takes = true;
    let mut got = Vec::new();
    bench.until("the rest", |bench| {
        pull(bench, handle, &mut got);
        (got.len() == 24 << 20).then_some(())
    });
    assert!(got == pattern(24 << 20));
}

#[test]
fn the_guest_ends_first_and_still_reads() {
    let (address, server) = serve(|mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 14);
    bench.established(handle);
    bench.tcp(handle).send_slice(b"half").unwrap();
    bench.tcp(handle).close();
    let mut got = Vec::new();
    bench.until("the answer and the end", |bench| {
        pull(bench, handle, &mut got);
        (!bench.tcp(handle).may_recv()).then_some(())
    });
    assert_eq!(got, b"half");
    server.join().unwrap();
}

#[test]
fn the_host_ends_first_and_still_reads() {
    let (address, server) = serve(|mut stream| {
        stream.write_all(b"first").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 14);
    bench.until("the host's end", |bench| (bench.tcp(handle).state() == tcp::State::CloseWait).then_some(()));
    let mut got = Vec::new();
    pull(&mut bench, handle, &mut got);
    assert_eq!(got, b"first");
    bench.tcp(handle).send_slice(b"second").unwrap();
    bench.tcp(handle).close();
    bench.until("the end", |bench| (bench.tcp(handle).state() == tcp::State::Closed).then_some(()));
    bench.until("the server", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), b"second");
    assert_eq!(bench.user.status().connections, 0);
}

#[test]
fn a_guest_that_breaks_off_breaks_the_host_off() {
    let (address, server) = serve(|mut stream| stream.read(&mut [0; 16]).unwrap_err().kind());
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 14);
    bench.established(handle);
    bench.tcp(handle).abort();
    bench.until("the server", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn a_host_that_breaks_off_breaks_the_guest_off() {
    let (address, server) = serve(|stream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(address.port()), 1 << 14);
    bench.until("the end", |bench| (bench.tcp(handle).state() == tcp::State::Closed).then_some(()));
    server.join().unwrap();
    assert_eq!(bench.user.status().connections, 0);
}

#[test]
fn a_port_that_nobody_listens_on_refuses() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bench = bench(|_| {});
    let handle = bench.connect(host(free.port()), 1 << 14);
    bench.until("the refusal", |bench| (bench.tcp(handle).state() == tcp::State::Closed).then_some(()));
}

#[test]
fn beyond_the_limit_the_longest_silent_goes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut bench = bench(|spec| spec.limits.connections_max = 4);
    let handles: Vec<SocketHandle> = (0..4)
        .map(|_| {
            let handle = bench.connect(host(port), 4096);
            bench.established(handle);
            handle
        })
        .collect();
    bench.tcp(handles[0]).send_slice(b"I am here").unwrap();
    bench.run_for(Duration::from_millis(20));
    let fifth = bench.connect(host(port), 4096);
    bench.established(fifth);
    assert_eq!(bench.user.status().connections, 4);
    // The second was silent for longest. It learns that as soon as it speaks.
    bench.tcp(handles[1]).send_slice(b"hello?").unwrap();
    bench.until("its end", |bench| (!bench.tcp(handles[1]).is_active()).then_some(()));
    assert!(bench.tcp(handles[0]).is_active());
}

#[test]
fn restricted_goes_nowhere() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = bench(|spec| spec.restricted = true);
    for address in [host(listener.local_addr().unwrap().port()), "192.0.2.1:80".parse().unwrap()] {
        let handle = bench.connect(address, 4096);
        bench.until("a refusal", |bench| (bench.tcp(handle).state() == tcp::State::Closed).then_some(()));
    }
    assert!(bench.outside.opened.lock().unwrap().is_empty());
}

fn forward_to(port: u16) -> Forward {
    Forward {
        protocol: ForwardProtocol::Tcp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: None,
        guest_port: port,
    }
}

/// Adds a forward while the network runs, as another thread does.
fn add(bench: &mut Bench, forward: Forward) -> SocketAddr {
    let control = bench.control.clone();
    let adding = std::thread::spawn(move || control.add_forward(forward.listen().unwrap()).unwrap().host);
    bench.until("the forward", |_| adding.is_finished().then_some(()));
    adding.join().unwrap()
}

#[test]
fn ports_of_the_host_lead_to_the_guest_while_they_are_there() {
    let mut bench = bench(|_| {});
    let server = bench.listen(80);
    // The guest has to be heard of once, as it is by DHCP.
    let _ = bench.connect(host(1), 4096);
    bench.run_for(Duration::from_millis(10));
    let address = add(&mut bench, forward_to(80));
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&pattern(1 << 20)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        got
    });
    let mut got = Vec::new();
    bench.until("a request", |bench| {
        pull(bench, server, &mut got);
        (bench.tcp(server).state() == tcp::State::CloseWait && !bench.tcp(server).can_recv()).then_some(())
    });
    assert!(got == pattern(1 << 20));
    assert_eq!(bench.tcp(server).remote_endpoint().unwrap().addr.to_string(), "10.0.2.2");
    bench.tcp(server).send_slice(b"thanks").unwrap();
    bench.tcp(server).close();
    bench.until("the client", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "thanks");

    let control = bench.control.clone();
    let removing = std::thread::spawn(move || {
        let first = control.remove_forward(ForwardProtocol::Tcp, address).unwrap();
        (first, control.remove_forward(ForwardProtocol::Tcp, address).unwrap())
    });
    bench.until("the removal", |_| removing.is_finished().then_some(()));
    assert_eq!(removing.join().unwrap(), (true, false));
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_that_the_guest_does_not_listen_on_ends_the_client() {
    let mut bench = bench(|_| {});
    let _ = bench.connect(host(1), 4096);
    bench.run_for(Duration::from_millis(10));
    let address = add(&mut bench, forward_to(81));
    let client = std::thread::spawn(move || TcpStream::connect(address).unwrap().read(&mut [0; 1]));
    bench.until("the client", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_forward_to_somebody_else_is_refused() {
    let mut bench = bench(|_| {});
    let forward = Forward { guest: Some("192.0.2.7".parse().unwrap()), ..forward_to(80) };
    let control = bench.control.clone();
    let adding = std::thread::spawn(move || control.add_forward(forward.listen().unwrap()));
    bench.until("the answer", |_| adding.is_finished().then_some(()));
    assert!(adding.join().unwrap().unwrap_err().to_string().contains("192.0.2.7"));
}
