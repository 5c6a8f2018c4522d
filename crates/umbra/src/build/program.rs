//! Programs of the host that fetch what images are made of: mmdebstrap, pip, curl.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Signal, kill_process_group};

use crate::guest::Interrupt;

/// How often it is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long a program may take to clean up after it was asked to end.
const CLEANING: Duration = Duration::from_secs(20);
/// Of what a program says, the last lines are told where it fails.
const LINES: usize = 6;
/// And so many bytes are looked at.
const LOG_MAX: usize = 64 << 10;

/// Runs a program to its end. What it says goes to the file `log`, whose last line `show` is given while it runs. Its package
/// is `package`.
///
/// # Errors
/// It is not here; it failed, with what it said; the user ended it.
pub fn run(
    command: &mut Command,
    package: &str,
    log: &Path,
    interrupt: &Interrupt,
    mut show: impl FnMut(&str),
) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let both = file.try_clone().context("cannot keep what a program says")?;
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(both).stderr(file);
    // A group of its own: what it has started ends with it, by whatever signal we do.
    command.process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!(
                "this needs the program {name}, which is not here: install it with `sudo apt-get install {package}`"
            )
        }
        Err(e) => return Err(e).with_context(|| format!("cannot run {name}")),
    };
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            break status;
        }
        if let Err(ended) = interrupt.check() {
            end(&mut child);
            return Err(ended);
        }
        if let Some(line) = last_lines(log, 1).pop() {
            show(&line);
        }
        std::thread::sleep(LOOK);
    };
    interrupt.check()?;
    judge(&name, status, log)
}

fn judge(name: &str, status: ExitStatus, log: &Path) -> anyhow::Result<()> {
    if status.success() {
        return Ok(());
    }
    let lines = last_lines(log, LINES);
    bail!("{name} failed ({status}); the last that it said:\n  {}", lines.join("\n  "))
}

/// Asks a program and all that it has started to end, which cleans up by itself, and makes them after a while.
fn end(child: &mut Child) {
    let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) else { return };
    // They may have ended by themselves.
    let _ = kill_process_group(group, Signal::INT);
    let asked = Instant::now();
    while asked.elapsed() < CLEANING {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_MAX)..]).into_owned();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut last: Vec<String> = lines.rev().take(count).map(str::to_owned).collect();
    last.reverse();
    last
}
