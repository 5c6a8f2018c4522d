//! `docs/soak.md`: for each case, what came of its latest run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Outcome;
use super::cases::Case;

const DOCUMENT: &str = "docs/soak.md";

const HEADER: &str = "# Real systems under the software engine

The latest run of each case of `cargo xtask soak`, which writes this table (`cargo xtask soak --list` tells the cases, `cargo xtask soak NAME`
runs one). A run that was asked to be shorter than usual, or of another program than this tree's, is not written down. A commit with `+` had changes on top.

- stress: `stress-ng --cpu 2 --vm 2 --fork 2 --switch 2 --mmap 2 --verify` for ten minutes: no worker failed or was skipped.
- gcc, node, java, i386: a compiler and what it made, a JIT, a JVM, and 32-bit programs, which must write what they write on any processor.
  In every Linux guest the kernel's log must hold no warning, crash, stall or killed program.
- memtest: memtest86+ by Linux' boot protocol, one whole pass without an error.

| case | what | date (UTC) | commit | minutes | result |
|---|---|---|---|---|---|
";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub name: String,
    pub what: String,
    pub date: String,
    pub commit: String,
    pub minutes: String,
    pub result: String,
}

impl Row {
    /// The line of a run of the program of this commit that ended now.
    pub(super) fn of(case: &Case, commit: &str, result: &Result<Outcome>) -> Result<Row> {
        let (minutes, result) = match result {
            Ok(outcome) => {
                (format!("{:.1}", outcome.took.as_secs_f64() / 60.0), format!("passed: {}", outcome.told))
            }
            Err(error) => ("-".to_owned(), format!("FAILED: {error:#}")),
        };
        let date = said("date", &["-u", "+%F"])?;
        Ok(Row { name: case.name(), what: case.describe(), date, commit: commit.to_owned(), minutes, result })
    }

    fn line(&self) -> String {
        let Row { name, what, date, commit, minutes, result } = self;
        // A bar would begin a column, and a new line end the table.
        let plain = |text: &str| text.split(['|', '\n']).next().unwrap_or_default().trim().to_owned();
        let cells = [name, what, date, commit, minutes, result].map(|cell| plain(cell));
        format!("| {} |", cells.join(" | "))
    }
}

/// Puts the row into the document.
pub(super) fn record(root: &Path, row: &Row) -> Result<()> {
    let path = root.join(DOCUMENT);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, updated(&old, row)).with_context(|| format!("cannot write {}", path.display()))
}

/// The document with this row in place of the one of the same case, or as its last.
pub(crate) fn updated(document: &str, row: &Row) -> String {
    let mut rows: Vec<String> =
        document.lines().skip_while(|line| !line.starts_with("|---")).skip(1).map(str::to_owned).collect();
    let begin = format!("| {} |", row.name);
    match rows.iter_mut().find(|line| line.starts_with(&begin)) {
        Some(line) => *line = row.line(),
        None => rows.push(row.line()),
    }
    rows.iter().fold(HEADER.to_owned(), |text, line| text + line + "\n")
}

/// The commit that is checked out, and whether there is more.
pub(super) fn commit() -> Result<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no", "crates"])?;
    Ok(if changed.is_empty() { commit } else { commit + "+" })
}

pub(super) fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(crate::cache::workspace());
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
