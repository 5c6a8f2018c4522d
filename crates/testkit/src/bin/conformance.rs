//! Runs the conformance suite of the engines by hand, and in the nested host.
//!
//! `conformance [--engine kvm|soft|both] [--moves | --every MS] [--list] [--verbose] [--filter TEXT]`. With `both`, every program moves from one
//! engine to the other, at each mark if nothing else is said. Exits 1 where a program fails for a reason that is not written down.

use std::fs::File;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use umbra_engine::Engine;
use umbra_engine_kvm::KvmEngine;
use umbra_engine_soft::SoftEngine;
use umbra_testkit::conformance::{
    Manner, Moves, Outcome, Verdict, hostile_rounds, list, platform_of_kvm, platform_of_soft, run_suite,
};

/// How many whole machines are tried.
const MACHINES: u32 = 8;

struct Arguments {
    engine: String,
    filter: String,
    moves: Moves,
    list: bool,
    verbose: bool,
}

fn arguments() -> Result<Arguments> {
    let mut a = Arguments {
        engine: "soft".into(),
        filter: String::new(),
        moves: Moves::Never,
        list: false,
        verbose: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--engine" => a.engine = words.next().context("--engine takes kvm, soft or both")?,
            "--filter" => a.filter = words.next().context("--filter takes a part of a program's name")?,
            "--moves" => a.moves = Moves::AtMarks,
            "--every" => {
                let ms = words.next().and_then(|ms| ms.parse().ok()).context("--every takes milliseconds")?;
                a.moves = Moves::Every(Duration::from_millis(ms));
            }
            "--list" => a.list = true,
            "--verbose" => a.verbose = true,
            other => bail!(
                "{other} is not known; usage: conformance [--engine kvm|soft|both] [--moves | --every MS] [--list] [--verbose] [--filter TEXT]"
            ),
        }
    }
    Ok(a)
}

fn kvm() -> Result<KvmEngine> {
    let file = File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?;
    Ok(KvmEngine::open(file.into())?)
}

fn tell(outcome: &Outcome, verbose: bool) {
    match &outcome.verdict {
        Verdict::Failed(wrong) => println!("FAILED {}:\n    {}", outcome.name, wrong.join("\n    ")),
        Verdict::Known(reason) if verbose => println!("known  {}: {reason}", outcome.name),
        Verdict::Skipped if verbose => println!("skip   {}", outcome.name),
        Verdict::Passed if verbose => {
            println!("passed {} in {:.3} s", outcome.name, outcome.took.as_secs_f64())
        }
        _ => (),
    }
}

fn main() -> Result<ExitCode> {
    let a = arguments()?;
    if a.list {
        list().iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    if matches!(a.engine.as_str(), "soft" | "both") {
        engines.push(Box::new(SoftEngine::new()?));
    }
    if matches!(a.engine.as_str(), "kvm" | "both") {
        engines.push(Box::new(kvm()?));
    }
    if engines.is_empty() {
        bail!("--engine takes kvm, soft or both");
    }
    let platform = if a.engine == "soft" { platform_of_soft() } else { platform_of_kvm() };
    let engines: Vec<&dyn Engine> = engines.iter().map(|e| &**e).collect();
    let moves = if engines.len() > 1 && a.moves == Moves::Never { Moves::AtMarks } else { a.moves };
    let manner = Manner { engines: &engines, moves, platform };
    let report = run_suite(manner, &a.filter, |outcome| tell(outcome, a.verbose))?;
    if a.engine == "kvm" && (a.filter.is_empty() || "machine".contains(&a.filter)) {
        let starts = hostile_rounds(|| Ok(Box::new(kvm()?)), MACHINES)
            .context("a whole machine under random accesses")?;
        println!("whole machines under random accesses: guests started {starts:?}");
    }
    println!("conformance on {} ({platform:?}): {}", a.engine, report.summary());
    Ok(if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
