//! Differential fuzzing of the software engine: see [`umbra_testkit::diff`].

use std::time::Duration;

use anyhow::{Context as _, bail};
use umbra_testkit::diff::engine::Guest;
use umbra_testkit::diff::oracle::Oracle;
use umbra_testkit::diff::run::{Plan, run};
use umbra_testkit::diff::state::Bits;

const USAGE: &str =
    "diff-fuzz [--seconds N] [--seed S] [--mode 64|32|16] [--each TESTS] [--only PART_OF_NAME]";

fn main() -> anyhow::Result<()> {
    let mut plan = Plan { bits: Bits::SixtyFour, seed: 1, time: Duration::ZERO, each: 16, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value; {USAGE}"))?;
        match name.as_str() {
            "--seconds" => plan.time = Duration::from_secs(value.parse()?),
            "--seed" => plan.seed = value.parse()?,
            "--each" => plan.each = value.parse()?,
            "--only" => plan.only = Some(value),
            "--mode" => {
                plan.bits = match value.as_str() {
                    "64" => Bits::SixtyFour,
                    "32" => Bits::ThirtyTwo,
                    "16" => Bits::Sixteen,
                    _ => bail!("{USAGE}"),
                }
            }
            _ => bail!("{USAGE}"),
        }
    }
    let mut oracle = Oracle::start()?;
    let mut guest = Guest::new()?;
    let summary = run(&plan, &mut oracle, &mut guest)?;
    for (form, reports) in &summary.failures {
        println!("{form}");
        reports.iter().for_each(|r| println!("  {r}"));
    }
    println!("never completed: {:?}", summary.never_completed(plan.bits));
    println!("not made: {:?}", summary.unmade);
    println!(
        "{} tests, {} completed; {} forms compared, {} listed, {} differ",
        summary.tests,
        summary.completed,
        summary.compared.len(),
        summary.listed.len(),
        summary.failures.len()
    );
    anyhow::ensure!(summary.is_clean(), "the engine and the host's processor disagree");
    Ok(())
}
