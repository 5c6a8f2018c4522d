//! A running program: its streams to the host and from it, its signals and its end. Nothing here waits but in one place, so that a
//! signal reaches a program whose output nobody takes.

use crate::frames::end;
use crate::protocol::{
    BODY_MAX, END, ERR, EXIT, HEAD, IN, OUT, RESIZE, SIGNAL, TAKEN, WINDOW, head, pair, read_head,
};
use crate::sys::{self, EAGAIN, POLLIN, POLLOUT, PollFd, SIGHUP, exit};

/// Read at once of the program's output.
const READ_AT_ONCE: usize = 32 << 10;
/// The host is told when so much of the input has been taken.
const TOLD_STEP: usize = WINDOW / 4;
/// What a program reads as the end of input from a terminal.
const END_OF_INPUT: u8 = 4;

/// Bytes that wait, from `from` on.
struct Buffer<const N: usize> {
    bytes: [u8; N],
    from: usize,
    to: usize,
}

impl<const N: usize> Buffer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], from: 0, to: 0 }
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn taken(&mut self, count: usize) {
        self.from += count;
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Room behind what is there.
    fn room(&mut self) -> &mut [u8] {
        if self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        self.bytes.get_mut(self.to..).unwrap_or_default()
    }

    fn added(&mut self, count: usize) {
        self.to += count;
    }

    /// Adds all of it, or nothing.
    fn add(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.room().get_mut(..bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.added(bytes.len());
        true
    }
}

/// The program and its connection.
pub struct Session {
    fd: i32,
    pid: i32,
    children: i32,
    /// Input, output and error output; -1 is closed. With a terminal the first two are the same.
    streams: [i32; 3],
    has_terminal: bool,
    /// From the host.
    received: Buffer<{ HEAD + BODY_MAX }>,
    /// For the host.
    sending: Buffer<{ HEAD + BODY_MAX }>,
    /// For the program.
    input: Buffer<{ WINDOW + 1 }>,
    input_ends: bool,
    /// Bytes of the host's that it does not know to be taken.
    untold: usize,
    ended: Option<u32>,
}

impl Session {
    pub fn new(fd: i32, pid: i32, children: i32, streams: [i32; 3], has_terminal: bool) -> Self {
        for fd in [fd].into_iter().chain(streams).filter(|fd| *fd >= 0) {
            // A descriptor that is ours can be changed.
            let _ = sys::set_nonblocking(fd);
        }
        Self {
            fd,
            pid,
            children,
            streams,
            has_terminal,
            received: Buffer::new(),
            sending: Buffer::new(),
            input: Buffer::new(),
            input_ends: false,
            untold: 0,
            ended: None,
        }
    }

    /// Until the program has ended and the host knows.
    pub fn run(mut self) -> ! {
        loop {
            let is_free = self.sending.is_empty();
            let when = |condition: bool, events: i16| if condition { events } else { 0 };
            let [input, output, error] = self.streams;
            // With a terminal, input and output are one.
            let wants_input = when(!self.input.is_empty(), POLLOUT);
            let mut fds = [
                (self.fd, POLLIN | when(!is_free, POLLOUT)),
                (if wants_input != 0 { input } else { -1 }, wants_input),
                (if is_free { output } else { -1 }, POLLIN),
                (if is_free { error } else { -1 }, POLLIN),
                (if self.ended.is_none() { self.children } else { -1 }, POLLIN),
            ]
            .map(|(fd, events)| PollFd { fd, events, found: 0 });
            // One that has ended says no more than what is there.
            let timeout = if self.ended.is_some() && is_free { 0 } else { -1 };
            if sys::poll(&mut fds, timeout).is_err() {
                continue;
            }
            let [host, to_program, output, error, children] = fds.map(|fd| fd.found);
            if host & !POLLOUT != 0 {
                self.receive();
            }
            if to_program != 0 {
                self.feed();
            }
            if output != 0 {
                self.collect(1, OUT);
            }
            if error != 0 && self.sending.is_empty() {
                self.collect(2, ERR);
            }
            if children != 0 {
                self.look_at_child();
            } else if let Some(status) = self.ended
                && is_free
                && output | error == 0
            {
                self.finish(status);
            }
            self.send();
            // When what was said before is on its way: nothing else might wake this loop.
            self.tell_of_input();
            self.send();
        }
    }

    /// The host has gone: so does the program.
    fn hang_up(&self) -> ! {
        sys::kill(-self.pid, SIGHUP);
        exit(1);
    }

    fn send(&mut self) {
        while !self.sending.is_empty() {
            match sys::write(self.fd, self.sending.filled()) {
                Ok(n) => self.sending.taken(n),
                Err(EAGAIN) => return,
                Err(_) => self.hang_up(),
            }
        }
    }

    fn receive(&mut self) {
        match sys::read(self.fd, self.received.room()) {
            Ok(0) => self.hang_up(),
            Ok(n) => self.received.added(n),
            Err(EAGAIN) => return,
            Err(_) => self.hang_up(),
        }
        loop {
            let Some((first, rest)) = self.received.filled().split_first_chunk::<HEAD>() else { return };
            let Some((kind, len)) = read_head(*first) else { self.hang_up() };
            let Some(body) = rest.get(..len) else { return };
            match kind {
                IN => {
                    // Beyond what was agreed on there is no room.
                    if self.streams[0] >= 0 && !self.input_ends && !self.input.add(body) {
                        self.hang_up();
                    }
                    self.untold += len;
                }
                END => self.end_input(),
                SIGNAL => {
                    if let Some(number) = body.first() {
                        sys::kill(-self.pid, i32::from(*number));
                    }
                }
                RESIZE => {
                    if let [a, b, c, d] = *body
                        && self.has_terminal
                    {
                        let (rows, columns) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
                        sys::set_window(self.streams[1], rows, columns);
                    }
                }
                _ => self.hang_up(),
            }
            self.received.taken(HEAD + len);
        }
    }

    fn end_input(&mut self) {
        self.input_ends = true;
        if self.has_terminal {
            // A terminal stays open; its reader takes this for the end.
            self.input.add(&[END_OF_INPUT]);
        }
        self.close_input();
    }

    /// Closes the program's input when it has all of it.
    fn close_input(&mut self) {
        if self.input_ends && self.input.is_empty() && !self.has_terminal && self.streams[0] >= 0 {
            sys::close(self.streams[0]);
            self.streams[0] = -1;
        }
    }

    fn feed(&mut self) {
        match sys::write(self.streams[0], self.input.filled()) {
            Ok(n) => self.input.taken(n),
            Err(EAGAIN) => {}
            // Nobody reads it.
            Err(_) => {
                let rest = self.input.filled().len();
                self.input.taken(rest);
                self.input_ends = true;
            }
        }
        self.close_input();
    }

    fn tell_of_input(&mut self) {
        // What was added to end it goes last, and is none of the host's.
        let taken = self.untold.saturating_sub(self.input.filled().len());
        let due = taken >= TOLD_STEP || (taken > 0 && self.input.is_empty());
        if due && self.sending.is_empty() {
            self.say(TAKEN, &(taken as u32).to_le_bytes());
            self.untold -= taken;
        }
    }

    fn say(&mut self, kind: u32, body: &[u8]) {
        // It is called when nothing waits, so there is room.
        let _ = self.sending.add(&head(kind, body.len())) && self.sending.add(body);
    }

    /// Reads what the program says.
    fn collect(&mut self, stream: usize, kind: u32) {
        let mut bytes = [0; READ_AT_ONCE];
        let Some(fd) = self.streams.get_mut(stream) else { return };
        match sys::read(*fd, &mut bytes) {
            Err(EAGAIN) => {}
            Ok(0) | Err(_) => {
                if !self.has_terminal {
                    sys::close(*fd);
                }
                *fd = -1;
            }
            Ok(n) => self.say(kind, bytes.get(..n).unwrap_or_default()),
        }
    }

    fn look_at_child(&mut self) {
        let mut told = [0; 128];
        // What it tells is asked for below.
        let _ = sys::read(self.children, &mut told);
        self.ended = sys::wait(self.pid);
    }

    /// All that the program said is sent: the host is told how it ended.
    fn finish(&mut self, status: u32) -> ! {
        let (code, signal) = (status >> 8 & 0xff, status & 0x7f);
        self.say(EXIT, &pair(code, signal));
        while !self.sending.is_empty() {
            self.send();
            let mut fds = [PollFd { fd: self.fd, events: POLLOUT, found: 0 }];
            let _ = sys::poll(&mut fds, -1);
        }
        // The host closes; until then it may say something that is nobody's.
        let mut fds = [PollFd { fd: self.fd, events: POLLIN, found: 0 }];
        let mut rest = [0; 4096];
        loop {
            let _ = sys::poll(&mut fds, -1);
            match sys::read(self.fd, &mut rest) {
                Ok(1..) | Err(EAGAIN) => {}
                _ => end(self.fd),
            }
        }
    }
}
