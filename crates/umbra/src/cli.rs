//! The command line: one definition gives the parser, the help and its test.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use umbra_machine::{CpuModel, KernelEntry};
use umbra_net::user::ForwardProtocol;

use crate::disk::{self, DiskOption};
use crate::net::{self, NetOption, Publish};
use crate::shell::args::{CopyArgs, ExecArgs, ShellArgs};
use crate::vsock::{self, VsockOption};

/// Ends the help of `run` and `restore`.
const EXIT_CODES: &str = "\
Exit codes:
  0  the guest switched its power off, a reset with --no-reboot, or the user ended it
  1  it could not be started; the message says why
  2  the command line is wrong
  3  the guest's kernel panicked
  4  triple fault: the guest's processor shut down
  5  internal error of Umbra
With --detach, 0 says that the machine runs; `umbra wait` ends with the code of its end.
On a terminal, Ctrl-A x leaves and Ctrl-A h helps.";

/// Ends the help of `wait`.
const WAIT_CODES: &str = "\
Exit codes:
  0  the guest switched its power off, a reset with --no-reboot, or the user ended it
  1  there is no such machine
  3  the guest's kernel panicked
  4  triple fault: the guest's processor shut down
  5  internal error of Umbra, or the machine's processes were killed";

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
    /// Boot a virtual machine with its serial console on this terminal: an image (debian, alpine, or what `umbra image ls` lists), a
    /// kernel, or with no arguments a small Debian guest in memory
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
    /// Ask machines' guests to shut down, by their power buttons, and wait until they have; --force ends them at once
    Stop(StopArgs),
    /// Start a machine again that was started with --detach and has ended, with the options and the folder of then
    Start(Named),
    /// Wait until a machine has ended, and end with its exit code
    #[command(after_help = WAIT_CODES)]
    Wait(Named),
    /// List the running machines of this user
    Ls(ListArgs),
    /// Use the serial console of a running machine; Ctrl-A x leaves
    Console(ConsoleArgs),
    /// Print what a detached machine showed on its serial console, also after its end. Of what a guest writes without end, the last
    /// mebibyte is kept, and up to another
    Logs(LogsArgs),
    /// Remove what ended machines left: record, log, and disks of their own
    Rm(RemoveArgs),
    /// Ports of the host that lead to a running machine's guest
    Port {
        /// What to do.
        #[command(subcommand)]
        command: PortCommand,
    },
    /// Log in to a machine's guest, or run a command there with a terminal; ends with the command's exit code
    Shell(ShellArgs),
    /// Run a command in a machine's guest, with our input and output; ends with its exit code, or 128 and the signal that ended it
    Exec(ExecArgs),
    /// Copy a file or a folder to a guest or from it
    Cp(CopyArgs),
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
    /// Run without a terminal: return when the machine runs (or say why it does not), and print its name. `umbra console` and
    /// `umbra logs` show what it says
    #[arg(long, short, conflicts_with_all = ["stats", "profile"])]
    pub detach: bool,
    /// Leave nothing when the machine has ended: neither log nor record, nor disks of its own
    #[arg(long = "rm")]
    pub remove: bool,
    #[arg(long, hide = true)]
    pub in_background: bool,
    /// Do not say which engine was taken and why
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// An image to boot, built first where it is not there. What the guest writes is lost at the end, unless the machine has a --name
    #[arg(value_name = "IMAGE", value_parser = parse_image, conflicts_with = "kernel")]
    pub image: Option<String>,
    /// How the machine of an image differs.
    #[command(flatten)]
    pub wishes: ImageArgs,
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
    /// A network: user (the default: one in user space, by which the guest gets out and nobody in; options restrict=on|off,
    /// host=on|off, ipv6=on|off, mtu=N and mac=ADDRESS behind commas) or none
    #[arg(long = "net", value_name = "NETWORK", value_parser = net::parse)]
    pub nets: Vec<NetOption>,
    /// What its network is joined to.
    #[command(flatten)]
    pub cable: Cable,
    /// Sockets between programs of the guest and of the host (AF_VSOCK): [cid=N,]uds=PATH, or none. The host connects to the Unix
    /// socket PATH and says `CONNECT port`; a guest that connects to port N of context ID 2 reaches PATH_N. The default guest
    /// has them without this option, for `umbra shell`
    #[arg(long, value_name = "SOCKETS", value_parser = vsock::parse)]
    pub vsock: Option<VsockOption>,
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

/// What a machine of an image is told when it first starts.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What the guest of an image calls itself; the machine's name by default
    #[arg(long, requires = "image", value_parser = parse_name)]
    pub hostname: Option<String>,
    /// A public key that may log in as root by ssh; those in ~/.ssh by default. Give it again for further ones
    #[arg(long = "ssh-key", value_name = "FILE", requires = "image")]
    pub ssh_keys: Vec<PathBuf>,
    /// Size of the machine's disk, a number with M or G; the image's by default
    #[arg(long, value_name = "SIZE", requires = "image", value_parser = parse_size)]
    pub disk_size: Option<u64>,
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
    /// Where the host's side of its sockets is: uds=PATH. Connections do not outlive a restore
    #[arg(long, value_name = "SOCKETS", value_parser = vsock::parse)]
    pub vsock: Option<VsockOption>,
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
    /// The machines' names
    #[arg(value_parser = parse_name, required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// End them at once
    #[arg(long, short)]
    pub force: bool,
    /// How long to wait for a guest to shut down; 0 presses its power button and does not wait
    #[arg(long, short, value_name = "SECONDS", default_value_t = 30, conflicts_with = "force")]
    pub time: u64,
}

/// Options of `ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Ended machines that left something, too
    #[arg(long, short)]
    pub all: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// Options of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Only look: what is typed does not reach the guest
    #[arg(long, short)]
    pub read_only: bool,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Go on with what it shows, until it ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only so many lines of what was there
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<usize>,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The machines' names
    #[arg(value_parser = parse_name, required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// End a running one at once
    #[arg(long, short)]
    pub force: bool,
}

/// What `umbra port` does.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Open a port; prints where it listens
    Add {
        /// The machine's name
        #[arg(value_parser = parse_name)]
        name: String,
        /// As for `umbra run -p`; port 0 lets the host choose
        #[arg(value_name = "[ADDRESS:]PORT:GUEST_PORT[/udp]", value_parser = net::parse_live)]
        port: Publish,
    },
    /// Close a port; connections that came through it live on
    #[command(visible_alias = "rm")]
    Remove {
        /// The machine's name
        #[arg(value_parser = parse_name)]
        name: String,
        /// As it was opened; the guest's port may be left out
        #[arg(value_name = "[ADDRESS:]PORT[:GUEST_PORT][/udp]", value_parser = net::parse_removed)]
        port: (ForwardProtocol, SocketAddr),
    },
    /// List them
    Ls {
        /// The machine's name
        #[arg(value_parser = parse_name)]
        name: String,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

/// Reads a number with M or G.
///
/// # Errors
/// It is none.
pub fn parse_size(text: &str) -> Result<u64, String> {
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

/// An image's name.
fn parse_image(text: &str) -> Result<String, String> {
    match text.contains('/') {
        true => Err("an image is given by its name, and this is a file: a disk image boots with --disk FILE, --kernel and --initrd, \
             and of an archive of a system `umbra image build file:NAME` makes an image"
            .into()),
        false => parse_name(text),
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
