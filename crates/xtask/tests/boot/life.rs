//! The life of a machine without a terminal, by the commands of a user: its start, log, console, live ports, and all its ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use xtask::net_guest;
use xtask::umbra::Guest;

use super::{BOOT, STEP, Setting};

impl Setting {
    /// What a command that must succeed says.
    fn says(&self, arguments: &[&str]) -> Result<String> {
        let lines = self.umbra.control(arguments)?;
        Ok(lines.into_iter().map(|line| line.text + "\n").collect())
    }

    /// A command whose lines are waited for.
    fn watch(&self, arguments: &[&str]) -> Result<Guest> {
        Guest::start(&self.umbra.command(arguments))
    }
}

/// The bytes that the guest's web server gives for `/file`.
fn fetch(port: u16) -> Result<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no head")?;
    Ok(answer.len() - end - 4)
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_detached_guest_is_watched_reached_stopped_and_started_again() -> Result<()> {
    let setting = Setting::new()?;
    let kernel = setting.guests.kernel("6.12")?;
    let initrd = net_guest::initrd(&setting.guests, kernel, setting.scratch.path())?;
    // No network is asked for, and there is one.
    let options = ["--detach", "--accel", "soft", "--name", "guest", "--memory", "512M", "-q"];
    let mut start = setting.umbra.boot_initrd(kernel, &initrd, "umbra.task=server", &options)?;
    start.finish_with(0, STEP)?;
    ensure!(start.lines.last().is_some_and(|line| line.text == "guest"), "{}", start.told());
    let mut log = setting.watch(&["logs", "--follow", "guest"])?;
    log.expect("guest: net ip=10.0.2.15", BOOT)?;
    let mut console = setting.watch(&["console", "guest"])?;
    log.expect("guest: ready", STEP)?;
    console.expect("guest: ready", STEP)?;
    let said = setting.says(&["port", "add", "guest", "0:80"])?;
    let port = said.trim().strip_prefix("127.0.0.1:").and_then(|rest| rest.strip_suffix("->80"));
    let port: u16 = port.with_context(|| said.clone())?.parse()?;
    ensure!(fetch(port)? == 4 << 20, "the file has another length");
    ensure!(setting.says(&["ls"])?.contains(&format!("127.0.0.1:{port}->80")));
    setting.umbra.control(&["port", "remove", "guest", &port.to_string()])?;
    ensure!(fetch(port).is_err(), "the port is closed");
    setting.umbra.control(&["stop", "--force", "guest"])?;
    console.finish_with(0, STEP)?;
    log.finish_with(0, STEP)?;
    ensure!(setting.says(&["ls", "-a"])?.contains("ended (0)"));
    // Again, and this time its processes are killed.
    ensure!(setting.says(&["start", "guest"])?.trim() == "guest");
    let mut log = setting.watch(&["logs", "--follow", "guest"])?;
    log.expect("guest: ready", BOOT)?;
    let told = setting.says(&["ls", "--json"])?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let broker = told[0]["broker_pid"].to_string();
    ensure!(std::process::Command::new("kill").args(["-9", &broker]).status()?.success());
    log.finish_with(0, STEP)?;
    let begun = Instant::now();
    while !setting.says(&["ls", "-a"])?.contains("killed") {
        ensure!(begun.elapsed() < STEP, "nobody noticed that it was killed");
    }
    ensure!(setting.says(&["logs", "guest"])?.contains("guest: ready"), "its log is gone");
    setting.umbra.control(&["rm", "guest"])?;
    ensure!(!setting.says(&["ls", "-a"])?.contains("guest"));
    Ok(())
}
