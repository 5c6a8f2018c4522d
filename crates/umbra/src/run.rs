//! `umbra run` and `umbra restore`: from the command line to a job for the broker.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use umbra_machine::{DiskSpec, MachineSpec, NetworkSpec};
use umbra_server::Port;

use crate::accel::{self, Choice};
use crate::broker::{self, Job};
use crate::build::{self, machine};
use crate::cli::{Common, RestoreArgs, RunArgs};
use crate::detach::{self, Report};
use crate::disk::DiskOption;
use crate::events::Events;
use crate::guest;
use crate::net::open::{Prepared, networks_of, prepare};
use crate::net::{NetOption, UserOption, mac_of};
use crate::protocol::{DiskFile, Start};
use crate::{terminal, vsock};

/// Runs `umbra run`.
///
/// # Errors
/// It could not be started.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    // While somebody can still see how far it is.
    let image =
        args.image.as_deref().map(|name| build::find_or_build(name, args.common.quiet)).transpose()?;
    if args.common.detach && !args.common.in_background {
        return detach::start();
    }
    let report = args.common.in_background.then(Report::begin).transpose()?;
    let name = args.name.clone().unwrap_or_else(|| format!("vm-{}", std::process::id()));
    let mut spec = MachineSpec::new(name.clone(), args.cpus, args.memory);
    (spec.cpu_model, spec.entry) = (args.cpu_model, args.boot_protocol);
    spec.cmdline = args.append.clone().unwrap_or_default();
    (spec.disks, spec.rng) = (args.disks.iter().map(disk_spec).collect(), args.rng || image.is_some());
    let wants_network = !args.cable.publish.is_empty() || args.cable.pcap.is_some();
    let users = networks_of(&args.nets, wants_network)?;
    spec.networks = cards(&users, &spec)?;
    let vsock;
    (spec.vsock, vsock) = vsock::of_new(args.vsock.as_ref(), args.kernel.is_none(), &name)?;
    // Before anything is fetched.
    spec.check()?;
    // A disk without a name is there as long as this is.
    let boot = image.map(|image| machine::prepare(&image, &wishes(&args, &name))).transpose()?;
    let (kernel, initrd, append) = match (&boot, &args.kernel) {
        (Some(boot), _) => {
            let initrd = boot.initrd.try_clone().context("cannot keep the initramfs")?;
            (open(&boot.kernel, "kernel")?, Some(initrd), boot.cmdline.as_str())
        }
        (None, Some(kernel)) => (
            open(kernel, "kernel")?,
            args.initrd.as_deref().map(|i| open(i, "initrd")).transpose()?,
            guest::CONSOLE,
        ),
        (None, None) => {
            let guest = guest::default_guest(args.common.quiet)?;
            (open(&guest.kernel, "kernel")?, Some(open(&guest.initrd, "initrd")?), guest::CMDLINE)
        }
    };
    spec.cmdline = args.append.unwrap_or_else(|| append.into());
    let mut disks = files_of(args.disks);
    if let Some(boot) = &boot {
        disks.insert(0, boot.disk.clone());
        spec.disks
            .insert(0, DiskSpec { file: boot.disk.name.clone(), serial: String::new(), read_only: false });
    }
    let initrd_follows = initrd.is_some();
    let Prepared { networks, descriptors, ports } = prepare(&users, &args.cable, &name)?;
    let start = Start {
        spec: Some(spec),
        kernel: true,
        initrd: initrd_follows,
        disks,
        networks,
        ..empty(&args.common)
    };
    let files = [Some(kernel), initrd].into_iter().flatten().chain(descriptors);
    start_job(name, start, Host { files: files.collect(), vsock, ports, report }, &args.common)
}

/// What the user says of the machine of an image.
fn wishes<'a>(args: &'a RunArgs, name: &'a str) -> machine::Wishes<'a> {
    machine::Wishes {
        name,
        keep: args.name.is_some(),
        disk_size: args.wishes.disk_size,
        hostname: args.wishes.hostname.as_deref(),
        keys: &args.wishes.ssh_keys,
    }
}

/// Runs `umbra restore`.
///
/// # Errors
/// It could not be started.
pub fn restore(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    if args.common.detach && !args.common.in_background {
        return detach::start();
    }
    let report = args.common.in_background.then(Report::begin).transpose()?;
    let saved = File::open(&args.file)
        .with_context(|| format!("cannot read the saved machine {}", args.file.display()))?;
    let spec = saved_spec(&args.file)?;
    let disks = saved_disks(&spec, args.disks)?;
    let name = match args.name {
        Some(name) => name,
        None => crate::cli::parse_name(&spec.name).map_err(anyhow::Error::msg)?,
    };
    let kernel = args.kernel.as_deref().map(|k| open(k, "kernel")).transpose()?;
    let initrd = args.initrd.as_deref().map(|i| open(i, "initrd")).transpose()?;
    let (kernel_follows, initrd_follows) = (kernel.is_some(), initrd.is_some());
    let users = saved_networks(&spec, &args.nets)?;
    let vsock = vsock::of_saved(&spec, args.vsock.as_ref(), &name)?;
    let Prepared { networks, descriptors, ports } = prepare(&users, &args.cable, &name)?;
    let start = Start {
        kernel: kernel_follows,
        initrd: initrd_follows,
        saved: true,
        disks,
        networks,
        ..empty(&args.common)
    };
    let files = [kernel, initrd, Some(saved.into())].into_iter().flatten().chain(descriptors);
    start_job(name, start, Host { files: files.collect(), vsock, ports, report }, &args.common)
}

fn empty(common: &Common) -> Start {
    let Common { no_reboot, paused, stats, profile, .. } = *common;
    let (kvm, kernel, initrd, saved, vsock) = (false, false, false, false, false);
    let (disks, networks) = (Vec::new(), Vec::new());
    let spec = None;
    Start { spec, kvm, kernel, initrd, saved, disks, networks, vsock, no_reboot, paused, stats, profile }
}

/// A card for each network.
fn cards(users: &[UserOption], spec: &MachineSpec) -> anyhow::Result<Vec<NetworkSpec>> {
    let uuid = spec.uuid_bytes()?;
    let mac = |(number, user): (usize, &UserOption)| user.mac.clone().unwrap_or_else(|| mac_of(uuid, number));
    Ok(users.iter().enumerate().map(mac).map(|mac| NetworkSpec { mac }).collect())
}

/// The networks of a saved machine's cards.
fn saved_networks(spec: &MachineSpec, options: &[NetOption]) -> anyhow::Result<Vec<UserOption>> {
    let wanted = spec.networks.len();
    if options.is_empty() {
        return Ok(vec![UserOption::default(); wanted]);
    }
    let users = networks_of(options, false)?;
    if users.len() != wanted {
        bail!(
            "the saved machine has {wanted} network cards, and {} networks were given with --net",
            users.len()
        );
    }
    if users.iter().any(|user| user.mac.is_some()) {
        bail!("the network cards of a saved machine keep their addresses; leave mac= out");
    }
    Ok(users)
}

fn disk_spec(option: &DiskOption) -> DiskSpec {
    let DiskOption { file, serial } = option;
    DiskSpec { file: file.name.clone(), read_only: file.read_only, serial: serial.clone() }
}

fn files_of(options: Vec<DiskOption>) -> Vec<DiskFile> {
    options.into_iter().map(|option| option.file).collect()
}

/// The images for a saved machine's disks. They are opened only where the user names them: what a saved file names might
/// be anything.
fn saved_disks(spec: &MachineSpec, options: Vec<DiskOption>) -> anyhow::Result<Vec<DiskFile>> {
    if options.len() != spec.disks.len() {
        let names: Vec<_> = spec.disks.iter().map(|disk| disk.file.escape_default().to_string()).collect();
        bail!(
            "the saved machine has {} disks ({}), and {} were given; give each with --disk, in this order",
            names.len(),
            names.join(", "),
            options.len()
        );
    }
    let pairs = options.into_iter().zip(&spec.disks);
    let file = |(option, disk): (DiskOption, &DiskSpec)| {
        let DiskOption { file, serial } = option;
        if file.read_only && !disk.read_only || !serial.is_empty() {
            bail!("the disk {} stays as writable as it was saved, and keeps its serial number", file.name);
        }
        Ok(DiskFile { read_only: disk.read_only, ..file })
    };
    pairs.map(file).collect()
}

/// What the host gives to a machine.
struct Host {
    files: Vec<OwnedFd>,
    vsock: Option<PathBuf>,
    ports: Vec<Port>,
    report: Option<Report>,
}

fn start_job(name: String, mut start: Start, host: Host, common: &Common) -> anyhow::Result<ExitCode> {
    let Host { files, vsock, ports, report } = host;
    let Choice { kvm, why } = accel::choose(common.accel)?;
    (start.kvm, start.vsock) = (kvm.is_some(), vsock.is_some());
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
    broker::run(Job { name, start, descriptors, engine, vsock, events, ports, report, remove: common.remove })
}

fn open(path: &Path, what: &str) -> anyhow::Result<OwnedFd> {
    let file = File::open(path).with_context(|| format!("cannot read the {what} {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("cannot read the {what} {}", path.display()))?;
    if !meta.is_file() {
        bail!("the {what} {} is not a file", path.display());
    }
    Ok(file.into())
}

/// A saved machine's specification.
fn saved_spec(path: &Path) -> anyhow::Result<MachineSpec> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = umbra_machine::saved_spec(std::io::BufReader::new(file))
        .with_context(|| format!("cannot restore {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("cannot restore {}", path.display()))
}
