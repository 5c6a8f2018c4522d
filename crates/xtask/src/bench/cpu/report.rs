//! What the bench found: medians a row, ratios between the sides, geometric means a class.

use serde::Serialize;

use super::profile::Profile;
use super::rows::{Class, Row};
use super::session::Run;
use crate::bench::median;

/// How far a guest's clock may be off.
const CLOCK_ERROR_MAX: f64 = 0.01;

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// Umbra's software engine.
    Umbra,
    /// QEMU's TCG.
    Qemu,
    /// The host itself.
    Host,
}

impl Who {
    /// All sides, in the order in which they take turns.
    pub const ALL: [Who; 3] = [Who::Umbra, Who::Qemu, Who::Host];

    /// Name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Who::Umbra => "umbra",
            Who::Qemu => "qemu",
            Who::Host => "host",
        }
    }
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct CpuReport {
    /// Load averages before and after.
    pub load: [String; 2],
    /// Release of the guests' kernel.
    pub kernel: String,
    /// The sides by their full names.
    pub sides: Vec<Side>,
    /// One entry a row.
    pub rows: Vec<RowTimes>,
    /// One entry a class with more than no row.
    pub classes: Vec<ClassMeans>,
    /// Where the time of a row went, where that was asked for.
    pub profile: Option<Profile>,
    /// What went wrong: rows that failed, results that differ, clocks that are off.
    pub failures: Vec<String>,
}

/// One side of the comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// Which.
    pub who: Who,
    /// What it is, such as `qemu 7.2.22 microvm ELF`.
    pub name: String,
    /// Seconds from the start of the process until it took rows, of its last start.
    pub ready: f64,
    /// Seconds of its clock in one of the host's; none where it did not run for long enough to tell.
    pub clock: Option<f64>,
}

/// Times of one side in one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Times {
    /// Seconds of each round by the host's clock.
    pub seconds: Vec<f64>,
    /// The same by the side's own.
    pub own_seconds: Vec<f64>,
    /// Median of the first.
    pub median: f64,
    /// Median of the processor time, which load of the machine changes less; guests only.
    pub cpu_median: Option<f64>,
}

/// One row of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowTimes {
    /// Name of the row.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// How much was done.
    pub amount: u64,
    /// Umbra's times.
    pub umbra: Option<Times>,
    /// QEMU's.
    pub qemu: Option<Times>,
    /// The host's.
    pub host: Option<Times>,
    /// QEMU's median over Umbra's.
    pub tcg_over_umbra: Option<f64>,
    /// The same of their processor times.
    pub tcg_over_umbra_cpu: Option<f64>,
    /// Umbra's median over the host's.
    pub umbra_over_host: Option<f64>,
    /// QEMU's median over the host's.
    pub tcg_over_host: Option<f64>,
}

/// Geometric means of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassMeans {
    /// The class; none for all rows.
    pub class: Option<Class>,
    /// How many rows have the first ratio.
    pub rows: usize,
    /// Of QEMU's medians over Umbra's.
    pub tcg_over_umbra: Option<f64>,
    /// The same of their processor times.
    pub tcg_over_umbra_cpu: Option<f64>,
    /// Of Umbra's over the host's.
    pub umbra_over_host: Option<f64>,
    /// Of QEMU's over the host's.
    pub tcg_over_host: Option<f64>,
}

/// The n-th root of the product of n values.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logarithms: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logarithms / values.len() as f64).exp())
}

/// A row's report from what its runs gave.
pub(crate) fn row_times(row: &Row, amount: u64, runs: &[(Who, Run)]) -> RowTimes {
    let times = |who: Who| {
        let mine = || runs.iter().filter(|(whose, _)| *whose == who).map(|(_, run)| run);
        let seconds: Vec<f64> = mine().map(|run| run.seconds).collect();
        let median = median(&seconds)?;
        let own_seconds = mine().map(|run| run.own_seconds).collect();
        let cpu: Vec<f64> = mine().filter_map(|run| run.cpu_seconds).collect();
        let cpu_median = crate::bench::median(&cpu);
        Some(Times { seconds, own_seconds, median, cpu_median })
    };
    let (umbra, qemu, host) = (times(Who::Umbra), times(Who::Qemu), times(Who::Host));
    let ratio =
        |over: &Option<Times>, under: &Option<Times>| Some(over.as_ref()?.median / under.as_ref()?.median);
    let cpu = |times: &Option<Times>| times.as_ref()?.cpu_median.filter(|seconds| *seconds > 0.0);
    let cpu_ratio = |over: &Option<Times>, under: &Option<Times>| Some(cpu(over)? / cpu(under)?);
    RowTimes {
        name: row.name,
        class: row.class,
        amount,
        tcg_over_umbra: ratio(&qemu, &umbra),
        tcg_over_umbra_cpu: cpu_ratio(&qemu, &umbra),
        umbra_over_host: ratio(&umbra, &host),
        tcg_over_host: ratio(&qemu, &host),
        umbra,
        qemu,
        host,
    }
}

/// The results of a row's runs that differ from the first one of the most trusted side: the host, else QEMU.
pub(crate) fn disagreements(row: &str, runs: &[(Who, Run)]) -> Vec<String> {
    let Some((trusted, expected)) = runs.iter().max_by_key(|(who, _)| *who) else { return Vec::new() };
    let differs = |(_, run): &&(Who, Run)| run.sum != expected.sum;
    let tell = |(who, run): &(Who, Run)| {
        format!("{row}: {} has result {}, {} has {}", who.name(), run.sum, trusted.name(), expected.sum)
    };
    runs.iter().filter(differs).map(tell).collect()
}

/// Means of each class, and of all rows.
pub(crate) fn class_means(rows: &[RowTimes]) -> Vec<ClassMeans> {
    let means = |class: Option<Class>| {
        let of = |ratio: fn(&RowTimes) -> Option<f64>| -> Vec<f64> {
            rows.iter().filter(|row| class.is_none_or(|class| row.class == class)).filter_map(ratio).collect()
        };
        let first = of(|row| row.tcg_over_umbra);
        ClassMeans {
            class,
            rows: first.len(),
            tcg_over_umbra: geometric_mean(&first),
            tcg_over_umbra_cpu: geometric_mean(&of(|row| row.tcg_over_umbra_cpu)),
            umbra_over_host: geometric_mean(&of(|row| row.umbra_over_host)),
            tcg_over_host: geometric_mean(&of(|row| row.tcg_over_host)),
        }
    };
    let there = |class: &Class| rows.iter().any(|row| row.class == *class);
    let classes = Class::ALL.into_iter().filter(there).map(Some);
    classes.chain([None]).map(means).collect()
}

/// What is wrong with the clock of a guest of ours, if anything. QEMU's is shown and not judged.
pub(crate) fn clock_failure(side: &Side) -> Option<String> {
    let rate = side.clock?;
    let wrong = side.who == Who::Umbra && (rate - 1.0).abs() > CLOCK_ERROR_MAX;
    wrong.then(|| format!("the clock of {} goes {rate:.4} seconds a second", side.name))
}

impl CpuReport {
    /// Prints one line a row and a class.
    pub fn print(&self) {
        println!("load before {}, after {}; kernel {}", self.load[0], self.load[1], self.kernel);
        for side in &self.sides {
            let clock = side.clock.map_or_else(|| "-".into(), |rate| format!("{rate:.4}"));
            println!(
                "{:6} {:28} took rows after {:6.2} s, clock {clock}",
                side.who.name(),
                side.name,
                side.ready
            );
        }
        let time = |times: &Option<Times>| {
            times.as_ref().map_or_else(|| "-".into(), |one| format!("{:.3}", one.median))
        };
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        println!(
            "{:22} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11} {:>10}",
            "row", "umbra s", "qemu s", "host s", "TCG/Umbra", "(cpu time)", "Umbra/host", "TCG/host"
        );
        for row in &self.rows {
            println!(
                "{:22} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11} {:>10}",
                row.name,
                time(&row.umbra),
                time(&row.qemu),
                time(&row.host),
                ratio(row.tcg_over_umbra),
                ratio(row.tcg_over_umbra_cpu),
                ratio(row.umbra_over_host),
                ratio(row.tcg_over_host)
            );
        }
        for means in &self.classes {
            println!(
                "{:55} {:>10} {:>10} {:>11} {:>10}",
                format!("mean, {}", means.class.map_or("all rows", Class::name)),
                ratio(means.tcg_over_umbra),
                ratio(means.tcg_over_umbra_cpu),
                ratio(means.umbra_over_host),
                ratio(means.tcg_over_host)
            );
        }
        if let Some(profile) = &self.profile {
            profile.print();
        }
    }
}
