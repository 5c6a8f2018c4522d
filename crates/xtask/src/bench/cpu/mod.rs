//! `bench cpu`: the same programs under Umbra's software engine, under QEMU's TCG, and on the host itself.
//!
//! Both guests boot once and then wait; rows are asked for through their consoles, so that the sides take turns row by
//! row. A row is timed by the host's clock between two marks, and its result must be the same everywhere.

mod image;
mod profile;
mod report;
mod rows;
mod session;
pub(crate) mod source;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::profile::Profile;
pub use self::report::{CpuReport, Side, Who};
use self::report::{class_means, clock_failure, disagreements, row_times};
use self::rows::{BOOT, Row};
use self::session::{Run, Session};
use super::vmm::{GuestSpec, Kind, MICROVM, Vmm, pinned};
use super::{clock_rate, load};
use crate::cache::Scratch;
use crate::guests::{Guests, Kernel, Qemu};
use crate::process::Process;
use crate::root::Root;
use crate::umbra;

/// A guest that needs longer to take rows has failed.
const READY_LIMIT: Duration = Duration::from_secs(180);
/// The first line of the small guest's user space.
const USER_SPACE: &str = "guest: user space";
/// A clock is judged over at least so many seconds: it is read in hundredths.
const CLOCK_SECONDS_MIN: f64 = 5.0;
const HOST: &str = include_str!("../../init/cpu/host.sh");

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct CpuOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Runs of each row on each side
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Rows to run, by name; all where none is named
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Sides to run them on
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["umbra", "qemu", "host"])]
    pub sides: Vec<Who>,
    /// How much more work than usual; 1 is some tenths of a second a row on a host
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Kernel of the guests, by series
    #[arg(long, default_value = "6.1")]
    pub kernel: String,
    /// QEMU, by how its version begins; 7 with kernel 6.1 and 10 with later ones where none is named
    #[arg(long)]
    pub qemu: Option<String>,
    /// Processors that guests are kept on; the host's programs on as many of them as the guest has
    #[arg(long, default_value = "0,1")]
    pub pin: String,
    /// Processors of the guests
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Memory of the guests in MiB
    #[arg(long, default_value_t = 2048)]
    pub memory: u32,
    /// Seconds until a row has failed
    #[arg(long, default_value_t = 300)]
    pub limit: u64,
    /// Instead of comparing: run this row once under Umbra and print where its time went
    #[arg(long, value_name = "ROW")]
    pub profile: Option<String>,
}

/// Measures everything.
pub fn run(options: &CpuOptions) -> Result<CpuReport> {
    let mut options = options.clone();
    if let Some(row) = &options.profile {
        options.rows = vec![row.clone()];
        options.sides = vec![Who::Umbra];
        options.rounds = 1;
    }
    let rows = rows::select(&options.rows)?;
    if !(options.scale.is_finite() && options.scale > 0.0) {
        bail!("--scale takes a number above 0");
    }
    let guests = Guests::load()?;
    let kernel = guests.kernel(&options.kernel)?;
    let mut bench = Bench::new(&options, &guests, kernel)?;
    let before = load();
    let mut runs: Vec<Vec<(Who, Run)>> = vec![Vec::new(); rows.len()];
    for round in 0..options.rounds {
        for (row, runs) in rows.iter().zip(&mut runs) {
            bench.take_turns(row, round, runs);
        }
        eprintln!("bench cpu: round {} of {}", round + 1, options.rounds);
    }
    let times = |(row, runs): (&Row, &Vec<(Who, Run)>)| row_times(row, amount(row, options.scale), runs);
    let times: Vec<_> = rows.iter().zip(&runs).map(times).collect();
    bench.failures.extend(rows.iter().zip(&runs).flat_map(|(row, runs)| disagreements(row.name, runs)));
    let sides: Vec<Side> = bench.places.iter_mut().filter_map(Place::close).collect();
    bench.failures.extend(sides.iter().filter_map(clock_failure));
    Ok(CpuReport {
        load: [before, load()],
        kernel: kernel.release.clone(),
        sides,
        classes: class_means(&times),
        rows: times,
        profile: bench.profile,
        failures: bench.failures,
    })
}

/// A row's amount at this scale.
fn amount(row: &Row, scale: f64) -> u64 {
    ((row.amount as f64 * scale).round() as u64).max(1)
}

/// One side: how it is started, and what of it runs.
struct Place {
    who: Who,
    name: String,
    /// Starts the side that takes rows.
    command: Command,
    /// Boots the small guest; the host has none.
    boot: Option<Command>,
    session: Option<Session>,
    /// Rows that failed here and are not tried again.
    given_up: Vec<&'static str>,
    last_ready: f64,
    clock: Option<f64>,
}

impl Place {
    /// The session, started where none runs.
    fn session(&mut self) -> Result<&mut Session> {
        if self.session.is_none() {
            let session = Session::start(&self.command, READY_LIMIT)?;
            self.last_ready = session.ready.as_secs_f64();
            eprintln!("bench cpu: {} takes rows after {:.2} s", self.name, self.last_ready);
            self.session = Some(session);
        }
        self.session.as_mut().context("it does not run")
    }

    /// Ends the session and takes down how its clock went.
    fn close(&mut self) -> Option<Side> {
        if let Some(session) = self.session.take() {
            let span = |ticks: &[(f64, f64)]| Some(ticks.last()?.0 - ticks.first()?.0);
            if span(&session.ticks).is_some_and(|seconds| seconds >= CLOCK_SECONDS_MIN) {
                self.clock = clock_rate(&session.ticks);
            }
        }
        Some(Side { who: self.who, name: self.name.clone(), ready: self.last_ready, clock: self.clock })
    }

    fn run(&mut self, row: &Row, amount: u64, limit: Duration) -> Result<Run> {
        if row.name == BOOT {
            let command = self.boot.as_ref().context("the host is not booted")?;
            return boot(command, limit);
        }
        let run = self.session()?.run(row.name, amount, limit)?;
        // The host's programs are gone before they can be asked for their processor time.
        let cpu_seconds = run.cpu_seconds.filter(|_| self.who != Who::Host);
        Ok(Run { cpu_seconds, ..run })
    }
}

/// From the start of the process to user space.
fn boot(command: &Command, limit: Duration) -> Result<Run> {
    let process = Process::start(command)?;
    let mut seen = Vec::new();
    let line = process.wait_for(limit, &mut seen, |text| text.contains(USER_SPACE));
    let Some(line) = line else {
        let last: String = seen.iter().rev().take(8).rev().map(|line| format!("\n  {}", line.text)).collect();
        bail!("no user space; the last lines:{last}");
    };
    let (seconds, cpu_seconds) = (line.at.as_secs_f64(), Some(process.cpu_seconds()));
    Ok(Run { seconds, own_seconds: seconds, cpu_seconds, sum: "user space".into() })
}

struct Bench<'a> {
    options: &'a CpuOptions,
    places: Vec<Place>,
    /// Umbra's control socket.
    socket: PathBuf,
    profile: Option<Profile>,
    failures: Vec<String>,
    _scratch: [Scratch; 2],
}

impl<'a> Bench<'a> {
    fn new(options: &'a CpuOptions, guests: &Guests, kernel: &Kernel) -> Result<Bench<'a>> {
        let scratch = Scratch::new()?;
        let sockets = Scratch::for_sockets()?;
        let image = image::prepare().context("cannot prepare the guest's root")?;
        let name = format!("bench-{}", std::process::id());
        let mut bench = Bench {
            options,
            places: Vec::new(),
            socket: sockets.path().join(format!("umbra/{name}.sock")),
            profile: None,
            failures: Vec::new(),
            _scratch: [scratch, sockets],
        };
        for who in Who::ALL.into_iter().filter(|who| options.sides.contains(who)) {
            let vmm = match who {
                Who::Umbra => {
                    let kind = Kind::Umbra { program: umbra::build()?, accel: "soft" };
                    Vmm { name: "umbra soft".into(), kernel: kernel.image.clone(), kind }
                }
                Who::Qemu => qemu_side(guests, kernel, options, &bench._scratch[0])?,
                Who::Host => {
                    bench.add_host(&image);
                    continue;
                }
            };
            bench.add_guest(who, &vmm, kernel, &image, &name)?;
        }
        Ok(bench)
    }

    fn add_guest(&mut self, who: Who, vmm: &Vmm, kernel: &Kernel, image: &Root, name: &str) -> Result<()> {
        let guest = |initrd: &PathBuf, words: &str| GuestSpec {
            initrd: initrd.clone(),
            append: format!("console=ttyS0 quiet panic=-1 {words}"),
            cpus: self.options.cpus,
            memory_mib: self.options.memory,
        };
        let runtime = self._scratch[1].path();
        let mut command = vmm.command(&guest(&image.initrd, ""), runtime, name)?;
        if vmm.is_umbra() && self.options.profile.is_some() {
            command.arg("--profile");
        }
        let boot =
            vmm.command(&guest(&kernel.initrd, "umbra.task=idle"), runtime, &format!("{name}-boot"))?;
        let boot = Some(pinned(&boot, &self.options.pin));
        self.add(who, vmm.name.clone(), pinned(&command, &self.options.pin), boot);
        Ok(())
    }

    fn add(&mut self, who: Who, name: String, command: Command, boot: Option<Command>) {
        let (session, given_up, last_ready, clock) = (None, Vec::new(), 0.0, None);
        self.places.push(Place { who, name, command, boot, session, given_up, last_ready, clock });
    }

    /// Adds the host, unless it does not let us change root.
    fn add_host(&mut self, image: &Root) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child"]);
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["sh", "-c", HOST]).arg(&image.folder);
        let command = pinned(&command, &first_processors(&self.options.pin, self.options.cpus as usize));
        match Session::start(&command, READY_LIMIT) {
            Ok(_) => self.add(Who::Host, "host".into(), command, None),
            Err(error) => eprintln!(
                "bench cpu: this machine does not run programs in another root; the host is left out: {error:#}"
            ),
        }
    }

    /// Runs one row on every side, the first of them another in every round.
    fn take_turns(&mut self, row: &Row, round: usize, runs: &mut Vec<(Who, Run)>) {
        let count = self.places.len();
        let (amount, limit) = (amount(row, self.options.scale), Duration::from_secs(self.options.limit));
        for turn in 0..count {
            let Some(place) = self.places.get_mut((turn + round) % count) else { continue };
            let is_host = place.who == Who::Host;
            if place.given_up.contains(&row.name) || (is_host && row.name == BOOT) {
                continue;
            }
            let outcome = if self.options.profile.is_some() {
                profiled(place, row, amount, limit, &self.socket).map(|(run, profile)| {
                    self.profile = Some(profile);
                    run
                })
            } else {
                place.run(row, amount, limit)
            };
            match outcome {
                Ok(run) => {
                    eprintln!("bench cpu: {:9} {:6} {:8.3} s", row.name, place.who.name(), run.seconds);
                    runs.push((place.who, run));
                }
                Err(error) => {
                    let failure = format!("{} {}: {error:#}", row.name, place.name);
                    eprintln!("bench cpu: {failure}");
                    self.failures.push(failure);
                    place.given_up.push(row.name);
                    // What is left of it may be in any state.
                    place.session = None;
                }
            }
        }
    }
}

/// Runs a row between two looks at what the machine counts.
fn profiled(
    place: &mut Place,
    row: &Row,
    amount: u64,
    limit: Duration,
    socket: &std::path::Path,
) -> Result<(Run, Profile)> {
    if row.name == BOOT {
        // Until the great guest takes rows, its image unpacked: the small one is gone when its line is read.
        place.session()?;
        let seconds = place.last_ready;
        let run = Run { seconds, own_seconds: seconds, cpu_seconds: None, sum: "user space".into() };
        let profile =
            Profile::between(row.name, run.seconds, &serde_json::Value::Null, &profile::stats(socket)?);
        return Ok((run, profile));
    }
    place.session()?;
    let before = profile::stats(socket)?;
    let run = place.run(row, amount, limit)?;
    let profile = Profile::between(row.name, run.seconds, &before, &profile::stats(socket)?);
    Ok((run, profile))
}

/// The QEMU that is asked for, as a microvm that boots an unpacked kernel.
fn qemu_side(guests: &Guests, kernel: &Kernel, options: &CpuOptions, scratch: &Scratch) -> Result<Vmm> {
    let qemu = choose_qemu(
        &[&guests.qemu_stable, &guests.qemu_backports],
        &kernel.series(),
        options.qemu.as_deref(),
    )?;
    let vmlinux = scratch.path().join("vmlinux");
    super::unpack_kernel(&kernel.image, &vmlinux)?;
    let kind = Kind::Qemu { qemu: qemu.clone(), machine: MICROVM };
    Ok(Vmm { name: format!("qemu {} microvm ELF", qemu.version), kernel: vmlinux, kind })
}

/// A QEMU of the version that is asked for; else the one that belongs to the kernel, since old ones do not run new kernels.
pub(crate) fn choose_qemu<'q>(all: &[&'q Qemu], series: &str, asked: Option<&str>) -> Result<&'q Qemu> {
    let begins = |qemu: &&&Qemu, with: &str| {
        qemu.version.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let with = asked.unwrap_or(if series == "6.1" { "7" } else { "10" });
    all.iter().find(|qemu| begins(qemu, with)).copied().with_context(|| {
        let known: Vec<&str> = all.iter().map(|qemu| qemu.version.as_str()).collect();
        format!("no QEMU {with} is prepared, only {}", known.join(" and "))
    })
}

/// The first `count` processors of a list such as `0-3,8`.
pub(crate) fn first_processors(list: &str, count: usize) -> String {
    let range = |part: &str| -> Option<Vec<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?..=last.parse().ok()?).take(count).collect())
    };
    let all: Option<Vec<Vec<u32>>> = list.split(',').map(|part| range(part.trim())).collect();
    match all {
        Some(all) => {
            all.into_iter().flatten().take(count).map(|one| one.to_string()).collect::<Vec<_>>().join(",")
        }
        // taskset says what is wrong with it.
        None => list.to_owned(),
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

#[cfg(test)]
mod cpu_test;
