//! `cargo xtask`: the repository's tool box.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::lint;

/// The repository's tool box.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the rules of the house; exits 1 where one is broken
    Lint {
        /// The steps to run; all of them where none is named
        steps: Vec<lint::Step>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.task {
        Task::Lint { steps } => {
            let steps = if steps.is_empty() { lint::Step::ALL.to_vec() } else { steps };
            let count = lint::run(&workspace(), &steps)?;
            Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// The workspace that this program was built from.
fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or(here.clone(), PathBuf::from)
}
