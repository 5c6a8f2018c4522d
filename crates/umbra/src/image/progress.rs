//! How far a long operation is: on standard output where it was asked for, in the form that scripts may know, and on a
//! terminal by itself. And the signals that stop it.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use umbra_block::{Cancel, Task};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Nowhere,
    /// Standard output, because it was asked for.
    Output,
    /// The terminal, on which it leaves no trace.
    Terminal,
}

/// How far one operation is.
#[derive(Debug)]
pub struct Progress {
    place: Where,
    cancel: Cancel,
    asked: Arc<AtomicBool>,
    /// The last that was shown, in hundredths of a percent.
    shown: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    /// For an operation of which `-p` and `-q` were or were not given.
    pub fn new(wanted: bool, quiet: bool, signals: &Signals) -> Progress {
        let place = match (quiet, wanted) {
            (true, _) => Where::Nowhere,
            (false, true) => Where::Output,
            (false, false) if std::io::stderr().is_terminal() => Where::Terminal,
            (false, false) => Where::Nowhere,
        };
        Progress {
            place,
            cancel: signals.cancel.clone(),
            asked: signals.asked.clone(),
            shown: AtomicU64::new(u64::MAX),
            last: Mutex::new(None),
        }
    }

    /// Shows that `done` of `total` is done.
    pub fn show(&self, done: u64, total: u64) {
        let asked = self.asked.swap(false, Ordering::Relaxed);
        if self.place == Where::Nowhere && !asked {
            return;
        }
        let share = if total == 0 { 10_000 } else { (u128::from(done) * 10_000 / u128::from(total)) as u64 };
        let Ok(mut last) = self.last.try_lock() else { return };
        let now = Instant::now();
        let too_soon = last.is_some_and(|last| now.duration_since(last) < INTERVAL);
        if !asked && (too_soon && share < 10_000 || self.shown.load(Ordering::Relaxed) == share) {
            return;
        }
        *last = Some(now);
        self.shown.store(share, Ordering::Relaxed);
        let line = format!("    ({}.{:02}/100%)\r", share / 100, share % 100);
        self.write(&line);
    }

    fn write(&self, text: &str) {
        // Nobody is there to read it, or it is shown: either way the operation goes on.
        let _ = match self.place {
            Where::Terminal => std::io::stderr().write_all(text.as_bytes()),
            _ => {
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
        };
    }

    /// Ends the line.
    pub fn finish(&self) {
        match self.place {
            Where::Nowhere => {}
            Where::Output => self.write("\n"),
            Where::Terminal => self.write("                      \r"),
        }
    }

    /// Runs a long operation that tells its progress here and is stopped by signals.
    pub fn run<T>(&self, work: impl FnOnce(&Task<'_>) -> T) -> T {
        let show = |done, total| self.show(done, total);
        self.show(0, 1);
        let result = work(&Task::new(&show, self.cancel.clone()));
        self.finish();
        result
    }
}

/// Signals to this process: the ones that ask it to end, and the one that asks how far it is.
#[derive(Debug)]
pub struct Signals {
    cancel: Cancel,
    asked: Arc<AtomicBool>,
}

impl Signals {
    /// Begins to note them. A second one to end, which comes before the first was heeded, ends the process.
    pub fn watch() -> std::io::Result<Signals> {
        let ended = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, ended.clone())?;
            signal_hook::flag::register(signal, ended.clone())?;
        }
        signal_hook::flag::register(SIGUSR1, asked.clone())?;
        Ok(Signals { cancel: Cancel::from_flag(ended), asked })
    }

    /// What stops an operation.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}
