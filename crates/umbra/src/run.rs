//! `umbra run` and `umbra restore`: from the command line to a job for the broker.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use umbra_machine::MachineSpec;

use crate::accel::{self, Choice};
use crate::broker::{self, Job};
use crate::cli::{Common, RestoreArgs, RunArgs};
use crate::events::Events;
use crate::guest;
use crate::protocol::Start;
use crate::terminal;

/// Runs `umbra run`.
///
/// # Errors
/// It could not be started.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.clone().unwrap_or_else(|| format!("vm-{}", std::process::id()));
    let mut spec = MachineSpec::new(name.clone(), args.cpus, args.memory);
    (spec.cpu_model, spec.entry) = (args.cpu_model, args.boot_protocol);
    spec.cmdline = args.append.clone().unwrap_or_default();
    // Before anything is fetched.
    spec.check()?;
    let (kernel, initrd, append) = match &args.kernel {
        Some(kernel) => (
            open(kernel, "kernel")?,
            args.initrd.as_deref().map(|i| open(i, "initrd")).transpose()?,
            guest::CONSOLE,
        ),
        None => {
            let guest = guest::default_guest(args.common.quiet)?;
            (open(&guest.kernel, "kernel")?, Some(open(&guest.initrd, "initrd")?), guest::CMDLINE)
        }
    };
    spec.cmdline = args.append.unwrap_or_else(|| append.into());
    let start = Start { spec: Some(spec), kernel: true, initrd: initrd.is_some(), ..empty(&args.common) };
    let files = [Some(kernel), initrd];
    start_job(name, start, files.into_iter().flatten().collect(), &args.common)
}

/// Runs `umbra restore`.
///
/// # Errors
/// It could not be started.
pub fn restore(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let saved = File::open(&args.file)
        .with_context(|| format!("cannot read the saved machine {}", args.file.display()))?;
    let name = match args.name {
        Some(name) => name,
        None => saved_name(&args.file)?,
    };
    let kernel = args.kernel.as_deref().map(|k| open(k, "kernel")).transpose()?;
    let initrd = args.initrd.as_deref().map(|i| open(i, "initrd")).transpose()?;
    let start =
        Start { kernel: kernel.is_some(), initrd: initrd.is_some(), saved: true, ..empty(&args.common) };
    let files = [kernel, initrd, Some(saved.into())];
    start_job(name, start, files.into_iter().flatten().collect(), &args.common)
}

fn empty(common: &Common) -> Start {
    let Common { no_reboot, paused, stats, profile, .. } = *common;
    let (kvm, kernel, initrd, saved) = (false, false, false, false);
    Start { spec: None, kvm, kernel, initrd, saved, no_reboot, paused, stats, profile }
}

fn start_job(
    name: String,
    mut start: Start,
    files: Vec<OwnedFd>,
    common: &Common,
) -> anyhow::Result<ExitCode> {
    let Choice { kvm, why } = accel::choose(common.accel)?;
    start.kvm = kvm.is_some();
    if start.kvm && start.profile {
        bail!(
            "--profile tells where the software engine's time goes, and this would run on KVM; give --accel soft"
        );
    }
    let engine = if start.kvm { "kvm" } else { "soft" };
    if !common.quiet {
        terminal::say(&format!("{name} runs on the {engine} engine: {why}"));
    }
    let events = Events::open(common.events.as_deref())?;
    let descriptors = kvm.into_iter().chain(files).collect();
    broker::run(Job { name, start, descriptors, engine, events })
}

fn open(path: &Path, what: &str) -> anyhow::Result<OwnedFd> {
    let file = File::open(path).with_context(|| format!("cannot read the {what} {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("cannot read the {what} {}", path.display()))?;
    if !meta.is_file() {
        bail!("the {what} {} is not a file", path.display());
    }
    Ok(file.into())
}

/// The name in a saved machine's specification.
fn saved_name(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = umbra_machine::saved_spec(std::io::BufReader::new(file))
        .with_context(|| format!("cannot restore {}", path.display()))?;
    let spec: MachineSpec =
        serde_json::from_slice(&json).with_context(|| format!("cannot restore {}", path.display()))?;
    crate::cli::parse_name(&spec.name).map_err(anyhow::Error::msg)
}
