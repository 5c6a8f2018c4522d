//! One proxied connection: TCP towards the guest (RFC 9293), a socket towards the host's network.
//!
//! Between the guest and us nothing is reordered, and little is lost: a guest's own queues may drop. So a gap is answered by
//! an acknowledgement and no more, and what the guest has not acknowledged is sent again from there on. There is no
//! congestion window for the same reason; the guest's receive window is the limit.
//!
//! Nothing is acknowledged to the guest that is not in the socket or in `back`, and nothing is read from the socket that
//! does not fit into `out`: so a slow reader on either side stops the writer on the other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::ring::{Budget, Ring, SEND};
use super::segment::{Flags, Key, Segment};
use crate::wire::Mac;

/// Bytes that were read for the guest and that it has not acknowledged.
const OUT_MAX: usize = 1 << 20;
/// Bytes from the guest that the socket did not take yet: the window.
const BACK_MAX: usize = 1 << 20;
/// Places that our windows are shifted by.
const SCALE: u8 = 5;
/// The largest payload of a frame: an IPv6 packet's, which has the longer header, less one of TCP.
const PAYLOAD_MAX: usize = 65_535 - 40 - 20;
/// Smallest segment that a guest can ask for (RFC 9293, section 3.7.1).
const MSS_MIN: u16 = 536;
/// Until something is sent again. There is no wire; a guest that takes longer was not running.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// The wait doubles so many times.
const DOUBLINGS_MAX: u32 = 7;
/// Times that something is sent again before the guest counts as gone: some minutes.
const RETRIES_MAX: u32 = 15;
/// Acknowledgements of the same byte after which it counts as lost (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;
/// Acknowledgements of a gap that are owed at most: as many as the guest needs to believe in it, and one.
const GAP_ACKS_MAX: u8 = 4;

/// How far two sequence numbers are apart; negative if `a` comes before `b`.
fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest has asked; the host's socket is connecting.
    Connecting,
    /// Our SYN with ACK is to be acknowledged.
    SynReceived,
    /// Our SYN is to be answered.
    SynSent,
    Open,
    /// A RST is to be sent, and that is all.
    Resetting,
}

/// What becomes of a connection after something happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// Both sides have said all.
    Ends,
    /// One side has broken it off.
    Breaks,
}

/// Something to be sent to the guest: a segment, and which bytes of `out` it carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub segment: Segment,
    offset: usize,
    len: usize,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub key: Key,
    /// Whom frames go to.
    pub mac: Mac,
    pub last_used: Instant,
    socket: OwnedFd,
    phase: Phase,
    readable: bool,
    writable: bool,

    /// Our first sequence number.
    initial: u32,
    /// Oldest that is not acknowledged; `out` starts there.
    unacked: u32,
    /// Next to be sent.
    next: u32,
    /// Next that was never sent.
    newest: u32,
    /// What the guest takes from `unacked` on.
    window: u32,
    window_shift: u8,
    mss: u16,
    out: Ring,
    /// The host's side has sent all.
    host_ended: bool,
    /// The guest knows that.
    fin_acked: bool,
    duplicates: u8,
    /// The wait before sending again has doubled so many times.
    doublings: u32,
    /// Sent again so many times without any answer.
    unanswered: u32,
    /// One byte may go beyond a closed window.
    probe: bool,
    resend_at: Option<Instant>,

    /// Next byte that the guest sends.
    expected: u32,
    /// Where the window that the guest knows of ends.
    window_end: u32,
    our_shift: u8,
    back: Ring,
    guest_ended: bool,
    /// The host knows that.
    shut: bool,
    ack_due: bool,
    /// Acknowledgements that tell of a gap, which the guest counts if they carry nothing else (RFC 5681, section 2).
    gap_acks: u8,
}

impl Connection {
    fn new(key: Key, mac: Mac, socket: OwnedFd, initial: u32, mss_max: u16, now: Instant) -> Self {
        Self {
            key,
            mac,
            last_used: now,
            socket,
            phase: Phase::Connecting,
            readable: false,
            writable: false,
            initial,
            unacked: initial,
            next: initial,
            newest: initial,
            window: 0,
            window_shift: 0,
            mss: mss_max,
            out: Ring::new(OUT_MAX),
            host_ended: false,
            fin_acked: false,
            duplicates: 0,
            doublings: 0,
            unanswered: 0,
            probe: false,
            resend_at: None,
            expected: 0,
            window_end: 0,
            our_shift: 0,
            back: Ring::new(BACK_MAX),
            guest_ended: false,
            shut: false,
            ack_due: false,
            gap_acks: 0,
        }
    }

    /// One that the guest asks for by the SYN `segment`; `socket` is connecting.
    pub(super) fn from_guest(
        key: Key,
        mac: Mac,
        socket: OwnedFd,
        segment: &Segment,
        initial: u32,
        mss_max: u16,
        now: Instant,
    ) -> Self {
        let mut this = Self::new(key, mac, socket, initial, mss_max, now);
        this.take_syn(segment);
        this
    }

    /// One that somebody outside has made, and that the guest is asked for.
    pub(super) fn to_guest(
        key: Key,
        mac: Mac,
        socket: OwnedFd,
        initial: u32,
        mss_max: u16,
        now: Instant,
    ) -> Self {
        let mut this = Self::new(key, mac, socket, initial, mss_max, now);
        this.phase = Phase::SynSent;
        this.our_shift = SCALE;
        this.writable = true;
        this.readable = true;
        this
    }

    fn take_syn(&mut self, segment: &Segment) {
        self.expected = segment.seq.wrapping_add(1);
        self.window_end = self.expected;
        self.window = segment.window.into();
        self.mss = segment.mss.unwrap_or(MSS_MIN).max(MSS_MIN).min(self.mss);
        (self.window_shift, self.our_shift) = segment.scale.map_or((0, 0), |shift| (shift, SCALE));
    }

    /// Bytes that may be carried at once: one segment, or many that the guest cuts.
    fn payload_max(&self, can_cut: bool) -> usize {
        let mss = usize::from(self.mss);
        if can_cut { (PAYLOAD_MAX / mss).max(1) * mss } else { mss }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn mss(&self) -> usize {
        self.mss.into()
    }

    /// A frame carries the whole of `plan`.
    pub(super) fn payload(&self, plan: &Plan) -> [&[u8]; 2] {
        let (first, second) = self.out.slices(plan.offset, plan.len);
        [first, second]
    }

    /// Gives back the memory of rings that are empty.
    pub(super) fn shrink(&mut self, budget: &mut Budget) {
        self.out.shrink(budget);
        self.back.shrink(budget);
    }

    /// The connection is over, however it came to that. `abort`: the other side is to be told by a RST.
    pub(super) fn close(mut self, abort: bool, budget: &mut Budget) {
        self.out.clear(budget);
        self.back.clear(budget);
        if abort {
            // If that is refused the other side sees an end instead of a break.
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }

    /// Ends it for the guest by a RST.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Resetting;
    }

    /// The socket has something to tell.
    pub(super) fn event(&mut self, readable: bool, writable: bool, budget: &mut Budget) {
        self.readable |= readable;
        self.writable |= writable;
        if self.phase == Phase::Connecting && (readable || writable) {
            self.finish_connecting();
        }
        if writable && self.phase != Phase::Connecting {
            self.drain_back();
        }
        self.fill(budget);
    }

    /// The outcome of connecting is asked for by looking at the first byte, which needs no call that a jail may refuse.
    fn finish_connecting(&mut self) {
        let mut byte = [0u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut byte, flags) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) if self.writable => self.phase = Phase::SynReceived,
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => {}
            Err(_) => self.reset(),
        }
    }

    /// Reads from the host what there is room for, if less than a frame waits to be sent.
    fn fill(&mut self, budget: &mut Budget) {
        while self.readable && !self.host_ended && self.phase == Phase::Open && self.unsent() < PAYLOAD_MAX {
            match self.out.read_from(&self.socket, budget) {
                None => break,
                Some(Ok(0)) => self.host_ended = true,
                Some(Ok(_)) => {}
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Some(Err(_)) => self.reset(),
            }
        }
    }

    /// Bytes of `out` that are to be sent.
    fn unsent(&self) -> usize {
        self.out.len().saturating_sub(self.next.wrapping_sub(self.unacked) as usize)
    }

    /// Hands bytes from the guest to the socket, and keeps those that it does not take. How many were taken.
    fn deliver(&mut self, bytes: &[u8], budget: &mut Budget) -> usize {
        let mut taken = 0;
        if self.back.is_empty() && self.writable && !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SEND) {
                Ok(written) => taken = written,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => {
                    self.reset();
                    return 0;
                }
            }
            // Less than all is what a full socket takes; it tells when there is room.
            self.writable = taken == bytes.len();
        }
        taken + self.back.push(bytes.get(taken..).unwrap_or_default(), budget)
    }

    fn drain_back(&mut self) {
        while self.writable && !self.back.is_empty() {
            match self.back.write_to(&self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => return self.reset(),
            }
        }
        let opened = distance(self.expected.wrapping_add(self.room()), self.window_end);
        if opened >= (BACK_MAX / 4) as i32 {
            self.ack_due = true;
        }
        self.shut_if_ended();
    }

    fn shut_if_ended(&mut self) {
        if self.guest_ended && self.back.is_empty() && !self.shut {
            self.shut = true;
            // An error here is told by reading, too.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
    }

    /// The window, as far as its field can tell it.
    fn room(&self) -> u32 {
        (self.back.room() as u32).min(u32::from(u16::MAX) << self.our_shift)
    }

    /// A segment of the guest's.
    pub(super) fn input(
        &mut self,
        now: Instant,
        segment: &Segment,
        payload: &[u8],
        budget: &mut Budget,
    ) -> Fate {
        self.last_used = now;
        if segment.flags.contains(Flags::RST) {
            return self.take_reset(segment);
        }
        match self.phase {
            // What the guest says before it has an answer is its SYN again.
            Phase::Connecting | Phase::Resetting => return Fate::Lives,
            Phase::SynSent => {
                self.take_answer(segment);
                self.fill(budget);
                return Fate::Lives;
            }
            Phase::SynReceived | Phase::Open => {}
        }
        if segment.flags.contains(Flags::SYN) {
            if self.phase == Phase::SynReceived && segment.seq.wrapping_add(1) == self.expected {
                self.next = self.initial;
            } else {
                self.ack_due = true;
            }
            return Fate::Lives;
        }
        if !segment.flags.contains(Flags::ACK) || !self.take_ack(segment, payload.is_empty()) {
            return Fate::Lives;
        }
        self.take_payload(segment, payload, budget);
        self.fill(budget);
        if self.finished() { Fate::Ends } else { Fate::Lives }
    }

    /// RFC 5961, section 3: a RST counts if it is exactly where the guest must be.
    fn take_reset(&mut self, segment: &Segment) -> Fate {
        let valid = match self.phase {
            Phase::SynSent => segment.flags.contains(Flags::ACK) && segment.ack == self.next,
            _ => segment.seq == self.expected,
        };
        if valid {
            return Fate::Breaks;
        }
        let offset = distance(segment.seq, self.expected);
        if offset > 0 && offset <= BACK_MAX as i32 && self.phase == Phase::Open {
            self.ack_due = true;
        }
        Fate::Lives
    }

    /// The answer to our SYN.
    fn take_answer(&mut self, segment: &Segment) {
        let wanted = Flags::SYN | Flags::ACK;
        if segment.flags.contains(wanted) && segment.ack == self.initial.wrapping_add(1) {
            self.take_syn(segment);
            self.open();
            self.ack_due = true;
        }
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        self.unacked = self.initial.wrapping_add(1);
        (self.next, self.newest) = (self.unacked, self.unacked);
        (self.doublings, self.unanswered) = (0, 0);
        self.resend_at = None;
    }

    /// Whether the segment is to be looked at further.
    fn take_ack(&mut self, segment: &Segment, empty: bool) -> bool {
        if self.phase == Phase::SynReceived {
            if segment.ack != self.initial.wrapping_add(1) {
                return false;
            }
            self.open();
        }
        if distance(segment.ack, self.newest) > 0 {
            self.ack_due = true;
            return false;
        }
        let window = u32::from(segment.window) << self.window_shift;
        let acked = distance(segment.ack, self.unacked);
        if acked < 0 {
            return true;
        }
        if acked == 0 {
            let waiting = self.next != self.unacked;
            if empty && waiting && window == self.window && !segment.flags.contains(Flags::FIN) {
                self.duplicates = self.duplicates.saturating_add(1);
                if self.duplicates == DUPLICATES {
                    self.next = self.unacked;
                }
            }
        } else {
            let bytes = (acked as usize).min(self.out.len());
            self.out.consume(bytes);
            self.fin_acked |= acked as usize > bytes;
            self.unacked = segment.ack;
            if distance(self.next, self.unacked) < 0 {
                self.next = self.unacked;
            }
            self.duplicates = 0;
            self.doublings = 0;
            self.resend_at = None;
        }
        self.unanswered = 0;
        self.window = window;
        true
    }

    fn take_payload(&mut self, segment: &Segment, payload: &[u8], budget: &mut Budget) {
        let fin = segment.flags.contains(Flags::FIN);
        let skip = distance(self.expected, segment.seq);
        let len = payload.len() + usize::from(fin);
        if len == 0 {
            // A segment before the window asks whether we are there (RFC 9293, section 3.8.4).
            if skip != 0 {
                self.ack_due = true;
            }
            return;
        }
        if skip < 0 {
            self.gap_acks = (self.gap_acks + 1).min(GAP_ACKS_MAX);
            return;
        }
        self.ack_due = true;
        if skip as usize >= len || self.guest_ended {
            return;
        }
        let new = payload.get(skip as usize..).unwrap_or_default();
        let new = new.get(..new.len().min(self.back.room())).unwrap_or_default();
        let taken = self.deliver(new, budget);
        self.expected = self.expected.wrapping_add(taken as u32);
        if fin && self.expected == segment.seq.wrapping_add(payload.len() as u32) {
            self.expected = self.expected.wrapping_add(1);
            self.guest_ended = true;
            self.shut_if_ended();
        }
    }

    /// Both sides have said all, and know it.
    fn finished(&self) -> bool {
        self.phase == Phase::Open && self.fin_acked && self.guest_ended && self.shut && !self.ack_due
    }

    /// What is to be sent to the guest next. Asking changes nothing that [`Connection::sent`] would not.
    pub(super) fn plan(&mut self, can_cut: bool, budget: &mut Budget) -> Option<Plan> {
        self.fill(budget);
        let mss = self.mss;
        let bare = |seq: u32, flags: Flags| {
            let segment = Segment { seq, ack: self.expected, window: 0, flags, mss: None, scale: None };
            Plan { segment, offset: 0, len: 0 }
        };
        match self.phase {
            Phase::Connecting => None,
            Phase::Resetting => Some(bare(self.next, Flags::RST | Flags::ACK)),
            Phase::SynReceived | Phase::SynSent => {
                let answers = self.phase == Phase::SynReceived;
                let flags = if answers { Flags::SYN | Flags::ACK } else { Flags::SYN };
                let mut plan = bare(self.initial, flags);
                plan.segment.mss = Some(mss);
                plan.segment.scale = (self.our_shift != 0).then_some(self.our_shift);
                plan.segment.window = self.room().min(u16::MAX.into()) as u16;
                plan.segment.ack = if answers { self.expected } else { 0 };
                (self.next == self.initial).then_some(plan)
            }
            Phase::Open => {
                let (len, fin) = if self.gap_acks > 0 { (0, false) } else { self.sendable(can_cut) };
                if len == 0 && !fin && !self.ack_due && self.gap_acks == 0 {
                    return None;
                }
                let mut plan = bare(self.next, Flags::ACK);
                plan.offset = self.next.wrapping_sub(self.unacked) as usize;
                plan.len = len;
                plan.segment.window = (self.room() >> self.our_shift) as u16;
                plan.segment.flags.set(Flags::FIN, fin);
                plan.segment.flags.set(Flags::PSH, len > 0 && len == self.unsent());
                Some(plan)
            }
        }
    }

    /// How many bytes may be sent now, and whether the end goes with them.
    fn sendable(&self, can_cut: bool) -> (usize, bool) {
        let in_flight = self.next.wrapping_sub(self.unacked) as usize;
        if in_flight > self.out.len() {
            return (0, false);
        }
        let unsent = self.unsent();
        let window = (self.window as usize).saturating_sub(in_flight);
        let mut len = unsent.min(window).min(self.payload_max(can_cut));
        let whole = len / usize::from(self.mss) * usize::from(self.mss);
        if len < unsent && whole != len {
            // The window, or what a frame holds, ends within a segment: the rest waits, unless nothing else comes.
            len = if whole > 0 || in_flight > 0 { whole } else { len };
        }
        if len == 0 && unsent > 0 && in_flight == 0 && self.probe {
            len = 1;
        }
        (len, self.host_ended && len == unsent && !self.fin_acked)
    }

    /// The guest has got `plan`.
    pub(super) fn sent(&mut self, plan: &Plan, now: Instant) -> Fate {
        let flags = plan.segment.flags;
        if flags.contains(Flags::RST) {
            return Fate::Breaks;
        }
        let marks = flags.intersects(Flags::SYN | Flags::FIN);
        let end = plan.segment.seq.wrapping_add(plan.len as u32 + u32::from(marks));
        if plan.len > 0 {
            self.last_used = now;
        }
        if flags.contains(Flags::ACK) {
            self.ack_due = false;
            self.gap_acks = self.gap_acks.saturating_sub(1);
            let scale = if flags.contains(Flags::SYN) { 0 } else { self.our_shift };
            self.window_end = self.expected.wrapping_add(u32::from(plan.segment.window) << scale);
        }
        if end != plan.segment.seq {
            self.next = end;
            if distance(end, self.newest) > 0 {
                self.newest = end;
            }
            self.probe = false;
        }
        if self.finished() { Fate::Ends } else { Fate::Lives }
    }

    /// When [`Connection::expire`] is to be called: while something is not acknowledged, or waits behind a closed window.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let waiting = match self.phase {
            Phase::Connecting | Phase::Resetting => false,
            Phase::SynReceived | Phase::SynSent => self.next != self.initial,
            Phase::Open => self.next != self.unacked || (self.window == 0 && self.unsent() > 0),
        };
        if !waiting {
            self.resend_at = None;
        } else if self.resend_at.is_none() {
            self.resend_at = Some(now + RETRANSMIT * (1 << self.doublings.min(DOUBLINGS_MAX)));
        }
        self.resend_at
    }

    /// The time to send again has come, if the deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.resend_at.is_none_or(|at| at > now) {
            return;
        }
        self.resend_at = None;
        self.doublings += 1;
        self.unanswered += 1;
        if self.unanswered > RETRIES_MAX {
            return self.reset();
        }
        match self.phase {
            Phase::Open => {
                self.next = self.unacked;
                self.probe = self.window == 0;
            }
            Phase::SynReceived | Phase::SynSent => self.next = self.initial,
            Phase::Connecting | Phase::Resetting => {}
        }
    }
}
