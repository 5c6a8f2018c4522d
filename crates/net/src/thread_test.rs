//! The thread, between a card and a backend that are test doubles.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::LinkThread;
use crate::{Backend, Frame, Nic, Offloads, Poller, Ready, Received, Sent, Sink, VnetHeader, Wake};

#[derive(Default)]
struct State {
    to_send: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    to_receive: VecDeque<Vec<u8>>,
    received: Vec<Vec<u8>>,
    /// Frames that the guest has room for.
    room: usize,
    busy: bool,
    offloads: Offloads,
    told: Vec<Offloads>,
    up: bool,
    links: Vec<bool>,
    /// When the backend wants to be called, and when it was.
    due: Option<Instant>,
    called: Vec<Instant>,
    passes: usize,
}

#[derive(Clone)]
struct Both {
    state: Arc<Mutex<State>>,
    /// Wakes the backend.
    wake: Wake,
}

impl Nic for Both {
    fn transmit(&mut self, frame: &mut Frame) -> bool {
        let next = self.state.lock().unwrap().to_send.pop_front();
        next.is_some_and(|bytes| {
            frame.set(&bytes);
            true
        })
    }
    fn receive(&mut self, _: &VnetHeader, parts: &[&[u8]]) -> bool {
        let mut state = self.state.lock().unwrap();
        let taken = state.room > 0;
        if taken {
            state.room -= 1;
            state.received.push(parts.concat());
        }
        taken
    }
    fn flush(&mut self) {
        self.state.lock().unwrap().passes += 1;
    }
    fn arm(&mut self, _: bool) -> bool {
        !self.state.lock().unwrap().to_send.is_empty()
    }
    fn offloads(&self) -> Offloads {
        self.state.lock().unwrap().offloads
    }
    fn set_link(&mut self, up: bool) {
        self.state.lock().unwrap().links.push(up);
    }
}

impl Backend for Both {
    fn attach(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.wake, 7)
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn set_guest_offloads(&mut self, offloads: Offloads) {
        self.state.lock().unwrap().told.push(offloads);
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn link_up(&self) -> bool {
        self.state.lock().unwrap().up
    }
    fn event(&mut self, _: Instant, token: u64, _: Ready) {
        assert_eq!(token, 7);
    }
    fn tick(&mut self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock().unwrap();
        if state.due.is_some_and(|due| due <= now) {
            state.due = None;
            state.called.push(now);
        }
        state.due
    }
    fn send(&mut self, _: Instant, frame: &Frame) -> Sent {
        let mut state = self.state.lock().unwrap();
        if state.busy {
            return Sent::Busy;
        }
        state.sent.push(frame.bytes().to_vec());
        Sent::Taken
    }
    fn receive(&mut self, _: Instant, sink: Sink<'_>) -> Received {
        let next = self.state.lock().unwrap().to_receive.front().cloned();
        let Some(bytes) = next else { return Received::Nothing };
        if !sink(&VnetHeader::default(), &[&bytes]) {
            return Received::Refused;
        }
        self.state.lock().unwrap().to_receive.pop_front();
        Received::Frame
    }
}

fn start() -> (LinkThread, Both) {
    let both = Both { state: Arc::default(), wake: Wake::new().unwrap() };
    let link =
        LinkThread::start("net-test", Wake::new().unwrap(), Box::new(both.clone()), Box::new(both.clone()));
    (link.unwrap(), both)
}

#[track_caller]
fn until(both: &Both, is_so: impl Fn(&State) -> bool) {
    let begun = Instant::now();
    while !is_so(&both.state.lock().unwrap()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn frames(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| vec![i as u8; 20 + i % 50]).collect()
}

#[test]
fn frames_cross_in_order_both_ways_whoever_wakes() {
    let (link, both) = start();
    both.state.lock().unwrap().room = 1000;
    both.state.lock().unwrap().to_send.extend(frames(300));
    link.wake().wake();
    until(&both, |state| state.sent.len() == 300);
    both.state.lock().unwrap().to_receive.extend(frames(300));
    both.wake.wake();
    until(&both, |state| state.received.len() == 300);
    let state = both.state.lock().unwrap();
    assert!(state.sent == frames(300) && state.received == frames(300));
}

#[test]
fn whoever_has_no_room_holds_up_the_other_side_alone() {
    let (link, both) = start();
    both.state.lock().unwrap().busy = true;
    both.state.lock().unwrap().room = 5;
    both.state.lock().unwrap().to_send.extend(frames(10));
    both.state.lock().unwrap().to_receive.extend(frames(10));
    link.wake().wake();
    until(&both, |state| state.received.len() == 5);
    both.state.lock().unwrap().busy = false;
    both.wake.wake();
    until(&both, |state| state.sent.len() == 10);
    both.state.lock().unwrap().room = 5;
    link.wake().wake();
    until(&both, |state| state.received.len() == 10);
    assert!(both.state.lock().unwrap().sent == frames(10));
}

#[test]
fn an_idle_link_sleeps_until_something_is_due() {
    let (_link, both) = start();
    until(&both, |state| state.passes > 0);
    both.state.lock().unwrap().to_receive.extend(frames(1));
    both.wake.wake();
    std::thread::sleep(Duration::from_millis(50));
    // The guest has no room: that is no reason to run about.
    let passes = both.state.lock().unwrap().passes;
    assert!(passes < 20, "{passes}");
    let due = Instant::now() + Duration::from_millis(30);
    both.state.lock().unwrap().due = Some(due);
    both.wake.wake();
    until(&both, |state| !state.called.is_empty());
    let state = both.state.lock().unwrap();
    assert!(state.called[0] >= due);
    assert!(state.passes < passes + 20, "{}", state.passes);
}

#[test]
fn changes_of_cable_and_driver_are_told_once() {
    let (link, both) = start();
    until(&both, |state| state.links == [false]);
    both.state.lock().unwrap().up = true;
    both.wake.wake();
    until(&both, |state| state.links == [false, true]);
    both.state.lock().unwrap().offloads = Offloads::CHECKSUM;
    link.wake().wake();
    until(&both, |state| state.told == [Offloads::CHECKSUM]);
    link.wake().wake();
    drop(link);
    // The thread is gone, and with it both ends.
    assert_eq!(Arc::strong_count(&both.state), 1);
    assert_eq!(both.state.lock().unwrap().links, [false, true]);
}
