//! Any packets from a worker that a guest has taken over, as the broker receives them.
//!
//! The program is no library: its module of messages is compiled into this target.
#![no_main]

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use umbra_fuzz::Input;

#[path = "../../crates/umbra/src/protocol.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod protocol;

use protocol::{Link, Message, Order, Start};

/// More descriptors than a message may have beside it.
const DESCRIPTORS: usize = 140;
/// No more packets than a socket's buffer takes without blocking.
const PACKETS_MAX: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (broker, worker) = Link::pair().expect("a socket pair");
    let passed = rustix::fs::memfd_create("passed", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let mut sent = 0;
    while !input.is_empty() && sent < PACKETS_MAX {
        let (len, count) = (usize::from(input.u16() % 0x800), usize::from(input.u8()) % DESCRIPTORS);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = vec![passed.as_fd(); count];
        if count > 0 {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let packet = input.bytes(len);
        sendmsg(worker.as_fd(), &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)
            .expect("there is room");
        sent += 1;
    }
    drop(worker);
    for n in 0..sent {
        // What the broker receives, and, since they are read in the same way, what the worker does.
        let descriptors = match n % 3 {
            0 | 1 => match broker.receive::<Message>() {
                Ok(Some((message, descriptors))) => {
                    let again = serde_json::to_vec(&message).expect("it is JSON");
                    let again: Message = serde_json::from_slice(&again).expect("what was written is read");
                    drop(again);
                    descriptors
                }
                Ok(None) => return,
                Err(_) => continue,
            },
            _ => match broker.receive::<Start>() {
                Ok(Some((_, descriptors))) => descriptors,
                Ok(None) => return,
                Err(_) => continue,
            },
        };
        assert!(descriptors.len() <= 128, "no more descriptors than there is room for");
    }
    let _ = broker.send(&Order::Stop, &[]);
});
