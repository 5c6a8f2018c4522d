//! Images that Umbra builds: Debian from its packages, booted from its disk. The guest's own tools judge its network, and the host's the
//! disk that it leaves.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::cache::{self, Scratch};
use xtask::umbra::Umbra;

use super::{BOOT, STEP};

/// For mmdebstrap on a busy machine, which takes one to two minutes on an idle one.
const BUILD: Duration = Duration::from_secs(900);
const NAME: &str = "image-test";

/// Runs a program of the host, which must succeed; gives what it said.
fn host(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}{errors}", output.status);
    Ok(said)
}

struct Debian {
    umbra: Umbra,
    scratch: Scratch,
}

impl Debian {
    /// The program with images that stay in the tests' cache, and machines that do not.
    fn new() -> Result<Self> {
        let (umbra, scratch) = (Umbra::new()?, Scratch::new()?);
        let it = Self { umbra, scratch };
        let started = std::time::Instant::now();
        let mut build = it.command(&["image", "ls", "--json"]);
        let there: serde_json::Value = serde_json::from_str(&host(&mut build)?)?;
        let names = |image: &serde_json::Value| image["names"].to_string().contains("\"debian\"");
        if !there.as_array().is_some_and(|all| all.iter().any(names)) {
            let mut build = Command::new("timeout");
            build.arg(BUILD.as_secs().to_string()).arg(it.command(&[]).get_program());
            it.environment(&mut build).args(["image", "build", "debian"]);
            host(&mut build)?;
            println!("the image was built in {:.0} s", started.elapsed().as_secs_f64());
        }
        Ok(it)
    }

    fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("XDG_CACHE_HOME", cache::folder().join("images"));
        command.env("XDG_STATE_HOME", self.scratch.path().join("state"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.umbra.command(arguments);
        self.environment(&mut command);
        command
    }

    /// Makes a pair of keys, and gives the private one's path.
    fn key(&self) -> Result<PathBuf> {
        let path = self.scratch.path().join("key");
        host(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path))?;
        Ok(path)
    }
}

/// Runs a command in the guest.
fn ssh(port: u16, key: &Path, words: &str) -> Result<String> {
    let options =
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"];
    let mut command = Command::new("timeout");
    command.args([&STEP.as_secs().saturating_mul(3).to_string(), "ssh"]);
    for option in options {
        command.args(["-o", option]);
    }
    host(command.arg("-i").arg(key).args(["-p", &port.to_string(), "root@127.0.0.1", words]))
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn debian_is_built_and_boots_from_its_disk() -> Result<()> {
    let it = Debian::new()?;
    let key = it.key()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let publish = format!("{port}:22");
    let public = key.with_extension("pub").display().to_string();
    let options =
        ["--accel", "soft", "--name", NAME, "--disk-size", "9G", "-p", &publish, "--ssh-key", &public];
    let run = it.command(&[&["run", "debian"], &options[..]].concat());
    let mut guest = xtask::umbra::Guest::start(&run)?;
    guest.expect(&format!("{NAME} login: root (automatic login)"), BOOT)?;
    // The server comes up a moment after the login.
    let tries = (0..30).find_map(|_| {
        std::thread::sleep(Duration::from_secs(1));
        ssh(port, &key, "hostname").ok()
    });
    ensure!(tries.as_deref().map(str::trim) == Some(NAME), "no login by ssh");
    // The disk is larger than the image, and the file system has grown with it.
    let size = ssh(port, &key, "df --output=size -k / | tail -n 1")?.trim().parse::<u64>()?;
    ensure!(size > 8 << 20, "{size} KiB");
    ssh(port, &key, "ping -c 1 -W 5 10.0.2.2 && getent hosts deb.debian.org")?;
    ssh(
        port,
        &key,
        "apt-get -qq update && apt-get -qq install --no-install-recommends -y hello > /dev/null 2>&1",
    )?;
    ensure!(ssh(port, &key, "hello")?.contains("Hello, world!"));
    // By the agent, which comes with the machine and not with the image.
    ensure!(host(&mut it.command(&["exec", NAME, "cat", "/proc/1/comm"]))?.trim() == "systemd");
    let failed = ssh(port, &key, "systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "units that failed: {failed}");
    // Its connection goes away with it.
    let _ = ssh(port, &key, "systemctl poweroff");
    guest.finish_with(0, STEP)?;

    let disk = it.scratch.path().join("state/umbra").join(NAME).join("root.qcow2").display().to_string();
    host(&mut it.command(&["image", "check", &disk]))?;
    let raw = it.scratch.path().join("root.raw").display().to_string();
    host(&mut it.command(&["image", "convert", "-O", "raw", &disk, &raw]))?;
    host(Command::new("e2fsck").args(["-fn", &raw]))?;
    Ok(())
}
