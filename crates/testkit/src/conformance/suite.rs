//! Runs the programs and says how each went.

use std::time::{Duration, Instant};

use umbra_engine::EngineError;

use super::bench::{self, Manner};
use super::groups::GROUPS;
use super::known;
use super::model;
use super::wild;

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it must be.
    Passed,
    /// What is not.
    Failed(Vec<String>),
    /// It fails for a reason that is written down.
    Known(&'static str),
    /// The processor lacks what it needs.
    Skipped,
}

/// A program and what became of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// `group.name`.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// All outcomes of a run.
#[derive(Debug, Clone, Default)]
pub struct Report(pub Vec<Outcome>);

impl Report {
    /// Those that failed, in words.
    pub fn failures(&self) -> Vec<String> {
        let text = |o: &Outcome| match &o.verdict {
            Verdict::Failed(wrong) => Some(format!("{}:\n    {}", o.name, wrong.join("\n    "))),
            _ => None,
        };
        self.0.iter().filter_map(text).collect()
    }

    /// One line of numbers.
    pub fn summary(&self) -> String {
        let count = |f: fn(&Verdict) -> bool| self.0.iter().filter(|o| f(&o.verdict)).count();
        format!(
            "{} passed, {} failed, {} known, {} skipped in {:.1} s",
            count(|v| *v == Verdict::Passed),
            count(|v| matches!(v, Verdict::Failed(_))),
            count(|v| matches!(v, Verdict::Known(_))),
            count(|v| *v == Verdict::Skipped),
            self.0.iter().map(|o| o.took.as_secs_f64()).sum::<f64>()
        )
    }
}

/// The names of all programs, as `group.name`.
pub fn list() -> Vec<String> {
    let names = |g: &super::program::Group| {
        let group = g.name;
        g.programs.iter().map(move |p| format!("{group}.{}", p.name)).collect::<Vec<_>>()
    };
    let wild = wild::ALL.iter().map(|w| format!("wild.{}", w.name));
    GROUPS.iter().flat_map(names).chain(wild).collect()
}

/// Runs the programs whose names contain `filter`, in the manner given; `tell` hears of each as it ends.
///
/// # Errors
/// An engine does not say what it supports.
pub fn run_suite(
    manner: Manner<'_>,
    filter: &str,
    mut tell: impl FnMut(&Outcome),
) -> Result<Report, EngineError> {
    let supported = manner.engines.iter().map(|e| e.supported_cpuid()).collect::<Result<Vec<_>, _>>()?;
    let shown = model::shown(&supported);
    let platform = manner.platform;
    let mut report = Report::default();
    for group in GROUPS {
        for (index, program) in group.programs.iter().enumerate() {
            let name = format!("{}.{}", group.name, program.name);
            if !name.contains(filter) {
                continue;
            }
            let begun = Instant::now();
            let fatal = known::reason(&name, platform).filter(|_| known::is_fatal(&name, platform));
            let verdict = if let Some(reason) = fatal {
                Verdict::Known(reason)
            } else if program.needs.iter().all(|f| shown.has(*f)) {
                let wrong = bench::run(manner, &shown, program, group.code(index));
                match (wrong.is_empty(), known::reason(&name, platform)) {
                    (true, _) => Verdict::Passed,
                    (false, Some(reason)) => Verdict::Known(reason),
                    (false, None) => Verdict::Failed(wrong),
                }
            } else {
                Verdict::Skipped
            };
            let outcome = Outcome { name, verdict, took: begun.elapsed() };
            tell(&outcome);
            report.0.push(outcome);
        }
    }
    for kind in wild::ALL {
        let name = format!("wild.{}", kind.name);
        if !name.contains(filter) {
            continue;
        }
        let begun = Instant::now();
        let wrong: Vec<_> =
            manner.engines.iter().flat_map(|e| wild::run(*e, &shown, kind, platform)).collect();
        let verdict = if wrong.is_empty() { Verdict::Passed } else { Verdict::Failed(wrong) };
        let outcome = Outcome { name, verdict, took: begun.elapsed() };
        tell(&outcome);
        report.0.push(outcome);
    }
    Ok(report)
}
