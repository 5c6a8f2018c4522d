//! Commands to a running machine: clients of its control socket.

use std::io::{self, Write};
use std::path::absolute;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use umbra_server::{Client, ClientError, VmInfo, VmState};

use crate::cli::{AfterSave, ListArgs, Named, SaveArgs, StopArgs};
use crate::paths::{control_socket, runtime_folder, take_name};

/// How long a machine that was told to end may take.
const END_TIME: Duration = Duration::from_secs(20);

/// Ends a machine at once and waits until it is gone, so that its name and files are free.
fn end(name: &str) -> anyhow::Result<()> {
    act(name, "stop")?;
    let begun = Instant::now();
    while take_name(name)?.is_none() {
        if begun.elapsed() > END_TIME {
            bail!("{name} does not end; kill its process (`umbra ls`)");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn act(name: &str, action: &str) -> anyhow::Result<()> {
    let socket = control_socket(name)?;
    explain(Client::new(&socket).act(action), name)
}

fn explain<T>(result: Result<T, ClientError>, name: &str) -> anyhow::Result<T> {
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
/// There is no such machine, or it refuses.
pub fn stop(args: &StopArgs) -> anyhow::Result<()> {
    if args.force { end(&args.name) } else { act(&args.name, "power-button") }
}

/// `umbra ls`.
///
/// # Errors
/// The folder of control sockets cannot be read.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let machines = running()?;
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&machines)?));
    }
    let mut table =
        format!("{:<20} {:<8} {:<6} {:>4} {:>9} {:>8}\n", "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "PID");
    for vm in machines {
        let state = if vm.state == VmState::Running { "running" } else { "paused" };
        let memory = vm.memory >> 20;
        table += &format!(
            "{:<20} {:<8} {:<6} {:>4} {:>5} MiB {:>8}\n",
            vm.name, state, vm.engine, vm.cpus, memory, vm.worker_pid
        );
    }
    print(&table)
}

/// Prints to standard output. A reader that has enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

/// All machines that answer, by name. What a dead one left behind is passed over.
fn running() -> anyhow::Result<Vec<VmInfo>> {
    let folder = runtime_folder()?;
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let sockets =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "sock"));
    let mut machines: Vec<_> = sockets.filter_map(|p| Client::new(&p).info().ok()).collect();
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(machines)
}
