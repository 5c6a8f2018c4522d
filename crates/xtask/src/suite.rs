//! `cargo xtask test`: everything that must be green, as named steps with their times.
//!
//! Steps run in order. A step that fails does not keep the later ones from telling what they know, except that
//! nothing is tested without its parts: after a failed `deps` or `build` the rest is skipped, and said so.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::fuzz::{self, FuzzOptions};
use crate::{deps, lint};

/// No call of cargo may take longer: a hang shall end as a failure while the rest can still be told.
const STEP_LIMIT_SECONDS: &str = "1500";

/// A part of the test run that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Install what is missing and prepare the guests.
    Deps,
    /// The rules of the house.
    Lint,
    /// Build every target, the suite for the nested host, and the release program that whole guests are booted with.
    Build,
    /// Unit and integration tests of all crates.
    Unit,
    /// Fuzz targets, a few seconds each.
    Fuzz,
    /// Whole guests under our own engine, on this machine.
    Boot,
    /// Whole guests and the conformance suite under KVM, and moves between the engines, in the nested host.
    Nested,
}

impl Step {
    /// All steps, in the order in which they run.
    pub const ALL: [Step; 7] =
        [Step::Deps, Step::Lint, Step::Build, Step::Unit, Step::Fuzz, Step::Boot, Step::Nested];

    fn name(self) -> &'static str {
        match self {
            Step::Deps => "deps",
            Step::Lint => "lint",
            Step::Build => "build",
            Step::Unit => "unit",
            Step::Fuzz => "fuzz",
            Step::Boot => "boot",
            Step::Nested => "nested",
        }
    }

    /// Whether later steps are pointless when this one failed.
    fn is_condition(self) -> bool {
        matches!(self, Step::Deps | Step::Build)
    }
}

/// Runs the steps and prints a summary; true where all of them passed.
pub fn run(root: &Path, steps: &[Step]) -> bool {
    tell_machine();
    let mut results: Vec<(Step, Option<bool>, f64)> = Vec::new();
    let mut stopped = false;
    for step in Step::ALL.into_iter().filter(|step| steps.contains(step)) {
        if stopped {
            results.push((step, None, 0.0));
            continue;
        }
        println!("=== {}", step.name());
        let started = Instant::now();
        let passed = match run_step(root, step) {
            Ok(()) => true,
            Err(error) => {
                println!("xtask test: {} failed: {error:#}", step.name());
                false
            }
        };
        stopped = !passed && step.is_condition();
        results.push((step, Some(passed), started.elapsed().as_secs_f64()));
    }
    println!("=== summary");
    for (step, passed, seconds) in &results {
        let word = match passed {
            Some(true) => "passed",
            Some(false) => "FAILED",
            None => "skipped, since what it needs failed",
        };
        println!("{:8} {seconds:7.1} s  {word}", step.name());
    }
    let count = |wanted| results.iter().filter(|(_, passed, _)| *passed == wanted).count();
    let (passed, failed, skipped) = (count(Some(true)), count(Some(false)), count(None));
    println!("steps: {passed} passed, {failed} failed, {skipped} skipped");
    failed == 0 && skipped == 0 && passed > 0
}

/// Says what of this machine decides what is tested.
fn tell_machine() {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let kvm = match kvm {
        Ok(_) => {
            "/dev/kvm opens (whether it runs kernels is another matter; KVM is proved in the nested host)"
                .into()
        }
        Err(error) => format!("/dev/kvm: {error}; the KVM engine's own unit tests skip what needs it"),
    };
    println!("xtask test: {kvm}");
    println!("xtask test: skipped everywhere: Intel VT-x under KVM (the nested host has AMD SVM only)");
}

fn run_step(root: &Path, step: Step) -> Result<()> {
    match step {
        Step::Deps => deps::prepare(false).map(drop),
        Step::Lint => match lint::run(root, &lint::Step::ALL)? {
            0 => Ok(()),
            count => bail!("{count} found"),
        },
        Step::Build => {
            cargo(root, &["test", "-q", "--workspace", "--no-run"])?;
            cargo(root, &["build", "-p", "umbra-testkit", "--bin", "conformance"])?;
            cargo(root, &["build", "--release", "-p", "umbra"])
        }
        Step::Unit if has_nextest() => {
            cargo(root, &["nextest", "run", "--workspace", "--no-fail-fast"])?;
            cargo_with(
                root,
                &["nextest", "run", "-p", "umbra-engine-soft", "--lib", "--no-fail-fast"],
                TRANSLATED,
            )?;
            cargo(root, &["test", "--workspace", "--doc"])
        }
        Step::Unit => {
            println!("xtask test: cargo-nextest is not installed, using cargo test");
            cargo(root, &["test", "--workspace", "--no-fail-fast"])?;
            cargo_with(root, &["test", "-p", "umbra-engine-soft", "--lib"], TRANSLATED)
        }
        Step::Fuzz => fuzz::run(root, &FuzzOptions::repeatable()),
        Step::Boot => guests(root, "boot"),
        Step::Nested => guests(root, "nested"),
    }
}

/// Runs one file of the tests that boot whole guests, one after another: each of them uses the whole machine.
fn guests(root: &Path, file: &str) -> Result<()> {
    if has_nextest() {
        let filter = ["nextest", "run", "-p", "xtask", "--test", file, "--run-ignored", "ignored-only"];
        cargo(root, &[&filter[..], &["--no-fail-fast", "--test-threads", "1"]].concat())
    } else {
        cargo(root, &["test", "-p", "xtask", "--test", file, "--", "--ignored", "--test-threads", "1"])
    }
}

fn has_nextest() -> bool {
    let output = Command::new("cargo").args(["nextest", "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Lets the software engine translate every block at its first run.
const TRANSLATED: &[(&str, &str)] = &[("UMBRA_TRANSLATE_AFTER", "0")];

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    cargo_with(root, args, &[])
}

/// Runs cargo in this environment, and ends it with all that it started where it takes longer than [`STEP_LIMIT_SECONDS`].
fn cargo_with(root: &Path, args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new("timeout")
        .args(["--kill-after=20", STEP_LIMIT_SECONDS])
        .arg(cargo)
        .args(args)
        // A failed test tells what it saw; where in the harness that was helps nobody.
        .env("RUST_LIB_BACKTRACE", "0")
        .envs(environment.iter().copied())
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(124 | 137) => bail!("`cargo {}` took longer than {STEP_LIMIT_SECONDS} s", args.join(" ")),
        _ => bail!("`cargo {}` failed", args.join(" ")),
    }
}
