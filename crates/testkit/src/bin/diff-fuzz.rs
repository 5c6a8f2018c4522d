//! Differential fuzzing of the software engine: see [`umbra_testkit::diff`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use umbra_testkit::diff::engine::{Guest, Tier};
use umbra_testkit::diff::ledger::{self, Entry};
use umbra_testkit::diff::oracle::Oracle;
use umbra_testkit::diff::run::{self, Plan, Subject};
use umbra_testkit::diff::sequence::run::{self as sequence, Sides};
use umbra_testkit::diff::state::Bits;
use umbra_testkit::diff::table::{Column, Operand, Table};

const USAGE: &str =
    "diff-fuzz [--seconds N] [--seed S] [--mode 64|32|16] [--tier interpreter|translator|both|all]
    [--coverage TABLE] [--ledger FILE]
    [--each TESTS] [--until TESTS] [--only PART_OF_NAME]   single instructions
    --sequences [--program SEED]                           programs of up to 30 instructions";

struct Options {
    plan: Plan,
    tiers: Vec<Tier>,
    sequences: bool,
    program: Option<u64>,
    coverage: Option<PathBuf>,
    ledger: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let mut oracle = Oracle::start()?;
    if options.sequences { sequences(&options, &mut oracle) } else { single(&options, &mut oracle) }
}

fn options() -> anyhow::Result<Options> {
    let plan =
        Plan { bits: Bits::SixtyFour, seed: 1, time: Duration::ZERO, each: 16, only: None, until: None };
    let mut o = Options {
        plan,
        tiers: vec![Tier::Translator],
        sequences: false,
        program: None,
        coverage: None,
        ledger: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--sequences" {
            o.sequences = true;
            continue;
        }
        let value = arguments.next().with_context(|| format!("{name} needs a value\n{USAGE}"))?;
        match name.as_str() {
            "--seconds" => o.plan.time = Duration::from_secs(value.parse()?),
            "--seed" => o.plan.seed = number(&value)?,
            "--each" => o.plan.each = value.parse()?,
            "--until" => o.plan.until = Some(value.parse()?),
            "--only" => o.plan.only = Some(value),
            "--program" => o.program = Some(number(&value)?),
            "--coverage" => o.coverage = Some(value.into()),
            "--ledger" => o.ledger = Some(value.into()),
            "--tier" => {
                o.tiers = match value.as_str() {
                    "interpreter" => vec![Tier::Interpreter],
                    "translator" => vec![Tier::Translator],
                    "both" => vec![Tier::Both],
                    "all" => vec![Tier::Translator, Tier::Both, Tier::Interpreter],
                    _ => bail!("{USAGE}"),
                }
            }
            "--mode" => {
                o.plan.bits = match value.as_str() {
                    "64" => Bits::SixtyFour,
                    "32" => Bits::ThirtyTwo,
                    "16" => Bits::Sixteen,
                    _ => bail!("{USAGE}"),
                }
            }
            _ => bail!("{USAGE}"),
        }
    }
    Ok(o)
}

fn number(text: &str) -> anyhow::Result<u64> {
    Ok(match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16)?,
        None => text.parse()?,
    })
}

fn single(o: &Options, oracle: &mut Oracle) -> anyhow::Result<()> {
    let mut clean = true;
    for tier in &o.tiers {
        let summary = run::run(&o.plan, oracle, &mut Guest::new(*tier)?)?;
        for (form, reports) in &summary.failures {
            println!("{form}");
            reports.iter().for_each(|r| println!("  {r}"));
        }
        println!("never completed: {:?}", summary.never_completed(o.plan.bits));
        println!("not made: {:?}", summary.unmade);
        println!(
            "{tier:?}: {} tests, {} completed; {} forms compared, {} listed, {} differ",
            summary.tests,
            summary.completed,
            summary.compared.len(),
            summary.listed.len(),
            summary.failures.len()
        );
        clean &= summary.is_clean();
        let entry = Entry {
            what: "single instructions",
            mode: o.plan.bits.number(),
            tier: format!("{tier:?}"),
            seed: o.plan.seed,
            cases: summary.tests,
            completed: summary.completed,
            differ: summary.failures.len() as u64,
        };
        record(o, Column::Single(o.plan.bits), &summary.cases, &entry)?;
    }
    ensure!(clean, "the engine and the host's processor disagree");
    Ok(())
}

fn sequences(o: &Options, oracle: &mut Oracle) -> anyhow::Result<()> {
    let mut guests = Vec::new();
    for tier in &o.tiers {
        guests.push((*tier, Guest::new(*tier)?));
    }
    let mut guests: Vec<(Tier, &mut dyn Subject)> =
        guests.iter_mut().map(|(tier, guest)| (*tier, guest as &mut dyn Subject)).collect();
    let plan = sequence::Plan { bits: o.plan.bits, seed: o.plan.seed, time: o.plan.time, only: o.program };
    let summary = sequence::run(&plan, &mut Sides { oracle, guests: &mut guests })?;
    summary.failures.iter().for_each(|f| println!("{f}"));
    println!(
        "{:?}: {} programs, {} came to their end, {} did not end, exceptions {:?}; {} differ",
        o.tiers, summary.programs, summary.completed, summary.endless, summary.exceptions, summary.differ
    );
    let entry = Entry {
        what: "sequences",
        mode: o.plan.bits.number(),
        tier: o.tiers.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(" "),
        seed: o.plan.seed,
        cases: summary.programs,
        completed: summary.completed,
        differ: summary.differ,
    };
    record(o, Column::Sequences(o.plan.bits), &summary.cases, &entry)?;
    ensure!(summary.is_clean(), "the engine and the host's processor disagree");
    Ok(())
}

fn record(
    o: &Options,
    column: Column,
    cases: &BTreeMap<(String, Operand), u64>,
    entry: &Entry,
) -> anyhow::Result<()> {
    if let Some(path) = &o.coverage {
        let mut table = Table::read(path)?;
        cases.iter().for_each(|((form, operand), count)| table.add(column, form, *operand, *count));
        table.write(path)?;
        println!("{} cases of {column:?} below 1000", table.below(column, 1000).len());
    }
    if let Some(path) = &o.ledger {
        ledger::add(path, entry)?;
    }
    Ok(())
}
