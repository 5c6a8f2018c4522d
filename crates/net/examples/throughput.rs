//! How many bytes a second go through a user network, with a guest that does nothing but take and give segments of 64 KiB:
//!
//! `cargo run --release -p umbra-net --example throughput [SECONDS] [mss]` (`mss`: the guest can cut nothing).
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber};
use umbra_net::user::{Direct, User, UserSpec};
use umbra_net::{Frame, Gso, LinkThread, Nic, Offloads, VnetHeader, Wake};

const HEADERS: usize = 14 + 20 + 20;
const SYN_HEADERS: usize = HEADERS + 8;
const MSS: usize = 1460;

/// One connection to a server of the host, and nothing else.
struct Guest {
    port: u16,
    sends: bool,
    cuts: bool,
    started: bool,
    open: bool,
    seq: u32,
    acked: u32,
    window: u32,
    expected: u32,
    ack_due: bool,
    received: Arc<AtomicU64>,
}

impl Guest {
    fn segment(&mut self, frame: &mut Frame, syn: bool, payload: usize) {
        let headers = if syn { SYN_HEADERS } else { HEADERS };
        let len = headers + payload;
        frame.set_len(len);
        frame.header = VnetHeader { flags: VnetHeader::NEEDS_CHECKSUM, ..Default::default() };
        frame.header.checksum_start.set(34);
        frame.header.checksum_offset.set(16);
        if payload > MSS {
            frame.header.gso_type = Gso::Tcp4 as u8;
            frame.header.gso_size.set(MSS as u16);
        }
        let bytes = &mut frame.space()[..len];
        bytes[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
        bytes[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
        let mut ip = Ipv4Packet::new_unchecked(&mut bytes[14..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len((len - 14) as u16);
        ip.clear_flags();
        ip.set_frag_offset(0);
        ip.set_hop_limit(64);
        ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
        ip.set_src_addr([10, 0, 2, 15].into());
        ip.set_dst_addr([10, 0, 2, 2].into());
        ip.fill_checksum();
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[34..]);
        tcp.set_src_port(1234);
        tcp.set_dst_port(self.port);
        tcp.set_seq_number(TcpSeqNumber(self.seq as i32));
        tcp.set_ack_number(TcpSeqNumber(self.expected as i32));
        tcp.clear_flags();
        tcp.set_header_len((headers - 34) as u8);
        tcp.set_syn(syn);
        tcp.set_ack(!syn);
        tcp.set_window_len(u16::MAX);
        if syn {
            tcp.options_mut().copy_from_slice(&[2, 4, 5, 0xb4, 1, 3, 3, 7]);
        }
        self.seq = self.seq.wrapping_add(payload as u32 + u32::from(syn));
        self.ack_due = false;
    }

    fn sendable(&self) -> usize {
        let in_flight = self.seq.wrapping_sub(self.acked);
        let most = if self.cuts { 44 * MSS } else { MSS };
        if self.sends && self.open { (self.window.saturating_sub(in_flight) as usize).min(most) } else { 0 }
    }
}

impl Nic for Guest {
    fn transmit(&mut self, frame: &mut Frame) -> bool {
        if !self.started {
            self.started = true;
            self.segment(frame, true, 0);
            return true;
        }
        let len = self.sendable();
        if len < MSS && !self.ack_due {
            return false;
        }
        let len = if len < MSS { 0 } else { len };
        self.segment(frame, false, len);
        true
    }

    fn receive(&mut self, _: &VnetHeader, parts: &[&[u8]]) -> bool {
        let ethernet = EthernetFrame::new_unchecked(parts[0]);
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return true;
        }
        let tcp = TcpPacket::new_unchecked(&ethernet.payload()[20..]);
        let payload: usize = parts[1..].iter().map(|part| part.len()).sum();
        if tcp.rst() {
            self.open = false;
            return true;
        }
        if tcp.syn() {
            self.expected = (tcp.seq_number().0 as u32).wrapping_add(1);
            self.open = true;
            self.ack_due = true;
        } else if payload > 0 {
            assert_eq!(tcp.seq_number().0 as u32, self.expected);
            self.expected = self.expected.wrapping_add(payload as u32);
            self.ack_due = true;
            // A real card copies, too.
            let copy: Vec<u8> = parts.concat();
            self.received.fetch_add((copy.len() - HEADERS) as u64, Ordering::Relaxed);
        }
        self.acked = tcp.ack_number().0 as u32;
        self.window = u32::from(tcp.window_len()) << if tcp.syn() { 0 } else { 5 };
        true
    }

    fn flush(&mut self) {}

    fn arm(&mut self, _: bool) -> bool {
        !self.started || self.ack_due || self.sendable() >= MSS
    }

    fn offloads(&self) -> Offloads {
        if self.cuts { Offloads::all() } else { Offloads::empty() }
    }

    fn set_link(&mut self, _: bool) {}
}

fn measure(sends: bool, cuts: bool, time: Duration) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let guest = Guest {
        port: listener.local_addr().unwrap().port(),
        sends,
        cuts,
        started: false,
        open: false,
        seq: 1,
        acked: 1,
        window: 0,
        expected: 0,
        ack_due: false,
        received: Arc::clone(&received),
    };
    let (user, _control) = User::new(UserSpec::default(), Box::new(Direct)).unwrap();
    let _link =
        LinkThread::start("net-bench", Wake::new().unwrap(), Box::new(guest), Box::new(user)).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 1 << 18];
    let start = Instant::now();
    let mut total = 0;
    while start.elapsed() < time {
        total += if sends { stream.read(&mut bytes) } else { stream.write(&bytes) }.unwrap() as u64;
    }
    if !sends {
        total = received.load(Ordering::Relaxed);
    }
    total as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let cuts = arguments.next().as_deref() != Some("mss");
    let time = Duration::from_secs_f64(seconds);
    println!("guest to host: {:.2} GB/s", measure(true, cuts, time));
    println!("host to guest: {:.2} GB/s", measure(false, cuts, time));
}
