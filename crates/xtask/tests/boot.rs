//! Whole guests under our own engine, on this machine, through the release program as a user starts it.
//!
//! `cargo xtask test boot` builds the program, prepares the guests and runs these; each takes seconds to a minute.
#![forbid(unsafe_code)]

#[path = "boot/disks.rs"]
mod disks;
#[path = "boot/images.rs"]
mod images;
#[path = "boot/life.rs"]
mod life;
#[path = "boot/networks.rs"]
mod networks;
#[path = "boot/shell.rs"]
mod shell;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::bench::boot::rate_of;
use xtask::cache::Scratch;
use xtask::guests::Guests;
use xtask::soak::{Program, smoke};
use xtask::umbra::{Guest, Umbra};

/// For a boot under the slowest tier on a busy machine.
const BOOT: Duration = Duration::from_secs(150);
/// For what a running guest does within a few seconds.
const STEP: Duration = Duration::from_secs(60);

const SOFT: [&str; 4] = ["--accel", "soft", "--name", "guest"];

/// What a test of a guest with an initramfs of its own needs.
struct Setting {
    guests: Guests,
    umbra: Umbra,
    scratch: Scratch,
}

impl Setting {
    fn new() -> Result<Setting> {
        Ok(Setting { guests: Guests::load()?, umbra: Umbra::new()?, scratch: Scratch::new()? })
    }
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SOFT, more].concat()
}

/// The value of `key=` in the guest's line of facts.
fn fact<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Boots to user space, compares what the guest sees with what it was given, and ends by power-off.
fn boots(series: &str, cpus: &str, memory: &str, memory_mib: u64) -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?);
    let kernel = guests.kernel(series)?;
    let options = arguments(&["--cpus", cpus, "--memory", memory]);
    let mut guest = umbra.boot(kernel, "umbra.task=clock umbra.ticks=1", &options)?;
    let facts = guest.expect("guest: kernel=", BOOT)?.text;
    ensure!(fact(&facts, "kernel") == Some(&kernel.release), "{facts}");
    ensure!(fact(&facts, "cpus") == Some(cpus), "{facts}");
    ensure!(fact(&facts, "hypervisor") == Some("KVM"), "{facts}");
    let kib: u64 = fact(&facts, "memory_kib").context("no memory_kib")?.parse()?;
    // The kernel keeps its own image, page structures and reserved ranges for itself.
    ensure!(kib <= memory_mib << 10 && kib >= (memory_mib << 10) * 9 / 10 - (40 << 10), "{facts}");
    guest.finish_with(0, STEP)
}

macro_rules! boots {
    ($($name:ident: $series:literal, $cpus:literal, $memory:literal, $mib:literal;)*) => {$(
        #[test]
        #[ignore = "boots a whole guest: cargo xtask test boot"]
        fn $name() -> Result<()> {
            boots($series, $cpus, $memory, $mib)
        }
    )*};
}

boots! {
    boots_6_1_with_128_mib: "6.1", "1", "128M", 128;
    boots_6_1_with_4_processors: "6.1", "4", "1G", 1024;
    boots_6_12_with_1_gib: "6.12", "1", "1G", 1024;
    boots_6_12_with_2_processors: "6.12", "2", "1G", 1024;
    boots_6_12_with_6_gib: "6.12", "1", "6G", 6144;
}

macro_rules! smokes {
    ($($name:ident: $program:ident;)*) => {$(
        #[test]
        #[ignore = "boots a whole guest: cargo xtask test boot"]
        fn $name() -> Result<()> {
            smoke(Program::$program)
        }
    )*};
}

// The short forms of what `cargo xtask soak` runs for long.
smokes! {
    stress_ng_finds_nothing_wrong: Stress;
    gcc_compiles_and_its_output_runs: Gcc;
    node_runs: Node;
    a_jvm_runs_a_compiler_and_what_that_made: Java;
    programs_of_32_bits_run: I386;
    memtest86_finds_no_error: Memtest;
}

/// Every block is translated when it first runs, and its first runs are compared with the interpreter's.
const LOCKSTEP: &[(&str, &str)] = &[("UMBRA_LOCKSTEP", "8"), ("UMBRA_TRANSLATE_AFTER", "0")];

/// Boots to user space and down again in lock-step.
fn boots_in_lockstep(series: &str) -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?.with_environment(LOCKSTEP));
    let kernel = guests.kernel(series)?;
    let options = arguments(&["--memory", "512M", "--stats"]);
    let mut guest = umbra.boot(kernel, "umbra.task=clock umbra.ticks=1", &options)?;
    guest.finish_with(0, BOOT)?;
    let count = guest.lines.iter().find_map(|line| {
        line.text.strip_prefix("umbra:")?.strip_suffix(" runs of blocks compared")?.trim().parse().ok()
    });
    let compared: u64 = count.with_context(|| format!("nothing was compared;{}", guest.told()))?;
    ensure!(compared > 300_000, "only {compared} runs of blocks were compared");
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn tiers_agree_over_a_boot_of_6_1() -> Result<()> {
    boots_in_lockstep("6.1")
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn tiers_agree_over_a_boot_of_6_12() -> Result<()> {
    boots_in_lockstep("6.12")
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn lockstep_refuses_a_second_processor() -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?.with_environment(LOCKSTEP));
    let mut guest = umbra.boot(guests.kernel("6.12")?, "", &arguments(&["--cpus", "2"]))?;
    guest.finish_with(1, STEP)?;
    ensure!(guest.told().contains("give the machine --cpus 1"), "{}", guest.told());
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_panic_has_its_own_exit_code_and_event() -> Result<()> {
    let (guests, umbra, scratch) = (Guests::load()?, Umbra::new()?, Scratch::new()?);
    let events = scratch.path().join("events");
    let path = events.to_string_lossy();
    let options = arguments(&["--no-reboot", "--events", &path]);
    let mut guest = umbra.boot(
        guests.kernel("6.12")?,
        "umbra.modules umbra.task=clock umbra.ticks=1 umbra.end=crash",
        &options,
    )?;
    guest.finish_with(3, BOOT)?;
    let told = std::fs::read_to_string(&events)?;
    let names: Vec<String> = told
        .lines()
        .map(|line| Ok(serde_json::from_str::<serde_json::Value>(line)?["event"].to_string()))
        .collect::<Result<_>>()?;
    for event in ["\"created\"", "\"booted\"", "\"crashed\""] {
        ensure!(names.iter().any(|name| name == event), "no {event} in {told}");
    }
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_reset_boots_again_and_ends_the_run_where_asked() -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?);
    let kernel = guests.kernel("6.12")?;
    let mut once = umbra.boot(kernel, "umbra.end=reboot", &arguments(&["--no-reboot"]))?;
    once.finish_with(0, BOOT)?;
    let count =
        |guest: &Guest| guest.lines.iter().filter(|line| line.text.contains("guest: user space")).count();
    ensure!(count(&once) == 1, "{}", once.told());
    let mut again = umbra.boot(kernel, "umbra.end=reboot", &SOFT)?;
    again.expect("guest: user space", BOOT)?;
    again.expect("guest: user space", BOOT)?;
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn the_guest_s_clock_goes_as_the_host_s() -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?);
    let mut guest = umbra.boot(guests.kernel("6.12")?, "umbra.task=clock umbra.ticks=24", &SOFT)?;
    guest.expect("guest: clock 1 ", BOOT)?;
    guest.expect("guest: clock 24 ", STEP)?;
    let rate = rate_of(&guest.lines).context("the guest told no time")?;
    ensure!((rate - 1.0).abs() <= 0.01, "{rate} guest seconds a second;{}", guest.told());
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_paused_guest_is_silent_and_a_resumed_one_goes_on() -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?);
    let mut guest = umbra.boot(guests.kernel("6.12")?, "umbra.task=count umbra.ticks=1000", &SOFT)?;
    guest.expect("guest: tick 3 ", BOOT)?;
    umbra.control(&["pause", "guest"])?;
    // What it said before it was stopped may still be on its way.
    let silent = guest.expect("guest: tick 9999 ", Duration::from_secs(4));
    ensure!(silent.is_err());
    let before = guest.lines.len();
    ensure!(guest.expect("guest: tick", Duration::from_secs(4)).is_err(), "it ticks though paused");
    ensure!(guest.lines.len() == before);
    umbra.control(&["resume", "guest"])?;
    let tick = guest.expect("guest: tick", STEP)?.text;
    ensure!(tick.contains("memory ok"), "{tick}");
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_saved_guest_continues_where_it_was() -> Result<()> {
    let (guests, umbra, scratch) = (Guests::load()?, Umbra::new()?, Scratch::new()?);
    let file = scratch.path().join("saved");
    let options = arguments(&["--memory", "256M", "--cpu-model", "portable", "--cpus", "2"]);
    let mut guest = umbra.boot(guests.kernel("6.12")?, "umbra.task=count umbra.ticks=1000", &options)?;
    guest.expect("guest: tick 3 ", BOOT)?;
    umbra.control(&["save", "guest", &file.to_string_lossy()])?;
    guest.finish_with(0, STEP)?;
    let last = xtask::umbra::last_tick(&guest.lines).context("no tick")?;
    let mut restored = umbra.restore(&file, &SOFT)?;
    for tick in last + 1..last + 4 {
        let line = restored.expect("guest: tick", STEP)?.text;
        ensure!(line.contains(&format!("guest: tick {tick} memory ok")), "after tick {last}: {line}");
    }
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_killed_broker_takes_its_worker_along() -> Result<()> {
    let (guests, umbra) = (Guests::load()?, Umbra::new()?);
    let mut guest = umbra.boot(guests.kernel("6.12")?, "umbra.task=idle", &SOFT)?;
    guest.expect("guest: user space", BOOT)?;
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", guest.id()))?;
    let worker: u32 = children.split_whitespace().next().context("the broker has no child")?.parse()?;
    drop(guest); // kills with SIGKILL
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let state = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    });
    ensure!(gone, "worker {worker} outlived its broker");
    Ok(())
}
