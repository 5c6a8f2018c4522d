//! The network card, by a driver and a backend that are test doubles.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use umbra_net::{
    Backend, FRAME_MAX, Frame, Gso, Offloads, Poller, Ready, Received, Sent, Sink, VnetHeader, Wake,
};
use zerocopy::IntoBytes;

use crate::driver::{Driver, wait_until};
use crate::lock;
use crate::net::{Net, NetSpec};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const VERSION_1: u64 = 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;
const STATUS: u64 = 1 << 16;
const MERGEABLE: u64 = 1 << 15;
const GUEST_TSO: u64 = 1 << 1 | 1 << 7 | 1 << 8;
/// Header of the device.
const HEADER: usize = 12;

#[derive(Default)]
struct Wire {
    sent: Vec<(VnetHeader, Vec<u8>)>,
    pending: VecDeque<(VnetHeader, Vec<u8>)>,
    offloads: Offloads,
    down: bool,
    busy: bool,
}

/// The far end of the cable.
#[derive(Clone)]
struct Far {
    wire: Arc<Mutex<Wire>>,
    wake: Wake,
}

impl Far {
    fn new() -> Self {
        Self { wire: Arc::default(), wake: Wake::new().unwrap() }
    }

    fn emit(&self, header: VnetHeader, bytes: &[u8]) {
        lock(&self.wire).pending.push_back((header, bytes.to_vec()));
        self.wake.wake();
    }

    fn change(&self, change: impl FnOnce(&mut Wire)) {
        change(&mut lock(&self.wire));
        self.wake.wake();
    }

    fn wait_sent(&self, count: usize) -> Vec<(VnetHeader, Vec<u8>)> {
        wait_until("frames", || lock(&self.wire).sent.len() >= count);
        std::mem::take(&mut lock(&self.wire).sent)
    }
}

impl Backend for Far {
    fn attach(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.wake, 0)
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn set_guest_offloads(&mut self, offloads: Offloads) {
        lock(&self.wire).offloads = offloads;
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn link_up(&self) -> bool {
        !lock(&self.wire).down
    }
    fn event(&mut self, _: Instant, _: u64, _: Ready) {}
    fn tick(&mut self, _: Instant) -> Option<Instant> {
        None
    }
    fn send(&mut self, _: Instant, frame: &Frame) -> Sent {
        let mut wire = lock(&self.wire);
        if wire.busy {
            return Sent::Busy;
        }
        wire.sent.push((frame.header, frame.bytes().to_vec()));
        Sent::Taken
    }
    fn receive(&mut self, _: Instant, sink: Sink<'_>) -> Received {
        let next = lock(&self.wire).pending.front().cloned();
        let Some((header, bytes)) = next else { return Received::Nothing };
        let (first, second) = bytes.split_at(bytes.len() / 3);
        if !sink(&header, &[first, second]) {
            return Received::Refused;
        }
        lock(&self.wire).pending.pop_front();
        Received::Frame
    }
}

fn card(far: &Far) -> Box<Net> {
    Box::new(Net::new(NetSpec { name: "eth0".to_owned(), mac: MAC }, Box::new(far.clone())).unwrap())
}

fn driver(features: u64) -> (Driver, Far) {
    let far = Far::new();
    let mut driver = Driver::new(card(&far));
    driver.init(VERSION_1 | features);
    (driver, far)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) >> 2) as u8).collect()
}

#[test]
fn configuration_tells_address_mtu_and_cable() {
    let (driver, far) = driver(STATUS);
    driver.use_messages();
    assert_eq!(driver.config::<6>(0), MAC);
    assert_eq!(driver.config::<2>(10), 1500u16.to_le_bytes());
    wait_until("the cable", || driver.config::<2>(6) == [1, 0]);
    driver.messages();
    far.change(|wire| wire.down = true);
    wait_until("the news", || driver.messages().contains(&0));
    assert_eq!(driver.config::<2>(6), [0, 0]);
    far.change(|wire| wire.down = false);
    wait_until("the news", || driver.messages().contains(&0));
    assert_eq!(driver.config::<2>(6), [1, 0]);
}

#[test]
fn frames_go_out_with_what_is_left_to_do() {
    for event_index in [0, EVENT_INDEX] {
        let (mut driver, far) = driver(event_index);
        let mut header = VnetHeader { flags: 1, gso_type: Gso::Tcp4 as u8, ..VnetHeader::default() };
        header.gso_size.set(1448);
        let bytes = pattern(FRAME_MAX);
        let mut given = Vec::new();
        for len in [14, 60, 1514, FRAME_MAX] {
            let head = [header.as_bytes(), &[0, 0]].concat();
            let (first, second) = bytes[..len].split_at(len / 2);
            given.push(driver.give(1, &[&head, first, second], &[]).head);
        }
        driver.kick(1);
        let sent = far.wait_sent(4);
        for ((got, frame), len) in sent.iter().zip([14, 60, 1514, FRAME_MAX]) {
            assert_eq!((got, frame.as_slice()), (&header, &bytes[..len]));
        }
        for head in given {
            assert_eq!(driver.wait(1), (head, 0));
        }
    }
}

#[test]
fn a_busy_backend_gets_the_frame_later_and_in_order() {
    let (mut driver, far) = driver(EVENT_INDEX);
    far.change(|wire| wire.busy = true);
    for i in 0..3u8 {
        driver.give(1, &[&[0; HEADER], &[i; 20]], &[]);
    }
    driver.kick(1);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(lock(&far.wire).sent.is_empty());
    far.change(|wire| wire.busy = false);
    let sent: Vec<u8> = far.wait_sent(3).iter().map(|(_, frame)| frame[0]).collect();
    assert_eq!(sent, [0, 1, 2]);
}

#[test]
fn what_is_no_frame_comes_back_and_goes_nowhere() {
    let (mut driver, far) = driver(0);
    let long = pattern(FRAME_MAX + 1);
    driver.give(1, &[&[0; 4]], &[]);
    driver.give(1, &[&[0; HEADER]], &[]);
    driver.give(1, &[&[0; HEADER + 13]], &[]);
    driver.give(1, &[&[0; HEADER], &long], &[]);
    driver.give(1, &[], &[64]);
    driver.give(1, &[&[0; HEADER], &[7; 14]], &[]);
    driver.kick(1);
    assert_eq!(far.wait_sent(1), [(VnetHeader::default(), vec![7; 14])]);
    for _ in 0..6 {
        driver.wait(1);
    }
    assert!(lock(&far.wire).sent.is_empty());
}

/// What the driver's next buffers have got: how many were used, and the frame.
fn received(driver: &mut Driver, given: &mut VecDeque<crate::driver::Given>) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut buffers = 1;
    let mut used = 0;
    while used < buffers {
        let (head, written) = driver.wait(0);
        let buffer = given.pop_front().unwrap();
        assert_eq!(head, buffer.head);
        let mut part: Vec<u8> =
            buffer.writable.iter().flat_map(|(at, len)| driver.peek(*at, *len as usize)).collect();
        part.truncate(written as usize);
        if used == 0 {
            buffers = u16::from_le_bytes([part[10], part[11]]);
            part.drain(..HEADER);
        }
        bytes.extend(part);
        used += 1;
    }
    (buffers, bytes)
}

#[test]
fn large_frames_go_over_as_many_buffers_as_they_need() {
    for event_index in [0, EVENT_INDEX] {
        let (mut driver, far) = driver(MERGEABLE | event_index);
        let mut given: VecDeque<_> = (0..60).map(|_| driver.give(0, &[], &[1000, 536])).collect();
        driver.kick(0);
        let bytes = pattern(40_000);
        for len in [14, 1524, 1525, 40_000] {
            far.emit(VnetHeader::default(), &bytes[..len]);
            let (buffers, got) = received(&mut driver, &mut given);
            assert_eq!(usize::from(buffers), (len + HEADER).div_ceil(1536));
            assert!(got == bytes[..len]);
        }
    }
}

#[test]
fn a_frame_waits_until_there_is_room_for_all_of_it() {
    for event_index in [0, EVENT_INDEX] {
        let (mut driver, far) = driver(MERGEABLE | event_index);
        let bytes = pattern(4000);
        let mut given = VecDeque::new();
        far.emit(VnetHeader::default(), &bytes);
        far.emit(VnetHeader::default(), &bytes[..100]);
        for _ in 0..2 {
            given.push_back(driver.give(0, &[], &[1536]));
            driver.kick(0);
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert_eq!(driver.take(0), None);
        }
        given.push_back(driver.give(0, &[], &[1536]));
        driver.kick(0);
        let (buffers, got) = received(&mut driver, &mut given);
        assert_eq!((buffers, got == bytes), (3, true));
        // A machine can be paused while a frame waits: nothing of the driver's is held.
        lock(&driver.function).pause();
        lock(&driver.function).resume();
        given.push_back(driver.give(0, &[], &[1536]));
        driver.kick(0);
        let (buffers, got) = received(&mut driver, &mut given);
        assert_eq!((buffers, got == bytes[..100]), (1, true));
    }
}

#[test]
fn buffers_too_small_for_a_frame_lose_it_and_no_other() {
    let (mut driver, far) = driver(0);
    let mut given = VecDeque::from([driver.give(0, &[], &[100]), driver.give(0, &[], &[100])]);
    driver.kick(0);
    far.emit(VnetHeader::default(), &pattern(1000));
    far.emit(VnetHeader::default(), &pattern(88));
    let (buffers, got) = received(&mut driver, &mut given);
    assert_eq!((buffers, got), (1, pattern(88)));
}

#[test]
fn the_backend_learns_what_the_driver_can_do() {
    for (features, wanted) in [
        (0, Offloads::empty()),
        (GUEST_TSO, Offloads::all()),
        // Cutting without checksums is not a thing.
        (GUEST_TSO & !2, Offloads::empty()),
        (2, Offloads::CHECKSUM),
    ] {
        let (driver, far) = driver(features);
        driver.kick(1);
        wait_until("the offloads", || lock(&far.wire).offloads == wanted);
        driver.reset();
        wait_until("none", || lock(&far.wire).offloads == Offloads::empty());
    }
}

#[test]
fn without_a_driver_frames_are_lost_and_a_reset_in_flight_ends() {
    let (mut driver, far) = driver(MERGEABLE);
    for _ in 0..50 {
        let given: Vec<_> = (0..20).map(|_| driver.give(1, &[&[0; HEADER], &[1; 60]], &[])).collect();
        assert_eq!(given.len(), 20);
        driver.kick(1);
        far.emit(VnetHeader::default(), &pattern(3000));
        driver.reset();
        driver.init(VERSION_1 | MERGEABLE);
    }
    driver.reset();
    wait_until("frames to be lost", || lock(&far.wire).pending.is_empty());
    driver.init(VERSION_1);
    lock(&far.wire).sent.clear();
    driver.give(1, &[&[0; HEADER], &[9; 20]], &[]);
    driver.kick(1);
    assert!(far.wait_sent(1).iter().any(|(_, frame)| frame == &vec![9; 20]));
}

#[test]
fn a_card_goes_on_elsewhere() {
    let (mut driver, far) = driver(MERGEABLE | GUEST_TSO | EVENT_INDEX);
    let mut given: VecDeque<_> = (0..3).map(|_| driver.give(0, &[], &[1536])).collect();
    driver.kick(0);
    far.emit(VnetHeader::default(), &pattern(50));
    assert_eq!(received(&mut driver, &mut given), (1, pattern(50)));
    let new = Far::new();
    let other = NetSpec { name: "eth0".to_owned(), mac: [2, 0, 0, 0, 0, 9] };
    let mut driver = driver.moved_to(Box::new(Net::new(other, Box::new(new.clone())).unwrap()));
    assert_eq!(driver.config::<6>(0), MAC);
    new.emit(VnetHeader::default(), &pattern(2000));
    let (buffers, got) = received(&mut driver, &mut given);
    assert_eq!((buffers, got == pattern(2000)), (2, true));
    assert_eq!(lock(&new.wire).offloads, Offloads::all());
}

#[test]
fn rings_that_cannot_be_end_in_a_reset() {
    for queue in [0usize, 1] {
        let (mut driver, far) = driver(MERGEABLE);
        // A loop of descriptors.
        let table = driver.rings[queue].descriptors;
        driver.descriptor(table, 0, 0x20_0000, 64, 1 | if queue == 0 { 2 } else { 0 }, 0);
        driver.offer(queue, 0);
        far.emit(VnetHeader::default(), &pattern(100));
        driver.kick(queue);
        driver.wait_for_broken();
        driver.init(VERSION_1);
        driver.give(1, &[&[0; HEADER], &[3; 20]], &[]);
        driver.kick(1);
        far.wait_sent(1);
    }
}
