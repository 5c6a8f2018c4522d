//! One connection: a Unix socket of the host's on one side, credit and packets on the other.
//!
//! Each side says how much it can hold and how much it has passed on (section 5.10.6.3); neither sends more than fits. What
//! a guest sends beyond that ends its connection. Bytes wait in two places, both bounded: `staged` for the guest, `pending`
//! for the host.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use bitflags::bitflags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, shutdown};
use umbra_net::Ready;

use super::host::{Greeting, greeting};
use super::packet::{Header, Ports, STREAM, Shutdown, op};

/// What we hold of the guest's for a host that does not read: what Linux itself gives a socket.
pub(super) const BUFFER_LEN: u32 = 256 << 10;
/// The guest is told of room when so much of it has come since it was told last.
const TOLD_STEP: u32 = BUFFER_LEN / 4;
/// What is read at once of the host's for the guest.
const STAGED_MAX: usize = 64 << 10;

/// Where in its life a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The host has connected, and has not said where to.
    Greeting,
    /// The guest was asked.
    Asked,
    /// It stands.
    Open,
    /// The guest is done with it; what it sent is still on its way.
    Lingering,
    /// It is over. The flag: the guest is to be told.
    Over(bool),
}

bitflags! {
    /// What is to be told to the guest.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Say: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT = 4;
        const CREDIT_REQUEST = 8;
    }
}

/// What a packet for the guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes of [`Connection::staged`] that go with it.
    pub(super) len: usize,
}

impl Word {
    fn plain(op: u16) -> Self {
        Self { op, flags: 0, len: 0 }
    }
}

/// A connection.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) ports: Ports,
    pub(super) stage: Stage,
    readable: bool,
    writable: bool,
    staged: VecDeque<u8>,
    pending: VecDeque<u8>,
    /// Nothing more comes from the host.
    host_ended: bool,
    /// The host takes nothing more.
    host_deaf: bool,
    /// What the guest will not do any more.
    guest_shut: Shutdown,
    /// What of that the socket knows.
    socket_shut: Shutdown,
    /// What the guest knows of what the host will not do any more.
    told_shut: Shutdown,
    say: Say,
    /// Credit is asked for, and not given yet.
    is_asking: bool,
    /// Bytes for the guest: sent, how many of them it has passed on, and how many it holds.
    sent: u32,
    guest_passed: u32,
    guest_room: u32,
    /// Bytes of the guest's: passed on, and what it knows of that.
    passed: u32,
    told_passed: u32,
}

impl Connection {
    fn new(socket: OwnedFd, ports: Ports, stage: Stage, say: Say) -> Self {
        let none = Shutdown::empty();
        Self {
            socket,
            ports,
            stage,
            readable: true,
            writable: true,
            staged: VecDeque::new(),
            pending: VecDeque::new(),
            host_ended: false,
            host_deaf: false,
            guest_shut: none,
            socket_shut: none,
            told_shut: none,
            say,
            is_asking: false,
            sent: 0,
            guest_passed: 0,
            guest_room: 0,
            passed: 0,
            told_passed: 0,
        }
    }

    /// One that the host has begun.
    pub(super) fn from_host(socket: OwnedFd) -> Self {
        Self::new(socket, Ports { host: 0, guest: 0 }, Stage::Greeting, Say::empty())
    }

    /// One that the guest has asked for by `request`, and gets.
    pub(super) fn from_guest(socket: OwnedFd, ports: Ports, request: &Header) -> Self {
        let mut this = Self::new(socket, ports, Stage::Open, Say::RESPONSE);
        this.take_credit(request);
        this
    }

    /// The guest is to be asked for this one. `host` is its port on our side.
    pub(super) fn ask(&mut self, host: u32, guest: u32) {
        (self.ports, self.stage, self.say) = (Ports { host, guest }, Stage::Asked, Say::REQUEST);
    }

    /// The socket has told something.
    pub(super) fn event(&mut self, ready: Ready) {
        self.readable |= ready.contains(Ready::READ);
        self.writable |= ready.contains(Ready::WRITE);
    }

    /// Reads the first line. The guest's port, when it is there.
    pub(super) fn greeting(&mut self) -> Option<u32> {
        while self.stage == Stage::Greeting && self.readable {
            let is_new = self.read();
            let (line, _) = self.staged.as_slices();
            match greeting(line) {
                Greeting::Port(port, len) => {
                    drop(self.staged.drain(..len));
                    return Some(port);
                }
                Greeting::Unfinished if is_new && !self.host_ended => {}
                Greeting::Unfinished if !self.host_ended => return None,
                Greeting::Unfinished | Greeting::Wrong => self.stage = Stage::Over(false),
            }
        }
        None
    }

    /// Reads what there is, if all that was read before is gone or it is still greeted. Whether something came.
    fn read(&mut self) -> bool {
        let mut bytes = [0; STAGED_MAX];
        let len = if self.stage == Stage::Greeting { 64 } else { STAGED_MAX };
        let (space, _) = bytes.split_at_mut(len);
        match recv(&self.socket, space, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.host_ended = true,
            Ok((n, _)) => {
                self.staged.extend(bytes.iter().take(n));
                self.staged.make_contiguous();
                return true;
            }
            Err(Errno::AGAIN) => self.readable = false,
            Err(Errno::INTR) => {}
            Err(_) => (self.host_ended, self.host_deaf) = (true, true),
        }
        false
    }

    /// Moves what can be moved between the socket and here, and finds out what has ended.
    pub(super) fn work(&mut self) {
        match self.stage {
            Stage::Asked if self.readable => {
                self.readable = false;
                if self.has_hung_up() {
                    // The guest knows of it only if it was asked already.
                    self.stage = Stage::Over(!self.say.contains(Say::REQUEST));
                }
            }
            Stage::Open => {
                self.write();
                self.fill();
                self.pass_shutdown();
                if self.guest_shut == Shutdown::all() && self.pending.is_empty() {
                    self.stage = Stage::Over(true);
                }
            }
            Stage::Lingering => {
                self.write();
                if self.pending.is_empty() {
                    self.stage = Stage::Over(false);
                }
            }
            Stage::Greeting | Stage::Asked | Stage::Over(_) => {}
        }
    }

    /// Reads the host's next bytes when the guest has got those before.
    fn fill(&mut self) {
        if self.guest_shut.contains(Shutdown::RECEIVE) {
            self.staged.clear();
        }
        if self.readable && self.staged.is_empty() && !self.host_ended {
            if self.guest_shut.contains(Shutdown::RECEIVE) {
                self.readable = false;
            } else {
                self.read();
            }
        }
        if self.readable && self.host_ended && !self.host_deaf {
            // A host that has closed does not read either; one that has shut down its own half may.
            self.host_deaf = self.has_hung_up();
            self.readable = false;
        }
        if self.host_deaf {
            self.drop_pending();
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let [fd] = &mut fds;
        let _ = poll(std::slice::from_mut(fd), Some(&now));
        fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Writes to the host what the guest has sent.
    fn write(&mut self) {
        while self.writable && !self.pending.is_empty() && !self.host_deaf {
            let (bytes, _) = self.pending.as_slices();
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    drop(self.pending.drain(..n.min(self.pending.len())));
                    self.pass(n);
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => self.host_deaf = true,
            }
        }
        if self.host_deaf {
            self.drop_pending();
        }
    }

    /// Nobody will read it, so it is as good as passed on.
    fn drop_pending(&mut self) {
        let len = self.pending.len();
        self.pending.clear();
        self.pass(len);
    }

    fn pass(&mut self, len: usize) {
        self.passed = self.passed.wrapping_add(len as u32);
        if self.passed.wrapping_sub(self.told_passed) >= TOLD_STEP {
            self.say |= Say::CREDIT;
        }
    }

    /// Tells the socket what the guest will not do any more.
    fn pass_shutdown(&mut self) {
        let known = self.socket_shut;
        if self.guest_shut.contains(Shutdown::RECEIVE) && !known.contains(Shutdown::RECEIVE) {
            self.socket_shut |= Shutdown::RECEIVE;
            // A host that has gone knows without it.
            let _ = shutdown(&self.socket, rustix::net::Shutdown::Read);
        }
        let sent = self.guest_shut.contains(Shutdown::SEND) && self.pending.is_empty();
        if sent && !known.contains(Shutdown::SEND) {
            self.socket_shut |= Shutdown::SEND;
            let _ = shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
    }
}

impl Connection {
    /// A packet of the guest's for this connection, with its data.
    pub(super) fn take(&mut self, header: &Header, data: &[u8]) {
        self.take_credit(header);
        match (self.stage, header.op.get()) {
            (_, op::RESET) => {
                let waits = matches!(self.stage, Stage::Open) && !self.pending.is_empty();
                self.stage = if waits { Stage::Lingering } else { Stage::Over(false) };
            }
            (Stage::Asked, op::RESPONSE) => self.answer(),
            (Stage::Open, op::DATA) => self.take_data(data),
            (Stage::Open, op::CREDIT_UPDATE) => {}
            (Stage::Open, op::CREDIT_REQUEST) => self.say |= Say::CREDIT,
            (Stage::Open, op::SHUTDOWN) => {
                self.guest_shut |= Shutdown::from_bits_truncate(header.flags.get());
            }
            // What makes no sense now.
            _ => self.stage = Stage::Over(true),
        }
    }

    fn take_credit(&mut self, header: &Header) {
        (self.guest_room, self.guest_passed) = (header.buf_alloc.get(), header.fwd_cnt.get());
        self.is_asking = false;
    }

    /// The guest has taken the connection: the host is told.
    fn answer(&mut self) {
        let line = format!("OK {}\n", self.ports.host);
        let sent = send(&self.socket, line.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        // Nothing was written to it before: a line has room.
        let whole = sent.is_ok_and(|sent| sent == line.len());
        self.stage = if whole { Stage::Open } else { Stage::Over(true) };
        self.readable = true;
    }

    fn take_data(&mut self, data: &[u8]) {
        if self.guest_shut.contains(Shutdown::SEND) || self.pending.len() + data.len() > BUFFER_LEN as usize {
            // It keeps to nothing that was agreed on.
            self.stage = Stage::Over(true);
            return;
        }
        self.pending.extend(data);
        self.write();
    }

    /// How much the guest can take.
    fn credit(&self) -> usize {
        let on_its_way = self.sent.wrapping_sub(self.guest_passed);
        self.guest_room.saturating_sub(on_its_way) as usize
    }

    /// What the guest should know that the host will not do any more.
    fn host_shut(&self) -> Shutdown {
        let mut shut = Shutdown::empty();
        shut.set(Shutdown::SEND, self.host_ended && self.staged.is_empty());
        shut.set(Shutdown::RECEIVE, self.host_deaf);
        shut
    }

    /// What is to be told to the guest next, in a packet with room for `room` bytes of data.
    pub(super) fn word(&self, room: usize) -> Option<Word> {
        if self.say.contains(Say::REQUEST) {
            return Some(Word::plain(op::REQUEST));
        }
        if self.say.contains(Say::RESPONSE) {
            return Some(Word::plain(op::RESPONSE));
        }
        if self.stage != Stage::Open {
            return None;
        }
        let len = self.staged.len().min(self.credit()).min(room);
        if len > 0 && !self.guest_shut.contains(Shutdown::RECEIVE) {
            return Some(Word { op: op::DATA, flags: 0, len });
        }
        let shut = self.host_shut();
        if !self.told_shut.contains(shut) {
            return Some(Word { op: op::SHUTDOWN, flags: (shut | self.told_shut).bits(), len: 0 });
        }
        if self.say.contains(Say::CREDIT) {
            return Some(Word::plain(op::CREDIT_UPDATE));
        }
        let is_stuck = !self.staged.is_empty() && !self.is_asking;
        is_stuck.then_some(Word::plain(op::CREDIT_REQUEST))
    }

    /// The header of a packet that says so. It is sent: the data is to be taken by [`Connection::staged`].
    pub(super) fn header(&mut self, word: Word, cid: u64) -> Header {
        match word.op {
            op::REQUEST => self.say -= Say::REQUEST,
            op::RESPONSE => self.say -= Say::RESPONSE,
            op::SHUTDOWN => self.told_shut |= Shutdown::from_bits_truncate(word.flags),
            op::CREDIT_REQUEST => self.is_asking = true,
            _ => {}
        }
        // Every packet tells of room.
        self.say -= Say::CREDIT;
        self.told_passed = self.passed;
        self.sent = self.sent.wrapping_add(word.len as u32);
        Header {
            src_cid: super::packet::HOST_CID.into(),
            dst_cid: cid.into(),
            src_port: self.ports.host.into(),
            dst_port: self.ports.guest.into(),
            len: (word.len as u32).into(),
            kind: STREAM.into(),
            op: word.op.into(),
            flags: word.flags.into(),
            buf_alloc: BUFFER_LEN.into(),
            fwd_cnt: self.passed.into(),
        }
    }

    /// Hands the next `len` bytes for the guest out, in at most two parts.
    pub(super) fn staged(&mut self, len: usize, mut give: impl FnMut(&[u8])) {
        let (first, second) = self.staged.as_slices();
        let head = len.min(first.len());
        give(first.get(..head).unwrap_or_default());
        give(second.get(..len - head).unwrap_or_default());
        drop(self.staged.drain(..len.min(self.staged.len())));
    }

    /// Whether there may be more to read at once.
    pub(super) fn is_busy(&self) -> bool {
        self.stage == Stage::Open && self.readable && self.staged.is_empty() && !self.host_ended
    }
}
