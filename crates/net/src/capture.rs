//! A copy of every frame, both ways, in a file for Wireshark and tcpdump: pcapng (draft-ietf-opsawg-pcapng).
//!
//! Frames are written as they cross the cable: large segments uncut, with checksums that may not be filled in yet.

use std::io::{self, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::link::{Backend, Frame, Offloads, Received, Sent, Sink};
use crate::poller::{Poller, Ready};
use crate::wire::VnetHeader;

/// Bytes of each frame that are kept unless another number is asked for: all of any frame.
pub const SNAP_LEN: u32 = 1 << 17;
/// What is written at once.
const BUFFER_LEN: usize = 256 << 10;

/// Block types, and what they are of.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
/// Options: the resolution of times, and flags of a packet.
const OPTION_RESOLUTION: u16 = 9;
const OPTION_FLAGS: u16 = 2;
/// Which way a frame went, as the guest's card sees it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// The file.
struct Log {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    snap_len: u32,
    /// The file took no more; the network goes on without it.
    failed: bool,
}

impl Log {
    fn block(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = 12 + parts.iter().map(|part| part.len()).sum::<usize>();
        self.buffer.extend(kind.to_le_bytes());
        self.buffer.extend((len as u32).to_le_bytes());
        parts.iter().for_each(|part| self.buffer.extend(*part));
        self.buffer.extend((len as u32).to_le_bytes());
    }

    fn begin(&mut self) {
        let unknown_len = u64::MAX.to_le_bytes();
        self.block(SECTION, &[&BYTE_ORDER.to_le_bytes(), &[1, 0, 0, 0], &unknown_len]);
        let resolution = [&OPTION_RESOLUTION.to_le_bytes()[..], &[1, 0, 9, 0, 0, 0]].concat();
        let head = [&ETHERNET.to_le_bytes()[..], &[0, 0], &self.snap_len.to_le_bytes()].concat();
        self.block(INTERFACE, &[&head, &resolution, &[0; 4]]);
    }

    fn packet(&mut self, flags: u32, parts: &[&[u8]]) {
        if self.failed {
            return;
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let kept = len.min(self.snap_len as usize);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let mut head = vec![0; 4];
        head.extend(((time >> 32) as u32).to_le_bytes());
        head.extend((time as u32).to_le_bytes());
        head.extend((kept as u32).to_le_bytes());
        head.extend((len as u32).to_le_bytes());
        let mut all = vec![head.as_slice()];
        let mut left = kept;
        for part in parts {
            let take = part.len().min(left);
            all.extend(part.get(..take));
            left -= take;
        }
        let padding = [0; 3];
        all.extend(padding.get(..kept.next_multiple_of(4) - kept));
        let flags = [&OPTION_FLAGS.to_le_bytes()[..], &[4, 0], &flags.to_le_bytes(), &[0; 4]].concat();
        all.push(&flags);
        self.block(PACKET, &all);
        if self.buffer.len() >= BUFFER_LEN {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() && !self.failed {
            self.failed = self.out.write_all(&self.buffer).is_err();
            self.buffer.clear();
        }
    }
}

/// A backend whose frames are written down.
pub struct Capture {
    inner: Box<dyn Backend>,
    log: Log,
}

impl Capture {
    /// Writes down the frames of `inner`, of each the first `snap_len` bytes. When `out` takes no more, a full disk for one, that ends,
    /// and the network goes on.
    ///
    /// # Errors
    /// `out` does not even take the beginning.
    pub fn new(inner: Box<dyn Backend>, out: Box<dyn Write + Send>, snap_len: u32) -> io::Result<Self> {
        let mut log = Log { out, buffer: Vec::new(), snap_len: snap_len.max(64), failed: false };
        log.begin();
        log.out.write_all(&log.buffer)?;
        log.buffer.clear();
        Ok(Self { inner, log })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.log.flush();
    }
}

impl Backend for Capture {
    fn attach(&mut self, poller: &Poller) -> io::Result<()> {
        self.inner.attach(poller)
    }

    fn offloads(&self) -> Offloads {
        self.inner.offloads()
    }

    fn set_guest_offloads(&mut self, offloads: Offloads) {
        self.inner.set_guest_offloads(offloads);
    }

    fn mtu(&self) -> u16 {
        self.inner.mtu()
    }

    fn link_up(&self) -> bool {
        self.inner.link_up()
    }

    fn event(&mut self, now: Instant, token: u64, ready: Ready) {
        self.inner.event(now, token, ready);
    }

    fn tick(&mut self, now: Instant) -> Option<Instant> {
        self.log.flush();
        self.inner.tick(now)
    }

    fn send(&mut self, now: Instant, frame: &Frame) -> Sent {
        let sent = self.inner.send(now, frame);
        if sent == Sent::Taken {
            self.log.packet(OUTBOUND, &[frame.bytes()]);
        }
        sent
    }

    fn receive(&mut self, now: Instant, sink: Sink<'_>) -> Received {
        let log = &mut self.log;
        let received = self.inner.receive(now, &mut |header: &VnetHeader, parts| {
            let taken = sink(header, parts);
            if taken {
                log.packet(INBOUND, parts);
            }
            taken
        });
        if received == Received::Nothing {
            // Nothing follows at once, so that nobody waits for what is in the buffer.
            self.log.flush();
        }
        received
    }
}

#[cfg(test)]
#[path = "capture_test.rs"]
mod capture_test;
