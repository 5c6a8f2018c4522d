//! `umbra console` and `umbra logs`: what a machine shows on its serial line, now and before.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use umbra_server::Client;

use crate::cli::{ConsoleArgs, LogsArgs};
use crate::commands::{explain, is_running, print_bytes};
use crate::log;
use crate::paths::{control_socket, state_path};
use crate::record;
use crate::terminal::{self, Command, Keys, Raw, pass_input, say};

/// How often it is looked whether a log has grown.
const FOLLOW_STEP: Duration = Duration::from_millis(50);
/// How often it is looked whether a machine that is silent still runs.
const ALIVE_STEP: Duration = Duration::from_millis(500);

/// `umbra console`: until the user leaves or the machine ends.
///
/// # Errors
/// There is no such machine, or no room at its console.
pub fn console(args: &ConsoleArgs) -> anyhow::Result<()> {
    let name = args.name.as_str();
    let socket = control_socket(name)?;
    let (stream, shown) = explain(Client::new(&socket).console(), name)?;
    let raw = Raw::enter().context("cannot use the terminal")?;
    if raw.is_some() {
        say(&format!("this is the console of {name}; Ctrl-A x leaves\r"));
    }
    watch_signals(stream.try_clone()?)?;
    let typed = stream.try_clone()?;
    let (keys, read_only) = (raw.as_ref().map(|_| Keys::of_visitor()), args.read_only);
    // It may wait for a key when everything else has ended.
    std::thread::Builder::new().name("input".into()).spawn(move || {
        let left = if read_only { pass_input(io::sink(), keys) } else { pass_input(&typed, keys) };
        if left == Some(Command::Leave) {
            LEFT.store(true, std::sync::atomic::Ordering::SeqCst);
            let _ = typed.shutdown(Shutdown::Both);
        }
    })?;
    show(&stream, &shown);
    let left = LEFT.load(std::sync::atomic::Ordering::SeqCst);
    if raw.is_some() {
        drop(raw);
        println_plain(if left { "" } else { "\n" });
    }
    if !left {
        say(&format!("{name} has ended"));
    }
    Ok(())
}

/// The user has left the console.
static LEFT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn println_plain(text: &str) {
    // Nobody reads it any more.
    let _ = print_bytes(text.as_bytes());
}

/// Passes on what the guest shows until the connection ends, or nobody reads it.
fn show(mut stream: &UnixStream, first: &[u8]) {
    let mut bytes = [0; 4096];
    let mut out = io::stdout().lock();
    let mut put = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush()).is_ok();
    let mut reads = put(first);
    while let (true, Ok(n @ 1..)) = (reads, stream.read(&mut bytes)) {
        reads = put(&bytes[..n]);
    }
}

/// Signals that ask to end are the user's leaving; a stopped process gives the terminal back.
fn watch_signals(stream: UnixStream) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])
        .context("cannot handle signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if !terminal::stopped(signal) {
                LEFT.store(true, std::sync::atomic::Ordering::SeqCst);
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    })?;
    Ok(())
}

/// `umbra logs`.
///
/// # Errors
/// There is no such machine, or it has no log.
pub fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let name = args.name.as_str();
    let folder = state_path(name)?;
    let (all, mut follower) = match log::read(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if is_running(name)? {
                bail!(
                    "{name} was not started with --detach: its terminal has what it shows, and `umbra console {name}` too"
                );
            }
            match record::find(name)? {
                Some(_) => bail!("{name} has no log, because it was not started with --detach"),
                None => {
                    bail!("there is no machine named `{name}`; `umbra ls --all` lists those that there are")
                }
            }
        }
        other => other.with_context(|| format!("cannot read the log in {}", folder.display()))?,
    };
    let shown = args.lines.map_or(all.as_slice(), |lines| last_lines(&all, lines));
    let mut goes_on = print_bytes(shown)? && args.follow;
    let mut looked = Instant::now();
    let mut alive = true;
    while goes_on {
        let mut more = Vec::new();
        follower.more(&mut more).context("cannot read the log")?;
        if !more.is_empty() {
            goes_on = print_bytes(&more)?;
            continue;
        }
        if !alive {
            break;
        }
        std::thread::sleep(FOLLOW_STEP);
        if looked.elapsed() > ALIVE_STEP {
            // What it wrote last is read once more after that.
            alive = is_running(name)?;
            looked = Instant::now();
        }
    }
    Ok(())
}

/// The end of `text` with so many lines; one that is not complete is a line.
fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let begin = ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0);
    text.get(begin..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_whole() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(text, 2), b"two\nthree\n");
        assert_eq!(last_lines(text, 1), b"three\n");
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(b"one\nlogin: ", 1), b"login: ");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
