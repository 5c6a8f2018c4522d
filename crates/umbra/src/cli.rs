//! The command line: one definition gives the parser, the help and its test.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use umbra_machine::{CpuModel, KernelEntry};

use crate::disk::{self, DiskOption};
use crate::net::{self, NetOption, Publish};

/// Ends the help of `run` and `restore`.
const EXIT_CODES: &str = "\
Exit codes:
  0  the guest switched its power off, a reset with --no-reboot, or the user ended it
  1  it could not be started; the message says why
  2  the command line is wrong
  3  the guest's kernel panicked
  4  triple fault: the guest's processor shut down
  5  internal error of Umbra
On a terminal, Ctrl-A x leaves and Ctrl-A h helps.";

/// A complete virtualization system for Linux hosts.
#[derive(Debug, Parser)]
#[command(name = "umbra", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Everything that can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a virtual machine with its serial console on this terminal; with no arguments a small Debian guest
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Continue a saved machine
    #[command(after_help = EXIT_CODES)]
    Restore(RestoreArgs),
    /// Stop a machine's processors and time
    Pause(Named),
    /// Let a paused machine go on
    Resume(Named),
    /// Save a machine to a file, and end it; `umbra restore` continues it
    Save(SaveArgs),
    /// Ask a machine's guest to shut down, by its power button; --force ends it at once
    Stop(StopArgs),
    /// List the running machines of this user
    Ls(ListArgs),
    /// Work on disk images: everything that `qemu-img` does, by the same words; `umbra image --help` tells more
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Image {
        /// A command and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        words: Vec<OsString>,
    },
    #[command(hide = true)]
    Worker {
        /// Process ID of the broker.
        parent: u32,
    },
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Accel {
    /// KVM where it can run a 64-bit kernel, else the software engine.
    #[default]
    Auto,
    /// The processor's own virtualization.
    Kvm,
    /// Umbra's own engine, which needs none.
    Soft,
}

/// Options of whatever runs.
#[derive(Debug, Args)]
pub struct Common {
    /// What executes the guest's instructions
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// Write one JSON line per event (created, booted, restored, halted, reset, crashed) to this file
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// A reset ends the machine
    #[arg(long)]
    pub no_reboot: bool,
    /// Make the machine but leave it paused; `umbra resume` starts it
    #[arg(long)]
    pub paused: bool,
    /// When the machine has ended, say what its processors counted: instructions, exits, which share ran where
    #[arg(long)]
    pub stats: bool,
    /// When the machine has ended, say where its processors' time went: translated code, TLB misses, the interpreter by instruction and
    /// so on. The software engine's alone
    #[arg(long)]
    pub profile: bool,
    /// Do not say which engine was taken and why
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel: a bzImage (vmlinuz) or an ELF vmlinux
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; the default puts the console on the serial line
    #[arg(long, value_name = "TEXT")]
    pub append: Option<String>,
    /// A disk: an image of any format that `umbra image` knows, with options format=NAME, readonly=on, serial=TEXT and if=virtio
    /// behind commas. Give it again for further ones; Linux calls them /dev/vda, /dev/vdb and so on
    #[arg(long = "disk", value_name = "FILE[,OPTIONS]", value_parser = disk::parse)]
    pub disks: Vec<DiskOption>,
    /// A network: user (one in user space, by which the guest gets out and nobody in; options restrict=on|off, host=on|off,
    /// ipv6=on|off, mtu=N and mac=ADDRESS behind commas) or none, which is the default without -p and --pcap
    #[arg(long = "net", value_name = "NETWORK", value_parser = net::parse)]
    pub nets: Vec<NetOption>,
    /// What its network is joined to.
    #[command(flatten)]
    pub cable: Cable,
    /// Give the guest a source of entropy
    #[arg(long)]
    pub rng: bool,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory: a number with M or G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub memory: u64,
    /// Name by which it is managed; the default is made from the process ID
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,
    /// What the processors show: host or portable
    #[arg(long, value_name = "MODEL", default_value = "host", value_parser = parse_cpu_model)]
    pub cpu_model: CpuModel,
    /// How the kernel is entered: auto, pvh or linux64
    #[arg(long, value_name = "PROTOCOL", default_value = "auto", value_parser = parse_entry)]
    pub boot_protocol: KernelEntry,
    /// What runs it.
    #[command(flatten)]
    pub common: Common,
}

/// What of the host a network is joined to, for `run` and `restore`.
#[derive(Debug, Args)]
pub struct Cable {
    /// Let a port of the host lead to one of the guest's: [ADDRESS:]PORT:GUEST_PORT[/udp]; without an address only this host
    /// reaches it. Give it again for further ones
    #[arg(short = 'p', long = "publish", value_name = "PORT:GUEST_PORT", value_parser = net::parse_publish)]
    pub publish: Vec<Publish>,
    /// Write all that crosses the network's cable to this file (pcapng)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The saved machine
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The images of its disks, in the order in which they were given when it was started
    #[arg(long = "disk", value_name = "FILE[,format=NAME]", value_parser = disk::parse)]
    pub disks: Vec<DiskOption>,
    /// Its networks, in the order in which they were given when it was started; user for each by default. Connections do
    /// not outlive a restore
    #[arg(long = "net", value_name = "NETWORK", value_parser = net::parse)]
    pub nets: Vec<NetOption>,
    /// What its network is joined to.
    #[command(flatten)]
    pub cable: Cable,
    /// Give the machine another name
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,
    /// The kernel from which it starts again after a reset
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk from which it starts again after a reset
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// What runs it.
    #[command(flatten)]
    pub common: Common,
}

/// A machine by name.
#[derive(Debug, Args)]
pub struct Named {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
}

/// Options of `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The file to write; an existing one is replaced when the new one is complete
    pub file: PathBuf,
    /// What the machine does when it is saved
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub then: AfterSave,
}

/// What a machine does when it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AfterSave {
    /// It ends.
    #[default]
    Stop,
    /// It stays paused.
    Pause,
    /// It goes on.
    Resume,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// End it at once
    #[arg(long, short)]
    pub force: bool,
}

/// Options of `ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write a number with M or G, such as 512M");
    let (digits, shift) = match text.to_ascii_uppercase() {
        t if t.ends_with('G') => (t[..t.len() - 1].to_owned(), 30),
        t if t.ends_with('M') => (t[..t.len() - 1].to_owned(), 20),
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(wrong)
}

/// A machine's name, which becomes a file name.
///
/// # Errors
/// What a name may be.
pub fn parse_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !text.is_empty() && text.len() <= 63 && text.chars().all(good) && !text.starts_with(['.', '-']) {
        true => Ok(text.to_owned()),
        false => {
            Err("a name has 1 to 63 letters, digits, `-`, `_` and `.`, and starts with none of `.` and `-`"
                .into())
        }
    }
}

fn parse_cpu_model(text: &str) -> Result<CpuModel, String> {
    match text {
        "host" => Ok(CpuModel::Host),
        "portable" | "portable-1" => Ok(CpuModel::Portable1),
        _ => Err("the CPU models are host and portable".into()),
    }
}

fn parse_entry(text: &str) -> Result<KernelEntry, String> {
    match text {
        "auto" => Ok(KernelEntry::Auto),
        "pvh" => Ok(KernelEntry::Pvh),
        "linux64" => Ok(KernelEntry::Linux64),
        _ => Err("the boot protocols are auto, pvh and linux64".into()),
    }
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod cli_test;
