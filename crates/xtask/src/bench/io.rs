//! `bench io`: disks, networks and the memory of an idle machine under emulation, beside QEMU's TCG with the same guest.
//!
//! The guest is Debian's kernel with fio and iperf3 from Debian's packages; it has a raw and a qcow2 disk, both full of data, and a
//! virtio network card. Sides take turns, each in a boot of its own; a figure is the median of its rounds.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::vmm::pinned;
use super::{load, median};
use crate::apt::Architecture;
use crate::cache::Scratch;
use crate::guests::{Guests, Kernel, Qemu};
use crate::initramfs::Initramfs;
use crate::process::{Process, family};
use crate::root::Recipe;
use crate::{elf, umbra};

const INIT: &str = include_str!("../init/io.sh");
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];
const RECIPE: Recipe = Recipe {
    name: "io-root",
    number: 1,
    architecture: Architecture::Amd64,
    packages: &["fio", "iperf3"],
    dependencies: true,
    not_needed: &["usr/lib/python3", "usr/lib/python3.11"],
};
/// Where the root's libraries are.
const LIBRARIES: [&str; 3] =
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
const MEMORY_MIB: u64 = 512;
/// Rows of a boot, and how long it takes beside them.
const ROWS: u64 = 6;
const BOOT: Duration = Duration::from_secs(180);
/// Ours over a peer's, at least: by what a figure's name and the peer's contain.
const RATIOS: [(&str, &str, f64); 3] = [("rand", "", 1.5), ("-host", "passt", 1.0), ("-host", "", 2.0)];
/// Memory of ours outside the guest's, at most.
const IDLE_MIB_MAX: f64 = 48.0;
const IDLE: &str = "idle-mib";

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct IoOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Boots of each side
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of each row
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Size of each disk in MiB
    #[arg(long, default_value_t = 512)]
    pub size: u64,
    /// Processors of the guest
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Processors of the host that all is kept on
    #[arg(long, default_value = "0,1")]
    pub pin: String,
    /// Sides to run, by how their names begin; all where none is named
    #[arg(long, value_delimiter = ',')]
    pub sides: Vec<String>,
    /// What the guest does: idle, disk, net
    #[arg(long, value_delimiter = ',', default_values = ["idle", "disk", "net"])]
    pub tasks: Vec<String>,
    /// Print where Umbra's time went
    #[arg(long)]
    pub profile: bool,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct IoReport {
    /// Load averages before and after.
    pub load: [String; 2],
    /// The guest's kernel.
    pub kernel: String,
    /// One entry a figure.
    pub figures: Vec<IoFigure>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// A figure of every side: IOPS, megabits a second, or MiB.
#[derive(Debug, Serialize)]
pub struct IoFigure {
    /// What was measured.
    pub name: String,
    /// Median and all rounds of each side.
    pub sides: Vec<(String, f64, Vec<f64>)>,
}

impl IoFigure {
    fn ours(&self) -> Option<f64> {
        self.sides.iter().find(|side| side.0 == UMBRA).map(|side| side.1)
    }

    /// What is below what it must reach.
    pub(crate) fn broken(&self) -> Vec<String> {
        let Some(ours) = self.ours() else { return Vec::new() };
        if self.name == IDLE {
            let broken = format!("{IDLE}: {ours:.1}, the limit is {IDLE_MIB_MAX}");
            return if ours > IDLE_MIB_MAX { vec![broken] } else { Vec::new() };
        }
        let peers = self.sides.iter().filter(|side| side.0 != UMBRA);
        let short = peers.filter_map(|(peer, theirs, _)| {
            let fits =
                |(figure, side, _): &&(&str, &str, f64)| self.name.contains(figure) && peer.contains(side);
            let (.., least) = RATIOS.iter().find(fits)?;
            (ours < least * theirs)
                .then(|| format!("{}: {:.2} times {peer}'s, it must be {least}", self.name, ours / theirs))
        });
        short.collect()
    }
}

const UMBRA: &str = "umbra";

impl IoReport {
    /// Prints one line a figure.
    pub fn print(&self) {
        println!("load before {}, after {}; kernel {}", self.load[0], self.load[1], self.kernel);
        for figure in &self.figures {
            let ours = figure.ours();
            let mut line = format!("io {:16}", figure.name);
            for (name, value, _) in &figure.sides {
                line += &format!("  {name} {value:.1}");
                if let (Some(ours), true) = (ours, name != UMBRA && *value > 0.0) {
                    line += &format!(" ({:.2} x)", ours / value);
                }
            }
            println!("{line}");
        }
    }

    /// What failed, and what does not reach its ratio.
    pub fn broken(&self) -> Vec<String> {
        self.failures.iter().cloned().chain(self.figures.iter().flat_map(IoFigure::broken)).collect()
    }
}

/// One side.
enum Who<'a> {
    Umbra(PathBuf),
    Qemu(&'a Qemu),
    /// With passt instead of its own network.
    Passt(&'a Qemu),
}

/// Measures everything.
pub fn run(options: &IoOptions) -> Result<IoReport> {
    let guests = Guests::load()?;
    let kernel = &guests.kernel_stable;
    let program = umbra::build()?;
    let bench = Bench::new(options, &guests, kernel)?;
    let mut sides = vec![
        (UMBRA.to_owned(), Who::Umbra(program)),
        (format!("qemu-{}", guests.qemu_stable.version), Who::Qemu(&guests.qemu_stable)),
        (format!("qemu-{}", guests.qemu_backports.version), Who::Qemu(&guests.qemu_backports)),
        (format!("qemu-{}-passt", guests.qemu_backports.version), Who::Passt(&guests.qemu_backports)),
    ];
    sides.retain(|(name, _)| {
        options.sides.is_empty() || options.sides.iter().any(|side| name.starts_with(side.as_str()))
    });
    let before = load();
    let mut figures: BTreeMap<String, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    let mut failures = Vec::new();
    for round in 0..options.rounds {
        for turn in 0..sides.len() {
            let at = (turn + round) % sides.len();
            let (name, who) = &sides[at];
            let taken = bench.boot(who).unwrap_or_else(|error| {
                failures.push(format!("{name}: {error:#}"));
                Vec::new()
            });
            for (figure, value) in taken {
                eprintln!("bench io: {name} {figure} {value:.1}");
                figures.entry(figure).or_default().entry(at).or_default().push(value);
            }
        }
    }
    let figures = figures.into_iter().map(|(name, by_side)| {
        let side = |(at, values): (usize, Vec<f64>)| {
            (sides[at].0.clone(), median(&values).unwrap_or_default(), values)
        };
        IoFigure { name, sides: by_side.into_iter().map(side).collect() }
    });
    let figures = figures.collect();
    Ok(IoReport { load: [before, load()], kernel: kernel.release.clone(), figures, failures })
}

struct Bench<'a> {
    options: &'a IoOptions,
    kernel: &'a Kernel,
    initrd: PathBuf,
    disks: [PathBuf; 2],
    /// Its own iperf3, with its libraries.
    root: PathBuf,
    scratch: Scratch,
    sockets: Scratch,
}

impl<'a> Bench<'a> {
    fn new(options: &'a IoOptions, guests: &Guests, kernel: &'a Kernel) -> Result<Bench<'a>> {
        for task in &options.tasks {
            if !["idle", "disk", "net"].contains(&task.as_str()) {
                bail!("{task} is no task; there are idle, disk and net");
            }
        }
        let root = RECIPE.unpacked(false, |_| Ok(())).context("cannot prepare fio and iperf3")?;
        let scratch = Scratch::new()?;
        let folders = LIBRARIES.map(|folder| root.join(folder));
        let mut image = Initramfs::new();
        image.busybox(&guests.busybox)?;
        image.modules(elf::modules(&kernel.modules, &MODULES)?);
        for program in ["fio", "iperf3"] {
            image.program(&root.join("usr/bin").join(program), program, &folders)?;
        }
        image.file("init", true, INIT);
        let initrd = scratch.path().join("io.cpio");
        std::fs::write(&initrd, image.to_cpio()?)?;
        let disks = disks(scratch.path(), options.size)?;
        Ok(Bench { options, kernel, initrd, disks, root, scratch, sockets: Scratch::for_sockets()? })
    }

    /// Boots one side, and takes its figures.
    fn boot(&self, who: &Who<'_>) -> Result<Vec<(String, f64)>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Command::new(self.root.join("usr/bin/iperf3"));
        server.env("LD_LIBRARY_PATH", std::env::join_paths(LIBRARIES.map(|folder| self.root.join(folder)))?);
        server.args(["-s", "-B", "127.0.0.1", "-p", &port.to_string()]);
        let _server = Process::start(&pinned(&server, &self.options.pin))?;
        let tasks = match who {
            Who::Passt(_) => "net".to_owned(),
            _ => self.options.tasks.join(","),
        };
        let append = format!(
            "console=ttyS0 quiet panic=-1 io.tasks={tasks} io.seconds={} io.port={port}",
            self.options.seconds
        );
        let _passt = match who {
            Who::Passt(_) => Some(self.passt()?),
            _ => None,
        };
        let process = Process::start(&pinned(&self.command(who, &append)?, &self.options.pin))?;
        let limit = BOOT + Duration::from_secs(self.options.seconds * ROWS * 2);
        let mut figures = Vec::new();
        loop {
            let mut seen = Vec::new();
            let Some(line) = process.wait_for(limit, &mut seen, |text| text.contains("io: ")) else {
                let last: String =
                    seen.iter().rev().take(8).rev().map(|line| format!("\n  {}", line.text)).collect();
                bail!("the guest did not end; its last lines:{last}");
            };
            let (_, text) = line.text.split_once("io: ").unwrap_or_default();
            match text.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["idle"] => {
                    std::thread::sleep(Duration::from_secs(1));
                    figures.push((IDLE.to_owned(), outside_mib(process.id())));
                }
                ["figure", name, value] => {
                    let value = value.parse().with_context(|| format!("{name} is {value}"))?;
                    figures.push(((*name).to_owned(), value));
                }
                ["done"] => break,
                _ => bail!("the guest says: {text}"),
            }
        }
        if self.options.profile {
            let mut rest = Vec::new();
            process.wait_for(limit, &mut rest, |_| false);
            rest.iter().for_each(|line| eprintln!("{}", line.text));
        }
        Ok(figures)
    }

    fn passt_socket(&self) -> PathBuf {
        self.sockets.path().join("passt")
    }

    /// This machine's passt, which ends with its guest.
    fn passt(&self) -> Result<Process> {
        let socket = self.passt_socket();
        let _ = std::fs::remove_file(&socket);
        // Where nobody may listen, nor may passt.
        drop(UnixListener::bind(&socket)?);
        std::fs::remove_file(&socket)?;
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--runas", "0:0", "--socket"]).arg(&socket);
        let process = Process::start(&pinned(&command, &self.options.pin)).context("the package passt")?;
        for _ in 0..100 {
            if socket.exists() {
                return Ok(process);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("passt does not listen")
    }

    fn command(&self, who: &Who<'_>, append: &str) -> Result<Command> {
        let (memory, cpus) = (format!("{MEMORY_MIB}M"), self.options.cpus.to_string());
        let [raw, qcow2] = &self.disks;
        let mut command = match who {
            Who::Umbra(program) => {
                let mut command = Command::new(program);
                command.env("XDG_RUNTIME_DIR", self.sockets.path());
                command.args(["run", "--accel", "soft", "--no-reboot", "--net", "user", "--memory", &memory]);
                command.args(["--cpus", &cpus, "--name", &format!("io-{}", std::process::id())]);
                for (disk, format) in [(raw, "raw"), (qcow2, "qcow2")] {
                    command.arg("--disk").arg(format!("{},format={format}", disk.display()));
                }
                if self.options.profile {
                    command.arg("--profile");
                }
                command
            }
            Who::Qemu(qemu) | Who::Passt(qemu) => {
                let mut command = qemu.command()?;
                command.args(["-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
                command.args(["-smp", &cpus, "-m", &memory, "-serial", "stdio"]);
                for (index, (disk, format)) in [(raw, "raw"), (qcow2, "qcow2")].into_iter().enumerate() {
                    let drive = format!("if=none,id=d{index},format={format},file={}", disk.display());
                    command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{index}")]);
                }
                let network = match who {
                    Who::Passt(_) => format!(
                        "stream,id=n0,server=off,addr.type=unix,addr.path={}",
                        self.passt_socket().display()
                    ),
                    _ => "user,id=n0".to_owned(),
                };
                command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="]);
                command
            }
        };
        let dashes = if matches!(who, Who::Umbra(_)) { "--" } else { "-" };
        command.arg(format!("{dashes}kernel")).arg(&self.kernel.image);
        command.arg(format!("{dashes}initrd")).arg(&self.initrd);
        command.args([&format!("{dashes}append"), append]);
        command.current_dir(self.scratch.path());
        Ok(command)
    }
}

/// A raw and a qcow2 image without holes.
fn disks(folder: &Path, mib: u64) -> Result<[PathBuf; 2]> {
    let [raw, qcow2] = ["disk.raw", "disk.qcow2"].map(|name| folder.join(name));
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let mut chunk = Vec::with_capacity(1 << 20);
    while chunk.len() < 1 << 20 {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.extend_from_slice(&word.to_le_bytes());
    }
    let mut file = std::fs::File::create(&raw)?;
    for _ in 0..mib {
        std::io::Write::write_all(&mut file, &chunk)?;
    }
    drop(file);
    let mut command = Command::new(umbra::program());
    command.args(["image", "convert", "-q", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2);
    match command.status().context("cannot run umbra")?.success() {
        true => Ok([raw, qcow2]),
        false => bail!("the qcow2 image cannot be made"),
    }
}

/// What a monitor's processes hold outside the guest's memory, in proportion of sharing: outside memfds, and outside mappings that
/// are as large as the guest's memory.
fn outside_mib(process: u32) -> f64 {
    let texts = family(process)
        .into_iter()
        .filter_map(|id| std::fs::read_to_string(format!("/proc/{id}/smaps")).ok());
    let kib: u64 = texts.map(|text| outside_kib(&text, MEMORY_MIB << 10)).sum();
    kib as f64 / 1024.0
}

/// The same of one process, from its `smaps`.
pub(crate) fn outside_kib(smaps: &str, guest_kib: u64) -> u64 {
    let (mut outside, mut sum) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let number =
            || line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        match first {
            "Size:" if number() == guest_kib => outside = false,
            "Pss:" if outside => sum += number(),
            range if range.contains('-') && !range.ends_with(':') => {
                outside = !line.split_whitespace().nth(5).is_some_and(|name| name.starts_with("/memfd:"));
            }
            _ => {}
        }
    }
    sum
}
