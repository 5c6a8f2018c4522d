//! The socket device, by a driver that is a test double and sockets of the host's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::driver::{Driver, Given, wait_until};
use crate::lock;
use crate::vsock::{Host, Outside, Vsock};

const VERSION_1: u64 = 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;
const CID: u32 = 42;
const HEADER: usize = 44;
/// What the device holds for a connection.
const BUFFER: u32 = 256 << 10;
/// A guest's buffer for packets.
const ROOM: u32 = 4096;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const UPDATE: u16 = 6;
const ASK: u16 = 7;

/// A packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Packet {
    host: u32,
    guest: u32,
    op: u16,
    flags: u32,
    room: u32,
    passed: u32,
    data: Vec<u8>,
}

impl Packet {
    fn new(host: u32, guest: u32, op: u16) -> Self {
        Self { host, guest, op, room: 1 << 20, ..Self::default() }
    }

    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    fn data(self, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..self }
    }

    /// As the guest sends it.
    fn bytes(&self, cid: u64) -> Vec<u8> {
        let head = [&cid.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
        let words = [self.guest, self.host, self.data.len() as u32, 1 | u32::from(self.op) << 16];
        let more = [self.flags, self.room, self.passed];
        let words: Vec<u8> = words.iter().chain(&more).flat_map(|word| word.to_le_bytes()).collect();
        [head, words, self.data.clone()].concat()
    }

    /// As the guest gets it.
    fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8), word(12)), (2, 0, CID, 0), "from the host to the guest");
        assert_eq!(word(28) & 0xffff, 1, "a stream");
        assert_eq!(word(24) as usize, bytes.len() - HEADER);
        let (op, data) = ((word(28) >> 16) as u16, bytes[HEADER..].to_vec());
        let (flags, room, passed) = (word(32), word(36), word(40));
        Self { host: word(16), guest: word(20), op, flags, room, passed, data }
    }
}

/// Everything of the host's that listens: port 80 and no other.
#[derive(Clone, Default)]
struct Servers(Arc<Mutex<Vec<UnixStream>>>);

impl Outside for Servers {
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd> {
        if port != 80 {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(Duration::from_secs(20)))?;
        theirs.set_nonblocking(true)?;
        lock(&self.0).push(ours);
        Ok(theirs.into())
    }
}

struct World {
    driver: Driver,
    servers: Servers,
    path: std::path::PathBuf,
    given: std::collections::VecDeque<Given>,
}

fn device(servers: &Servers, path: &std::path::Path) -> Box<Vsock> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let host = Host { listener: Some(listener.into()), outside: Box::new(servers.clone()) };
    Box::new(Vsock::new(CID, host).unwrap())
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl World {
    fn new(features: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("umbra-vsock-{}-{number}", std::process::id()));
        let servers = Servers::default();
        let driver = Driver::new(device(&servers, &path));
        let mut world = Self { driver, servers, path, given: Default::default() };
        world.init(features);
        world
    }

    fn init(&mut self, features: u64) {
        self.driver.init(VERSION_1 | features);
        self.given.clear();
        self.give_room(32);
        self.driver.give(2, &[], &[8]);
    }

    fn give_room(&mut self, count: usize) {
        for _ in 0..count {
            // A header and data in buffers of their own.
            let given = self.driver.give(0, &[], &[HEADER as u32, ROOM]);
            self.given.push_back(given);
        }
        self.driver.kick(0);
    }

    fn send(&mut self, packet: &Packet) {
        let bytes = packet.bytes(CID.into());
        let (head, data) = bytes.split_at(HEADER);
        let head = self.driver.give(1, &[head, data], &[]).head;
        self.driver.kick(1);
        assert_eq!(self.driver.wait(1), (head, 0));
    }

    /// The next packet, and its buffer back to the device.
    fn get(&mut self) -> Packet {
        let (head, len) = self.driver.wait(0);
        let given = self.given.pop_front().unwrap();
        assert_eq!(head, given.head);
        let parts = given.writable.iter().map(|(at, len)| self.driver.peek(*at, *len as usize));
        let mut bytes = parts.collect::<Vec<_>>().concat();
        bytes.truncate(len as usize);
        self.give_room(1);
        Packet::read(&bytes)
    }

    /// The next packet that does not only tell of credit is this one.
    fn expect(&mut self, host: u32, guest: u32, op: u16, flags: u32) -> Packet {
        let mut got = self.get();
        while got.op == UPDATE {
            got = self.get();
        }
        assert_eq!((got.host, got.guest, got.op, got.flags), (host, guest, op, flags), "{got:?}");
        got
    }

    /// So many bytes of a connection.
    fn get_data(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let got = self.get();
            assert_eq!(got.op, DATA, "{got:?}");
            data.extend(got.data);
        }
        data
    }

    fn nothing_comes(&mut self) {
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(self.driver.take(0), None);
    }

    /// A connection of the guest's from its port `guest`, which the server has taken.
    fn connected(&mut self, guest: u32, room: u32) -> UnixStream {
        self.send(&Packet { room, ..Packet::new(80, guest, REQUEST) });
        assert_eq!(self.expect(80, guest, RESPONSE, 0).room, BUFFER);
        lock(&self.servers.0).pop().unwrap()
    }

    fn as_host(&self, greeting: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // One that is closed at once is found out by whoever reads.
        let _ = stream.write_all(greeting);
        stream
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) >> 2) as u8).collect()
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn has_ended(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn configuration_tells_the_context_id() {
    let world = World::new(0);
    assert_eq!(world.driver.config::<8>(0), u64::from(CID).to_le_bytes());
    assert_eq!(world.driver.config::<4>(6), [0; 4]);
}

#[test]
fn a_guest_connects_and_both_sides_talk() {
    for features in [0, EVENT_INDEX] {
        let mut world = World::new(features);
        let mut server = world.connected(1000, 1 << 20);
        world.send(&Packet::new(80, 1000, DATA).data(b"hello"));
        assert_eq!(read(&mut server, 5), b"hello");
        let bytes = pattern(50_000);
        server.write_all(&bytes).unwrap();
        assert!(world.get_data(50_000) == bytes);
        world.send(&Packet::new(80, 1000, SHUTDOWN).flags(3));
        assert!(has_ended(&mut server));
        world.expect(80, 1000, RESET, 0);
    }
}

#[test]
fn where_nobody_listens_a_guest_is_refused() {
    let mut world = World::new(0);
    world.send(&Packet::new(81, 7, REQUEST));
    world.expect(81, 7, RESET, 0);
    // Nor is there anybody else than the host, or another kind of socket.
    for (at, value) in [(8, 5), (28, 2)] {
        let mut bytes = Packet::new(80, 7, REQUEST).bytes(CID.into());
        bytes[at] = value;
        world.driver.request(1, &[&bytes], &[]);
        let (head, _) = world.driver.wait(0);
        let given = world.given.pop_front().unwrap();
        assert_eq!(head, given.head);
        assert_eq!(world.driver.peek(given.writable[0].0 + 30, 2), [3, 0]);
    }
    assert!(lock(&world.servers.0).is_empty());
}

#[test]
fn a_host_connects_by_naming_a_port() {
    let mut world = World::new(EVENT_INDEX);
    let mut client = world.as_host(b"CONNECT 52\nearly");
    let asked = world.get();
    assert_eq!((asked.op, asked.guest), (REQUEST, 52));
    world.send(&Packet::new(asked.host, 52, RESPONSE));
    let line = format!("OK {}\n", asked.host);
    assert_eq!(read(&mut client, line.len()), line.as_bytes());
    assert_eq!(world.get_data(5), b"early");
    world.send(&Packet::new(asked.host, 52, DATA).data(b"answer"));
    assert_eq!(read(&mut client, 6), b"answer");
    drop(client);
    world.expect(asked.host, 52, SHUTDOWN, 3);
    world.send(&Packet::new(asked.host, 52, RESET));
    world.send(&Packet::new(asked.host, 52, DATA).data(b"late"));
    world.expect(asked.host, 52, RESET, 0);
}

#[test]
fn a_host_is_refused_where_it_says_nonsense_or_nobody_listens() {
    let mut world = World::new(0);
    for line in ["GET / HTTP/1.1\r\n", "CONNECT\n", "CONNECT 4294967296\n", "CONNECT -1\n", &"x".repeat(64)] {
        assert!(has_ended(&mut world.as_host(line.as_bytes())), "{line:?}");
    }
    let mut client = world.as_host(b"CONNECT 9\n");
    let asked = world.get();
    world.send(&Packet::new(asked.host, 9, RESET));
    assert!(has_ended(&mut client));
    // One that gives up before the guest has answered.
    let client = world.as_host(b"CONNECT 9\n");
    let asked = world.get();
    drop(client);
    world.expect(asked.host, 9, RESET, 0);
    world.driver.reset();
    assert!(has_ended(&mut world.as_host(b"CONNECT 9\n")), "without a driver");
}

#[test]
fn a_guest_gets_no_more_than_it_has_room_for() {
    let mut world = World::new(0);
    let mut server = world.connected(5, 1000);
    let bytes = pattern(10_000);
    server.write_all(&bytes).unwrap();
    assert!(world.get_data(1000) == bytes[..1000]);
    world.expect(80, 5, ASK, 0);
    world.nothing_comes();
    world.send(&Packet { room: 1000, passed: 300, ..Packet::new(80, 5, UPDATE) });
    assert!(world.get_data(300) == bytes[1000..1300]);
    world.expect(80, 5, ASK, 0);
    world.send(&Packet { room: 100_000, passed: 1300, ..Packet::new(80, 5, UPDATE) });
    assert!(world.get_data(8700) == bytes[1300..]);
    // One that says that it has passed on what it never got has no room at all.
    world.send(&Packet { room: 1000, passed: 1 << 30, ..Packet::new(80, 5, UPDATE) });
    server.write_all(&bytes).unwrap();
    world.expect(80, 5, ASK, 0);
    world.nothing_comes();
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    let mut world = World::new(0);
    let mut server = world.connected(5, 1 << 20);
    // The socket itself takes some, so more credit comes; not for ever.
    let piece = pattern(16 << 10);
    let (mut sent, mut passed) = (0u32, 0);
    for _ in 0..1000 {
        if sent - passed + piece.len() as u32 > BUFFER {
            world.send(&Packet::new(80, 5, ASK));
            let told = world.get();
            assert_eq!(told.op, UPDATE);
            if told.passed == passed {
                break;
            }
            passed = told.passed;
            continue;
        }
        world.send(&Packet::new(80, 5, DATA).data(&piece));
        sent += piece.len() as u32;
        while let Some((_, len)) = world.driver.take(0) {
            assert_eq!(len as usize, HEADER);
            world.given.pop_front();
            world.give_room(1);
        }
    }
    assert!(sent - passed <= BUFFER && sent < 4 << 20, "{sent} {passed}");
    let whole = piece.repeat(sent as usize / piece.len());
    assert!(read(&mut server, sent as usize) == whole);
    let mut told = passed;
    while told < sent - BUFFER / 4 {
        let got = world.get();
        assert_eq!(got.op, UPDATE);
        told = got.passed;
    }
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_cut_off() {
    let mut world = World::new(0);
    let server = world.connected(5, 1 << 20);
    for _ in 0..1000 {
        world.send(&Packet::new(80, 5, DATA).data(&pattern(32 << 10)));
        if let Some((_, len)) = world.driver.take(0) {
            assert_eq!(len as usize, HEADER);
            let given = world.given.pop_front().unwrap();
            let got = Packet::read(&world.driver.peek(given.writable[0].0, HEADER));
            if got.op == RESET {
                drop(server);
                return;
            }
            world.give_room(1);
        }
    }
    panic!("it may send without end");
}

#[test]
fn halves_are_closed_one_after_the_other() {
    let mut world = World::new(0);
    let mut server = world.connected(5, 1 << 20);
    world.send(&Packet::new(80, 5, DATA).data(b"question"));
    world.send(&Packet::new(80, 5, SHUTDOWN).flags(2));
    let mut question = Vec::new();
    server.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(world.get_data(6), b"answer");
    // Where both halves are closed, nobody reads either.
    world.expect(80, 5, SHUTDOWN, 3);
    world.send(&Packet::new(80, 5, SHUTDOWN).flags(3));
    world.expect(80, 5, RESET, 0);

    // The host's half first.
    let mut server = world.connected(6, 1 << 20);
    server.shutdown(Shutdown::Write).unwrap();
    world.expect(80, 6, SHUTDOWN, 2);
    world.send(&Packet::new(80, 6, DATA).data(b"still"));
    assert_eq!(read(&mut server, 5), b"still");
    drop(server);
    world.expect(80, 6, SHUTDOWN, 3);
}

#[test]
fn a_guest_that_is_deaf_holds_up_no_host() {
    let mut world = World::new(0);
    let mut server = world.connected(5, 0);
    server.write_all(&pattern(1000)).unwrap();
    world.expect(80, 5, ASK, 0);
    world.send(&Packet::new(80, 5, SHUTDOWN).flags(1));
    wait_until("the host to be told", || server.write_all(&[0; 1000]).is_err());
    world.send(&Packet::new(80, 5, DATA).data(b"more"));
    assert_eq!(read(&mut server, 4), b"more");
}

#[test]
fn what_was_sent_before_a_reset_arrives() {
    let mut world = World::new(0);
    let mut server = world.connected(5, 1 << 20);
    let mut sent = Vec::new();
    // As much as fits: the socket's own buffer and ours.
    for _ in 0..8 {
        let piece = pattern(30 << 10);
        world.send(&Packet::new(80, 5, DATA).data(&piece));
        sent.extend(piece);
    }
    world.send(&Packet::new(80, 5, RESET));
    // The ports are free again at once.
    let mut second = world.connected(5, 1 << 20);
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == sent);
    world.send(&Packet::new(80, 5, DATA).data(b"second"));
    assert_eq!(read(&mut second, 6), b"second");
}

#[test]
fn connections_are_counted() {
    let mut world = World::new(0);
    let mut servers = Vec::new();
    for guest in 0..128 {
        servers.push(world.connected(guest, 1000));
    }
    world.send(&Packet::new(80, 1000, REQUEST));
    world.expect(80, 1000, RESET, 0);
    assert!(has_ended(&mut world.as_host(b"CONNECT 9\n")));
    world.send(&Packet::new(80, 3, SHUTDOWN).flags(3));
    world.expect(80, 3, RESET, 0);
    assert!(has_ended(&mut servers[3]));
    world.connected(1000, 1000);
}

#[test]
fn a_driver_that_takes_no_answers_is_not_heard() {
    let mut world = World::new(0);
    // 32 have room; the others wait, and the device holds no more than its limit.
    let bytes = Packet::new(81, 1, REQUEST).bytes(CID.into());
    for _ in 0..120 {
        world.driver.give(1, &[&bytes], &[]);
    }
    world.driver.kick(1);
    std::thread::sleep(Duration::from_millis(50));
    let back = std::iter::from_fn(|| world.driver.take(1)).count();
    assert!((64..120).contains(&back), "{back} were heard");
    for _ in 0..120 {
        world.expect(81, 1, RESET, 0);
    }
    assert_eq!(std::iter::from_fn(|| world.driver.take(1)).count() + back, 120);
}

#[test]
fn a_driver_with_room_for_all_answers_is_heard_to_the_end() {
    let mut world = World::new(0);
    world.give_room(96);
    let bytes = Packet::new(81, 1, REQUEST).bytes(CID.into());
    for _ in 0..120 {
        world.driver.give(1, &[&bytes], &[]);
    }
    // Once: nothing else wakes the device.
    world.driver.kick(1);
    for _ in 0..120 {
        world.driver.wait(0);
    }
}

#[test]
fn a_paused_machine_keeps_its_connections() {
    let mut world = World::new(EVENT_INDEX);
    let mut server = world.connected(5, 1 << 20);
    lock(&world.driver.function).pause();
    server.write_all(b"meanwhile").unwrap();
    let mut client = world.as_host(b"CONNECT 52\n");
    world.nothing_comes();
    lock(&world.driver.function).resume();
    let (mut data, mut asked) = (Vec::new(), None);
    while data.len() < 9 || asked.is_none() {
        let got = world.get();
        match got.op {
            DATA => data.extend(got.data),
            _ => asked = Some(got),
        }
    }
    assert_eq!(data, b"meanwhile");
    let asked = asked.unwrap();
    world.send(&Packet::new(asked.host, 52, RESPONSE));
    assert_eq!(read(&mut client, 3), b"OK ");
}

#[test]
fn a_machine_that_moves_tells_its_driver_that_connections_are_gone() {
    let mut world = World::new(EVENT_INDEX);
    let mut server = world.connected(5, 1 << 20);
    assert_eq!(world.driver.take(2), None);
    let servers = Servers::default();
    let (path, given) = (world.path.clone(), std::mem::take(&mut world.given));
    let other = std::env::temp_dir().join(format!("umbra-vsock-{}", std::process::id()));
    // The driver goes on elsewhere.
    let driver = std::mem::replace(&mut world.driver, Driver::new(device(&servers, &other)));
    let driver = driver.moved_to(device(&servers, &path));
    let mut world = World { driver, servers, path: other, given };
    assert!(has_ended(&mut server));
    let (_, len) = world.driver.wait(2);
    assert_eq!(len, 4);
    assert_eq!(world.driver.config::<8>(0), u64::from(CID).to_le_bytes());
    world.send(&Packet::new(80, 5, DATA).data(b"old"));
    world.expect(80, 5, RESET, 0);
    let mut server = world.connected(5, 1 << 20);
    world.send(&Packet::new(80, 5, DATA).data(b"new"));
    assert_eq!(read(&mut server, 3), b"new");
}

#[test]
fn a_reset_in_flight_ends_all_connections() {
    let mut world = World::new(0);
    for round in 0..50 {
        let mut server = world.connected(round, 1 << 20);
        server.write_all(&pattern(20_000)).unwrap();
        world.driver.give(1, &[&Packet::new(80, round, DATA).data(b"x").bytes(CID.into())], &[]);
        world.driver.kick(1);
        world.init(0);
        wait_until("the end", || {
            server.set_nonblocking(true).unwrap();
            match server.read(&mut [0; 64]) {
                Ok(0) => true,
                Ok(_) => false,
                Err(e) => e.kind() != ErrorKind::WouldBlock,
            }
        });
        // What the old life sent late is no connection of the new one.
        while world.driver.take(0).is_some() {
            world.given.pop_front();
            world.give_room(1);
        }
    }
}

#[test]
fn a_malicious_driver_gets_no_further() {
    let mut world = World::new(0);
    // Too short, of somebody else, with more data than there is, of no kind; none of it ends anybody else's connection.
    let mut server = world.connected(5, 1 << 20);
    world.driver.request(1, &[&[0; 43]], &[]);
    world.driver.request(1, &[&Packet::new(80, 6, REQUEST).bytes(7)], &[]);
    world.driver.request(1, &[], &[100]);
    world.nothing_comes();
    let second = world.connected(6, 1 << 20);
    let mut bytes = Packet::new(80, 6, DATA).data(b"short").bytes(CID.into());
    bytes[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    world.driver.request(1, &[&bytes], &[]);
    world.expect(80, 6, RESET, 0);
    drop(second);
    for op in [0, REQUEST, RESPONSE, 8, u16::MAX] {
        let mut server = world.connected(7, 1 << 20);
        world.send(&Packet::new(80, 7, op));
        world.expect(80, 7, RESET, 0);
        assert!(has_ended(&mut server));
        world.send(&Packet::new(80, 8, if op == REQUEST { 9 } else { op }));
        world.expect(80, 8, RESET, 0);
    }
    world.send(&Packet::new(80, 5, DATA).data(b"fine"));
    assert_eq!(read(&mut server, 4), b"fine");
}

#[test]
fn rings_that_cannot_be_end_in_a_reset() {
    for queue in [0usize, 1] {
        let mut world = World::new(0);
        let table = world.driver.rings[queue].descriptors;
        if queue == 0 {
            // Buffers without room for a header, behind those that have it.
            for _ in 0..32 {
                world.driver.give(0, &[], &[20]);
            }
            world.driver.kick(0);
            for guest in 0..33 {
                let bytes = Packet::new(81, guest, REQUEST).bytes(CID.into());
                world.driver.give(1, &[&bytes], &[]);
            }
        } else {
            world.driver.descriptor(table, 0, 0x20_0000, 64, 1, 0);
            world.driver.offer(1, 0);
        }
        world.driver.kick(1);
        world.driver.wait_for_broken();
        world.init(0);
        world.connected(5, 1000);
    }
}
