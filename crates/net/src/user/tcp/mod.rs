//! TCP connections, each between the guest and a socket of the host.
//!
//! `smoltcp`'s own sockets are not used for this: one has to listen on each port that a guest may ask for, every frame is offered to
//! one after another of them, and each owns its buffers, which hundreds of connections shall share.

mod connection;
mod ring;
mod segment;

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use connection::{Connection, Fate};
use ring::Budget;
use segment::{Flags, Key, Segment};

pub(super) use ring::SEND;
pub(super) use segment::TCP;

use crate::link::{Offloads, Received, Sink};
use crate::poller::Ready;
use crate::user::net::{Net, Owner, Transport};
use crate::user::slots::Slots;
use crate::wire::{Mac, Packet};

/// How often memory of rings that are empty is given back.
const SHRINK_EVERY: Duration = Duration::from_secs(2);

/// What is known of a place in the table, whoever is in it: so the queue and the alarms have as many entries as there are places, or a
/// few times as many, however fast connections come and go.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    queued: bool,
    /// When its alarm goes off.
    alarm: Option<Instant>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Tcp {
    slots: Slots<Connection>,
    places: Vec<Place>,
    by_key: HashMap<Key, usize>,
    /// Those that may have something for the guest, in turn.
    queue: VecDeque<usize>,
    alarms: BinaryHeap<Reverse<(Instant, usize)>>,
    budget: Budget,
    shrink_at: Option<Instant>,
    secret: RandomState,
    started: u32,
}

impl Tcp {
    /// None yet, and at most so many, with so many bytes between them.
    pub(super) fn new(connections_max: usize, bytes_max: usize) -> Self {
        Self {
            slots: Slots::new(connections_max),
            places: Vec::new(),
            by_key: HashMap::new(),
            queue: VecDeque::new(),
            alarms: BinaryHeap::new(),
            budget: Budget::new(bytes_max),
            shrink_at: None,
            secret: RandomState::new(),
            started: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    #[cfg(test)]
    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// A first sequence number that nobody outside can tell (RFC 6528 wants it hard to guess).
    fn initial(&mut self, key: &Key) -> u32 {
        self.started = self.started.wrapping_add(1);
        self.secret.hash_one((key, self.started)) as u32
    }

    /// A segment of the guest's.
    pub(super) fn input(&mut self, net: &mut Net, now: Instant, packet: &Packet<'_>) {
        let Some((key, segment, payload)) = segment::parse(packet) else { return };
        let Some(&index) = self.by_key.get(&key) else {
            return self.input_unknown(net, now, packet.mac, key, &segment, payload.len());
        };
        let Some(connection) = self.slots.get_mut(index) else { return };
        connection.mac = packet.mac;
        let fate = connection.input(now, &segment, payload, &mut self.budget);
        self.after(index, now, fate);
    }

    fn input_unknown(
        &mut self,
        net: &mut Net,
        now: Instant,
        mac: Mac,
        key: Key,
        segment: &Segment,
        len: usize,
    ) {
        if segment.flags.contains(Flags::RST) {
            return;
        }
        if segment.flags & (Flags::SYN | Flags::ACK | Flags::FIN) != Flags::SYN || key.guest.port() == 0 {
            return refuse(net, mac, &key, segment, len);
        }
        let opened = net.map(Transport::Tcp, key.remote).and_then(|to| net.open(Transport::Tcp, to));
        let Some(socket) = opened else {
            return refuse(net, mac, &key, segment, len);
        };
        let initial = self.initial(&key);
        let mss = net.mss(key.guest.ip());
        let connection = Connection::from_guest(key, mac, socket, segment, initial, mss, now);
        self.insert(net, now, connection);
    }

    /// Somebody outside has connected to a port that belongs to the guest.
    pub(super) fn accept(
        &mut self,
        net: &mut Net,
        now: Instant,
        socket: OwnedFd,
        mut remote: SocketAddr,
        guest: SocketAddr,
    ) {
        let Some(mac) = net.neighbour(guest.ip()) else { return };
        let mut key = Key { guest, remote };
        // Two clients may look the same to the guest, when both are the gateway to it.
        let mut tries = 0;
        while self.by_key.contains_key(&key) {
            if tries == 64 {
                return;
            }
            tries += 1;
            remote.set_port(49_152 + self.initial(&key) as u16 % 16_384);
            key.remote = remote;
        }
        let initial = self.initial(&key);
        let mss = net.mss(guest.ip());
        self.insert(net, now, Connection::to_guest(key, mac, socket, initial, mss, now));
    }

    fn insert(&mut self, net: &Net, now: Instant, connection: Connection) {
        if self.slots.is_full() {
            self.evict();
        }
        let key = connection.key;
        let Some(index) = self.slots.insert(connection) else { return };
        let token = self.slots.token(index);
        let watched = self.slots.get_mut(index).is_some_and(|new| net.watch(new.socket(), Owner::Tcp, token));
        self.by_key.insert(key, index);
        if watched {
            self.after(index, now, Fate::Lives);
        } else {
            self.remove(index, true);
        }
    }

    /// Makes room: whoever was silent for longest goes.
    fn evict(&mut self) {
        let oldest = self.slots.iter().min_by_key(|(_, connection)| connection.last_used);
        if let Some(index) = oldest.map(|(index, _)| index) {
            self.remove(index, true);
        }
    }

    fn remove(&mut self, index: usize, abort: bool) {
        if let Some(connection) = self.slots.remove(index) {
            self.by_key.remove(&connection.key);
            connection.close(abort, &mut self.budget);
        }
    }

    /// Ends all connections: the guest has been started anew.
    pub(super) fn clear(&mut self) {
        for index in 0..self.slots.capacity() {
            self.remove(index, true);
        }
    }

    /// A socket is ready.
    pub(super) fn event(&mut self, now: Instant, token: u32, ready: Ready) {
        let Some(index) = self.slots.index_of(token) else { return };
        let Some(connection) = self.slots.get_mut(index) else { return };
        connection.event(ready.contains(Ready::READ), ready.contains(Ready::WRITE), &mut self.budget);
        self.after(index, now, Fate::Lives);
    }

    /// What follows from anything that happened to a connection.
    fn after(&mut self, index: usize, now: Instant, fate: Fate) {
        if fate != Fate::Lives {
            return self.remove(index, fate == Fate::Breaks);
        }
        if self.places.len() <= index {
            self.places.resize(index + 1, Place::default());
        }
        let (Some(connection), Some(place)) = (self.slots.get_mut(index), self.places.get_mut(index)) else {
            return;
        };
        if !place.queued {
            place.queued = true;
            self.queue.push_back(index);
        }
        if let Some(at) = connection.deadline(now)
            && place.alarm.is_none_or(|alarm| alarm > at)
        {
            place.alarm = Some(at);
            self.alarms.push(Reverse((at, index)));
        }
    }

    /// Sends again what has to be, and tells when something will.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&Reverse((at, index))) = self.alarms.peek() {
            if at > now {
                break;
            }
            self.alarms.pop();
            let Some(place) = self.places.get_mut(index).filter(|place| place.alarm == Some(at)) else {
                continue;
            };
            place.alarm = None;
            // It may have been set by a connection that is gone; to another one it does nothing before its time.
            if let Some(connection) = self.slots.get_mut(index) {
                connection.expire(now);
                self.after(index, now, Fate::Lives);
            }
        }
        if self.by_key.is_empty() {
            self.shrink_at = None;
        } else if self.shrink_at.is_none_or(|at| at <= now) {
            if self.shrink_at.is_some() {
                let budget = &mut self.budget;
                self.slots.iter_mut().for_each(|connection| connection.shrink(budget));
            }
            self.shrink_at = Some(now + SHRINK_EVERY);
        }
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        [alarm, self.shrink_at].into_iter().flatten().min()
    }

    fn requeue_first(&mut self, index: usize) {
        if let Some(place) = self.places.get_mut(index) {
            place.queued = true;
            self.queue.push_front(index);
        }
    }

    /// Hands the next segment to the guest.
    pub(super) fn receive(&mut self, net: &Net, now: Instant, sink: Sink<'_>) -> Received {
        while let Some(index) = self.queue.pop_front() {
            if let Some(place) = self.places.get_mut(index) {
                place.queued = false;
            }
            let Some(connection) = self.slots.get_mut(index) else { continue };
            let cuts = if connection.key.guest.is_ipv4() { Offloads::TSO4 } else { Offloads::TSO6 };
            let can_cut = net.guest_offloads().contains(cuts | Offloads::CHECKSUM);
            let Some(plan) = connection.plan(can_cut, &mut self.budget) else { continue };
            let payload = connection.payload(&plan);
            let key = connection.key;
            let mss = connection.mss();
            let (headers, vnet) = segment::build(net, connection.mac, &key, &plan.segment, payload, mss);
            let [first, second] = payload;
            if !sink(&vnet, &[headers.bytes(), first, second]) {
                self.requeue_first(index);
                return Received::Refused;
            }
            let fate = connection.sent(&plan, now);
            // There may be more; the others come first.
            self.after(index, now, fate);
            return Received::Frame;
        }
        Received::Nothing
    }
}

/// Answers a segment that belongs to nothing (RFC 9293, section 3.10.7.1).
fn refuse(net: &mut Net, mac: Mac, key: &Key, segment: &Segment, len: usize) {
    let marks = segment.flags.contains(Flags::SYN) as u32 + segment.flags.contains(Flags::FIN) as u32;
    let (seq, ack, flags) = if segment.flags.contains(Flags::ACK) {
        (segment.ack, 0, Flags::RST)
    } else {
        (0, segment.seq.wrapping_add(len as u32 + marks), Flags::RST | Flags::ACK)
    };
    let answer = Segment { seq, ack, window: 0, flags, mss: None, scale: None };
    let (headers, vnet) = segment::build(net, mac, key, &answer, [&[], &[]], usize::MAX);
    net.queue_frame(vnet, headers.bytes());
}
