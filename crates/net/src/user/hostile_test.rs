//! Guests that mean harm, or are broken.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::test_help::{Bench, GUEST_MAC, bench, host};

/// A generator of the same bytes each time (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }
}

/// Frames that a guest sends in earnest, to be spoilt: what goes out while a connection, names and addresses are asked for.
fn good_frames() -> Vec<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut bench = bench(|_| {});
    let tcp = bench.connect(host(port), 4096);
    let udp = bench.udp(5000);
    let dhcp = bench.sockets.add(smoltcp::socket::dhcpv4::Socket::new());
    bench.udp_send(udp, host(port), b"datagram");
    bench.udp_send(udp, "[fec0::2]:9".parse().unwrap(), b"datagram");
    let mut frames = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(60) {
        let sent = bench.guest_sends();
        sent.iter().for_each(|frame| bench.send(frame));
        frames.extend(sent);
        bench.step_network();
        if bench.tcp(tcp).can_send() && frames.len() < 200 {
            bench.tcp(tcp).send_slice(&[7; 100]).unwrap();
        }
    }
    let _ = dhcp;
    assert!(frames.len() > 10);
    frames
}

fn drain(bench: &mut Bench) {
    bench.step_network();
    bench.card.received.clear();
    bench.headers.clear();
}

#[test]
fn spoilt_frames_do_no_harm() {
    let good = good_frames();
    let mut bench = bench(|spec| spec.limits.connections_max = 16);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..20_000 {
        let mut frame = good[random.next() % good.len()].clone();
        for _ in 0..random.next() % 4 {
            let at = random.next() % frame.len();
            frame[at] = random.next() as u8;
        }
        match random.next() % 4 {
            0 => frame.truncate(random.next() % (frame.len() + 1)),
            1 => frame.resize(frame.len() + random.next() % 64, random.next() as u8),
            _ => {}
        }
        bench.send(&frame);
        if round % 16 == 0 {
            drain(&mut bench);
        }
    }
    let status = bench.user.status();
    assert!(status.connections <= 16 && status.flows <= 256, "{status:?}");
    still_works(bench);
}

/// The network serves others, whatever it has been through.
fn still_works(mut bench: Bench) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    drain(&mut bench);
    let handle = bench.connect(host(listener.local_addr().unwrap().port()), 4096);
    bench.established(handle);
}

#[test]
fn random_bytes_do_no_harm() {
    let mut bench = bench(|_| {});
    let mut random = Random(88_172_645_463_325_252);
    for len in (0..2000).chain([65_535, 65_549, 65_553]) {
        let mut frame: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let head = [0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1];
        frame.iter_mut().zip(head).for_each(|(to, from)| *to = from);
        if let Some(kind) = frame.get_mut(12..15) {
            kind.copy_from_slice([&[8, 0, 0x45][..], &[8, 6, 0], &[0x86, 0xdd, 0x60]][len % 3]);
        }
        bench.send(&frame);
    }
    still_works(bench);
}

/// A SYN of the guest's from this port.
fn syn(template: &[u8], port: u16) -> Vec<u8> {
    let mut frame = template.to_vec();
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[50..52].fill(0);
    let len = frame.len() - 34;
    let (source, destination) = ([10, 0, 2, 15].into(), [10, 0, 2, 2].into());
    let mut sum = crate::wire::l4_checksum(source, destination, 6, len);
    sum.add(&frame[34..]);
    let sum = sum.finish();
    frame[50..52].copy_from_slice(&sum);
    frame
}

#[test]
fn a_flood_of_connections_stays_within_the_limit_and_the_queues() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let mut bench = bench(|spec| spec.limits.connections_max = 32);
    let _ = bench.connect(host(port), 4096);
    let is_syn = |frame: &Vec<u8>| frame.len() > 54 && frame[12..14] == [8, 0] && frame[47] == 2;
    let template = loop {
        let sent = bench.guest_sends();
        sent.iter().for_each(|frame| bench.send(frame));
        bench.step_network();
        if let Some(found) = sent.into_iter().find(is_syn) {
            break found;
        }
    };
    // The guest takes nothing meanwhile.
    bench.takes = false;
    for port in 10_000..14_000 {
        bench.send(&syn(&template, port));
        bench.step_network();
    }
    assert_eq!(bench.user.status().connections, 32);
    assert!(bench.user.tcp.queue_len() <= 32);
    bench.takes = true;
    still_works(bench);
}

#[test]
fn frames_that_nobody_takes_are_dropped_in_time() {
    let mut bench = bench(|_| {});
    bench.takes = false;
    let mut request = vec![0xff; 42];
    request[6..12].copy_from_slice(&GUEST_MAC);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&GUEST_MAC);
    request[28..32].copy_from_slice(&[10, 0, 2, 15]);
    request[38..42].copy_from_slice(&[10, 0, 2, 2]);
    for _ in 0..5000 {
        bench.send(&request);
    }
    bench.takes = true;
    let mut frames = 0;
    loop {
        let taken = bench.take_frames().len();
        frames += taken;
        if taken == 0 {
            break;
        }
    }
    assert!((100..1000).contains(&frames), "{frames}");
}
