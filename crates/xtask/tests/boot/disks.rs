//! Disks: the guest's own tools judge what it reads and writes, and the host's judge the images afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::disk_guest;
use xtask::guests::Kernel;
use xtask::umbra::Guest;

use super::{BOOT, STEP, Setting, arguments, fact};

impl Setting {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// An empty image, made by `umbra image create`.
    fn image(&self, format: &str, size: &str, more: &[&str]) -> Result<PathBuf> {
        let path = self.path(&format!("disk.{format}"));
        let name = path.to_string_lossy();
        let words = [&["image", "create", "-q", "-f", format], more, &[&*name, size]].concat();
        self.umbra.control(&words)?;
        Ok(path)
    }

    fn boot_disk(&self, kernel: &Kernel, task: &str, disk: &str, more: &[&str]) -> Result<Guest> {
        let initrd = disk_guest::initrd(&self.guests, kernel, self.scratch.path())?;
        let options = arguments(&[&["--memory", "512M", "--disk", disk], more].concat());
        self.umbra.boot_initrd(kernel, &initrd, &format!("umbra.task={task}"), &options)
    }
}

/// Runs a program of the host; what it says where it fails.
fn host(program: &str, words: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{program} {words:?}: {said}");
    Ok(said)
}

/// The file system in an image is in order, by the host's own tools, and holds what the guest said.
fn judge(setting: &Setting, image: &Path, format: &str, sum: &str) -> Result<()> {
    let (name, raw) = (image.to_string_lossy(), setting.path("judged.raw"));
    let raw = raw.to_string_lossy();
    if format == "qcow2" {
        host("qemu-img", &["check", "-f", format, &name])?;
    }
    host("qemu-img", &["convert", "-f", format, "-O", "raw", &name, &raw])?;
    host("e2fsck", &["-f", "-n", &raw])?;
    let file = setting.path("one");
    let file = file.to_string_lossy();
    host("debugfs", &["-R", &format!("dump /one {file}"), &raw])?;
    ensure!(host("md5sum", &[&file])?.starts_with(sum), "the file is another");
    Ok(())
}

/// A guest makes a file system, writes, and reads back; it is as well on the host.
fn fills(series: &str, format: &str, cpus: &str, options: &[&str]) -> Result<()> {
    let setting = Setting::new()?;
    let image = setting.image(format, "256M", options)?;
    let disk = format!("{},format={format},serial=web-1", image.display());
    let kernel = setting.guests.kernel(series)?;
    let mut guest = setting.boot_disk(kernel, "fill", &disk, &["--cpus", cpus, "--rng"])?;
    let facts = guest.expect("guest: disk", BOOT)?.text;
    for (name, value) in [
        ("sectors", "524288"),
        ("serial", "web-1"),
        ("ro", "0"),
        ("cache", "write-back"),
        ("physical", "4096"),
    ] {
        ensure!(fact(&facts, name) == Some(value), "{facts}");
    }
    ensure!(fact(&facts, "queues") == Some(cpus), "{facts}");
    ensure!(fact(&facts, "discard") != Some("0"), "{facts}");
    let sum = guest.expect("guest: sum ", BOOT)?.text;
    let sum = sum.rsplit(' ').next().unwrap_or_default().trim();
    guest.finish_with(0, STEP)?;
    judge(&setting, &image, format, sum)
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_fills_a_qcow2_image() -> Result<()> {
    fills("6.1", "qcow2", "1", &[])
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_with_two_processors_fills_a_plain_image() -> Result<()> {
    fills("6.12", "raw", "2", &[])
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_fills_a_vmdk_of_many_files() -> Result<()> {
    let setting = Setting::new()?;
    let image = setting.image("vmdk", "256M", &["-o", "subformat=twoGbMaxExtentSparse"])?;
    let mut guest =
        setting.boot_disk(setting.guests.kernel("6.12")?, "fill", &image.to_string_lossy(), &[])?;
    let sum = guest.expect("guest: sum ", BOOT)?.text;
    let sum = sum.rsplit(' ').next().unwrap_or_default().trim();
    guest.finish_with(0, STEP)?;
    judge(&setting, &image, "vmdk", sum)
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn an_overlay_takes_what_is_written_and_its_base_stays() -> Result<()> {
    let setting = Setting::new()?;
    let kernel = setting.guests.kernel("6.12")?;
    let base = setting.image("raw", "256M", &[])?;
    let before = host("md5sum", &[&base.to_string_lossy()])?;
    let over = setting.path("over.qcow2");
    let over_name = over.to_string_lossy();
    // Beside each other, named as a user in that folder names it.
    setting
        .umbra
        .control(&["image", "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", &over_name])?;
    let mut guest = setting.boot_disk(kernel, "fill", &over_name, &[])?;
    let sum = guest.expect("guest: sum ", BOOT)?.text;
    let sum = sum.rsplit(' ').next().unwrap_or_default().trim();
    guest.finish_with(0, STEP)?;
    ensure!(host("md5sum", &[&base.to_string_lossy()])? == before, "the base was written");
    judge(&setting, &over, "qcow2", sum)
}

/// The number at the end of the last line that holds `text`.
fn last_number(guest: &Guest, text: &str) -> Option<u32> {
    guest
        .lines
        .iter()
        .rev()
        .find(|line| line.text.contains(text))?
        .text
        .rsplit(' ')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// What the guest made durable is there after the program was killed.
fn survives(format: &str, options: &[&str]) -> Result<()> {
    let setting = Setting::new()?;
    let kernel = setting.guests.kernel("6.12")?;
    let image = setting.image(format, "128M", options)?;
    let disk = format!("{},format={format}", image.display());
    for wanted in [20, 3] {
        let mut guest = setting.boot_disk(kernel, "log", &disk, &[])?;
        guest.expect(&format!("guest: durable {wanted}"), BOOT)?;
        host("kill", &["-9", &guest.id().to_string()])?;
        guest.finish(STEP)?;
        let durable = last_number(&guest, "guest: durable ").context("it said nothing")?;
        ensure!(durable >= wanted, "{durable}");
        if format == "qcow2" {
            host("qemu-img", &["check", "-f", format, &image.to_string_lossy()]).or_else(leaks_only)?;
        }
        let mut check = setting.boot_disk(kernel, "check", &disk, &[])?;
        check.expect("guest: log has ", BOOT)?;
        check.finish_with(0, STEP)?;
        let found = last_number(&check, "guest: log has ").context("no number")?;
        ensure!(found >= durable, "{durable} lines were durable, and {found} are there");
    }
    Ok(())
}

/// Clusters that nobody uses are what a killed program may leave; nothing else.
fn leaks_only(error: anyhow::Error) -> Result<String> {
    let said = format!("{error:#}");
    ensure!(said.contains("leaked clusters") && !said.contains("ERROR"), "{said}");
    Ok(said)
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_killed_program_loses_nothing_durable_of_a_qcow2_image() -> Result<()> {
    survives("qcow2", &[])
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_killed_program_loses_nothing_durable_of_a_plain_image() -> Result<()> {
    survives("raw", &[])
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_that_reboots_finds_its_disk_again() -> Result<()> {
    let setting = Setting::new()?;
    let image = setting.image("qcow2", "128M", &[])?;
    let disk = image.to_string_lossy();
    let mut guest = setting.boot_disk(
        setting.guests.kernel("6.12")?,
        "fill umbra.kib=512 umbra.end=reboot",
        &disk,
        &[],
    )?;
    for _ in 0..2 {
        guest.expect("guest: sum ", BOOT)?;
    }
    setting.umbra.control(&["stop", "--force", "guest"])?;
    guest.finish_with(0, STEP)?;
    host("qemu-img", &["check", "-f", "qcow2", &disk])?;
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_saved_guest_goes_on_writing_to_its_disk() -> Result<()> {
    let setting = Setting::new()?;
    let kernel = setting.guests.kernel("6.12")?;
    let image = setting.image("qcow2", "128M", &[])?;
    let (disk, saved) = (image.to_string_lossy(), setting.path("saved"));
    let mut guest = setting.boot_disk(kernel, "stay", &disk, &["--cpu-model", "portable"])?;
    guest.expect("guest: durable 4", BOOT)?;
    setting.umbra.control(&["save", "guest", &saved.to_string_lossy()])?;
    guest.finish_with(0, STEP)?;
    let before = last_number(&guest, "guest: durable ").context("it said nothing")?;
    host("qemu-img", &["check", "-f", "qcow2", &disk])?;
    let mut without = setting.umbra.restore(&saved, &["--accel", "soft", "--name", "other"])?;
    without.finish_with(1, STEP)?;
    ensure!(without.told().contains("give each with --disk"), "{}", without.told());
    let mut again = setting.umbra.restore(&saved, &["--accel", "soft", "--disk", &disk])?;
    again.expect(&format!("guest: durable {}", before + 5), BOOT)?;
    setting.umbra.control(&["stop", "--force", "guest"])?;
    again.finish_with(0, STEP)?;
    let mut check = setting.boot_disk(kernel, "check", &disk, &[])?;
    check.expect("guest: log has ", BOOT)?;
    check.finish_with(0, STEP)?;
    ensure!(last_number(&check, "guest: log has ") >= Some(before + 5), "{}", check.told());
    Ok(())
}
