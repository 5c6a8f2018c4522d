//! What host and agent say to each other. One connection is one command.
//!
//! Everything is a frame: its kind and the length of what follows, 32 bits each in little-endian order, and so many bytes.
//! The agent begins with [`READY`] and its version. The host answers with [`EXEC`], [`WRITE`] or [`READ`]:
//!
//! - `EXEC`: an [`Exec`] head, then strings that each end with a zero byte: folder, user, then arguments, then variables.
//!   The agent says [`STARTED`] or [`FAILED`]; then [`OUT`] and [`ERR`], and [`EXIT`] at the end. The host says [`IN`], no more than
//!   [`WINDOW`] bytes beyond what [`TAKEN`] told of, and [`END`] when there is no more; [`SIGNAL`]; and [`RESIZE`].
//! - `WRITE`: permissions (32 bits), then two strings: a path, and the name in it where it is a folder. The agent says
//!   `STARTED` or `FAILED`; the host `IN` and `END`; the agent `EXIT` or `FAILED`.
//! - `READ`: a path. The agent says `STARTED` with permissions (32 bits) and size (64 bits), then `OUT`, then `EXIT`, or `FAILED`.
//!
//! This file is part of both programs.

/// The agent's port. Only a guest's administrator may listen at one below 1024.
pub const PORT: u32 = 1018;
/// Version of what is said here.
pub const VERSION: u32 = 1;
/// Bytes of a frame's head.
pub const HEAD: usize = 8;
/// The most that follows a head.
pub const BODY_MAX: usize = 64 << 10;
/// The most that a command waits for before it reads it.
pub const WINDOW: usize = 64 << 10;
/// Arguments and variables together.
pub const STRINGS_MAX: usize = 1000;

/// Agent: it is there; its version.
pub const READY: u32 = 1;
/// Agent: it has begun.
pub const STARTED: u32 = 2;
/// Agent: it has failed: error number, and which step (32 bits each).
pub const FAILED: u32 = 3;
/// Agent: bytes of standard output, or of a file.
pub const OUT: u32 = 4;
/// Agent: bytes of standard error.
pub const ERR: u32 = 5;
/// Agent: it has ended: exit code and signal, or zero (32 bits each).
pub const EXIT: u32 = 6;
/// Agent: so many bytes (32 bits) of its input have been taken.
pub const TAKEN: u32 = 7;

/// Host: run a command.
pub const EXEC: u32 = 16;
/// Host: write a file.
pub const WRITE: u32 = 17;
/// Host: read a file.
pub const READ: u32 = 18;
/// Host: bytes of standard input, or of a file.
pub const IN: u32 = 19;
/// Host: there are no more of these.
pub const END: u32 = 20;
/// Host: send this signal (32 bits).
pub const SIGNAL: u32 = 21;
/// Host: the terminal has rows and columns (16 bits each).
pub const RESIZE: u32 = 22;

/// Steps that may fail.
pub mod step {
    /// What was asked for makes no sense.
    pub const REQUEST: u32 = 1;
    /// There is no such user.
    pub const USER: u32 = 2;
    /// A terminal cannot be had.
    pub const TERMINAL: u32 = 3;
    /// The folder cannot be entered.
    pub const FOLDER: u32 = 4;
    /// The program cannot be run.
    pub const PROGRAM: u32 = 5;
    /// A process cannot be made.
    pub const PROCESS: u32 = 6;
    /// The file cannot be opened.
    pub const OPEN: u32 = 7;
    /// The file cannot be read.
    pub const READ: u32 = 8;
    /// The file cannot be written.
    pub const WRITE: u32 = 9;
    /// It is a folder.
    pub const IS_FOLDER: u32 = 10;
}

/// The head of [`EXEC`]: eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exec {
    /// With a terminal of so many rows and columns; of none if it has no rows.
    pub rows: u16,
    /// See `rows`.
    pub columns: u16,
    /// How many arguments; none means the user's shell.
    pub arguments: u16,
    /// How many variables.
    pub variables: u16,
}

impl Exec {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        let words = [self.rows, self.columns, self.arguments, self.variables].map(u16::to_le_bytes);
        let [[a, b], [c, d], [e, f], [g, h]] = words;
        [a, b, c, d, e, f, g, h]
    }

    /// From bytes.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        let word = u16::from_le_bytes;
        Self { rows: word([a, b]), columns: word([c, d]), arguments: word([e, f]), variables: word([g, h]) }
    }
}

/// Two numbers: failures, ends and the heads of frames are such.
pub fn pair(first: u32, second: u32) -> [u8; 8] {
    (u64::from(second) << 32 | u64::from(first)).to_le_bytes()
}

/// Both numbers of a pair.
pub fn read_pair(bytes: [u8; 8]) -> (u32, u32) {
    let word = u64::from_le_bytes(bytes);
    (word as u32, (word >> 32) as u32)
}

/// A frame's head.
pub fn head(kind: u32, len: usize) -> [u8; HEAD] {
    pair(kind, len as u32)
}

/// Kind and length of a head; `None` if nothing is that long.
pub fn read_head(bytes: [u8; HEAD]) -> Option<(u32, usize)> {
    let (kind, len) = read_pair(bytes);
    let len = len as usize;
    (len <= BODY_MAX).then_some((kind, len))
}
