//! Commands and files in the default guest, as a user has them without any preparation: by the agent that it has.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use xtask::cache;
use xtask::cache::Scratch;
use xtask::process::Process;
use xtask::umbra::Umbra;

use super::{BOOT, STEP};

/// Bytes that are copied both ways.
const FILE_LEN: usize = 50 << 20;

struct World {
    umbra: Umbra,
    scratch: Scratch,
}

impl World {
    /// The program, with a limit, and a cache of guests that outlives the test.
    fn command(&self, arguments: &[&str]) -> Command {
        let plain = self.umbra.command(arguments);
        let mut command = Command::new("timeout");
        command.args(["-k", "10", &STEP.as_secs().to_string()]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("XDG_CACHE_HOME", cache::folder());
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("cannot start umbra")
    }

    /// Exit code and standard output.
    fn exec(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code();
        Ok((code.with_context(|| format!("umbra {arguments:?} was killed: {output:?}"))?, said))
    }

    /// Starts a machine; it is killed when the value is dropped.
    fn start(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.umbra.command(arguments);
        command.env("XDG_CACHE_HOME", cache::folder());
        Process::start(&command)
    }

    /// Waits until the guest's agent answers.
    fn answers(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let output = self.output(&["exec", "--no-input", "guest", "true"])?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(begun.elapsed() < BOOT, "the agent does not answer: {said}");
        }
    }
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn commands_and_files_of_the_default_guest() -> Result<()> {
    let world = World { umbra: Umbra::new()?, scratch: Scratch::new()? };
    let mut run = world.start(&["run", "--accel", "soft", "--name", "guest", "--quiet"])?;
    world.answers()?;
    let (code, said) = world.exec(&["shell", "guest", "--", "uname", "-a"])?;
    ensure!(code == 0 && said.starts_with("Linux umbra "), "{code}: {said}");
    ensure!(world.exec(&["exec", "guest", "sh", "-c", "exit 7"])?.0 == 7);
    ensure!(world.exec(&["exec", "guest", "sh", "-c", "kill -TERM $$"])?.0 == 128 + 15);
    ensure!(world.exec(&["exec", "guest", "no-such-program"])?.0 == 127);
    ensure!(world.exec(&["exec", "--tty", "guest", "stty", "size"])?.1.contains("24 80"));
    ensure!(
        world.exec(&["exec", "-w", "/proc/sys", "-e", "A=b c", "guest", "sh", "-c", "pwd; echo $A"])?.1
            == "/proc/sys\nb c\n"
    );

    // A signal to us is the command's.
    let script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.1; done";
    let mut waits = world
        .umbra
        .command(["exec", "guest", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    Command::new("kill").args(["-USR1", &waits.id().to_string()]).status()?;
    let begun = Instant::now();
    while waits.try_wait()?.is_none() {
        if begun.elapsed() > STEP {
            waits.kill()?;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = waits.wait_with_output()?;
    ensure!(output.status.code() == Some(9) && output.stdout == b"ready\ncaught\n", "{output:?}");

    // Files.
    let bytes: Vec<u8> = (0..FILE_LEN as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let (file, back) = (world.scratch.path().join("file"), world.scratch.path().join("back"));
    std::fs::write(&file, &bytes)?;
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o754))?;
    let (code, _) = world.exec(&["cp", &file.to_string_lossy(), "guest:/tmp/copy"])?;
    ensure!(code == 0);
    let (code, _) = world.exec(&["cp", "guest:/tmp/copy", &back.to_string_lossy()])?;
    ensure!(code == 0 && std::fs::read(&back)? == bytes, "the file is another");
    ensure!(std::fs::metadata(&back)?.permissions().mode() & 0o777 == 0o754);
    let mut cat =
        world.command(&["exec", "guest", "md5sum"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    cat.stdin.take().context("no input")?.write_all(&bytes)?;
    let piped = String::from_utf8_lossy(&cat.wait_with_output()?.stdout).into_owned();
    let there = world.exec(&["exec", "guest", "md5sum", "/tmp/copy"])?.1;
    ensure!(piped.split(' ').next() == there.split(' ').next() && there.len() > 32, "{piped} {there}");

    // The same guest, saved and gone on with; what was connected is not any more.
    let mut cut = world.command(&["exec", "--no-input", "guest", "sleep", "1000"]).spawn()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let saved = world.scratch.path().join("saved");
    world.umbra.control(&["save", "guest", &saved.to_string_lossy()])?;
    ensure!(run.finish(STEP)?.is_some_and(|status| status.success()));
    ensure!(!cut.wait()?.success(), "a command outlives its machine");
    let mut again = world.start(&["restore", &saved.to_string_lossy(), "--accel", "soft", "--quiet"])?;
    world.answers()?;
    ensure!(world.exec(&["exec", "guest", "md5sum", "/tmp/copy"])?.1 == there);
    ensure!(world.exec(&["exec", "guest", "sh", "-c", "sleep 0.5; pgrep -f 'sleep 1000'"])?.1.is_empty());
    world.umbra.control(&["stop", "--force", "guest"])?;
    ensure!(again.finish(STEP)?.is_some_and(|status| status.success()));
    let output = world.output(&["exec", "guest", "true"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("no machine named `guest`"), "{output:?}");
    Ok(())
}
