//! `--detach`: the machine without a terminal.
//!
//! The command starts itself once more, in a session of its own, and waits until that one has a machine which runs, or says why it has not.
//! Between them is a socket, the other one's standard input: the one that has started its machine writes its name into it, and one whose
//! user has gone away before that sees its end and ends as well. Until then it speaks to the user's terminal, and then to nobody.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, getpid, kill_process, setsid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::commands::print;

/// The option of the other one.
pub const OPTION: &str = "--in-background";
/// A name and its line's end are shorter.
const NAME_MAX: u64 = 100;

/// Starts this command line once more, without a terminal; returns when its machine runs, or it has ended.
///
/// # Errors
/// It could not be started. What kept its machine from running it says itself.
pub fn start() -> anyhow::Result<ExitCode> {
    // The subcommand is the first word.
    let mut words: Vec<_> = std::env::args_os().skip(1).collect();
    words.insert(1.min(words.len()), OPTION.into());
    begin(Process::new("/proc/self/exe").args(words))
}

/// Starts an umbra in the background by this command, which has no streams yet.
///
/// # Errors
/// As [`start`].
pub fn begin(process: &mut Process) -> anyhow::Result<ExitCode> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    process.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    let child = process.spawn().context("cannot start the machine's processes")?;
    // Its end of the socket is its alone, so that we see when it closes it.
    process.stdin(Stdio::null());
    let watch = end_on_signals(&child)?;
    let mut name = String::new();
    let told = (&ours).take(NAME_MAX).read_to_string(&mut name);
    watch.close();
    if told.is_ok() && name.ends_with('\n') {
        print(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut child = child;
    let status = child.wait().context("cannot wait for the machine's processes")?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => bail!("the machine was ended before it ran"),
        Some(code) => Ok(ExitCode::from(code)),
        None => bail!("the machine's processes were killed ({status})"),
    }
}

/// Signals to us are for the other one, which ends in order; we wait for it.
fn end_on_signals(child: &Child) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    let (handle, pid) = (signals.handle(), Pid::from_child(child));
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            // It may have ended; its number is not given away before we have waited for it.
            let _ = kill_process(pid, Signal::TERM);
        }
    })?;
    Ok(handle)
}

/// The other one's end: tells who started it that the machine runs.
pub struct Report {
    stream: UnixStream,
    told: Arc<AtomicBool>,
}

impl Report {
    /// Begins a session of its own and watches whether who started it goes away.
    ///
    /// # Errors
    /// Standard input is no such socket, or the system refuses.
    pub fn begin() -> anyhow::Result<Self> {
        setsid().context("cannot begin a session of its own")?;
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().context("no standard input")?);
        let (watched, told) = (stream.try_clone()?, Arc::new(AtomicBool::new(false)));
        let is_told = told.clone();
        std::thread::Builder::new().name("starter".into()).spawn(move || {
            let ended = (&watched).read(&mut [0]);
            if matches!(ended, Ok(0) | Err(_)) && !is_told.load(Ordering::SeqCst) {
                // Whatever we are doing ends as it does by any signal.
                let _ = kill_process(getpid(), Signal::TERM);
            }
        })?;
        Ok(Self { stream, told })
    }

    /// The machine `name` runs. From now on nobody hears us.
    ///
    /// # Errors
    /// Nobody waits for it any more, or the system refuses.
    pub fn ready(&self, name: &str) -> anyhow::Result<()> {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.context("cannot open /dev/null")?;
        self.told.store(true, Ordering::SeqCst);
        (&self.stream).write_all(format!("{name}\n").as_bytes()).context("nobody waits for the machine")?;
        rustix::stdio::dup2_stdin(&null).context("cannot leave the terminal")?;
        rustix::stdio::dup2_stderr(&null).context("cannot leave the terminal")?;
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // No file system is kept busy by a folder that nobody uses any more.
        std::env::set_current_dir("/").context("cannot leave the folder")
    }
}
