//! `cargo xtask soak model`: random operations on disk images against an array of bytes, in their millions, and a line of
//! the ledger for each portion. The operations are the model test's of `umbra-block`; this runs it.

use std::fs::{self, OpenOptions};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use super::document::{commit, said};
use crate::cache;

const LEDGER: &str = "docs/block-ledger.md";
/// Operations that one line of the ledger stands for, at most.
const PORTION: u64 = 500_000;

const HEADER: &str = "# Ledger of the model test of disk images

A line a portion of `cargo xtask soak model --seed N --operations N`: random operations on images and chains of them (write, zero,
discard, compressed write, snapshots, VM state, resize, overlay, commit, rebase, amend, key slots, bitmaps, reopen and more) against plain arrays
of bytes, over features that are drawn from all that go together. After each series everything read as it had to, and `check` was clean. A pair
is an operation that met a value of a feature; the next column counts the pairs of such values that operations met. A seed is one series,
and gives the same one again on the same commit. A commit with `+` had changes on top.

| date (UTC) | commit | seeds | operations | pairs met | with two features | result |
|---|---|---|---|---|---|---|
";

/// What one portion came to.
struct Portion {
    seeds: (u64, u64),
    operations: u64,
    pairs: String,
    triples: String,
}

/// Runs so many operations, from a seed on; true where all agreed.
///
/// # Errors
/// A test that cannot be built or started, or a ledger that cannot be written.
pub(super) fn run(first_seed: u64, operations: u64) -> Result<bool> {
    let commit = commit()?;
    let program = Program::build()?;
    let (mut seed, mut done) = (first_seed, 0);
    while done < operations {
        let wanted = PORTION.min(operations - done);
        let portion = run_portion(&program.0, seed, wanted)?;
        let date = said("date", &["-u", "+%F"])?;
        let line = match &portion {
            Ok(Portion { seeds: (first, last), operations, pairs, triples }) => {
                format!(
                    "| {date} | {commit} | {first}–{last} | {operations} | {pairs} | {triples} | no difference |"
                )
            }
            Err(failed) => {
                format!("| {date} | {commit} | {seed}–{failed} | - | - | - | seed {failed} differs |")
            }
        };
        println!("soak: {line}");
        record(&cache::workspace(), &line)?;
        let Ok(portion) = portion else { return Ok(false) };
        seed = portion.seeds.1 + 1;
        done += portion.operations;
    }
    Ok(true)
}

/// The test's program: a copy, so that it stays the same when the tree is built again meanwhile.
struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        // Nothing is lost with a file that stays in a folder for such.
        let _ = fs::remove_file(&self.0);
    }
}

impl Program {
    fn build() -> Result<Program> {
        let built = build()?;
        let copy = std::env::temp_dir().join(format!("umbra-model-{}", std::process::id()));
        fs::copy(&built, &copy).with_context(|| format!("cannot copy {built}"))?;
        Ok(Program(copy))
    }
}

/// Builds the test; the name of its program.
fn build() -> Result<String> {
    let mut cargo = Command::new(env!("CARGO"))
        .args(["test", "-p", "umbra-block", "--lib", "--no-run", "--message-format=json-render-diagnostics"])
        .current_dir(cache::workspace())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be started")?;
    let output = cargo.stdout.take().context("cargo has no output")?;
    let mut program = None;
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("cargo's output is not JSON")?
            && artifact.target.name == "umbra_block"
            && artifact.profile.test
        {
            program = artifact.executable;
        }
    }
    if !cargo.wait()?.success() {
        bail!("the model test cannot be built");
    }
    Ok(program.context("cargo names no test program")?.into_string())
}

/// One portion; the seed that failed where one did.
fn run_portion(program: &Path, seed: u64, operations: u64) -> Result<Result<Portion, u64>> {
    let output = Command::new("nice")
        .args(["-n", "10"])
        .arg(program)
        .args(["model_test::soak", "--exact", "--ignored", "--nocapture"])
        .env("UMBRA_MODEL_SEED", seed.to_string())
        .env("UMBRA_MODEL_OPERATIONS", operations.to_string())
        .output()
        .context("the model test cannot be started")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let failed = errors.lines().filter_map(|line| line.strip_prefix("seed ")).next_back();
        let failed: u64 = failed.and_then(|seed| seed.parse().ok()).with_context(|| errors.to_string())?;
        eprintln!(
            "{}",
            errors.lines().skip_while(|line| line.starts_with("seed ")).collect::<Vec<_>>().join("\n")
        );
        return Ok(Err(failed));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let facts = text.lines().find_map(|line| line.strip_prefix("model: facts "));
    let words: Vec<&str> = facts.context("the model test said nothing")?.split(' ').collect();
    let [first, last, operations, pairs, triples] = words[..] else { bail!("not five facts: {words:?}") };
    for missing in text.lines().filter(|line| line.starts_with("model: never met")) {
        println!("soak: {missing}");
    }
    Ok(Ok(Portion {
        seeds: (first.parse()?, last.parse()?),
        operations: operations.parse()?,
        pairs: pairs.replace('/', " of "),
        triples: triples.to_owned(),
    }))
}

/// Puts a line at the end of the ledger.
fn record(root: &Path, line: &str) -> Result<()> {
    let path = root.join(LEDGER);
    if !path.exists() {
        fs::write(&path, HEADER).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut file = OpenOptions::new().append(true).open(&path)?;
    writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))
}
