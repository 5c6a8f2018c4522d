//! A child process whose output is read line by line with the time of each, and which never outlives us.
//!
//! Three ways lead out, and the child is gone on each: the value is dropped, the time limit strikes, or this process
//! dies (the child asks the kernel to be killed then, through `setpriv --pdeathsig`, since it cannot ask itself
//! without unsafe code of ours).

use std::io::Read;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A line longer than this is given out in pieces.
const LINE_LENGTH_MAX: usize = 64 * 1024;

/// The unit of processor time in `/proc`: `USER_HZ`, which is 100 on x86-64.
const TICKS_A_SECOND: f64 = 100.0;

/// A line of output, and how long after the start of the process it was complete.
#[derive(Debug, Clone)]
pub struct Line {
    /// Time since the process was started.
    pub at: Duration,
    /// The text without its line end.
    pub text: String,
}

/// What comes next from a process.
#[derive(Debug)]
pub enum Next {
    /// A line.
    Line(Line),
    /// Output has ended.
    Ended,
    /// The time limit has passed.
    Late,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    lines: Receiver<Line>,
}

impl Process {
    /// Starts `command` with its standard output and error joined into one stream of lines.
    ///
    /// Standard input is empty; see [`Process::start_with_input`] for the other case. Call it from a thread that lives as
    /// long as the process shall: the kernel counts the thread's end as its parent's.
    pub fn start(command: &Command) -> Result<Process> {
        Self::spawn(command, Stdio::null(), b'\n')
    }

    /// The same, with what `separator` ends in place of lines: for output that never ends a line.
    pub fn start_split(command: &Command, separator: u8) -> Result<Process> {
        Self::spawn(command, Stdio::null(), separator)
    }

    /// The same with a pipe for standard input, which [`Process::take_input`] hands out.
    pub fn start_with_input(command: &Command) -> Result<Process> {
        Self::spawn(command, Stdio::piped(), b'\n')
    }

    fn spawn(command: &Command, input: Stdio, separator: u8) -> Result<Process> {
        let what = || format!("cannot start {}", command.get_program().to_string_lossy());
        let (reader, writer) = std::io::pipe().with_context(what)?;
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => tied.env(name, value),
                None => tied.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            tied.current_dir(folder);
        }
        let (sender, lines) = channel();
        let started = Instant::now();
        let child = tied
            .stdin(input)
            .stdout(writer.try_clone().with_context(what)?)
            .stderr(writer)
            .spawn()
            .with_context(what)?;
        // `tied` holds our copies of the pipe's writing end; output ends only when they are closed.
        drop(tied);
        std::thread::spawn(move || read_lines(reader, separator, started, &sender));
        Ok(Process { child, started, lines })
    }

    /// The writing end of standard input, once.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it and its living descendants have used so far.
    pub fn cpu_seconds(&self) -> f64 {
        family(self.id()).into_iter().filter_map(cpu_ticks).sum::<u64>() as f64 / TICKS_A_SECOND
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits for the next line until `limit` after the start.
    pub fn next(&self, limit: Duration) -> Next {
        let left = limit.saturating_sub(self.started.elapsed());
        match self.lines.recv_timeout(left) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Timeout) => Next::Late,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// Reads lines until one satisfies `wanted`; all lines read are pushed to `seen`.
    pub fn wait_for(
        &self,
        limit: Duration,
        seen: &mut Vec<Line>,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Option<Line> {
        while let Next::Line(line) = self.next(limit) {
            seen.push(line.clone());
            if wanted(&line.text) {
                return Some(line);
            }
        }
        None
    }

    /// Waits until the process has ended by itself, at most until `limit` after its start; then kills it.
    pub fn finish(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        while self.started.elapsed() < limit {
            if let Some(status) = self.child.try_wait().context("cannot wait for the process")? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        Ok(None)
    }

    /// Ends the process now.
    pub fn kill(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The process and those below it.
pub(crate) fn family(id: u32) -> Vec<u32> {
    let mut all = vec![id];
    for entry in std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(entry.path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(family));
    }
    all
}

/// User and system time from `/proc/ID/stat`: fields 14 and 15, counted behind the name in parentheses.
fn cpu_ticks(id: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn read_lines(mut reader: impl Read, separator: u8, started: Instant, lines: &Sender<Line>) {
    let mut chunk = [0; 4096];
    let mut pending = Vec::new();
    let send = |bytes: &[u8], at: Duration| {
        let text = String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned();
        lines.send(Line { at, text }).is_ok()
    };
    while let Ok(count @ 1..) = reader.read(&mut chunk) {
        let at = started.elapsed();
        pending.extend_from_slice(&chunk[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == separator) {
            let rest = pending.split_off(end + 1);
            let sent = send(&pending[..end], at);
            pending = rest;
            if !sent {
                return;
            }
        }
        if pending.len() > LINE_LENGTH_MAX {
            send(&pending, at);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        send(&pending, started.elapsed());
    }
}
