//! Driving the `umbra` program the way a user does: commands, the console's lines, exit codes.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Scratch};
use crate::guests::Kernel;
use crate::process::{Line, Process};

/// A command to a running machine that takes longer hangs.
const CONTROL_LIMIT: Duration = Duration::from_secs(60);

/// Where the release program is; `UMBRA_PROGRAM` names another.
pub fn program() -> PathBuf {
    std::env::var_os("UMBRA_PROGRAM")
        .map_or_else(|| cache::target_folder().join("release/umbra"), PathBuf::from)
}

/// Whether the program is the one of this tree.
pub fn is_ours() -> bool {
    std::env::var_os("UMBRA_PROGRAM").is_none()
}

/// Builds the release program, unless `UMBRA_PROGRAM` names another, and says where it is.
pub fn build() -> Result<PathBuf> {
    if is_ours() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "-q", "--release", "-p", "umbra"])
            .current_dir(cache::workspace())
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("umbra does not build");
        }
    }
    Ok(program())
}

/// The program with a folder for control sockets of its own, so that runs do not see each other's machines.
#[derive(Debug)]
pub struct Umbra {
    program: PathBuf,
    runtime: Scratch,
    environment: &'static [(&'static str, &'static str)],
}

impl Umbra {
    /// Takes the program that [`build`] made.
    pub fn new() -> Result<Umbra> {
        let program = program();
        if !program.exists() {
            bail!("{} is missing; run `cargo build --release -p umbra`", program.display());
        }
        Ok(Umbra { program, runtime: Scratch::for_sockets()?, environment: &[] })
    }

    /// The same with more in its environment.
    #[must_use]
    pub fn with_environment(self, environment: &'static [(&'static str, &'static str)]) -> Umbra {
        Umbra { environment, ..self }
    }

    /// The program with these arguments.
    pub fn command<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("XDG_RUNTIME_DIR", self.runtime.path());
        command.env("XDG_STATE_HOME", self.runtime.path().join("state"));
        command.envs(self.environment.iter().copied());
        command
    }

    /// Runs a command to its end, which must be a success and come within [`CONTROL_LIMIT`]; gives what it said.
    pub fn control(&self, arguments: &[&str]) -> Result<Vec<Line>> {
        let what = arguments.join(" ");
        let mut process = Process::start(&self.command(arguments))?;
        let mut lines = Vec::new();
        process.wait_for(CONTROL_LIMIT, &mut lines, |_| false);
        match process.finish(CONTROL_LIMIT)? {
            Some(status) if status.success() => Ok(lines),
            Some(status) => bail!("umbra {what}: {status}{}", told(&lines)),
            None => bail!("umbra {what} did not end within {} s", CONTROL_LIMIT.as_secs()),
        }
    }

    /// Boots the test guest of `kernel`; `task` goes on its command line, `arguments` on ours.
    pub fn boot(&self, kernel: &Kernel, task: &str, arguments: &[&str]) -> Result<Guest> {
        self.boot_initrd(kernel, &kernel.initrd, task, arguments)
    }

    /// The same with another initramfs.
    pub fn boot_initrd(
        &self,
        kernel: &Kernel,
        initrd: &Path,
        task: &str,
        arguments: &[&str],
    ) -> Result<Guest> {
        let mut command = self.command(["run", "--kernel"]);
        command.arg(&kernel.image).arg("--initrd").arg(initrd);
        command.args(["--append", &format!("console=ttyS0 quiet panic=-1 {task}")]).args(arguments);
        Guest::start(&command)
    }

    /// Continues a saved machine.
    pub fn restore(&self, file: &Path, arguments: &[&str]) -> Result<Guest> {
        let mut command = self.command(["restore"]);
        command.arg(file).args(arguments);
        Guest::start(&command)
    }
}

/// A running guest and what it said so far.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    /// Every line so far, ours and the guest's.
    pub lines: Vec<Line>,
}

impl Guest {
    /// Starts this command, whose lines are those of a guest.
    pub fn start(command: &Command) -> Result<Guest> {
        Ok(Guest { process: Process::start(command)?, lines: Vec::new() })
    }

    /// Process number of the broker.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until a line contains `text`, for at most `limit` from now.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<Line> {
        let limit = self.process.started().elapsed() + limit;
        let found = self.process.wait_for(limit, &mut self.lines, |line| line.contains(text));
        found.with_context(|| format!("the guest never said `{text}`; its lines:{}", self.told()))
    }

    /// Waits for the end, for at most `limit` from now.
    pub fn finish(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = self.process.started().elapsed() + limit;
        self.process.wait_for(limit, &mut self.lines, |_| false);
        let status = self.process.finish(limit)?;
        status.with_context(|| format!("it did not end; the lines:{}", self.told()))
    }

    /// Waits for the end and demands this exit code.
    pub fn finish_with(&mut self, code: i32, limit: Duration) -> Result<()> {
        let status = self.finish(limit)?;
        if status.code() != Some(code) {
            let signal = status.signal().map(|signal| format!(", signal {signal}")).unwrap_or_default();
            bail!("exit code {:?}{signal} instead of {code}; the lines:{}", status.code(), self.told());
        }
        Ok(())
    }

    /// The last lines, for a message.
    pub fn told(&self) -> String {
        told(&self.lines)
    }
}

fn told(lines: &[Line]) -> String {
    let tail = &lines[lines.len().saturating_sub(30)..];
    tail.iter().map(|line| format!("\n  {:8.2} {}", line.at.as_secs_f64(), line.text)).collect()
}

/// The number of the last `guest: tick N` line.
pub fn last_tick(lines: &[Line]) -> Option<u32> {
    let number =
        |line: &Line| line.text.split("guest: tick ").nth(1)?.split_whitespace().next()?.parse().ok();
    lines.iter().rev().find_map(number)
}
