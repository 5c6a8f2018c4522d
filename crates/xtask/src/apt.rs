//! Debian packages without installing them: a package state of our own, driven through the host's `apt-get`.
//!
//! The sources are the mirrors that this machine already uses, plus the backports suite. Lists, cache and the file of
//! installed packages are in a private folder, so this needs no root and changes nothing of the machine. Authority:
//! apt-get(8), apt.conf(5).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const INSTALLED: &str = "/var/lib/dpkg/status";

/// Packages that count as not installed: the ones that we unpack, whose other versions would conflict besides.
const NOT_INSTALLED: [&str; 6] = ["qemu", "seabios", "ipxe", "strace", "busybox", "linux-image"];

/// Packages that are never unpacked beside a program: they belong to the dynamic linker of the machine.
const OF_THE_MACHINE: [&str; 4] = ["libc6", "libc-bin", "libgcc-s1", "libstdc++6"];

/// Which of the two suites a package is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// The suite that the machine runs, with its security updates.
    Stable,
    /// Its backports.
    Backports,
}

/// Whose programs a root file system consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    Amd64,
    /// 32-bit x86.
    I386,
}

impl Architecture {
    /// What Debian calls it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::I386 => "i386",
        }
    }

    /// What its folders of libraries are named after.
    pub fn triplet(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-linux-gnu",
            Architecture::I386 => "i386-linux-gnu",
        }
    }

    /// What its compilers are named after.
    pub fn compiler(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-linux-gnu",
            Architecture::I386 => "i686-linux-gnu",
        }
    }
}

/// A package and its version, as apt would install them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Full Debian version.
    pub version: String,
}

/// A private package state.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
    codename: String,
    options: Vec<String>,
}

impl Apt {
    /// Makes the state in `folder` and fetches the package lists.
    pub fn open(folder: &Path) -> Result<Apt> {
        Self::open_for(folder, Architecture::Amd64)
    }

    /// The same for the packages of another architecture.
    pub fn open_for(folder: &Path, architecture: Architecture) -> Result<Apt> {
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            std::fs::create_dir_all(folder.join(sub))
                .with_context(|| format!("cannot make {}", folder.join(sub).display()))?;
        }
        let codename = codename()?;
        let status = std::fs::read_to_string(INSTALLED).with_context(|| {
            format!("cannot read {INSTALLED}; the test guests are made of Debian packages")
        })?;
        std::fs::write(folder.join("status"), without_packages(&status, &NOT_INSTALLED))?;
        std::fs::write(folder.join("no-status"), "")?;
        let mut mirrors = mirrors(folder)?;
        if architecture != Architecture::Amd64 {
            // What a mirror leaves out, or lets grow old, is the additions for architectures that few use.
            mirrors.retain(|(_, suite)| *suite == codename);
        }
        std::fs::write(folder.join("sources.list"), sources(&mirrors, &codename))?;
        let path = |name: &str| folder.join(name).display().to_string();
        let settings = [
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            format!("APT::Architecture={}", architecture.name()),
            format!("APT::Architectures={}", architecture.name()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let options = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect();
        let apt = Apt { folder: folder.to_path_buf(), codename, options };
        apt.run(&["-qq", "update"]).context("cannot fetch the package lists")?;
        Ok(apt)
    }

    /// Everything that installing `name` would bring to this machine, itself included.
    pub fn closure(&self, suite: Suite, name: &str) -> Result<Vec<Package>> {
        let release = format!("{}-backports", self.codename);
        let mut arguments = vec!["-s", "--no-install-recommends"];
        if suite == Suite::Backports {
            arguments.extend(["-t", release.as_str()]);
        }
        arguments.extend(["install", name]);
        let output = match self.run(&arguments) {
            Ok(output) => output,
            // Something installed here needs a package that counts as not installed: resolve for an empty machine,
            // which brings every library along.
            Err(_) => {
                self.on_empty_machine(&arguments).with_context(|| format!("cannot resolve package {name}"))?
            }
        };
        let packages = parse_simulation(&String::from_utf8_lossy(&output.stdout));
        if packages.is_empty() {
            bail!("apt-get would install nothing for {name}: is it installed already?");
        }
        Ok(packages)
    }

    /// Everything that a root file system with the packages `names` consists of, down to the C library.
    pub fn closure_from_nothing(&self, names: &[&str]) -> Result<Vec<Package>> {
        let arguments = [&["-s", "--no-install-recommends", "install"], names].concat();
        let output = self.on_empty_machine(&arguments).context("cannot resolve a root file system")?;
        Ok(parse_simulation(&String::from_utf8_lossy(&output.stdout)))
    }

    fn on_empty_machine(&self, arguments: &[&str]) -> Result<Output> {
        let nothing = format!("Dir::State::status={}", self.folder.join("no-status").display());
        self.run(&[&["-o", nothing.as_str()], arguments].concat())
    }

    /// Downloads the packages and unpacks them into `folder`, without those that the machine has; see [`Apt::unpack_all`].
    pub fn unpack(&self, packages: &[Package], folder: &Path) -> Result<()> {
        let missing = packages.iter().filter(|package| !OF_THE_MACHINE.contains(&package.name.as_str()));
        self.unpack_all(&missing.cloned().collect::<Vec<_>>(), folder)
    }

    /// Downloads the packages and unpacks all of them into `folder`, which appears only when it is complete.
    pub fn unpack_all(&self, packages: &[Package], folder: &Path) -> Result<()> {
        let names: Vec<String> =
            packages.iter().map(|package| format!("{}={}", package.name, package.version)).collect();
        let debs = self.folder.join("debs").join(std::process::id().to_string());
        std::fs::create_dir_all(&debs)?;
        let mut arguments = vec!["-qq", "download"];
        arguments.extend(names.iter().map(String::as_str));
        let output = self.command(&arguments).current_dir(&debs).output().context("cannot run apt-get")?;
        succeed(output, "apt-get download")?;
        let mut partial = folder.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if partial.exists() {
            std::fs::remove_dir_all(&partial)?;
        }
        std::fs::create_dir_all(&partial)?;
        for entry in std::fs::read_dir(&debs)? {
            let output = Command::new("dpkg").arg("-x").arg(entry?.path()).arg(&partial).output()?;
            succeed(output, "dpkg -x")?;
        }
        std::fs::rename(&partial, folder)
            .with_context(|| format!("cannot rename to {}", folder.display()))?;
        std::fs::remove_dir_all(&debs).context("cannot remove the downloaded packages")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command
            .args(&self.options)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments).output().context("cannot run apt-get")?;
        succeed(output, &format!("apt-get {}", arguments.join(" ")))
    }
}

/// The output of a program that ended well, or an error with its last words.
fn succeed(output: Output, what: &str) -> Result<Output> {
    if !output.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// The codename of the Debian release that this machine runs.
fn codename() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    if value("ID").as_deref() != Some("debian") {
        bail!("the test guests are made of Debian's packages, and this machine is no Debian");
    }
    value("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")
}

/// The archives that this machine is configured for: (address, suite). Works before any list was fetched.
fn mirrors(folder: &Path) -> Result<BTreeSet<(String, String)>> {
    let empty = folder.join("no-lists");
    std::fs::create_dir_all(empty.join("partial"))?;
    let output = Command::new("apt-get")
        .args(["-o", &format!("Dir::State::lists={}", empty.display()), "update", "--print-uris"])
        .output()
        .context("cannot run apt-get")?;
    let output = succeed(output, "apt-get update --print-uris")?;
    Ok(parse_uris(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads (address, suite) out of `'http://host/path/dists/SUITE/InRelease' …` lines.
pub(crate) fn parse_uris(text: &str) -> BTreeSet<(String, String)> {
    let archive = |line: &str| {
        let uri = line.strip_prefix('\'')?.split_once('\'')?.0;
        let (address, suite) = uri.strip_suffix("/InRelease")?.split_once("/dists/")?;
        Some((address.to_owned(), suite.to_owned()))
    };
    text.lines().filter_map(archive).collect()
}

/// Our source list: the machine's suite and its security updates, plus backports from the same mirror.
pub(crate) fn sources(mirrors: &BTreeSet<(String, String)>, codename: &str) -> String {
    let line = |address: &str, suite: &str| format!("deb [signed-by={KEYRING}] {address} {suite} main\n");
    let mut text = String::new();
    for (address, suite) in mirrors {
        if suite == codename {
            text += &line(address, suite);
            text += &line(address, &format!("{codename}-backports"));
        } else if *suite == format!("{codename}-security") {
            text += &line(address, suite);
        }
    }
    text
}

/// Reads the `Inst` lines of a simulated installation: `Inst name [old] (new suite [arch])`.
pub(crate) fn parse_simulation(text: &str) -> Vec<Package> {
    let package = |line: &str| {
        let rest = line.strip_prefix("Inst ")?;
        let name = rest.split_whitespace().next()?;
        let version = rest.split_once('(')?.1.split_whitespace().next()?;
        Some(Package { name: name.to_owned(), version: version.to_owned() })
    };
    text.lines().filter_map(package).collect()
}

/// The file of installed packages without the paragraphs of packages whose name starts with one of `prefixes`.
pub(crate) fn without_packages(status: &str, prefixes: &[&str]) -> String {
    let keep = |paragraph: &&str| {
        let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or_default();
        !prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    status.split("\n\n").filter(keep).collect::<Vec<_>>().join("\n\n")
}

/// Installs programs that tests call by name, for those that are missing. Needs root or `sudo`.
pub fn install_missing(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| !in_path(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
    let names: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    println!(
        "deps: missing here: {}; installing {}",
        names.join(", "),
        packages.iter().copied().collect::<Vec<_>>().join(", ")
    );
    let mut arguments = vec!["-q", "-y", "--no-install-recommends", "install"];
    arguments.extend(packages);
    if !as_root(&arguments)?.success() {
        println!("deps: the package lists may be old; fetching them");
        as_root(&["-q", "update"])?;
        if !as_root(&arguments)?.success() {
            bail!("apt-get could not install {}", names.join(", "));
        }
    }
    Ok(())
}

fn as_root(arguments: &[&str]) -> Result<std::process::ExitStatus> {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let mut command = if is_root {
        Command::new("apt-get")
    } else if in_path("sudo") {
        let mut command = Command::new("sudo");
        command.arg("apt-get");
        command
    } else {
        bail!("not root, and no sudo: run `apt-get {}` as root, then again", arguments.join(" "));
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status().context("cannot run apt-get")
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).any(|folder| folder.join(program).is_file())
}
