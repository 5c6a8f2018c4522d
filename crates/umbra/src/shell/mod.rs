//! Commands in a guest: `umbra shell` and `umbra exec`, by the agent that answers on the machine's sockets.

pub mod args;
pub mod copy;

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rustix::termios::tcgetwinsize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use umbra_agent::{Agent, AgentError, Command, Input, Output};

use crate::paths::control_socket;
use crate::terminal::{self, Raw, say};
use crate::vsock;
use args::{ExecArgs, How, ShellArgs};

/// What a shell tells of a program that ended because nobody reads what it says.
const NOBODY_READS: i32 = 128 + 13;

/// `umbra shell`: the code that it ends with is that of the command.
///
/// # Errors
/// There is no such machine, or its guest has no agent.
pub fn shell(args: ShellArgs) -> anyhow::Result<ExitCode> {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    run(&args.name, args.how, args.command, has_terminal, true)
}

/// `umbra exec`.
///
/// # Errors
/// As [`shell`].
pub fn exec(args: ExecArgs) -> anyhow::Result<ExitCode> {
    run(&args.name, args.how, args.command, args.tty, !args.no_input)
}

/// The agent of machine `name`.
fn connect(name: &str, seconds: u64) -> anyhow::Result<Agent> {
    let path = vsock::default_path(name)?;
    Agent::connect(&path, Duration::from_secs(seconds)).map_err(|error| match error {
        AgentError::Unreachable(_) if std::os::unix::net::UnixStream::connect(control_socket(name).unwrap_or_default()).is_err() => {
            anyhow::anyhow!("no machine named `{name}` is running; `umbra ls` lists those that are")
        }
        AgentError::Unreachable(_) => anyhow::anyhow!(
            "{name} has no sockets to its guest; run it with --vsock cid=3, and start Umbra's agent in the guest"
        ),
        AgentError::NoAgent => anyhow::anyhow!(
            "no agent answers in the guest of {name}: it is still starting (see --wait), or has none; Umbra's own guests have one"
        ),
        AgentError::Silent => {
            anyhow::anyhow!("the guest of {name} does not answer; perhaps the machine is paused (`umbra ls`)")
        }
        other => anyhow::Error::new(other).context(name.to_owned()),
    })
}

fn run(
    name: &str,
    how: How,
    arguments: Vec<String>,
    has_terminal: bool,
    has_input: bool,
) -> anyhow::Result<ExitCode> {
    let How { user, workdir, mut env, wait } = how;
    if has_terminal
        && let Some(kind) = std::env::var("TERM").ok().filter(|_| !env.iter().any(|v| v.starts_with("TERM=")))
    {
        env.push(format!("TERM={kind}"));
    }
    let what = arguments.first().cloned().unwrap_or_else(|| "the shell".into());
    let terminal = has_terminal.then(window);
    let command = Command { arguments, variables: env, folder: workdir, user, terminal };
    let running = match command.start(connect(name, wait)?) {
        Ok(running) => running,
        Err(error) => {
            say(&format!("{what}: {error}"));
            return Ok(ExitCode::from(&error));
        }
    };
    let raw = if has_terminal { Raw::enter().context("cannot use the terminal")? } else { None };
    pass_signals(running.input(), has_terminal)?;
    if has_input {
        pass_input(running.input())?;
    } else {
        // A command that has ended already needs no end of its input.
        let _ = running.input().end();
    }
    let ended = running.finish(|output| {
        let written = match output {
            Output::Out(bytes) => write(io::stdout().lock(), bytes),
            Output::Error(bytes) => write(io::stderr().lock(), bytes),
        };
        if written.is_err() {
            // Nobody reads it any more; the agent ends the command when we go.
            terminal::put_back();
            std::process::exit(NOBODY_READS);
        }
    });
    drop(raw);
    match ended {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            say(&format!("{name}: {error}"));
            Ok(ExitCode::from(&error))
        }
    }
}

fn write(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Rows and columns of our terminal.
fn window() -> (u16, u16) {
    let size = tcgetwinsize(io::stdout().as_fd()).or_else(|_| tcgetwinsize(io::stdin().as_fd()));
    size.ok().filter(|size| size.ws_row > 0).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Signals to us are the command's, from now on; and so is the size of our terminal.
fn pass_signals(input: Input, has_terminal: bool) -> anyhow::Result<()> {
    let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];
    let mut signals = signal_hook::iterator::Signals::new(all).context("cannot handle signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            // A command that has ended hears nothing, and we end with it.
            let _ = match signal {
                SIGWINCH if has_terminal => {
                    let (rows, columns) = window();
                    input.resize(rows, columns)
                }
                SIGWINCH => Ok(()),
                signal => input.signal(signal),
            };
        }
    })?;
    Ok(())
}

/// Passes our input until it ends, or the command does.
fn pass_input(input: Input) -> anyhow::Result<()> {
    std::thread::Builder::new().name("input".into()).spawn(move || {
        let mut bytes = [0; 32 << 10];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    let _ = input.end();
                    return;
                }
                Ok(n) => {
                    if input.write(&bytes[..n]).is_err() {
                        return;
                    }
                }
            }
        }
    })?;
    Ok(())
}
