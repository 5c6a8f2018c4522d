//! One side at work: a started guest, or the host's own agent, that runs rows which lines on its input ask for.
//!
//! Every side runs the same agent (`init/cpu/agent.sh`), and is timed by when its marks arrive here: by the host's
//! clock. The marks carry the side's own clock too.

use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Line, Process};

/// A line of the agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mark {
    /// Rows can be asked for.
    Ready { uptime: f64 },
    /// A row's work begins.
    Begin { row: String, uptime: f64 },
    /// A row's work has ended, with this exit code.
    End { row: String, uptime: f64, code: i32 },
    /// The sum of what it wrote.
    Result { row: String, sum: String },
    /// Words about a failure.
    Says { row: String, text: String },
}

/// Reads a line of the agent; anything else on a console is no mark.
pub(crate) fn parse(text: &str) -> Option<Mark> {
    let (_, rest) = text.split_once("cpu: ")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let uptime = |word: &str| word.parse().ok();
    Some(match words.as_slice() {
        ["ready", "uptime", up] => Mark::Ready { uptime: uptime(up)? },
        ["begin", row, "uptime", up] => Mark::Begin { row: (*row).into(), uptime: uptime(up)? },
        ["end", row, "uptime", up, "code", code] => {
            Mark::End { row: (*row).into(), uptime: uptime(up)?, code: code.parse().ok()? }
        }
        ["result", row, sum] => Mark::Result { row: (*row).into(), sum: (*sum).into() },
        ["says", row, text @ ..] => Mark::Says { row: (*row).into(), text: text.join(" ") },
        _ => return None,
    })
}

/// What running a row gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    /// By the host's clock.
    pub seconds: f64,
    /// By the side's own.
    pub own_seconds: f64,
    /// Processor time that a guest's processes used meanwhile; the host's rows leave no process behind to ask.
    pub cpu_seconds: Option<f64>,
    /// Sum of what was written.
    pub sum: String,
}

/// A started side.
#[derive(Debug)]
pub(super) struct Session {
    process: Process,
    input: ChildStdin,
    /// From the start of the process until rows could be asked for.
    pub ready: Duration,
    /// (host's clock, own clock) at each mark.
    pub ticks: Vec<(f64, f64)>,
}

impl Session {
    /// Starts the side and waits until it takes rows.
    pub(super) fn start(command: &Command, limit: Duration) -> Result<Session> {
        let mut process = Process::start_with_input(command)?;
        let input = process.take_input().context("the process has no input")?;
        let mut seen = Vec::new();
        let is_ready = |text: &str| matches!(parse(text), Some(Mark::Ready { .. }));
        let Some(line) = process.wait_for(limit, &mut seen, is_ready) else {
            bail!("it never took rows; its last lines:{}", last_lines(&seen));
        };
        let mut session = Session { process, input, ready: line.at, ticks: Vec::new() };
        session.note(&line);
        Ok(session)
    }

    /// Has a row run.
    pub(super) fn run(&mut self, row: &str, amount: u64, limit: Duration) -> Result<Run> {
        let limit = self.process.started().elapsed() + limit;
        writeln!(self.input, "run {row} {amount}").context("it takes no rows any more")?;
        let mut seen = Vec::new();
        let mut cpu = [0.0; 3];
        let stages: [fn(&str) -> bool; 3] = [
            |text| matches!(parse(text), Some(Mark::Begin { .. })),
            |text| matches!(parse(text), Some(Mark::End { .. })),
            |text| matches!(parse(text), Some(Mark::Result { .. })),
        ];
        for (stage, cpu) in stages.iter().zip(&mut cpu) {
            if self.process.wait_for(limit, &mut seen, stage).is_none() {
                bail!("it did not end in time; the last lines:{}", last_lines(&seen));
            }
            *cpu = self.process.cpu_seconds();
        }
        for line in &seen {
            self.note(line);
        }
        let run = read_run(row, &seen)?;
        Ok(Run { cpu_seconds: Some(cpu[1] - cpu[0]), ..run })
    }

    /// Remembers the two clocks at a mark.
    fn note(&mut self, line: &Line) {
        if let Some(Mark::Ready { uptime } | Mark::Begin { uptime, .. } | Mark::End { uptime, .. }) =
            parse(&line.text)
        {
            self.ticks.push((line.at.as_secs_f64(), uptime));
        }
    }
}

/// Reads what a row's lines say.
pub(crate) fn read_run(row: &str, lines: &[Line]) -> Result<Run> {
    let (mut begin, mut end, mut result, mut says) = (None, None, None, String::new());
    for line in lines {
        let at = line.at.as_secs_f64();
        match parse(&line.text) {
            Some(Mark::Begin { row: name, uptime }) if name == row => begin = Some((at, uptime)),
            Some(Mark::End { row: name, uptime, code }) if name == row => end = Some((at, uptime, code)),
            Some(Mark::Result { row: name, sum }) if name == row => result = Some(sum),
            Some(Mark::Says { row: name, text }) if name == row => says += &format!("\n  {text}"),
            _ => {}
        }
    }
    let (Some(begin), Some(end), Some(sum)) = (begin, end, result) else {
        bail!("its marks are not complete; its last lines:{}", last_lines(lines));
    };
    if end.2 != 0 {
        bail!("exit code {}{says}", end.2);
    }
    Ok(Run { seconds: end.0 - begin.0, own_seconds: end.1 - begin.1, cpu_seconds: None, sum })
}

fn last_lines(lines: &[Line]) -> String {
    let tail = &lines[lines.len().saturating_sub(12)..];
    tail.iter().map(|line| format!("\n  {:8.2} {}", line.at.as_secs_f64(), line.text)).collect()
}
