//! The ledger of runs: what was run when, at which commit, from which seed, and what came of it.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

const HEADER: &str = "# Ledger of differential fuzzing

A line a run of `diff-fuzz --ledger`: the engine against the processor that it ran on. What each form has seen in all of
them is in [fuzz-coverage.csv](fuzz-coverage.csv): cases that raised no exception. A commit with `+` had changes on top.

    cargo run --release -p umbra-testkit --bin diff-fuzz -- --mode 64 --seed 1 --seconds 900 --until 1000 \\
        --coverage docs/fuzz-coverage.csv --ledger docs/fuzz-ledger.md
    cargo run --release -p umbra-testkit --bin diff-fuzz -- --sequences --tier all --mode 64 --seed 1 --seconds 900 \\
        --coverage docs/fuzz-coverage.csv --ledger docs/fuzz-ledger.md

Differences that the manual allows are in `crates/testkit/data/undefined.txt`, by name, with the manual's section; forms that
cannot be compared in `crates/testkit/data/not-compared.txt`, with the reason. Tier `Both` interprets a block once before it is translated.
In a sequence, a status flag that is dead at a fault may have another value: see `crates/testkit/src/diff/sequence/flags.rs`.

| date (UTC) | commit | what | mode | tier | seed | cases | came to their end | differ |
|---|---|---|---|---|---|---|---|---|
";

/// One run.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Single instructions, or sequences.
    pub what: &'static str,
    /// 64, 32 or 16.
    pub mode: u32,
    /// Tiers of the engine.
    pub tier: String,
    /// The seed.
    pub seed: u64,
    /// What was compared.
    pub cases: u64,
    /// How much of it raised no exception.
    pub completed: u64,
    /// How much of it differed.
    pub differ: u64,
}

/// Adds a run.
///
/// # Errors
/// The file cannot be written.
pub fn add(path: &Path, entry: &Entry) -> anyhow::Result<()> {
    let is_new = !path.exists();
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if is_new {
        file.write_all(HEADER.as_bytes())?;
    }
    let Entry { what, mode, tier, seed, cases, completed, differ } = entry;
    let (date, commit) = (Date::of(days_since_1970()), commit());
    writeln!(
        file,
        "| {date} | {commit} | {what} | {mode} | {tier} | {seed} | {cases} | {completed} | {differ} |"
    )?;
    Ok(())
}

/// The commit that is checked out, and whether there is more.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no", "crates"]).is_none_or(|s| !s.is_empty());
    if changed { format!("{commit}+") } else { commit }
}

/// Days since 1970-01-01, by the host's clock.
pub fn days_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400)
}

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// That many days after 1970-01-01.
    pub fn of(days: u64) -> Self {
        let is_leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let (mut year, mut rest) = (1970, days);
        loop {
            let len = if is_leap(year) { 366 } else { 365 };
            if rest < len {
                break;
            }
            rest -= len;
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if rest < len {
                break;
            }
            rest -= len;
            month += 1;
        }
        Self { year, month, day: rest + 1 }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod ledger_test;
