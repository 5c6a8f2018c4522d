//! `cargo xtask`: the repository's tool box.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use xtask::bench::{boot, cpu, image, io, overhead};
use xtask::cache::workspace;
use xtask::guests::Guests;
use xtask::nest::{NestSpec, Paging};
use xtask::{deps, fuzz, lint, soak, suite};

/// The repository's tool box.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the rules of the house; exits 1 where one is broken
    Lint {
        /// The steps to run; all of them where none is named
        steps: Vec<lint::Step>,
    },
    /// Install what the tests need and prepare their guests; does nothing where all is there
    Deps {
        /// Look for newer packages
        #[arg(long)]
        refresh: bool,
    },
    /// Boot a nested host with working KVM and run a shell script in it; exits with the script's code
    Nest(Box<Nest>),
    /// Run the tests: everything, or the named steps
    Test {
        /// The steps to run; all of them where none is named
        steps: Vec<suite::Step>,
    },
    /// Fuzz what reads untrusted bytes, each target for a few seconds
    Fuzz(fuzz::FuzzOptions),
    /// Run real systems for long under the software engine, and write down in docs/soak.md what came of it
    Soak(soak::SoakOptions),
    /// Measure Umbra beside QEMU
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// From process start to user space under emulation, and the guest's clock
    Boot(boot::BootOptions),
    /// Programs under emulation, in user space and in the kernel, beside QEMU's and the host's times
    Cpu(cpu::CpuOptions),
    /// Disk images: `umbra image` beside qemu-img
    Image(image::ImageOptions),
    /// Disks, networks and an idle machine's memory under emulation: fio and iperf3 beside QEMU
    Io(io::IoOptions),
    /// Memory of the monitor itself, exits and system calls up to user space
    Overhead(overhead::OverheadOptions),
}

#[derive(Args)]
struct Nest {
    /// File with the script
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    script: Option<PathBuf>,
    /// The script itself
    #[arg(short, long)]
    command: Option<String>,
    /// How KVM translates addresses; picks kernel and QEMU to match
    #[arg(long, value_enum, default_value = "nested")]
    paging: Paging,
    /// Kernel of the host, by series such as 6.1
    #[arg(long)]
    kernel: Option<String>,
    /// A program to put into its /bin, with shared libraries
    #[arg(long)]
    program: Vec<PathBuf>,
    /// A file to put there, as HERE:THERE
    #[arg(long)]
    file: Vec<String>,
    /// A guest to put there, by series of its kernel: /guest/SERIES/vmlinuz and initrd
    #[arg(long)]
    guest: Vec<String>,
    /// Put QEMU there too
    #[arg(long)]
    qemu: bool,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory, as QEMU takes it
    #[arg(long, default_value = "2G")]
    memory: String,
    /// Words for the host's kernel command line
    #[arg(long, default_value = "")]
    append: String,
    /// Seconds until it is killed
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Folder to copy what the script leaves in /out
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.task {
        Task::Lint { steps } => {
            let steps = if steps.is_empty() { lint::Step::ALL.to_vec() } else { steps };
            let count = lint::run(&workspace(), &steps)?;
            Ok(code(count == 0))
        }
        Task::Deps { refresh } => deps::prepare(refresh).map(|_| ExitCode::SUCCESS),
        Task::Nest(arguments) => nest(&arguments),
        Task::Fuzz(options) => fuzz::run(&workspace(), &options).map(|()| ExitCode::SUCCESS),
        Task::Test { steps } => {
            let steps = if steps.is_empty() { suite::Step::ALL.to_vec() } else { steps };
            Ok(code(suite::run(&workspace(), &steps)))
        }
        Task::Soak(options) => Ok(code(soak::run(&options)?)),
        Task::Bench(Bench::Overhead(options)) => {
            let report = overhead::run(&options)?;
            show(options.json, &report, |report| report.print())?;
            let broken = report.broken();
            for limit in &broken {
                eprintln!("bench overhead: {limit}");
            }
            Ok(code(broken.is_empty()))
        }
        Task::Bench(Bench::Image(options)) => {
            let report = image::run(&options)?;
            show(options.json, &report, |report| report.print())?;
            let good = report.figures.iter().all(image::Figure::is_good);
            Ok(code(good))
        }
        Task::Bench(Bench::Io(options)) => {
            let report = io::run(&options)?;
            show(options.json, &report, |report| report.print())?;
            let broken = report.broken();
            for limit in &broken {
                eprintln!("bench io: {limit}");
            }
            Ok(code(broken.is_empty()))
        }
        Task::Bench(Bench::Cpu(options)) => {
            let report = cpu::run(&options)?;
            show(options.json, &report, |report| report.print())?;
            for failure in &report.failures {
                eprintln!("bench cpu: {failure}");
            }
            Ok(code(report.failures.is_empty()))
        }
        Task::Bench(Bench::Boot(options)) => {
            let report = boot::run(&options)?;
            show(options.json, &report, |report| report.print())?;
            Ok(code(report.clocks_agree()))
        }
    }
}

/// Prints a report, as JSON or in its own words.
fn show<R: Serialize>(json: bool, report: &R, in_words: impl FnOnce(&R)) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        in_words(report);
    }
    Ok(())
}

/// The code of a task that was done, and went well or not.
fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn nest(arguments: &Nest) -> Result<ExitCode> {
    let guests = Guests::load()?;
    let script = match (&arguments.script, &arguments.command) {
        (Some(path), _) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        (None, command) => command.clone().unwrap_or_default(),
    };
    let mut spec = NestSpec::new(&guests, arguments.paging, &script);
    if let Some(series) = &arguments.kernel {
        spec.kernel = guests.kernel(series)?.clone();
    }
    for path in &arguments.program {
        spec.program(path)?;
    }
    for pair in &arguments.file {
        let (here, there) = pair.split_once(':').context("--file takes HERE:THERE")?;
        spec.files.copy(here.as_ref(), there)?;
    }
    for series in &arguments.guest {
        spec.guest(guests.kernel(series)?)?;
    }
    if arguments.qemu {
        spec.qemu_inside(&guests.qemu_backports)?;
    }
    spec.cpus = arguments.cpus;
    spec.memory.clone_from(&arguments.memory);
    spec.append.clone_from(&arguments.append);
    spec.timeout = Duration::from_secs(arguments.timeout);
    let outcome = spec.run(|line| println!("{:8.2} {}", line.at.as_secs_f64(), line.text))?;
    if let Some(folder) = &arguments.out {
        copy_tree(&outcome.out, folder)?;
    }
    Ok(ExitCode::from(u8::try_from(outcome.code).unwrap_or(u8::MAX)))
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}
