//! The card, as its cable sees it: frames between the driver's buffers and the thread of the link.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use umbra_net::{FRAME_MAX, Frame, Nic, Offloads, VnetHeader};
use zerocopy::IntoBytes;

use super::config::NetFeature;
use crate::{Chain, Queue, Room, Running, lock};

/// The queue of frames for the guest, and of those from it.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr`: what is left to do, and over how many buffers a frame goes (section 5.1.6).
const HEADER_LEN: usize = size_of::<VnetHeader>() + 2;
/// An Ethernet header. A frame without one is none.
const ETHERNET_LEN: usize = 14;
/// Buffers that one frame goes over: a driver that gives some of 1.5 KiB needs fewer.
const RECEIVE_CHAINS_MAX: usize = 64;
/// Frames of the guest's that are given back at once.
const DONE_MAX: usize = 32;

/// What the device and its card share.
#[derive(Default)]
pub(super) struct Shared {
    /// What the driver gave, while it is ready.
    running: Mutex<Option<Running>>,
    up: AtomicBool,
}

impl Shared {
    pub(super) fn set_running(&self, running: Option<Running>) {
        *lock(&self.running) = running;
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn queue(&self, index: usize) -> Option<Arc<Queue>> {
        lock(&self.running).as_ref().and_then(|running| running.queues.get(index).cloned())
    }

    fn features(&self) -> NetFeature {
        let running = lock(&self.running);
        running
            .as_ref()
            .map_or(NetFeature::empty(), |running| NetFeature::from_bits_truncate(running.features))
    }
}

/// The card.
pub(super) struct Card {
    shared: Arc<Shared>,
    /// Frames that are sent, whose buffers go back to the driver together.
    done: Vec<(Chain, u32)>,
}

impl Card {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, done: Vec::new() }
    }

    fn give_back(&mut self) {
        let done = std::mem::take(&mut self.done);
        match self.shared.queue(TRANSMIT) {
            Some(queue) if !done.is_empty() => queue.complete_all(done),
            // The driver is gone, and its buffers with it.
            _ => drop(done),
        }
    }
}

/// Copies a frame of the guest's. False if it is none.
fn copy_from(chain: &Chain, frame: &mut Frame) -> bool {
    let Some(len) = usize::try_from(chain.readable_len()).ok().and_then(|len| len.checked_sub(HEADER_LEN))
    else {
        return false;
    };
    if !(ETHERNET_LEN..=FRAME_MAX).contains(&len) {
        return false;
    }
    let header = frame.header.as_mut_bytes();
    let mut copied = chain.read(0, header) == header.len();
    if let Some(space) = frame.space().get_mut(..len) {
        copied &= chain.read(HEADER_LEN as u64, space) == len;
    }
    frame.set_len(len);
    copied
}

/// Copies a frame to the guest, and says how much of each chain is written.
fn copy_to(chains: Vec<Chain>, header: &VnetHeader, parts: &[&[u8]]) -> Vec<(Chain, u32)> {
    let count = (chains.len() as u16).to_le_bytes();
    let mut pieces = [header.as_bytes(), &count].into_iter().chain(parts.iter().copied());
    let mut piece = pieces.next();
    let mut written = Vec::with_capacity(chains.len());
    for chain in chains {
        let mut offset = 0u64;
        while let Some(bytes) = piece {
            let copied = chain.write(offset, bytes);
            offset += copied as u64;
            let rest = bytes.get(copied..).unwrap_or_default();
            piece = if rest.is_empty() { pieces.next() } else { Some(rest) };
            if !rest.is_empty() {
                break;
            }
        }
        written.push((chain, offset as u32));
    }
    written
}

impl Nic for Card {
    fn transmit(&mut self, frame: &mut Frame) -> bool {
        let Some(queue) = self.shared.queue(TRANSMIT) else { return false };
        while let Some(chain) = queue.pop() {
            let good = copy_from(&chain, frame);
            self.done.push((chain, 0));
            if self.done.len() >= DONE_MAX {
                self.give_back();
            }
            if good {
                return true;
            }
        }
        false
    }

    fn receive(&mut self, header: &VnetHeader, parts: &[&[u8]]) -> bool {
        // Without a driver nobody is there, as behind a card that is switched off.
        let Some(queue) = self.shared.queue(RECEIVE) else { return true };
        let mergeable = self.shared.features().contains(NetFeature::MERGEABLE);
        let len = HEADER_LEN + parts.iter().map(|part| part.len()).sum::<usize>();
        let chains_max = if mergeable { RECEIVE_CHAINS_MAX } else { 1 };
        match queue.pop_room(len as u64, chains_max) {
            Room::Chains(chains) => {
                queue.complete_all(copy_to(chains, header, parts));
                true
            }
            Room::Later => false,
            // The driver's buffers are too small for what it negotiated: the frame is lost.
            Room::Never => true,
        }
    }

    fn flush(&mut self) {
        if !self.done.is_empty() {
            self.give_back();
        }
    }

    fn arm(&mut self, _starved: bool) -> bool {
        // Room is asked for where it lacks, by `pop_room`.
        self.shared.queue(TRANSMIT).is_some_and(|queue| queue.has_chain())
    }

    fn offloads(&self) -> Offloads {
        self.shared.features().guest_offloads()
    }

    fn set_link(&mut self, up: bool) {
        let changed = self.shared.up.swap(up, Ordering::Relaxed) != up;
        // Told outside of our lock: a driver that reads the status takes others.
        let interrupts = lock(&self.shared.running).as_ref().map(|running| running.interrupts.clone());
        if let Some(interrupts) = interrupts.filter(|_| changed) {
            interrupts.config_changed();
        }
    }
}
