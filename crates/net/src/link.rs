//! The cable between a network card and a backend.

use std::fmt;
use std::io;
use std::time::Instant;

use bitflags::bitflags;

use crate::poller::{Poller, Ready};
use crate::wire::VnetHeader;

/// The longest frame: an IP packet of 65,535 bytes behind an Ethernet header, with room for a VLAN tag.
pub const FRAME_MAX: usize = 65_535 + 14 + 4;

bitflags! {
    /// What who takes a frame can finish, so that who sends it need not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: u8 {
        /// Fills in the checksum of TCP and UDP. The others need it.
        const CHECKSUM = 1;
        /// Cuts TCP segments over IPv4 that are larger than the MTU.
        const TSO4 = 2;
        /// Cuts TCP segments over IPv6.
        const TSO6 = 4;
    }
}

/// A buffer for one frame, and what is left to do to it.
pub struct Frame {
    /// What is left to do.
    pub header: VnetHeader,
    bytes: Box<[u8]>,
    len: usize,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("header", &self.header).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self { header: VnetHeader::default(), bytes: vec![0; FRAME_MAX].into_boxed_slice(), len: 0 }
    }
}

impl Frame {
    /// The frame's bytes, from the destination's address on, without a frame check sequence.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The whole buffer, [`FRAME_MAX`] bytes, to be filled from its start; [`Frame::set_len`] then says how far.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many bytes of the buffer are the frame; at most [`FRAME_MAX`] are.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(FRAME_MAX);
    }

    /// Makes this a whole frame of these bytes, with nothing left to do. Bytes beyond [`FRAME_MAX`] are cut off.
    pub fn set(&mut self, bytes: &[u8]) {
        self.header = VnetHeader::default();
        self.len = 0;
        for (to, from) in self.bytes.iter_mut().zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }
}

/// Takes a frame that comes in parts, if there is room for it.
pub type Sink<'a> = &'a mut dyn FnMut(&VnetHeader, &[&[u8]]) -> bool;

/// What became of a frame that a guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is gone, or was dropped as a network may.
    Taken,
    /// There is no room. The same frame is to be offered again after the next event of the backend.
    Busy,
}

/// What became of an attempt to hand a frame to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// One was handed over; there may be more.
    Frame,
    /// There is one, and the sink has no room for it.
    Refused,
    /// There is none.
    Nothing,
}

/// What is at the other end of the cable.
///
/// Order: [`Backend::attach`] once, then any of the others, all by the same thread. None of them blocks.
pub trait Backend: Send {
    /// Watches the backend's descriptors by this poller, under numbers of the backend's choice except `u64::MAX`.
    ///
    /// # Errors
    /// The host's.
    fn attach(&mut self, poller: &Poller) -> io::Result<()>;
    /// What the backend finishes by itself in frames that the guest sends.
    fn offloads(&self) -> Offloads;
    /// What the guest finishes by itself in frames for it; nothing until this is called. It changes when a driver starts.
    fn set_guest_offloads(&mut self, offloads: Offloads);
    /// The longest IP packet that needs no cutting.
    fn mtu(&self) -> u16;
    /// Whether the cable is plugged in at the far end.
    fn link_up(&self) -> bool;
    /// One of the backend's descriptors became ready.
    fn event(&mut self, now: Instant, token: u64, ready: Ready);
    /// Does what is due, and says when something will be next.
    fn tick(&mut self, now: Instant) -> Option<Instant>;
    /// Takes a frame from the guest.
    fn send(&mut self, now: Instant, frame: &Frame) -> Sent;
    /// Hands at most one frame to `sink`. A frame that it refuses is kept.
    fn receive(&mut self, now: Instant, sink: Sink<'_>) -> Received;
}

/// A network card, as its cable sees it.
///
/// All methods are called by the link's thread, and none may block on the guest.
pub trait Nic: Send {
    /// Copies the next frame that the guest sends to `frame`. False if there is none.
    fn transmit(&mut self, frame: &mut Frame) -> bool;
    /// Copies a frame to the guest. False if it has no room, and then nothing has happened.
    fn receive(&mut self, header: &VnetHeader, parts: &[&[u8]]) -> bool;
    /// A batch is over: what it did may be told to the guest.
    fn flush(&mut self);
    /// The thread is about to sleep until [`LinkThread::wake`](crate::LinkThread::wake): asks the guest to tell of frames to send, and of room
    /// where `starved`. True if there is something already, so that the thread may not sleep.
    fn arm(&mut self, starved: bool) -> bool;
    /// What the guest's driver finishes by itself in frames for it, as far as it has said so.
    fn offloads(&self) -> Offloads;
    /// The cable was plugged in or pulled out at the far end.
    fn set_link(&mut self, up: bool);
}
