//! Commands to a running machine: clients of its control socket.

use std::io::{self, Write};
use std::path::absolute;
use std::process::{Command as Process, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use umbra_net::user::{Forward, ForwardProtocol};
use umbra_server::{Client, ClientError, PortName, Protocol, VmState};

use crate::cli::{AfterSave, Named, PortCommand, RemoveArgs, SaveArgs, StopArgs};
use crate::net::{Publish, port_of};
use crate::paths::{claim_name, control_socket, state_path, take_name};
use crate::record::{self, Record};
use crate::terminal::say;
use crate::{detach, list};

/// How long to wait before the power button is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long a machine that was told to end may take.
const END_TIME: Duration = Duration::from_secs(20);
/// How often it is looked whether one has ended.
const END_STEP: Duration = Duration::from_millis(10);

/// Ends a machine at once and waits until it is gone, so that its name and files are free.
fn end(name: &str) -> anyhow::Result<()> {
    act(name, "stop")?;
    let begun = Instant::now();
    while is_running(name)? {
        if begun.elapsed() > END_TIME {
            bail!("{name} does not end; kill its process (`umbra ls`)");
        }
        std::thread::sleep(END_STEP);
    }
    Ok(())
}

fn act(name: &str, action: &str) -> anyhow::Result<()> {
    let socket = control_socket(name)?;
    explain(Client::new(&socket).act(action), name)
}

/// What a client's error says to the user.
///
/// # Errors
/// The same.
pub fn explain<T>(result: Result<T, ClientError>, name: &str) -> anyhow::Result<T> {
    result.map_err(|e| match e {
        ClientError::NotRunning(_) => {
            anyhow::anyhow!("no machine named `{name}` is running; `umbra ls` lists those that are")
        }
        e => anyhow::anyhow!("{name}: {e}"),
    })
}

/// `umbra pause`.
///
/// # Errors
/// There is no such machine, or it refuses.
pub fn pause(args: &Named) -> anyhow::Result<()> {
    act(&args.name, "pause")
}

/// `umbra resume`.
///
/// # Errors
/// There is no such machine, or it refuses.
pub fn resume(args: &Named) -> anyhow::Result<()> {
    act(&args.name, "resume")
}

/// `umbra save`.
///
/// # Errors
/// There is no such machine, or it cannot be saved; it goes on then.
pub fn save(args: &SaveArgs) -> anyhow::Result<()> {
    let path =
        absolute(&args.file).with_context(|| format!("cannot use the path {}", args.file.display()))?;
    let socket = control_socket(&args.name)?;
    explain(Client::new(&socket).save(&path), &args.name)?;
    match args.then {
        AfterSave::Stop => end(&args.name),
        AfterSave::Resume => act(&args.name, "resume"),
        AfterSave::Pause => Ok(()),
    }
}

/// `umbra stop`.
///
/// # Errors
/// There is no such machine, or it refuses, or its guest does not shut down in time. Others are ended nevertheless.
pub fn stop(args: &StopArgs) -> anyhow::Result<()> {
    each(&args.names, |name| if args.force { end(name) } else { shut_down(name, args.time) })
}

/// Does the same with several machines, and then says what went wrong with any of them.
fn each(names: &[String], mut what: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let wrong: Vec<_> = names.iter().filter_map(|name| what(name).err()).map(|e| format!("{e:#}")).collect();
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) }
}

/// Presses the power button and waits. A guest that is still starting does not hear it, so it is pressed again now and then.
fn shut_down(name: &str, seconds: u64) -> anyhow::Result<()> {
    let socket = control_socket(name)?;
    let info = explain(Client::new(&socket).info(), name)?;
    if info.state == VmState::Paused {
        bail!(
            "{name} is paused, and a paused guest does not see its power button; `umbra resume {name}` lets it go on, and `umbra stop --force {name}` ends it"
        );
    }
    act(name, "power-button")?;
    let begun = Instant::now();
    let mut pressed = begun;
    while seconds > 0 && is_running(name)? {
        if pressed.elapsed() >= PRESS_AGAIN {
            pressed = Instant::now();
            // It may have ended in this moment.
            let _ = Client::new(&socket).act("power-button");
        }
        if begun.elapsed() >= Duration::from_secs(seconds) {
            bail!(
                "{name} has not shut down within {seconds} s: its guest may not listen to the power button; `umbra stop --force {name}` ends it"
            );
        }
        std::thread::sleep(END_STEP);
    }
    Ok(())
}

/// Whether somebody has the machine's name: it runs, is being started, or about to end.
///
/// # Errors
/// The lock file cannot be made.
pub fn is_running(name: &str) -> anyhow::Result<bool> {
    Ok(take_name(name)?.is_none())
}

/// `umbra wait`.
///
/// # Errors
/// There is no such machine.
pub fn wait(args: &Named) -> anyhow::Result<ExitCode> {
    let name = args.name.as_str();
    let socket = control_socket(name)?;
    match Client::new(&socket).wait() {
        Ok(ended) => {
            // Until its name and its files are free.
            let begun = Instant::now();
            while is_running(name)? && begun.elapsed() < END_TIME {
                std::thread::sleep(END_STEP);
            }
            Ok(ExitCode::from(ended.exit_code))
        }
        Err(ClientError::Refused(why)) => bail!("{name}: {why}"),
        // It has ended, or just did without an answer.
        Err(gone) => match record::find(name)? {
            Some(Record { ended_ms: Some(_), exit_code: Some(code), .. }) => Ok(ExitCode::from(code)),
            Some(Record { ended_ms: Some(_), message, .. }) => {
                say(&format!("{name}: {}", message.unwrap_or_else(|| "it has died".into())));
                Ok(ExitCode::from(5))
            }
            _ => explain(Err(gone), name),
        },
    }
}

/// `umbra start`.
///
/// # Errors
/// There is no such machine, it runs, or it does not start again.
pub fn start(args: &Named) -> anyhow::Result<ExitCode> {
    let name = args.name.as_str();
    let Some(record) = record::find(name)? else {
        bail!("there is no machine named `{name}`; `umbra ls --all` lists those that there are");
    };
    if record.ended_ms.is_none() {
        bail!("{name} runs already");
    }
    let mut words = record.arguments;
    if words.first().is_some_and(|word| word == "restore") {
        // Its disks have gone on since it was saved.
        bail!(
            "{name} was restored from a saved machine, and does not start by itself; `umbra restore` continues what was saved"
        );
    }
    if !words.iter().any(|word| word == detach::OPTION) {
        words.insert(1.min(words.len()), detach::OPTION.into());
    }
    if !words.iter().any(|word| word.starts_with("--name")) {
        // Its name was made for it.
        words.extend(["--name".into(), name.into()]);
    }
    detach::begin(Process::new("/proc/self/exe").args(words).current_dir(&record.folder))
        .with_context(|| format!("cannot start {name} in {}", record.folder.display()))
}

/// `umbra rm`.
///
/// # Errors
/// There is no such machine, it runs, or what it left cannot be removed. Others are removed nevertheless.
pub fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    each(&args.names, |name| {
        let folder = state_path(name)?;
        let mut was_running = false;
        if args.force && is_running(name)? {
            end(name)?;
            was_running = true;
        }
        let Some(_taken) = claim_name(name)? else {
            bail!("{name} runs; end it with `umbra stop {name}`, or give --force");
        };
        match std::fs::remove_dir_all(&folder) {
            // It left nothing, which is what was asked for.
            Err(e) if e.kind() == io::ErrorKind::NotFound && was_running => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!("there is no machine named `{name}`; `umbra ls --all` lists those that there are")
            }
            other => other.with_context(|| format!("cannot remove {}", folder.display())),
        }
    })
}

/// `umbra port`.
///
/// # Errors
/// There is no such machine, the port is taken, or there is none.
pub fn port(command: &PortCommand) -> anyhow::Result<()> {
    let (PortCommand::Add { name, .. } | PortCommand::Remove { name, .. } | PortCommand::Ls { name, .. }) =
        command;
    let socket = control_socket(name)?;
    let client = Client::new(&socket);
    match command {
        PortCommand::Add { port: Publish { protocol, host, guest_port }, .. } => {
            let port =
                port_of(&Forward { protocol: *protocol, host: *host, guest: None, guest_port: *guest_port });
            let opened = explain(client.add_port(&port), name)?;
            print(&format!("{}\n", list::arrow(&opened)))
        }
        PortCommand::Remove { port: (protocol, host), .. } => {
            let protocol = match protocol {
                ForwardProtocol::Tcp => Protocol::Tcp,
                ForwardProtocol::Udp => Protocol::Udp,
            };
            explain(client.remove_port(&PortName { protocol, host: *host }), name)
        }
        PortCommand::Ls { json, .. } => {
            let ports = explain(client.ports(), name)?;
            if *json {
                return print(&format!("{}\n", serde_json::to_string_pretty(&ports)?));
            }
            print(&ports.iter().map(|port| list::arrow(port) + "\n").collect::<String>())
        }
    }
}

/// Prints to standard output. A reader that has enough is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes()).map(drop)
}

/// The same; false if the reader has enough.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.context("cannot write to standard output").map(|()| true),
    }
}
