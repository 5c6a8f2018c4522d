//! All connections of a device: packets of the guest's find theirs, and packets for the guest are made of what each has to say.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use umbra_net::{Poller, Ready};
use zerocopy::IntoBytes;

use super::connection::{BUFFER_LEN, Connection, Stage};
use super::host::Outside;
use super::packet::{HEADER_LEN, HOST_CID, Header, Ports, STREAM, op};
use crate::{Chain, Queue};

/// Connections at a time. Each may hold 320 KiB and a descriptor.
const CONNECTIONS_MAX: usize = 128;
/// Answers that there is no connection, which wait for room. The guest is not heard while there are so many.
const RESETS_MAX: usize = 64;
/// Packets in a row for one connection.
const TURN: usize = 16;
/// Packets given to the guest, or taken from it, between two looks at the sockets.
const BATCH: usize = 128;
/// The host's ports of connections that the host begins are from here on.
const FIRST_PORT: u32 = 1 << 30;

#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// Moves with each connection, so that late events are known.
    life: u32,
}

/// The connections.
pub(super) struct Table {
    slots: Vec<Slot>,
    by_ports: HashMap<Ports, usize>,
    resets: VecDeque<Header>,
    /// Whose turn is next.
    turn: usize,
    next_port: u32,
    /// What a packet of the guest's carries.
    data: Vec<u8>,
}

/// What became of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All is done that can be.
    Idle,
    /// There may be more.
    More,
}

impl Table {
    pub(super) fn new() -> Self {
        let slots = (0..CONNECTIONS_MAX).map(|_| Slot::default()).collect();
        let (by_ports, resets) = (HashMap::new(), VecDeque::new());
        Self { slots, by_ports, resets, turn: 0, next_port: FIRST_PORT, data: Vec::new() }
    }

    /// Ends all connections; the guest knows.
    pub(super) fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.connection = None);
        self.by_ports.clear();
        self.resets.clear();
    }

    /// Puts a connection into a free slot, and has its socket watched. It is closed if there is none.
    fn insert(&mut self, connection: Connection, poller: &Poller) -> Option<usize> {
        let index = self.slots.iter().position(|slot| slot.connection.is_none())?;
        let slot = self.slots.get_mut(index)?;
        slot.life = slot.life.wrapping_add(1);
        let token = u64::from(slot.life) << 32 | index as u64;
        poller.add(connection.socket.as_fd(), token).ok()?;
        slot.connection = Some(connection);
        Some(index)
    }

    /// The host has connected.
    pub(super) fn accept(&mut self, socket: OwnedFd, poller: &Poller) {
        self.insert(Connection::from_host(socket), poller);
    }

    /// A socket has told something.
    pub(super) fn event(&mut self, token: u64, ready: Ready) {
        let (index, life) = (token as u32 as usize, (token >> 32) as u32);
        let slot = self.slots.get_mut(index).filter(|slot| slot.life == life);
        if let Some(connection) = slot.and_then(|slot| slot.connection.as_mut()) {
            connection.event(ready);
        }
    }

    /// Moves what sockets have and take. `is_up`: there is a guest that can be asked.
    pub(super) fn work(&mut self, is_up: bool) {
        for index in 0..self.slots.len() {
            self.greet(index, is_up);
            if let Some(connection) = self.connection(index) {
                connection.work();
            }
            self.settle(index);
        }
    }

    fn connection(&mut self, index: usize) -> Option<&mut Connection> {
        self.slots.get_mut(index)?.connection.as_mut()
    }

    /// Reads where a connection of the host's shall lead, and gives it a port.
    fn greet(&mut self, index: usize, is_up: bool) {
        let Some(guest) = self.connection(index).and_then(Connection::greeting) else { return };
        let mut host = self.next_port;
        // There are fewer connections than ports.
        while self.by_ports.contains_key(&Ports { host, guest }) {
            host = host.wrapping_add(1).max(FIRST_PORT);
        }
        self.next_port = host.wrapping_add(1).max(FIRST_PORT);
        let Some(connection) = self.connection(index) else { return };
        if is_up {
            connection.ask(host, guest);
            self.by_ports.insert(Ports { host, guest }, index);
        } else {
            connection.stage = Stage::Over(false);
        }
    }

    /// Removes what is over, and what lingers from where the guest finds it.
    fn settle(&mut self, index: usize) {
        let Some(connection) = self.connection(index) else { return };
        let (ports, stage) = (connection.ports, connection.stage);
        if !matches!(stage, Stage::Lingering | Stage::Over(_)) {
            return;
        }
        if self.by_ports.get(&ports) == Some(&index) {
            self.by_ports.remove(&ports);
        }
        if let Stage::Over(is_told) = stage {
            if is_told {
                self.resets.push_back(Header {
                    src_cid: HOST_CID.into(),
                    src_port: ports.host.into(),
                    dst_port: ports.guest.into(),
                    kind: STREAM.into(),
                    op: op::RESET.into(),
                    ..Header::default()
                });
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.connection = None;
            }
        }
    }

    /// Takes packets of the guest's, whose context ID is `cid`.
    pub(super) fn transmit(
        &mut self,
        queue: &Arc<Queue>,
        cid: u64,
        poller: &Poller,
        outside: &mut dyn Outside,
    ) -> Progress {
        let mut done = Vec::new();
        let mut progress = Progress::More;
        while done.len() < BATCH && !self.is_deaf() {
            let Some(chain) = queue.pop() else {
                progress = Progress::Idle;
                break;
            };
            self.take(&chain, cid, poller, outside);
            done.push((chain, 0));
        }
        if !done.is_empty() {
            queue.complete_all(done);
        }
        progress
    }

    /// Whether the guest is not heard before it takes answers.
    pub(super) fn is_deaf(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    fn take(&mut self, chain: &Chain, cid: u64, poller: &Poller, outside: &mut dyn Outside) {
        let mut header = Header::default();
        // One that is too short for a header, or is not the guest's, is nobody's.
        if chain.read(0, header.as_mut_bytes()) < HEADER_LEN || header.src_cid.get() != cid {
            return;
        }
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        let is_ours = header.dst_cid.get() == HOST_CID && header.kind.get() == STREAM;
        let found = self.by_ports.get(&ports).copied().filter(|_| is_ours);
        match (found, header.op.get()) {
            (Some(index), _) => {
                let len = header.len.get().min(BUFFER_LEN + 1) as usize;
                let mut data = std::mem::take(&mut self.data);
                data.resize(len, 0);
                let whole = chain.read(HEADER_LEN as u64, &mut data) == len;
                if let Some(connection) = self.connection(index) {
                    match whole {
                        true => connection.take(&header, &data),
                        false => connection.stage = Stage::Over(true),
                    }
                    connection.work();
                }
                self.data = data;
                self.settle(index);
            }
            (None, op::REQUEST) if is_ours => {
                let connected = outside.connect(ports.host).ok();
                let connection = connected.map(|socket| Connection::from_guest(socket, ports, &header));
                match connection.and_then(|connection| self.insert(connection, poller)) {
                    Some(index) => drop(self.by_ports.insert(ports, index)),
                    None => self.resets.push_back(header.reset_of()),
                }
            }
            (None, op::RESET) => {}
            (None, _) => self.resets.push_back(header.reset_of()),
        }
    }

    /// Gives packets to the guest, as far as it has room for them.
    pub(super) fn receive(&mut self, queue: &Arc<Queue>, cid: u64) -> Progress {
        let mut done = Vec::new();
        let progress = self.fill(queue, cid, &mut done);
        if !done.is_empty() {
            queue.complete_all(done);
        }
        progress
    }

    fn fill(&mut self, queue: &Arc<Queue>, cid: u64, done: &mut Vec<(Chain, u32)>) -> Progress {
        while !self.resets.is_empty() {
            let Some(chain) = room(queue) else { return Progress::Idle };
            if let Some(mut header) = self.resets.pop_front() {
                header.dst_cid = cid.into();
                chain.write(0, header.as_bytes());
            }
            done.push((chain, HEADER_LEN as u32));
        }
        let count = self.slots.len();
        for _ in 0..count {
            let index = self.turn % count;
            self.turn = (index + 1) % count;
            let Some(connection) = self.slots.get_mut(index).and_then(|slot| slot.connection.as_mut()) else {
                continue;
            };
            for _ in 0..TURN {
                if connection.word(usize::MAX).is_none() {
                    break;
                }
                let Some(chain) = room(queue) else {
                    // It is this one's turn when there is room.
                    self.turn = index;
                    return Progress::Idle;
                };
                done.push(say(connection, chain, cid));
                connection.work();
            }
            if done.len() >= BATCH {
                return Progress::More;
            }
        }
        let mut connections = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        let more = connections.any(|one| one.word(usize::MAX).is_some() || one.is_busy());
        if more { Progress::More } else { Progress::Idle }
    }
}

/// A buffer of the guest's with room for a header and something behind it.
fn room(queue: &Arc<Queue>) -> Option<Chain> {
    let chain = queue.pop()?;
    if chain.writable_len() > HEADER_LEN as u64 {
        return Some(chain);
    }
    chain.refuse();
    None
}

/// Puts what a connection has to say next into a buffer.
fn say(connection: &mut Connection, chain: Chain, cid: u64) -> (Chain, u32) {
    let space = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX).saturating_sub(HEADER_LEN);
    let Some(word) = connection.word(space) else { return (chain, 0) };
    let header = connection.header(word, cid);
    let mut written = chain.write(0, header.as_bytes());
    connection.staged(word.len, |part| written += chain.write(written as u64, part));
    (chain, written as u32)
}
