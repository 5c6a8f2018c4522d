//! Runs the conformance suite of the engines by hand, and in the nested host.
//!
//! `conformance [--engine kvm|soft|both] [--moves] [--list] [--verbose] [--filter TEXT]`. With `both`, every program moves from one engine to
//! the other at each mark. Exits 1 where a program fails for a reason that is not written down.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use umbra_engine::Engine;
use umbra_engine_kvm::KvmEngine;
use umbra_engine_soft::SoftEngine;
use umbra_testkit::conformance::{
    Manner, Outcome, Verdict, list, platform_of_kvm, platform_of_soft, run_suite,
};

struct Arguments {
    engine: String,
    filter: String,
    moves: bool,
    list: bool,
    verbose: bool,
}

fn arguments() -> Result<Arguments> {
    let mut a =
        Arguments { engine: "soft".into(), filter: String::new(), moves: false, list: false, verbose: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--engine" => a.engine = words.next().context("--engine takes kvm, soft or both")?,
            "--filter" => a.filter = words.next().context("--filter takes a part of a program's name")?,
            "--moves" => a.moves = true,
            "--list" => a.list = true,
            "--verbose" => a.verbose = true,
            other => bail!(
                "{other} is not known; usage: conformance [--engine kvm|soft|both] [--moves] [--list] [--verbose] [--filter TEXT]"
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
    let manner = Manner { engines: &engines, moves: a.moves || engines.len() > 1, platform };
    let report = run_suite(manner, &a.filter, |outcome| tell(outcome, a.verbose))?;
    println!("conformance on {} ({platform:?}): {}", a.engine, report.summary());
    Ok(if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
