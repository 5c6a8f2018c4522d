//! Runs tests of every form, and says what came of it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use iced_x86::{Code, Mnemonic};

use super::compare::differences;
use super::oracle::{BATCH, Oracle};
use super::random::Random;
use super::state::{Bits, Outcome, Test};
use super::table::Operand;
use super::{coverage, generate};

/// Tries to make a test of one form before it counts as one that cannot be made.
const TRIES: usize = 200;
/// Reports of one form that are kept.
const REPORTS_MAX: usize = 3;

/// What is compared with the host.
pub trait Subject {
    /// Whether the shown CPUID offers this form.
    fn offers(&self, code: Code) -> bool;
    /// Runs a test.
    ///
    /// # Errors
    /// The engine cannot go on.
    fn run(&mut self, test: &Test) -> anyhow::Result<Outcome>;
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Tests that were run.
    pub tests: u64,
    /// Tests that ended without an exception but the INT3.
    pub completed: u64,
    /// Forms that were compared, with how many tests completed.
    pub compared: BTreeMap<String, u64>,
    /// The same, each kind of operand by itself.
    pub cases: BTreeMap<(String, Operand), u64>,
    /// Forms for which no test could be made.
    pub unmade: Vec<String>,
    /// Forms that are on the list, with the reason.
    pub listed: Vec<(String, &'static str)>,
    /// Differences: form, and report.
    pub failures: BTreeMap<String, Vec<String>>,
}

impl Summary {
    /// Forms that may come to an end without an exception, and never did.
    pub fn never_completed(&self, bits: Bits) -> Vec<&str> {
        let by_name: HashMap<String, Code> = Code::values().map(|c| (format!("{c:?}"), c)).collect();
        let may = |name: &String| by_name.get(name).is_some_and(|c| may_complete(*c, bits));
        self.compared.iter().filter(|c| *c.1 == 0 && may(c.0)).map(|c| c.0.as_str()).collect()
    }

    /// How many tests of a form have completed, with the kind of operand that has the fewest.
    fn least_of(&self, code: Code) -> u64 {
        let name = format!("{code:?}");
        let count = |o| self.cases.get(&(name.clone(), o)).copied().unwrap_or(0);
        Operand::all_of(code).into_iter().map(count).min().unwrap_or(0)
    }

    /// Whether nothing is amiss.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.unmade.is_empty()
    }
}

/// How long to run, and from where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The mode.
    pub bits: Bits,
    /// The seed.
    pub seed: u64,
    /// At least one round over all forms is made, then more until this has passed.
    pub time: Duration,
    /// Tests of each form in a round.
    pub each: usize,
    /// Only forms whose name contains this.
    pub only: Option<String>,
    /// Goes on, for that time at most, until so many tests of each form with each kind of operand have completed.
    pub until: Option<u64>,
}

/// Runs.
///
/// # Errors
/// The child or the engine died.
pub fn run(plan: &Plan, oracle: &mut Oracle, subject: &mut dyn Subject) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    let mut random = Random::new(plan.seed);
    let forms = forms(plan, subject, &mut summary);
    let start = Instant::now();
    let mut round = Round { plan, random: &mut random, oracle, subject, batch: Vec::new() };
    for code in &forms {
        if !round.form(*code, &mut summary)? {
            summary.unmade.push(format!("{code:?}"));
        }
    }
    round.end(&mut summary)?;
    for _ in 0..STUBBORN_ROUNDS {
        let stubborn = forms
            .iter()
            .filter(|c| summary.compared.get(&format!("{c:?}")) == Some(&0) && may_complete(**c, plan.bits));
        for code in stubborn.copied().collect::<Vec<_>>() {
            round.form(code, &mut summary)?;
        }
        round.end(&mut summary)?;
    }
    let mut wanted = forms;
    while start.elapsed() < plan.time && !wanted.is_empty() {
        for code in &wanted {
            round.form(*code, &mut summary)?;
            if start.elapsed() >= plan.time {
                break;
            }
        }
        if let Some(least) = plan.until {
            wanted.retain(|c| may_complete(*c, plan.bits) && summary.least_of(*c) < least);
        }
    }
    round.end(&mut summary)?;
    Ok(summary)
}

/// More rounds over forms of which no test has come to its end.
const STUBBORN_ROUNDS: usize = 30;

/// Whether an instruction of this form can come to an end in user mode without raising an exception.
pub fn may_complete(code: Code, bits: Bits) -> bool {
    use Mnemonic as M;
    let operation = code.op_code();
    // Cuts off the upper half of the instruction pointer, and nothing is mapped there.
    let cut = bits != Bits::Sixteen
        && operation.operand_size() == 16
        && matches!(code.mnemonic(), M::Jmp | M::Call | M::Ret);
    if cut {
        return false;
    }
    !(code.is_privileged()
        || operation.is_input_output()
        || operation.must_be_cpl0()
        || matches!(
            code.mnemonic(),
            M::Int | M::Int1 | M::Ud0 | M::Ud1 | M::Ud2 | M::Rdpmc | M::Rsm | M::Sti | M::Cli | M::Int3
        ))
}

/// Tests under way.
struct Round<'a> {
    plan: &'a Plan,
    random: &'a mut Random,
    oracle: &'a mut Oracle,
    subject: &'a mut dyn Subject,
    batch: Vec<(Code, Test)>,
}

impl Round<'_> {
    /// Makes the tests of one form, and runs what has become a batch. Whether any could be made.
    fn form(&mut self, code: Code, summary: &mut Summary) -> anyhow::Result<bool> {
        for _ in 0..self.plan.each {
            let Some(test) = make(code, self.plan.bits, self.random) else { return Ok(false) };
            self.batch.push((code, test));
            if self.batch.len() == BATCH {
                self.end(summary)?;
            }
        }
        Ok(true)
    }

    fn end(&mut self, summary: &mut Summary) -> anyhow::Result<()> {
        compare(&mut self.batch, self.oracle, self.subject, summary)
    }
}

fn forms(plan: &Plan, subject: &dyn Subject, summary: &mut Summary) -> Vec<Code> {
    let mut forms = Vec::new();
    for code in coverage::forms(plan.bits).filter(|c| subject.offers(*c)) {
        let name = format!("{code:?}");
        if plan.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        match coverage::reason(code) {
            Some(reason) => summary.listed.push((name, reason)),
            None => forms.push(code),
        }
    }
    forms
}

fn make(code: Code, bits: Bits, random: &mut Random) -> Option<Test> {
    (0..TRIES).find_map(|_| generate::test(code, bits, random))
}

fn compare(
    batch: &mut Vec<(Code, Test)>,
    oracle: &mut Oracle,
    subject: &mut dyn Subject,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let tests: Vec<Test> = batch.iter().map(|b| b.1).collect();
    let outcomes = oracle.run(&tests)?;
    for ((code, test), host) in batch.drain(..).zip(outcomes) {
        let engine = subject.run(&test)?;
        let name = format!("{code:?}");
        summary.tests += 1;
        let completed = u64::from(host.vector == 3);
        summary.completed += completed;
        *summary.compared.entry(name.clone()).or_default() += completed;
        let i = generate::instruction(&test);
        if may_complete(code, test.bits) {
            *summary.cases.entry((name.clone(), Operand::of(&i))).or_default() += completed;
        }
        let differ = differences(&test, &i, 0, &host, &engine);
        if !differ.is_empty() {
            let reports = summary.failures.entry(name).or_default();
            if reports.len() < REPORTS_MAX {
                let bytes: Vec<String> = test.code().iter().map(|b| format!("{b:02x}")).collect();
                reports.push(format!(
                    "{} {}\n    {}",
                    test.bits.number(),
                    bytes.join(" "),
                    differ.join("\n    ")
                ));
            }
        }
    }
    Ok(())
}
