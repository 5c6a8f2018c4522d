//! What the user sees while the guest is made: a live line on a terminal, plain lines in a log.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the live line changes.
const LIVE_INTERVAL: Duration = Duration::from_millis(200);
/// A log gets a line at each such part of the whole, in percent.
const LOG_STEP: u64 = 25;

enum Kind {
    Silent,
    Live { next: Instant, shown: bool },
    Log { next_percent: u64 },
}

/// Tells the user how far it is, on standard error.
pub struct Progress {
    kind: Kind,
}

impl Progress {
    /// Silent if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let kind = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Kind::Silent,
            (false, true) => Kind::Live { next: Instant::now(), shown: false },
            (false, false) => Kind::Log { next_percent: 0 },
        };
        Self { kind }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        self.end();
        if !matches!(self.kind, Kind::Silent) {
            write(&format!("umbra: {text}\n"));
        }
    }

    /// `done` of `total` bytes of `what` are here.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        let text = line(what, done, total);
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Live { next, shown } => {
                let now = Instant::now();
                if now >= *next || done >= total {
                    (*next, *shown) = (now + LIVE_INTERVAL, true);
                    // To the line's start, and clear what is there.
                    write(&format!("\r\x1b[K{text}"));
                }
            }
            Kind::Log { next_percent } => {
                let now = percent(done, total);
                if now >= *next_percent {
                    *next_percent = (now / LOG_STEP + 1) * LOG_STEP;
                    write(&format!("{text}\n"));
                }
            }
        }
    }

    /// Ends the live line, if there is one.
    pub fn end(&mut self) {
        if let Kind::Live { shown, .. } = &mut self.kind
            && std::mem::take(shown)
        {
            write("\n");
        }
    }
}

fn write(text: &str) {
    // Nobody is harmed if nobody reads it.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn percent(done: u64, total: u64) -> u64 {
    done.min(total).saturating_mul(100).checked_div(total).unwrap_or(100)
}

pub(super) fn line(what: &str, done: u64, total: u64) -> String {
    let done = done.min(total);
    format!("umbra: {what}: {} of {} ({} %)", megabytes(done), megabytes(total), percent(done, total))
}

/// A size as apt and people write it: millions of bytes.
pub fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
