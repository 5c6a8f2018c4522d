//! `cargo xtask soak`: real systems and programs under the software engine, for as long as it takes to believe in it.
//!
//! Each case is a guest made of Debian packages, or memtest86+, whose own checks judge the engine: stress-ng verifies what its workers
//! compute, programs must write what they write on any processor, and the guest's kernel must have nothing to complain of.
//! `cargo xtask test boot` does a short form of every program ([`smoke`]).

mod cases;
mod document;
mod linux;
mod memtest;
mod model;
mod screen;

#[cfg(test)]
mod soak_test;

use std::time::Duration;

use anyhow::{Context, Result};

use self::cases::{Case, LINUX_ROOTS};
pub use self::cases::{Length, Program};
use self::document::Row;
use crate::cache;
use crate::guests::Guests;
use crate::umbra::{self, Umbra};

/// What to run, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct SoakOptions {
    /// Cases to run, by name or how it begins, such as stress or gcc-6.12; all where none is named. `model`, alone, is
    /// the model test of disk images, with docs/block-ledger.md as its ledger
    pub names: Vec<String>,
    /// Only tell the names
    #[arg(long)]
    pub list: bool,
    /// Minutes for each case that can choose; a run shorter than usual is not written down
    #[arg(long, default_value_t = cases::MINUTES, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub minutes: u64,
    /// Operations of `model`
    #[arg(long, default_value_t = 1_000_000)]
    pub operations: u64,
    /// The first seed of `model`
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How a case ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From the start of the process to its end.
    pub took: Duration,
    /// What it did, in a few words.
    pub told: String,
}

/// Runs the cases, every one of them, also after one has failed; true where all passed.
///
/// # Errors
/// A name that no case has, something that cannot be prepared, or a document that cannot be written.
pub fn run(options: &SoakOptions) -> Result<bool> {
    if options.names == ["model"] {
        return model::run(options.seed, options.operations);
    }
    let cases = cases::select(&options.names)?;
    if options.list {
        for case in &cases {
            println!("{:14} {}", case.name(), case.describe());
        }
        return Ok(true);
    }
    umbra::build()?;
    let commit = document::commit()?;
    let guests = Guests::load()?;
    let length = Length { seconds: options.minutes * 60, long: true };
    let mut failed = Vec::new();
    for case in cases {
        println!("soak: {:14} {}", case.name(), case.describe());
        let result = run_case(&case, &guests, length);
        match &result {
            Ok(outcome) => {
                println!("soak: {:14} passed after {:.1} s: {}", case.name(), seconds(outcome), outcome.told);
            }
            Err(error) => {
                println!("soak: {:14} FAILED: {error:#}", case.name());
                failed.push(case.name());
            }
        }
        let is_whole = case.program != Program::Stress || options.minutes >= cases::MINUTES;
        if is_whole && umbra::is_ours() {
            document::record(&cache::workspace(), &Row::of(&case, &commit, &result)?)?;
        }
    }
    if !failed.is_empty() {
        println!("soak: failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn seconds(outcome: &Outcome) -> f64 {
    outcome.took.as_secs_f64()
}

/// Runs the first case of a program in its short form.
///
/// # Errors
/// It failed, or something that it needs is missing.
pub fn smoke(program: Program) -> Result<()> {
    let case = cases::all().into_iter().find(|case| case.program == program).context("no such case")?;
    let outcome = run_case(&case, &Guests::load()?, Length::SMOKE)?;
    println!("soak: {:14} passed after {:.1} s: {}", case.name(), seconds(&outcome), outcome.told);
    Ok(())
}

/// Downloads and unpacks what the cases need, unless it is there.
///
/// # Errors
/// A package cannot be had.
pub fn fetch(refresh: bool) -> Result<()> {
    for recipe in LINUX_ROOTS.iter().chain([&cases::MEMTEST]) {
        recipe.unpacked(refresh, |_| Ok(()))?;
    }
    Ok(())
}

fn run_case(case: &Case, guests: &Guests, length: Length) -> Result<Outcome> {
    let umbra = Umbra::new()?;
    match case.program.recipe() {
        Some(recipe) => linux::run(&umbra, guests, case, recipe, length),
        None => memtest::run(&umbra, case, length),
    }
}
