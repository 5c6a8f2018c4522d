//! The user's terminal as the guest's serial line.
//!
//! Raw mode, so that every key reaches the guest; `Ctrl-A` is ours. The terminal is put back on every way out that a process can take: return, panic,
//! signals; and while the process is stopped. Input that is no terminal is passed as it is, without escapes, for scripts.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGTSTP};

/// The terminal's settings before raw mode, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The key that begins a command to us.
const ESCAPE: u8 = 1;

const HELP: &str = "\r\n\
    Ctrl-A h   this help\r\n\
    Ctrl-A x   leave: ends the machine\r\n\
    Ctrl-A Ctrl-A   sends Ctrl-A to the guest\r\n";

const CONSOLE_HELP: &str = "\r\n\
    Ctrl-A h   this help\r\n\
    Ctrl-A x, Ctrl-A d   leave: the machine goes on\r\n\
    Ctrl-A Ctrl-A   sends Ctrl-A to the guest\r\n";

/// Raw mode, until it is dropped.
pub struct Raw(());

impl Raw {
    /// Makes standard input's terminal raw; `None` if it is no terminal.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        *self::before() = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            put_back();
            hook(panic);
        }));
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        put_back();
    }
}

/// Puts the terminal back as it was before raw mode. Idempotent.
pub fn put_back() {
    if let Some(before) = before().take() {
        // A terminal that has gone away cannot be put back.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &before);
    }
}

fn before() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a raw terminal back for whoever uses it while this process is stopped.
fn leave_for_stop() {
    if let Some(before) = &*before() {
        // As above.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, before);
    }
}

/// Makes the terminal raw again after a stop, if it was. A process that goes on in the background leaves it alone; it is told again when it
/// comes to the foreground.
fn return_from_stop() {
    let stdin = io::stdin();
    let is_background = tcgetpgrp(stdin.as_fd()).is_ok_and(|group| group != getpgrp());
    if let (Some(before), false) = (&*before(), is_background) {
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw);
    }
}

/// Carries out a signal by which a terminal's program is stopped and goes on; false if it is another.
pub fn stopped(signal: i32) -> bool {
    match signal {
        SIGTSTP => {
            leave_for_stop();
            // It stops here. If the system refuses, the program just goes on.
            let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
        }
        SIGCONT => return_from_stop(),
        _ => return false,
    }
    true
}

/// What the user wants besides typing.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Leave: what that means is up to whose terminal it is.
    Leave,
}

/// Takes our commands out of what the user types.
pub struct Keys {
    escaped: bool,
    help: &'static str,
    detach: bool,
}

impl Keys {
    /// On the terminal that a machine is started from and ends with.
    pub fn of_machine() -> Self {
        Self { escaped: false, help: HELP, detach: false }
    }

    /// On one that comes and goes.
    pub fn of_visitor() -> Self {
        Self { escaped: false, help: CONSOLE_HELP, detach: true }
    }

    /// Splits typed bytes into what goes to the guest, what to show the user, and a command that ends it.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, &'static str, Option<Command>) {
        let (mut guest, mut show) = (Vec::with_capacity(typed.len()), "");
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, ESCAPE) => self.escaped = true,
                (false, _) | (true, ESCAPE) => guest.push(key),
                (true, b'x') => return (guest, show, Some(Command::Leave)),
                (true, b'd') if self.detach => return (guest, show, Some(Command::Leave)),
                (true, b'h' | b'?') => show = self.help,
                // Any other key after Ctrl-A goes to the guest with it.
                (true, _) => guest.extend([ESCAPE, key]),
            }
        }
        (guest, show, None)
    }
}

/// Tells the user one sentence.
pub fn say(text: &str) {
    // Nobody is left to be told that nobody reads it.
    let _ = writeln!(io::stderr(), "umbra: {text}");
}

/// Passes standard input to the guest until it ends or the user leaves. `keys` are those of a raw terminal.
pub fn pass_input(mut guest: impl Write, mut keys: Option<Keys>) -> Option<Command> {
    let (raw, mut bytes) = (keys.is_some(), [0; 4096]);
    let mut stdin = io::stdin().lock();
    loop {
        let n = match stdin.read(&mut bytes) {
            // A raw terminal has no end of input of its own: it has gone away.
            Ok(0) => return raw.then_some(Command::Leave),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // The terminal has gone away.
            Err(_) => return raw.then_some(Command::Leave),
        };
        let Some(keys) = &mut keys else {
            guest.write_all(&bytes[..n]).ok()?;
            continue;
        };
        let (typed, show, command) = keys.take(&bytes[..n]);
        guest.write_all(&typed).ok()?;
        if !show.is_empty() {
            let mut out = io::stdout().lock();
            out.write_all(show.as_bytes()).and_then(|()| out.flush()).ok()?;
        }
        if command.is_some() {
            return command;
        }
    }
}

#[cfg(test)]
#[path = "terminal_test.rs"]
mod terminal_test;
