//! The virtual machine monitors that are compared, behind one description of a guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::guests::Qemu;

/// QEMU's small machine in a shape in which an unmodified kernel finds a timer to calibrate by under emulation.
pub(super) const MICROVM: &str = "microvm,pit=on,pic=on,rtc=on,acpi=off";

/// The guest that every side boots.
#[derive(Debug, Clone)]
pub(super) struct GuestSpec {
    pub initrd: PathBuf,
    pub append: String,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// One side of a comparison.
#[derive(Debug, Clone)]
pub(super) struct Vmm {
    /// What it is called in the report.
    pub name: String,
    /// The kernel file that it boots.
    pub kernel: PathBuf,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Umbra { program: PathBuf, accel: &'static str },
    Qemu { qemu: Qemu, machine: &'static str },
}

impl Vmm {
    /// The command that boots the guest with its serial console on standard output. `runtime` is a folder for its
    /// sockets, `name` one that no other running machine has.
    pub(super) fn command(&self, guest: &GuestSpec, runtime: &Path, name: &str) -> Result<Command> {
        let memory = format!("{}M", guest.memory_mib);
        let cpus = guest.cpus.to_string();
        let mut command = match &self.kind {
            Kind::Umbra { program, accel } => {
                let mut command = Command::new(program);
                command
                    .env("XDG_RUNTIME_DIR", runtime)
                    .args(["run", "--accel", accel, "--name", name, "--no-reboot", "--net", "none"])
                    .args(["--cpus", &cpus, "--memory", &memory])
                    .arg("--kernel")
                    .arg(&self.kernel)
                    .arg("--initrd");
                command
            }
            Kind::Qemu { qemu, machine } => {
                let mut command = qemu.command()?;
                command
                    .args(["-no-reboot", "-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max"])
                    .args(["-smp", &cpus, "-m", &memory, "-serial", "stdio"])
                    .arg("-kernel")
                    .arg(&self.kernel)
                    .arg("-initrd");
                command
            }
        };
        command.arg(&guest.initrd);
        command.args([
            if matches!(self.kind, Kind::Umbra { .. }) { "--append" } else { "-append" },
            &guest.append,
        ]);
        Ok(command)
    }

    pub(super) fn is_umbra(&self) -> bool {
        matches!(self.kind, Kind::Umbra { .. })
    }
}

/// The same command, kept on the given processors.
pub(super) fn pinned(command: &Command, processors: &str) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", processors]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            pinned.env(name, value);
        }
    }
    pinned
}
