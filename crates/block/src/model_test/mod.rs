//! Random operations on images and chains of them against plain arrays of bytes: after each series everything reads as it
//! must, and `check` is clean. A series' image has features drawn from all that go together; which operations have met
//! which is counted.

mod chains;
mod coverage;
mod features;
mod operations;
mod run;

use coverage::Coverage;
use run::Run;

/// Steps of a short series.
const STEPS: u64 = 200;

/// One series. Some are long, so that old states of an image are met too.
fn series(seed: u64, coverage: &mut Coverage) {
    eprintln!("seed {seed}");
    let mut run = Run::new(seed, coverage);
    for _ in 0..STEPS * (1 + seed % 5) {
        run.step();
    }
    run.finish();
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn random_operations_agree_with_an_array() {
    let first = number("UMBRA_MODEL_SEED", 1);
    let mut coverage = Coverage::new();
    for seed in first..first + number("UMBRA_MODEL_SERIES", 60) {
        series(seed, &mut coverage);
    }
}

/// As many operations as are asked for, and what they have met, for the ledger. `cargo xtask soak model` runs it.
#[test]
#[ignore = "it runs for as long as it is told to; `cargo xtask soak model` runs it"]
fn soak() {
    let (first, wanted) = (number("UMBRA_MODEL_SEED", 1), number("UMBRA_MODEL_OPERATIONS", 100_000));
    let mut coverage = Coverage::new();
    let mut seed = first;
    while coverage.operations() < wanted {
        series(seed, &mut coverage);
        seed += 1;
    }
    let (met, missing) = coverage.pairs();
    // The first seed and the last, operations, pairs of operation and feature, and of operation and two features.
    let possible = met + missing.len() as u64;
    let (operations, triples) = (coverage.operations(), coverage.triples());
    println!("model: facts {first} {} {operations} {met}/{possible} {triples}", seed - 1);
    for pair in missing {
        println!("model: never met: {pair}");
    }
}
