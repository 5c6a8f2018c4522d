//! `cargo xtask lint`: the rules of the house that the compiler does not check.
//!
//! Each step reads the tree and returns findings: where, what is wrong, what to do about it. The rules themselves
//! are written in `ARCHITECTURE.md`; the tables here are their only other copy.

mod documents;
mod edges;
mod size;
mod sources;
mod unsafety;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// One broken rule: a place, what is wrong there, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// File, relative to the workspace where possible.
    pub file: PathBuf,
    /// Line, counted from one.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What the reader of the finding should do.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.file.display(), self.line, self.what, self.cure)
    }
}

/// A part of the lint that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// rustfmt in checking mode over the workspace.
    Fmt,
    /// clippy over every target, warnings denied.
    Clippy,
    /// Every `unsafe` block and impl says why it is sound, and stands in a crate that may have it.
    Unsafe,
    /// Crates depend only on the crates that the architecture lets them see.
    Edges,
    /// Files and functions stay small.
    Size,
    /// Every third-party dependency has its line in `docs/dependencies.md`.
    Documents,
}

impl Step {
    /// All steps, the quick ones first.
    pub const ALL: [Step; 6] =
        [Step::Edges, Step::Documents, Step::Size, Step::Unsafe, Step::Fmt, Step::Clippy];

    fn name(self) -> &'static str {
        match self {
            Step::Fmt => "fmt",
            Step::Clippy => "clippy",
            Step::Unsafe => "unsafe",
            Step::Edges => "edges",
            Step::Size => "size",
            Step::Documents => "documents",
        }
    }
}

/// Runs the chosen steps over the workspace at `root`, prints every finding, and returns how many there were.
pub fn run(root: &Path, steps: &[Step]) -> Result<usize> {
    let mut total = 0;
    for step in steps {
        let count = match step {
            Step::Fmt => {
                // The fuzz targets are a workspace of their own.
                cargo(root, &["fmt", "--all", "--check"])?
                    + cargo(root, &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])?
            }
            Step::Clippy => {
                cargo(root, &["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"])?
            }
            Step::Unsafe => print(unsafety::run(root)?),
            Step::Edges => print(edges::run(root)?),
            Step::Size => print(size::run(root)?),
            Step::Documents => print(documents::run(root)?),
        };
        println!("lint {}: {}", step.name(), if count == 0 { "ok".into() } else { format!("{count} found") });
        total += count;
    }
    Ok(total)
}

fn print(findings: Vec<Finding>) -> usize {
    for finding in &findings {
        println!("{finding}");
    }
    findings.len()
}

/// Runs a cargo subcommand whose own output names file and line; counts as one finding when it fails.
fn cargo(root: &Path, args: &[&str]) -> Result<usize> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run cargo {}", args.join(" ")))?;
    Ok(usize::from(!status.success()))
}

#[cfg(test)]
mod documents_test;
#[cfg(test)]
mod edges_test;
#[cfg(test)]
mod size_test;
#[cfg(test)]
mod unsafety_test;
