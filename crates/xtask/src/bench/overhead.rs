//! `bench overhead`: what a monitor itself costs, up to the first line of its guest's user space: memory outside the
//! guest's, exits, and system calls of the host.
//!
//! Under `soft` on this machine; under KVM in the nested host, beside QEMU's microvm. Exits are counted by the kernel
//! (`/sys/kernel/debug/kvm/exits`), system calls by strace in a run of their own, memory as Pss in `smaps` of all the
//! monitor's processes without the guest's memory. All figures are counts, so load does not change them.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::vmm::{GuestSpec, Kind, Vmm};
use super::{load, median};
use crate::cache::Scratch;
use crate::guests::Guests;
use crate::nest::{NestSpec, Paging};
use crate::process::Process;
use crate::umbra;

const SCRIPT: &str = include_str!("../init/overhead.sh");
/// Time for one boot.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Processors with which memory is measured under emulation, where each has caches of its own.
const SOFT_CPUS: [u32; 2] = [1, 4];
/// Greatest Pss of ours outside the guest's memory, by engine.
const PSS_MIB_MAX: [(&str, f64); 2] = [("kvm", 10.0), ("soft", 40.0)];

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct OverheadOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Boots of each side
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Leave Umbra out
    #[arg(long)]
    pub qemu_only: bool,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct OverheadReport {
    /// Load averages before and after.
    pub load: [String; 2],
    /// One entry an engine and side.
    pub sides: Vec<Overhead>,
}

/// Figures of one side, each the median of its rounds.
#[derive(Debug, Serialize)]
pub struct Overhead {
    /// `soft` or `kvm`.
    pub engine: &'static str,
    /// The side.
    pub vmm: String,
    /// Memory outside the guest's, in MiB.
    pub pss_mib: f64,
    /// How many processes hold it.
    pub processes: f64,
    /// Exits of the guest, all kinds; under KVM only.
    pub exits: Option<f64>,
    /// System calls of the host; under KVM only.
    pub syscalls: Option<f64>,
}

impl OverheadReport {
    /// Prints one line a side.
    pub fn print(&self) {
        println!("load before {}, after {}", self.load[0], self.load[1]);
        let count = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        for side in &self.sides {
            println!(
                "overhead {:5} {:22} pss {:6.1} MiB in {} processes, {} exits, {} system calls",
                side.engine,
                side.vmm,
                side.pss_mib,
                side.processes,
                count(side.exits),
                count(side.syscalls)
            );
        }
    }

    /// What of ours is above its limit or above QEMU's figure.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for ours in self.sides.iter().filter(|side| side.vmm.starts_with("umbra")) {
            for (engine, max) in PSS_MIB_MAX {
                if ours.engine == engine && ours.pss_mib > max {
                    let what = format!("{engine}, {}: {:.1} MiB", ours.vmm, ours.pss_mib);
                    broken.push(format!("{what}, the limit is {max} MiB"));
                }
            }
            for peer in
                self.sides.iter().filter(|side| side.engine == ours.engine && side.vmm.starts_with("qemu"))
            {
                for (what, mine, theirs) in
                    [("exits", ours.exits, peer.exits), ("system calls", ours.syscalls, peer.syscalls)]
                {
                    if let (Some(mine), Some(theirs)) = (mine, theirs)
                        && mine >= theirs
                    {
                        broken.push(format!("{}: {mine} {what}, {} has {theirs}", ours.engine, peer.vmm));
                    }
                }
            }
        }
        broken
    }
}

/// Measures everything.
pub fn run(options: &OverheadOptions) -> Result<OverheadReport> {
    let guests = Guests::load()?;
    let before = load();
    let mut sides = Vec::new();
    let program = if options.qemu_only { None } else { Some(umbra::build()?) };
    if let Some(program) = &program {
        let kernel = guests.kernel_backports.image.clone();
        let kind = Kind::Umbra { program: program.clone(), accel: "soft" };
        for cpus in SOFT_CPUS {
            let name = format!("umbra --cpus {cpus}");
            let vmm = Vmm { name, kernel: kernel.clone(), kind: kind.clone() };
            sides.push(soft(&guests, &vmm, cpus, options.rounds)?);
        }
    }
    sides.extend(kvm(&guests, program.as_deref(), options.rounds)?);
    Ok(OverheadReport { load: [before, load()], sides })
}

/// Under emulation, on this machine.
fn soft(guests: &Guests, vmm: &Vmm, cpus: u32, rounds: usize) -> Result<Overhead> {
    let scratch = Scratch::new()?;
    let sockets = Scratch::for_sockets()?;
    let script = scratch.path().join("overhead.sh");
    std::fs::write(&script, SCRIPT)?;
    let guest = GuestSpec {
        initrd: guests.kernel_backports.initrd.clone(),
        append: "console=ttyS0 quiet panic=-1 umbra.task=idle".into(),
        cpus,
        memory_mib: 256,
    };
    let mut lines = Vec::new();
    for round in 0..rounds {
        let monitor =
            vmm.command(&guest, sockets.path(), &format!("overhead-{}-{round}", std::process::id()))?;
        let mut command = Command::new("sh");
        command.arg(&script).args(["soft", "/dev/null"]).arg(BOOT_LIMIT.as_secs().to_string());
        command.arg(monitor.get_program()).args(monitor.get_args());
        command.env("XDG_RUNTIME_DIR", sockets.path());
        let process = Process::start(&command)?;
        let mut seen = Vec::new();
        process.wait_for(BOOT_LIMIT * 2, &mut seen, |_| false);
        lines.extend(seen.into_iter().map(|line| line.text));
    }
    let side = figures_of(&figures(&lines), "soft", "soft", None)?;
    Ok(Overhead { vmm: vmm.name.clone(), ..side })
}

/// Under KVM, in the nested host.
fn kvm(guests: &Guests, umbra: Option<&std::path::Path>, rounds: usize) -> Result<Vec<Overhead>> {
    let scratch = Scratch::new()?;
    let vmlinux = scratch.path().join("vmlinux");
    super::unpack_kernel(&guests.kernel_backports.image, &vmlinux)?;
    let mut spec = NestSpec::new(guests, Paging::Nested, "");
    spec.guest(&guests.kernel_backports)?;
    spec.files.copy(&vmlinux, "guest/vmlinux")?;
    spec.files.file("overhead.sh", true, SCRIPT);
    spec.files.program(&guests.strace, "strace", &[])?;
    spec.qemu_inside(&guests.qemu_backports)?;
    spec.timeout = BOOT_LIMIT * u32::try_from(4 * rounds.max(1)).unwrap_or(u32::MAX);
    let series = guests.kernel_backports.series();
    let append = "console=ttyS0 quiet panic=-1 umbra.task=idle";
    let mut monitors = vec![(
        "qemu-microvm",
        format!(
            "qemu-system-x86_64 -L /firmware -nodefaults -no-user-config -display none -monitor none -no-reboot \
             -M microvm,rtc=on -accel kvm -cpu host -smp 1 -m 256M -serial stdio -kernel /guest/vmlinux -initrd /guest/{series}/initrd \
             -append '{append}'"
        ),
    )];
    if let Some(program) = umbra {
        spec.files.program(program, "umbra", &[])?;
        monitors.push((
            "umbra",
            format!(
                "umbra run --accel kvm --cpus 1 --memory 256M --no-reboot --net none --name overhead \
                 --kernel /guest/{series}/vmlinuz --initrd /guest/{series}/initrd --append '{append}'"
            ),
        ));
    }
    spec.script = nest_script(&monitors, rounds);
    let outcome = spec.run(|line| eprintln!("{:8.2} {}", line.at.as_secs_f64(), line.text))?;
    let lines: Vec<String> = outcome.lines.into_iter().map(|line| line.text).collect();
    let figures = figures(&lines);
    let mut sides = Vec::new();
    for (name, _) in &monitors {
        let table = std::fs::read_to_string(outcome.out.join(format!("{name}.strace")))
            .with_context(|| format!("strace of {name} left nothing"))?;
        let calls = total_calls(&table).with_context(|| format!("strace's table of {name} has no total"))?;
        sides.push(figures_of(&figures, name, "kvm", Some(calls))?);
    }
    Ok(sides)
}

fn nest_script(monitors: &[(&str, String)], rounds: usize) -> String {
    let limit = BOOT_LIMIT.as_secs();
    let mut script = format!(
        "mount -t debugfs none /sys/kernel/debug\nexits=/sys/kernel/debug/kvm/exits\nexport GUEST_KIB={}\n",
        256 << 10
    );
    for _ in 0..rounds {
        for (name, command) in monitors {
            script += &format!("sh /overhead.sh {name} $exits {limit} {command}\n");
        }
    }
    for (name, command) in monitors {
        script += &format!(
            "sh /overhead.sh {name}-traced $exits {limit} strace -f -c -o /out/{name}.strace {command}\n"
        );
    }
    script
}

/// Figures of each side by key, from lines `overhead NAME key=value …`.
fn figures(lines: &[String]) -> BTreeMap<(String, String), Vec<f64>> {
    let mut figures: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for line in lines {
        let Some((_, rest)) = line.split_once("overhead ") else { continue };
        let mut words = rest.split_whitespace();
        let name = words.next().unwrap_or_default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            if let Ok(value) = value.parse() {
                figures.entry((name.to_owned(), key.to_owned())).or_default().push(value);
            }
        }
    }
    figures
}

fn figures_of(
    figures: &BTreeMap<(String, String), Vec<f64>>,
    name: &str,
    engine: &'static str,
    syscalls: Option<f64>,
) -> Result<Overhead> {
    let value = |key: &str| {
        let values = figures.get(&(name.to_owned(), key.to_owned()));
        values.and_then(|values| median(values)).with_context(|| format!("{name} did not tell its {key}"))
    };
    let pss_mib = value("pss_kib")? / 1024.0;
    if pss_mib == 0.0 {
        bail!("no memory of {name} was found: did its processes end?");
    }
    let exits = if engine == "kvm" { Some(value("exits")?) } else { None };
    Ok(Overhead { engine, vmm: name.to_owned(), pss_mib, processes: value("processes")?, exits, syscalls })
}

/// The number of calls in the last line of `strace -c`: `100.00 seconds usecs/call calls [errors] total`.
pub(super) fn total_calls(table: &str) -> Option<f64> {
    let line = table.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
