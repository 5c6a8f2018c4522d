//! `cargo xtask fuzz`: builds the fuzz targets of `fuzz/` and lets each try for a short time, beginning with its corpus.
//!
//! With a seed, a run begins with nothing but the corpora in the tree and tries the same inputs each time, as far as it
//! comes: the test run does that, so that what it finds comes from the change under test and not from luck. Without one,
//! chance decides, and what a run finds new stays in the target folder for later runs to begin with: `cargo xtask fuzz
//! --seconds 3600` is the search for more. An input that breaks something is kept, and the summary says how to run it
//! again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::{Scratch, target_folder};

/// libFuzzer's limit for one input, in seconds: it is told from a busy machine.
const INPUT_SECONDS: u32 = 20;
/// Memory that a target may use, in MiB.
const MEMORY_MIB: u32 = 2048;
/// A build from nothing takes two minutes on two cores; a run ends by itself.
const BUILD_SECONDS: u32 = 900;
/// The seed of test runs. Any would do; that it stays the same is the point.
const SEED: u32 = 1;
/// Lines of a failed run's output that are shown.
const LINES_SHOWN: usize = 40;

/// What to fuzz, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct FuzzOptions {
    /// Seconds for each target
    #[arg(long, default_value_t = FuzzOptions::default().seconds)]
    pub seconds: u32,
    /// Try the same inputs as every run with this seed, beginning with the tree's corpus alone
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub seed: Option<u32>,
    /// The targets; all of them where none is named
    pub targets: Vec<String>,
}

impl Default for FuzzOptions {
    fn default() -> Self {
        Self { seconds: 3, seed: None, targets: Vec::new() }
    }
}

impl FuzzOptions {
    /// What the test run does.
    pub fn repeatable() -> Self {
        Self { seed: Some(SEED), ..Self::default() }
    }
}

/// Builds and runs the targets; every one of them, also after one has failed.
///
/// # Errors
/// A target that does not exist, is not built, or finds something.
pub fn run(root: &Path, options: &FuzzOptions) -> Result<()> {
    let targets = choose(known(root)?, &options.targets)?;
    let folder = target_folder().join("fuzz");
    let started = Instant::now();
    build(root, &folder, &targets)?;
    println!("fuzz: built {} targets in {:.1} s", targets.len(), started.elapsed().as_secs_f64());
    let mut failed = Vec::new();
    for target in &targets {
        match try_target(root, &folder, target, options) {
            Ok(done) => println!("fuzz: {target:18} {done}"),
            Err(error) => {
                println!("fuzz: {target:18} FAILED: {error:#}");
                failed.push(target.as_str());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("fuzzing found something: {}", failed.join(", ")) }
}

/// The targets that there are: one file each.
fn known(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Those of `known` that are wanted.
pub(crate) fn choose(known: Vec<String>, wanted: &[String]) -> Result<Vec<String>> {
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target `{name}`; there are {}", known.join(", "));
    }
    if wanted.is_empty() && known.is_empty() {
        bail!("there are no fuzz targets");
    }
    Ok(if wanted.is_empty() { known } else { wanted.to_vec() })
}

fn build(root: &Path, folder: &Path, targets: &[String]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new("timeout");
    command.arg("--kill-after=20").arg(BUILD_SECONDS.to_string()).arg(cargo);
    command.args(["build", "--quiet", "--locked", "--target-dir"]).arg(folder);
    command.args(targets.iter().flat_map(|target| ["--bin", target]));
    // The folder's own configuration has the flags; the environment's would take their place.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    let status = command.current_dir(root.join("fuzz")).status().context("cannot run cargo")?;
    if status.success() { Ok(()) } else { bail!("the fuzz targets cannot be built ({status})") }
}

/// Runs one target; what it did, in words.
fn try_target(root: &Path, folder: &Path, target: &str, options: &FuzzOptions) -> Result<String> {
    let corpus = root.join("fuzz/corpus").join(target);
    if !fs::read_dir(&corpus).is_ok_and(|mut files| files.next().is_some()) {
        bail!("it has no corpus in {}", corpus.display());
    }
    let scratch = Scratch::for_sockets()?;
    let grown = match options.seed {
        None => make_folder(folder.join("corpus").join(target))?,
        Some(_) => make_folder(scratch.path().join("corpus"))?,
    };
    let found = make_folder(folder.join("artifacts").join(target))?;
    let log = make_folder(folder.join("log"))?.join(target);
    let program = folder.join("x86_64-unknown-linux-gnu/debug").join(target);
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let seconds = options.seconds;
    let limit = seconds.saturating_add(5 * INPUT_SECONDS);
    let status = Command::new("timeout")
        .arg("--kill-after=20")
        .arg(limit.to_string())
        .arg(&program)
        .arg(format!("-max_total_time={seconds}"))
        // To libFuzzer 0 is one by chance, which it tells.
        .arg(format!("-seed={}", options.seed.unwrap_or(0)))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(&grown)
        .arg(&corpus)
        .env("TMPDIR", scratch.path())
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    match done(&text) {
        Some(done) if status.success() => Ok(done),
        _ => {
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LINES_SHOWN)) {
                println!("    {line}");
            }
            let (program, found) = (program.display(), found.display());
            bail!("{status}; run it again with {program} and the file that it names in {found}")
        }
    }
}

/// libFuzzer's last word (`Done 8437 runs in 13 second(s)`), if it came to its end and has tried anything.
pub(crate) fn done(log: &str) -> Option<String> {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("Done "))?;
    let (runs, rest) = line.split_once(' ')?;
    (runs.parse::<u64>().ok()? > 0).then(|| format!("{runs:>8} {}", rest.replace("second(s)", "s")))
}

fn make_folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
