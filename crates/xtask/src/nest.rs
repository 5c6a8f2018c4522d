//! A nested host: a Linux under QEMU's emulation of AMD SVM, in which `/dev/kvm` is real hardware virtualization.
//!
//! It is how KVM is tested on a machine whose own `/dev/kvm` cannot run a kernel. A run boots the host with an
//! initramfs of busybox, KVM's modules and the files of the test, runs a shell script in it, streams the console with
//! the seconds of each line, hands out what the script left in `/out`, and returns the script's exit code. QEMU is
//! killed on every way out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Scratch;
use crate::guests::{Guests, Kernel, Qemu};
use crate::initramfs::Initramfs;
use crate::process::{Line, Next, Process};

const NEST_INIT: &str = include_str!("init/nest.sh");

/// Modules that every nested host loads.
const MODULES: [&str; 2] = ["kvm", "kvm-amd"];

/// Greatest size of what `/out` holds, as a tar archive.
const OUT_SIZE_MAX: u64 = 2 << 30;

/// How the nested host translates its guests' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Paging {
    /// In hardware.
    Nested,
    /// By KVM's shadow page tables (`kvm-amd npt=0`); works with the stable kernel and QEMU only.
    Shadow,
}

/// What a nested host is made of.
#[derive(Debug, Clone)]
pub struct NestSpec {
    /// The emulator.
    pub qemu: Qemu,
    /// The host's kernel.
    pub kernel: Kernel,
    /// KVM's paging.
    pub paging: Paging,
    /// The host's processors.
    pub cpus: u32,
    /// The host's memory, as QEMU takes it.
    pub memory: String,
    /// What the script may take, boot included.
    pub timeout: Duration,
    /// Further words of the host's kernel command line.
    pub append: String,
    /// Where the busybox is.
    pub busybox: PathBuf,
    /// The shell script to run.
    pub script: String,
    /// The files that it finds.
    pub files: Initramfs,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code of the script.
    pub code: i32,
    /// Every line of the console.
    pub lines: Vec<Line>,
    /// What the script left in `/out`.
    pub out: PathBuf,
    // Deletes `out`.
    _scratch: Scratch,
}

/// The host is gone before its script came to its end: how QEMU ended, and the last lines.
#[derive(Debug)]
struct Reset(String, String);

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "the nested host ended before its script ({}){}", self.0, self.1)
    }
}

impl std::error::Error for Reset {}

impl NestSpec {
    /// A host for `script`: the newest kernel and emulator for nested paging, the stable ones for shadow paging.
    pub fn new(guests: &Guests, paging: Paging, script: &str) -> NestSpec {
        let (qemu, kernel) = match paging {
            Paging::Nested => (&guests.qemu_backports, &guests.kernel_backports),
            Paging::Shadow => (&guests.qemu_stable, &guests.kernel_stable),
        };
        NestSpec {
            qemu: qemu.clone(),
            kernel: kernel.clone(),
            paging,
            cpus: 2,
            memory: "2G".to_owned(),
            timeout: Duration::from_secs(300),
            append: String::new(),
            busybox: guests.busybox.clone(),
            script: script.to_owned(),
            files: Initramfs::new(),
        }
    }

    /// Adds a program to the host's `/bin` under its own name, with its shared libraries.
    pub fn program(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        self.files.program(path, &name.to_string_lossy(), &[])
    }

    /// Adds a guest to boot in the host: `/guest/NAME/vmlinuz` and `/guest/NAME/initrd`, NAME as in `6.12`.
    pub fn guest(&mut self, kernel: &Kernel) -> Result<()> {
        let folder = format!("guest/{}", kernel.series());
        self.files.copy(&kernel.image, &format!("{folder}/vmlinuz"))?;
        self.files.copy(&kernel.initrd, &format!("{folder}/initrd"))
    }

    /// Adds a QEMU as `/bin/qemu-system-x86_64`, with its libraries and its firmware in `/firmware`.
    pub fn qemu_inside(&mut self, qemu: &Qemu) -> Result<()> {
        self.files.program(&qemu.program(), "qemu-system-x86_64", &qemu.libraries())?;
        for file in
            ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "qboot.rom"]
        {
            let found =
                qemu.firmware().into_iter().map(|folder| folder.join(file)).find(|path| path.exists());
            if let Some(path) = found {
                self.files.copy(&path, &format!("firmware/{file}"))?;
            }
        }
        Ok(())
    }

    /// Boots the host, runs the script, and calls `show` with every console line as it comes. A host that is gone before its script
    /// has been seen once in some hundred, with no cause found: one more time is tried, and told; twice is an error.
    pub fn run(&self, mut show: impl FnMut(&Line)) -> Result<Outcome> {
        self.attempt(&mut show).or_else(|e| match e.is::<Reset>() {
            true => {
                eprintln!("{e}\nonce more");
                self.attempt(&mut show)
            }
            false => Err(e),
        })
    }

    fn attempt(&self, show: &mut impl FnMut(&Line)) -> Result<Outcome> {
        let scratch = Scratch::new()?;
        let initrd = scratch.path().join("initrd");
        std::fs::write(&initrd, self.initrd()?).context("cannot write the host's initramfs")?;
        let disk = scratch.path().join("out.tar");
        std::fs::File::create(&disk)?.set_len(OUT_SIZE_MAX)?;
        let mut process = Process::start(&self.command(&initrd, &disk)?)?;
        let mut lines = Vec::new();
        let mut code = None;
        loop {
            match process.next(self.timeout) {
                Next::Line(line) => {
                    show(&line);
                    // The script or the kernel may have left its last line open.
                    if let Some((_, text)) = line.text.rsplit_once("nest: script ended with ") {
                        code = text.trim().parse().ok();
                    }
                    lines.push(line);
                }
                Next::Ended => break,
                Next::Late => {
                    bail!(
                        "the nested host was killed after {} s{}",
                        self.timeout.as_secs(),
                        last_words(&lines)
                    );
                }
            }
        }
        let status = process.finish(self.timeout)?;
        let Some(code) = code else {
            return Err(Reset(format!("{status:?}"), last_words(&lines)).into());
        };
        let out = scratch.path().join("out");
        unpack_out(&disk, &out)?;
        Ok(Outcome { code, lines, out, _scratch: scratch })
    }

    fn initrd(&self) -> Result<Vec<u8>> {
        let mut base = Initramfs::new();
        base.busybox(&self.busybox)?;
        base.modules(crate::elf::modules(&self.kernel.modules, &MODULES)?);
        base.file("init", true, NEST_INIT);
        base.file("run.sh", false, self.script.as_str());
        let mut bytes = base.to_cpio()?;
        bytes.extend(self.files.to_cpio()?);
        Ok(bytes)
    }

    fn command(&self, initrd: &Path, disk: &Path) -> Result<Command> {
        let paging = match self.paging {
            Paging::Nested => "",
            Paging::Shadow => "nest.options=kvm_amd:npt=0",
        };
        // A busy machine lets the host miss the ticks that its kernel counts to test the timer.
        let append =
            format!("console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check {paging} {}", self.append);
        let mut command = self.qemu.command()?;
        command
            .args(["-no-reboot", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory, "-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &append])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=out,cache=unsafe", disk.display()))
            .args(["-device", "nvme,drive=out,serial=out"]);
        Ok(command)
    }
}

/// The end of the console, for an error.
fn last_words(lines: &[Line]) -> String {
    let tail = &lines[lines.len().saturating_sub(15)..];
    tail.iter().map(|line| format!("\n  {:8.2} {}", line.at.as_secs_f64(), line.text)).collect()
}

/// Unpacks the archive that the host wrote to its disk.
fn unpack_out(disk: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let mut archive = tar::Archive::new(std::fs::File::open(disk)?);
    archive.unpack(out).context("cannot unpack what the nested host left in /out")?;
    std::fs::remove_file(disk).context("cannot remove the nested host's disk")
}
