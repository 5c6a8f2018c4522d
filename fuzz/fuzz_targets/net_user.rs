//! A guest that does anything to its user network, and a world outside that does anything to it. Segments know what the
//! network has said, so that connections come to be, and whatever happens next happens in all of their states.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use umbra_fuzz::Input;
use umbra_net::user::{Limits, Outside, Transport, User, UserSpec};
use umbra_net::{Backend, Frame, Offloads, Poller, Received, VnetHeader};

/// Steps of one input.
const STEPS_MAX: usize = 300;
const MTU: usize = 1500;
/// Sockets of the world at once.
const WORLD_MAX: usize = 32;

/// The world: the far ends of all sockets.
#[derive(Debug, Clone, Default)]
struct World(Arc<Mutex<VecDeque<OwnedFd>>>);

impl Outside for World {
    fn open(&mut self, transport: Transport, remote: SocketAddr) -> io::Result<OwnedFd> {
        if remote.port() == 81 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let kind = if transport == Transport::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        let mut world = self.0.lock().unwrap();
        if world.len() >= WORLD_MAX {
            world.pop_front();
        }
        world.push_back(theirs);
        Ok(ours)
    }
}

struct Guest {
    user: User,
    world: World,
    poller: Poller,
    frame: Frame,
    now: Instant,
    /// What the network said last in a connection: its sequence number's end, and what it expects.
    seq: u32,
    ack: u32,
    cuts: bool,
}

impl Guest {
    fn send(&mut self, bytes: &[u8], flags: u8) {
        self.frame.set(bytes);
        self.frame.header.flags = flags;
        self.user.send(self.now, &self.frame);
    }

    /// A frame with an IP packet of either family.
    fn ip(&mut self, input: &mut Input<'_>, six: bool, protocol: u8, payload: &[u8]) {
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1 + input.below(2)];
        let last = [2, 3, 15, 77][usize::from(input.below(4))];
        let outside = input.u8() & 3 == 0;
        if six {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, 255]);
            let prefix = if input.u8() & 7 == 0 { [0xfe, 0x80] } else { [0xfe, 0xc0] };
            for (prefix, last) in [(prefix, 15), (if outside { [0x20, 1] } else { prefix }, last)] {
                frame.extend(prefix);
                frame.extend([0; 13]);
                frame.push(last);
            }
        } else {
            let fragment = if input.u8() & 7 == 0 { input.u16() & 0x200f } else { 0 };
            let mut header = vec![0x45, 0];
            header.extend((20 + payload.len() as u16).to_be_bytes());
            header.extend([0, input.u8() & 1]);
            header.extend(fragment.to_be_bytes());
            header.extend([64, protocol, 0, 0, 10, 0, 2, 15]);
            header.extend(if outside { [192, 0, 2, last] } else { [10, 0, 2, last] });
            let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(header);
        }
        frame.extend(payload);
        self.send(&frame, VnetHeader::CHECKSUM_VALID);
    }

    fn tcp(&mut self, input: &mut Input<'_>) {
        let near = |input: &mut Input<'_>| if input.u8() & 3 == 0 { input.value() as u32 } else { 0 };
        let (seq, ack) = (self.ack.wrapping_add(near(input)), self.seq.wrapping_add(near(input)));
        let flags = input.u8() & 0x3f;
        let options = usize::from(input.below(3)) * 4;
        let mut segment = (1000 + u16::from(input.u8() & 3)).to_be_bytes().to_vec();
        segment.extend((80 + u16::from(input.u8() & 1)).to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([((5 + options / 4) as u8) << 4, flags]);
        segment.extend(input.u16().to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(input.bytes(options));
        segment.resize(20 + options, 1);
        let len = usize::from(input.u16()) % if input.u8() & 3 == 0 { 60_000 } else { 200 };
        segment.resize(20 + options + len, 7);
        let six = input.u8() & 3 == 0;
        self.ip(input, six, 6, &segment);
    }

    fn udp(&mut self, input: &mut Input<'_>) {
        let to = [53, 67, 80, input.u16()][usize::from(input.below(4))];
        let len = usize::from(input.u8());
        let payload = input.bytes(len).to_vec();
        let mut datagram = (2000 + u16::from(input.u8() & 15)).to_be_bytes().to_vec();
        datagram.extend(to.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let six = input.u8() & 3 == 0;
        self.ip(input, six, 17, &datagram);
    }

    /// The world writes, reads or closes.
    fn world(&mut self, input: &mut Input<'_>) {
        let mut world = self.world.0.lock().unwrap();
        let index = usize::from(input.u8()) % world.len().max(1);
        let action = input.u8() % 4;
        let Some(socket) = world.get(index) else { return };
        match action {
            0 => {
                let _ = recv(socket, &mut vec![0; 1 << 16][..], rustix::net::RecvFlags::DONTWAIT);
            }
            1 => drop(world.remove(index)),
            _ => {
                let len = usize::from(input.u16());
                let _ = send(socket, &vec![5; len], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    }

    /// The network moves; the guest takes so many frames.
    fn pump(&mut self, takes: usize) {
        let mut events = Vec::new();
        self.poller.wait(Some(Duration::ZERO), &mut events).unwrap();
        for (token, ready) in events {
            self.user.event(self.now, token, ready);
        }
        let due = self.user.tick(self.now);
        assert!(due.is_none_or(|due| due > self.now), "what is due was done");
        for _ in 0..takes {
            let (mut said, cuts) = (None, self.cuts);
            let received = self.user.receive(self.now, &mut |header, parts| {
                let frame = parts.concat();
                let large = header.gso_type != 0;
                assert!(cuts || !large, "nobody can cut this");
                assert!(large || frame.len() <= MTU + 14, "a frame of {} bytes", frame.len());
                said = Some(frame);
                true
            });
            if received != Received::Frame {
                return;
            }
            self.listen(&said.unwrap());
        }
    }

    /// What a segment of the network's says is the next one's to answer.
    fn listen(&mut self, frame: &[u8]) {
        let at = match frame[12..14] {
            [8, 0] if frame[23] == 6 => 34,
            [0x86, 0xdd] if frame[20] == 6 => 54,
            _ => return,
        };
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let flags = frame[at + 13];
        let len = frame.len() - at - usize::from(frame[at + 12] >> 4) * 4;
        self.seq = word(at + 4).wrapping_add(len as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1));
        self.ack = word(at + 8);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let limits = Limits { connections_max: 4, flows_max: 4, buffer_max: 1 << 20 };
    let restricted = input.u8() & 15 == 0;
    let resolvers = vec![SocketAddr::from(([127, 0, 0, 1], 53)), SocketAddr::from(([127, 0, 0, 1], 81))];
    let spec = UserSpec { limits, restricted, resolvers, ..UserSpec::default() };
    let world = World::default();
    let (user, _control) = User::new(spec, Box::new(world.clone())).unwrap();
    let poller = Poller::new().unwrap();
    let (frame, now) = (Frame::default(), Instant::now());
    let mut guest = Guest { user, world, poller, frame, now, seq: 0, ack: 0, cuts: false };
    guest.user.attach(&guest.poller).unwrap();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 16 {
            0 => {
                let (len, flags) = (usize::from(input.u8()), input.u8());
                let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1];
                frame.extend(input.bytes(len));
                guest.send(&frame, flags);
            }
            1 => guest.udp(&mut input),
            2 => {
                let len = usize::from(input.u8());
                let message = input.bytes(len).to_vec();
                let six = input.u8() & 1 == 0;
                guest.ip(&mut input, six, if six { 58 } else { 1 }, &message);
            }
            3 => {
                guest.cuts = input.u8() & 1 == 0;
                guest.user.set_guest_offloads(if guest.cuts { Offloads::all() } else { Offloads::empty() });
            }
            4 => guest.now += Duration::from_millis(u64::from(input.u16())),
            5 | 6 => guest.world(&mut input),
            7..=10 => guest.pump(usize::from(input.u8() % 8)),
            _ => guest.tcp(&mut input),
        }
    }
    guest.pump(64);
});
