//! `bench boot`: from the start of the process to the first line of the guest's user space, under emulation; and
//! whether the guest's clock goes as the host's.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::vmm::{GuestSpec, Kind, MICROVM, Vmm, pinned};
use super::{load, median};
use crate::cache::Scratch;
use crate::guests::{Guests, Kernel};
use crate::process::{Line, Process};
use crate::umbra;

/// A boot that takes longer has failed.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// The same for the first boot of a QEMU, which not every machine and kernel get through.
const TRIAL_LIMIT: Duration = Duration::from_secs(30);
/// Seconds that the guest's clock is watched.
const CLOCK_TICKS: u32 = 24;
/// How far the guest's clock may be off.
const CLOCK_ERROR_MAX: f64 = 0.01;
const MARKER: &str = "guest: user space";

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct BootOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Boots of each side
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Kernel, by series; all where none is named
    #[arg(long)]
    pub kernel: Option<String>,
    /// Processors that both sides are kept on
    #[arg(long, default_value = "0,1")]
    pub pin: String,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 512)]
    pub memory: u32,
    /// Leave Umbra out
    #[arg(long)]
    pub qemu_only: bool,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct BootReport {
    /// Load averages before and after.
    pub load: [String; 2],
    /// One entry a kernel and side.
    pub boots: Vec<Boot>,
    /// One entry a kernel and side.
    pub clocks: Vec<Clock>,
}

/// Boot times of one side.
#[derive(Debug, Serialize)]
pub struct Boot {
    /// Release of the kernel.
    pub kernel: String,
    /// The side.
    pub vmm: String,
    /// Seconds of each round.
    pub seconds: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Median of the processor time, in seconds, which load of the machine changes less.
    pub cpu_median: f64,
    /// The median over that of the fastest QEMU with this kernel.
    pub ratio: f64,
}

/// Guest time over host time of one side.
#[derive(Debug, Serialize)]
pub struct Clock {
    /// Release of the kernel.
    pub kernel: String,
    /// The side.
    pub vmm: String,
    /// Seconds of guest time that passed in one second of host time.
    pub rate: f64,
}

impl BootReport {
    /// Whether every clock of ours goes right.
    pub fn clocks_agree(&self) -> bool {
        self.clocks
            .iter()
            .all(|clock| !clock.vmm.starts_with("umbra") || (clock.rate - 1.0).abs() <= CLOCK_ERROR_MAX)
    }

    /// Prints one line a figure.
    pub fn print(&self) {
        println!("load before {}, after {}", self.load[0], self.load[1]);
        for boot in &self.boots {
            println!(
                "boot {:26} {:28} median {:7.3} s, {:6.2} x fastest QEMU, processor {:7.3} s  {:.3?}",
                boot.kernel, boot.vmm, boot.median, boot.ratio, boot.cpu_median, boot.seconds
            );
        }
        for clock in &self.clocks {
            println!("clock {:25} {:28} {:.4} guest seconds a second", clock.kernel, clock.vmm, clock.rate);
        }
    }
}

/// Measures everything.
pub fn run(options: &BootOptions) -> Result<BootReport> {
    let guests = Guests::load()?;
    let scratch = Scratch::new()?;
    let sockets = Scratch::for_sockets()?;
    let before = load();
    let kernels: Vec<&Kernel> = match &options.kernel {
        Some(series) => vec![guests.kernel(series)?],
        None => guests.kernels().to_vec(),
    };
    let program = if options.qemu_only { None } else { Some(umbra::build()?) };
    let mut report = BootReport { load: [before, String::new()], boots: Vec::new(), clocks: Vec::new() };
    for kernel in kernels {
        let mut sides = qemu_sides(&guests, kernel, &scratch)?;
        if let Some(program) = &program {
            let kind = Kind::Umbra { program: program.clone(), accel: "soft" };
            sides.insert(0, Vmm { name: "umbra soft".into(), kernel: kernel.image.clone(), kind });
        }
        measure(options, kernel, &sides, &sockets, &mut report)?;
    }
    report.load[1] = load();
    Ok(report)
}

/// QEMU old and new, as a PC and as a microvm, which boots an unpacked kernel fastest.
fn qemu_sides(guests: &Guests, kernel: &Kernel, scratch: &Scratch) -> Result<Vec<Vmm>> {
    let vmlinux = scratch.path().join(format!("vmlinux-{}", kernel.release));
    super::unpack_kernel(&kernel.image, &vmlinux)?;
    let mut sides = Vec::new();
    for qemu in [&guests.qemu_stable, &guests.qemu_backports] {
        if qemu.version.starts_with("7.") && kernel.series() != "6.1" {
            // Later kernels crash at random in its emulation.
            continue;
        }
        for (machine, label) in [("q35", "q35"), (MICROVM, "microvm")] {
            for (image, form) in [(&kernel.image, "bzImage"), (&vmlinux, "ELF")] {
                sides.push(Vmm {
                    name: format!("qemu {} {label} {form}", qemu.version),
                    kernel: image.clone(),
                    kind: Kind::Qemu { qemu: qemu.clone(), machine },
                });
            }
        }
    }
    Ok(sides)
}

fn measure(
    options: &BootOptions,
    kernel: &Kernel,
    sides: &[Vmm],
    sockets: &Scratch,
    report: &mut BootReport,
) -> Result<()> {
    let guest = |task: &str| GuestSpec {
        initrd: kernel.initrd.clone(),
        append: format!("console=ttyS0 quiet panic=-1 umbra.end=reboot {task}"),
        cpus: 1,
        memory_mib: options.memory,
    };
    let start = |side: &Vmm, spec: &GuestSpec| {
        let command = side.command(spec, sockets.path(), &format!("bench-{}", std::process::id()))?;
        Process::start(&pinned(&command, &options.pin))
    };
    let boot = guest("umbra.task=idle");
    let sides: Vec<&Vmm> =
        sides.iter().filter(|side| side.is_umbra() || boots(side, start(side, &boot))).collect();
    let mut seconds = vec![Vec::new(); sides.len()];
    let mut cpu = vec![Vec::new(); sides.len()];
    for round in 1..=options.rounds {
        for (index, side) in sides.iter().enumerate() {
            let process = start(side, &boot)?;
            let at = first_line(&process, BOOT_LIMIT);
            cpu[index].push(process.cpu_seconds());
            seconds[index].push(at.with_context(|| format!("{} did not boot", side.name))?.as_secs_f64());
        }
        eprintln!("bench boot: {} round {round} of {}", kernel.series(), options.rounds);
    }
    let middle: Vec<f64> = seconds.iter().map(|times| median(times).unwrap_or_default()).collect();
    let peers = sides.iter().zip(&middle).filter(|(side, _)| !side.is_umbra()).map(|(_, middle)| *middle);
    let fastest = peers.fold(f64::INFINITY, f64::min);
    let clock = guest(&format!("umbra.task=clock umbra.ticks={CLOCK_TICKS}"));
    for (((side, seconds), cpu), median) in sides.into_iter().zip(seconds).zip(cpu).zip(middle) {
        let release = || kernel.release.clone();
        let ratio = median / fastest;
        let cpu_median = super::median(&cpu).unwrap_or_default();
        report.boots.push(Boot {
            kernel: release(),
            vmm: side.name.clone(),
            seconds,
            median,
            cpu_median,
            ratio,
        });
        if side.is_umbra() || median <= fastest {
            let rate =
                clock_rate(&start(side, &clock)?).with_context(|| format!("clock of {}", side.name))?;
            report.clocks.push(Clock { kernel: release(), vmm: side.name.clone(), rate });
        }
    }
    Ok(())
}

/// Whether a QEMU gets through its first boot; says so where it does not.
fn boots(side: &Vmm, process: Result<Process>) -> bool {
    let booted = process.and_then(|process| first_line(&process, TRIAL_LIMIT));
    if let Err(error) = &booted {
        eprintln!("bench boot: {} is left out: {error:#}", side.name);
    }
    booted.is_ok()
}

fn first_line(process: &Process, limit: Duration) -> Result<Duration> {
    let mut seen = Vec::new();
    let found = process.wait_for(limit, &mut seen, |text| text.contains(MARKER));
    let Some(line) = found else { bail!("no user space; its last lines: {}", last_lines(&seen)) };
    Ok(line.at)
}

/// Guest seconds a host second, from the first to the last tick of the guest's clock.
fn clock_rate(process: &Process) -> Result<f64> {
    let mut seen = Vec::new();
    let last = format!("guest: clock {CLOCK_TICKS} ");
    if process.wait_for(BOOT_LIMIT, &mut seen, |text| text.contains(&last)).is_none() {
        bail!("the guest stopped telling the time; its last lines: {}", last_lines(&seen));
    }
    rate_of(&seen).context("the guest's lines do not tell the time")
}

/// The rate from lines `guest: clock N uptime SECONDS …` and the times at which they came.
pub fn rate_of(lines: &[Line]) -> Option<f64> {
    let uptime = |line: &Line| -> Option<(f64, f64)> {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        let position = words.iter().position(|word| *word == "uptime")?;
        let guest = words.get(position + 1)?.parse().ok()?;
        line.text.contains("guest: clock").then_some((line.at.as_secs_f64(), guest))
    };
    let ticks: Vec<_> = lines.iter().filter_map(uptime).collect();
    super::clock_rate(&ticks)
}

fn last_lines(lines: &[Line]) -> String {
    lines.iter().rev().take(8).rev().map(|line| format!("\n  {}", line.text)).collect()
}
