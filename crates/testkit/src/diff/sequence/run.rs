//! Runs programs on both sides, and says what came of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use iced_x86::Instruction;
use umbra_engine_soft::host_is_amd;

use super::super::compare::{differences, is_left_open};
use super::super::engine::Tier;
use super::super::oracle::{BATCH, Oracle};
use super::super::random::Random;
use super::super::run::{Subject, may_complete};
use super::super::state::{Bits, ENDLESS, Outcome, Test};
use super::super::table::Operand;
use super::flags::{dead_at, instruction_at};
use super::generate::program;
use super::pool::Pool;
use super::shrink::shrink;
use super::{Program, listing};

/// Reports that are kept.
const REPORTS_MAX: usize = 20;
/// How often a program runs in each tier: first translated, then found translated and linked.
const RUNS: usize = 2;

/// How long to run, and from where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mode: 64 or 32 bits.
    pub bits: Bits,
    /// The seed.
    pub seed: u64,
    /// How long.
    pub time: Duration,
    /// Only the program of this seed.
    pub only: Option<u64>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Programs that were compared.
    pub programs: u64,
    /// Programs that came to their end.
    pub completed: u64,
    /// Programs that did not end on the host, and were left alone.
    pub endless: u64,
    /// Programs that ended in each exception.
    pub exceptions: BTreeMap<u32, u64>,
    /// Forms in programs that came to their end, with the operand.
    pub cases: BTreeMap<(String, Operand), u64>,
    /// Programs that differ.
    pub differ: u64,
    /// Reports of them.
    pub failures: Vec<String>,
}

impl Summary {
    /// Whether nothing is amiss.
    pub fn is_clean(&self) -> bool {
        self.differ == 0
    }
}

/// The two sides.
pub struct Sides<'a> {
    /// The host's processor.
    pub oracle: &'a mut Oracle,
    /// The engine, in each tier.
    pub guests: &'a mut [(Tier, &'a mut dyn Subject)],
}

/// Runs.
///
/// # Errors
/// The child or the engine died.
pub fn run(plan: &Plan, sides: &mut Sides<'_>) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    ensure!(plan.bits != Bits::Sixteen, "sequences are of 64-bit or 32-bit code");
    let Some((_, guest)) = sides.guests.first() else { return Ok(summary) };
    let pool = Pool::new(plan.bits, |code| guest.offers(code) && may_complete(code, plan.bits));
    if let Some(seed) = plan.only {
        batch(&[(seed, program(&pool, plan.bits, seed))], sides, &mut summary)?;
        return Ok(summary);
    }
    let mut random = Random::new(plan.seed);
    let start = Instant::now();
    while start.elapsed() < plan.time {
        let programs: Vec<(u64, Program)> =
            (0..BATCH).map(|_| random.bits()).map(|seed| (seed, program(&pool, plan.bits, seed))).collect();
        batch(&programs, sides, &mut summary)?;
    }
    Ok(summary)
}

/// Runs one test on all sides: the first difference, as text.
///
/// # Errors
/// The child or the engine died.
pub fn check(test: &Test, sides: &mut Sides<'_>) -> anyhow::Result<Option<String>> {
    let outcomes = sides.oracle.run(&[*test])?;
    let Some(host) = outcomes.first() else { return Ok(None) };
    let different = compare(test, host, sides.guests)?;
    Ok(different.map(|(tier, run, differ)| {
        format!("{tier:?}, run {run}\n{}    {}", listing(test), differ.join("\n    "))
    }))
}

fn batch(programs: &[(u64, Program)], sides: &mut Sides<'_>, summary: &mut Summary) -> anyhow::Result<()> {
    let tests: Vec<(usize, Test)> =
        programs.iter().enumerate().filter_map(|(n, p)| p.1.test().map(|t| (n, t))).collect();
    if tests.is_empty() {
        return Ok(());
    }
    let outcomes = sides.oracle.run(&tests.iter().map(|t| t.1).collect::<Vec<_>>())?;
    for ((n, test), host) in tests.iter().zip(outcomes) {
        let (seed, program) = &programs[*n];
        if host.vector == ENDLESS {
            summary.endless += 1;
            continue;
        }
        note(program, test, &host, summary);
        if let Some((tier, run, differ)) = compare(test, &host, sides.guests)? {
            summary.differ += 1;
            if summary.failures.len() < REPORTS_MAX {
                let first = format!("program {seed:#x}, tier {tier:?}, run {run}");
                summary.failures.push(report(&first, program, test, &differ, sides));
            }
        }
    }
    Ok(())
}

fn note(program: &Program, test: &Test, host: &Outcome, summary: &mut Summary) {
    summary.programs += 1;
    if !completed(test, host) {
        *summary.exceptions.entry(host.vector).or_default() += 1;
        return;
    }
    summary.completed += 1;
    for i in program.instructions() {
        *summary.cases.entry((format!("{:?}", i.code()), Operand::of(i))).or_default() += 1;
    }
}

/// Whether the program came to the INT3 behind it.
fn completed(test: &Test, outcome: &Outcome) -> bool {
    outcome.vector == 3 && outcome.state.rip == test.end()
}

type Difference = (Tier, usize, Vec<String>);

/// The first difference that any tier shows.
fn compare(
    test: &Test,
    host: &Outcome,
    guests: &mut [(Tier, &mut dyn Subject)],
) -> anyhow::Result<Option<Difference>> {
    for (tier, guest) in guests {
        for run in 0..RUNS {
            let differ = differ(test, host, &guest.run(test)?);
            if !differ.is_empty() {
                return Ok(Some((*tier, run, differ)));
            }
        }
    }
    Ok(None)
}

/// In what the outcome of a program differs.
fn differ(test: &Test, host: &Outcome, engine: &Outcome) -> Vec<String> {
    let at_fault = |o: &Outcome| match completed(test, o) {
        true => None,
        false => instruction_at(test, o.state.rip),
    };
    let faulting = at_fault(host);
    // Elements that are masked off may fault or not: the other side has gone on, maybe to a fault of the same instruction in a later round.
    let is_left_open = |o: &Outcome| at_fault(o).is_some_and(|i| is_left_open(test.bits, &i, o));
    if is_left_open(host) != is_left_open(engine) {
        return Vec::new();
    }
    let dead = if faulting.is_some() { dead_at(test, host.state.rip) } else { 0 };
    let (mut host, mut engine) = (*host, *engine);
    if host_is_amd() {
        // Pointers of an x87 instruction that raised nothing are there or not, as it happens.
        for outcome in [&mut host, &mut engine] {
            outcome.state.fx[6..24].fill(0);
        }
    }
    differences(test, &faulting.unwrap_or_else(Instruction::default), dead, &host, &engine)
}

/// A difference with the smallest program that shows one.
fn report(first: &str, program: &Program, test: &Test, differ: &[String], sides: &mut Sides<'_>) -> String {
    let mut last = (*test, differ.to_vec());
    let mut found = false;
    let smallest = shrink(program, |smaller| {
        let Some(test) = smaller.test() else { return false };
        let Ok(host) = sides.oracle.run(&[test]) else { return false };
        let Some(host) = host.first().filter(|h| h.vector != ENDLESS) else { return false };
        let Ok(Some((_, _, differ))) = compare(&test, host, sides.guests) else { return false };
        found = true;
        last = (test, differ);
        true
    });
    let how = if found { "" } else { " (not shrunk: not seen again with less)" };
    let s = &last.0.state;
    let registers: Vec<String> = s.gpr.iter().enumerate().map(|(n, v)| format!("{n}={v:x}")).collect();
    format!(
        "{first}: {} of {} instructions{how}\n{}  registers {} flags {:x} window {:x}\n    {}",
        smallest.len(),
        program.len(),
        listing(&last.0),
        registers.join(" "),
        s.rflags,
        s.window,
        last.1.join("\n    ")
    )
}
