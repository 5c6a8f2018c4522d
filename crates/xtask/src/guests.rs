//! The prepared guests: kernels, QEMU emulators to compare with and to nest in, and initramfs images.
//!
//! `cargo xtask deps` writes the list, everything else reads it. All paths are in the cache folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::initramfs::Initramfs;

/// Modules of the test guest, loaded when its command line says `umbra.modules`.
const GUEST_MODULES: [&str; 2] = ["pvpanic-mmio", "pvpanic-pci"];

const GUEST_INIT: &str = include_str!("init/guest.sh");

/// A kernel of Debian's cloud flavour, unpacked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// Version of the package.
    pub package_version: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Folder of its modules.
    pub modules: PathBuf,
    /// Initramfs of the test guest for this kernel; see `init/guest.sh` for what its command line takes.
    pub initrd: PathBuf,
}

/// A QEMU system emulator, unpacked into a folder of its own with the libraries that this machine lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Qemu {
    /// Version as `--version` prints it.
    pub version: String,
    /// The folder that its packages are unpacked in.
    pub folder: PathBuf,
}

/// Everything that `cargo xtask deps` prepares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guests {
    /// Kernel of the machine's own suite: 6.1 on Debian 12.
    pub kernel_stable: Kernel,
    /// Kernel of its backports: 6.12 on Debian 12.
    pub kernel_backports: Kernel,
    /// QEMU of the machine's own suite: 7.2 on Debian 12. With the stable kernel it nests shadow paging too.
    pub qemu_stable: Qemu,
    /// QEMU of its backports: 10.0 on Debian 12.
    pub qemu_backports: Qemu,
    /// The static busybox.
    pub busybox: PathBuf,
    /// strace, with its library in the same tree.
    pub strace: PathBuf,
}

impl Guests {
    /// Reads the list; fails with what to run where something is missing.
    pub fn load() -> Result<Guests> {
        let guests = Self::read().context("the test guests are not prepared; run `cargo xtask deps`")?;
        for path in guests.files() {
            if !path.exists() {
                bail!("{} is gone; run `cargo xtask deps`", path.display());
            }
        }
        Ok(guests)
    }

    pub(crate) fn list_path() -> PathBuf {
        cache::folder().join("guests.json")
    }

    fn read() -> Result<Guests> {
        let path = Self::list_path();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    /// Kernels, the stable one first.
    pub fn kernels(&self) -> [&Kernel; 2] {
        [&self.kernel_stable, &self.kernel_backports]
    }

    /// The kernel whose release starts with `series`, such as `6.1`.
    pub fn kernel(&self, series: &str) -> Result<&Kernel> {
        let of_series = |kernel: &&&Kernel| kernel.series() == series;
        self.kernels().iter().find(of_series).copied().with_context(|| {
            let known = self.kernels().map(Kernel::series).join(" and ");
            format!("no kernel {series} is prepared, only {known}")
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.busybox.clone(), self.strace.clone()];
        for kernel in self.kernels() {
            files.extend([kernel.image.clone(), kernel.modules.clone(), kernel.initrd.clone()]);
        }
        files.extend([&self.qemu_stable, &self.qemu_backports].map(Qemu::program));
        files
    }
}

impl Kernel {
    /// The two first numbers of the release, such as `6.12`.
    pub fn series(&self) -> String {
        self.release.split('.').take(2).collect::<Vec<_>>().join(".")
    }

    /// Writes the guest's initramfs for this kernel to `path`.
    pub(crate) fn write_initrd(modules: &Path, busybox: &Path, path: &Path) -> Result<()> {
        let mut image = Initramfs::new();
        image.busybox(busybox)?;
        image.modules(crate::elf::modules(modules, &GUEST_MODULES)?);
        image.file("init", true, GUEST_INIT);
        cache::write_file(path, &image.to_cpio()?)
    }
}

impl Qemu {
    /// The emulator for x86-64.
    pub fn program(&self) -> PathBuf {
        self.folder.join("usr/bin/qemu-system-x86_64")
    }

    /// Folders with the libraries that were unpacked beside it.
    pub fn libraries(&self) -> Vec<PathBuf> {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| self.folder.join(path)).to_vec()
    }

    /// Folders with its firmware.
    pub fn firmware(&self) -> Vec<PathBuf> {
        ["usr/share/qemu", "usr/share/seabios"].map(|path| self.folder.join(path)).to_vec()
    }

    /// The emulator, told where its parts are, without any default device.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(self.program());
        command
            .env("LD_LIBRARY_PATH", std::env::join_paths(self.libraries())?)
            .env("QEMU_MODULE_DIR", self.folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        for folder in self.firmware() {
            command.arg("-L").arg(folder);
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
        Ok(command)
    }

    /// Starts it to see that every library is there; returns the version it prints.
    pub(crate) fn probe(&self) -> Result<String> {
        let output = self.command()?.arg("--version").output().context("cannot start QEMU")?;
        if !output.status.success() {
            bail!("QEMU does not start: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let word = |line: &str| line.split("version ").nth(1)?.split_whitespace().next().map(str::to_owned);
        text.lines().find_map(word).context("QEMU does not tell its version")
    }
}
