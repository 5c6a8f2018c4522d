//! The software engine against the processor that the tests run on: every instruction form, a few times.

use std::time::Duration;

use umbra_testkit::diff::coverage;
use umbra_testkit::diff::engine::{Guest, Tier};
use umbra_testkit::diff::generate::with_code;
use umbra_testkit::diff::ledger::days_since_1970;
use umbra_testkit::diff::oracle::Oracle;
use umbra_testkit::diff::run::{Plan, Subject, Summary, run};
use umbra_testkit::diff::sequence::run::{self as sequence, Sides};
use umbra_testkit::diff::state::{Bits, Outcome, State, Test};

fn report(s: &Summary) -> String {
    let lines = s
        .failures
        .iter()
        .flat_map(|(form, reports)| [form.clone()].into_iter().chain(reports.iter().cloned()));
    lines.take(60).collect::<Vec<_>>().join("\n")
}

fn compare(plan: &Plan, tier: Tier) -> Summary {
    let mut oracle = Oracle::start().expect("the child that runs instructions natively");
    let mut guest = Guest::new(tier).expect("the engine's guest");
    let summary = run(plan, &mut oracle, &mut guest).expect("both sides go on to the end");
    assert!(summary.failures.is_empty(), "{tier:?}, seed {}:\n{}", plan.seed, report(&summary));
    summary
}

/// Every form that the shown CPUID offers is compared, or on the list, in each tier.
fn all_forms(bits: Bits) {
    forms(bits, Tier::Interpreter, 7);
    forms(bits, Tier::Translator, 8);
}

fn forms(bits: Bits, tier: Tier, seed: u64) {
    let plan = Plan { bits, seed, time: Duration::ZERO, each: 5, only: None, until: None };
    let summary = compare(&plan, tier);
    assert_eq!(summary.unmade, Vec::<String>::new(), "forms of which no test can be made");
    assert_eq!(
        summary.never_completed(bits),
        Vec::<&str>::new(),
        "forms of which every test ended in an exception"
    );
    let guest = Guest::new(tier).expect("the engine's guest");
    let offered = coverage::forms(bits).filter(|c| guest.offers(*c)).count();
    assert_eq!(summary.compared.len() + summary.listed.len(), offered);
    assert!(
        summary.tests > 15_000 && summary.completed > 13_000,
        "{} tests, {} completed",
        summary.tests,
        summary.completed
    );
}

#[test]
fn all_forms_in_64_bit_mode() {
    all_forms(Bits::SixtyFour);
}

#[test]
fn all_forms_in_32_bit_code() {
    all_forms(Bits::ThirtyTwo);
}

#[test]
fn all_forms_in_16_bit_code() {
    all_forms(Bits::Sixteen);
}

/// Programs for some seconds: half of them the same ones in each run, the others those of the day.
fn sequences(bits: Bits) {
    let mut oracle = Oracle::start().expect("the child that runs instructions natively");
    let mut guests = [Tier::Translator, Tier::Both, Tier::Interpreter]
        .map(|tier| (tier, Guest::new(tier).expect("the engine's guest")));
    for seed in [7, days_since_1970()] {
        let plan = sequence::Plan { bits, seed, time: Duration::from_secs(4), only: None };
        let mut sides: Vec<(Tier, &mut dyn Subject)> =
            guests.iter_mut().map(|(tier, guest)| (*tier, guest as &mut dyn Subject)).collect();
        let summary = sequence::run(&plan, &mut Sides { oracle: &mut oracle, guests: &mut sides })
            .expect("both sides go on to the end");
        assert!(summary.is_clean(), "seed {seed}:\n{}", summary.failures.join("\n"));
        assert!(summary.completed > 100, "{} of {} programs", summary.completed, summary.programs);
        assert!(summary.endless <= 1 + summary.programs / 1000, "{} did not end", summary.endless);
        assert!(summary.exceptions.len() > 3, "exceptions: {:?}", summary.exceptions);
    }
    for (tier, guest) in &guests {
        assert_eq!(guest.translated() > 0, *tier != Tier::Interpreter, "{tier:?}");
    }
}

#[test]
fn sequences_in_64_bit_mode() {
    sequences(Bits::SixtyFour);
}

#[test]
fn sequences_in_32_bit_code() {
    sequences(Bits::ThirtyTwo);
}

/// An engine that is wrong about one instruction is found out, and the report has little else than that instruction.
#[test]
fn a_wrong_instruction_is_found_in_a_sequence() {
    /// BSWAP changes nothing.
    struct Wrong(Guest);
    impl Subject for Wrong {
        fn offers(&self, code: iced_x86::Code) -> bool {
            self.0.offers(code)
        }
        fn run(&mut self, test: &Test) -> anyhow::Result<Outcome> {
            let mut test = *test;
            let end = test.code().len();
            // BSWAP ECX to NOP.
            for at in 1..end {
                if test.code[at - 1..=at] == [0x0f, 0xc9] {
                    test.code[at - 1..=at].copy_from_slice(&[0x66, 0x90]);
                }
            }
            self.0.run(&test)
        }
    }
    let mut oracle = Oracle::start().expect("the child");
    let mut wrong = Wrong(Guest::new(Tier::Translator).expect("the guest"));
    let plan = sequence::Plan { bits: Bits::ThirtyTwo, seed: 5, time: Duration::from_secs(3), only: None };
    let mut guests: [(Tier, &mut dyn Subject); 1] = [(Tier::Translator, &mut wrong)];
    let summary = sequence::run(&plan, &mut Sides { oracle: &mut oracle, guests: &mut guests })
        .expect("both sides go on to the end");
    assert!(summary.differ > 0, "none of {} programs", summary.programs);
    let smallest =
        summary.failures.iter().map(|f| f.lines().filter(|l| l.starts_with("    1000")).count()).min();
    assert!(smallest.is_some_and(|n| n <= 3), "{}", summary.failures.join("\n"));
}

#[test]
fn what_once_differed() {
    for line in include_str!("../data/cases.txt").lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [bits, only, each, ..] = words[..] else { panic!("{line}") };
        let bits = match bits {
            "64" => Bits::SixtyFour,
            "32" => Bits::ThirtyTwo,
            _ => Bits::Sixteen,
        };
        let each = each.parse().expect(line);
        let plan =
            Plan { bits, seed: 11, time: Duration::ZERO, each, only: Some(only.to_owned()), until: None };
        for tier in [Tier::Interpreter, Tier::Translator] {
            let summary = compare(&plan, tier);
            // A host that has not got the feature offers none of these forms.
            assert!(summary.tests > 0 || summary.compared.is_empty(), "{line}");
        }
    }
}

/// A program of a list: mode, code, `rN=`, `flags=`, and `zmm=` for all bytes of these, in hexadecimal, colon, what was wrong. Its memory holds small numbers.
fn listed_program(line: &str) -> Test {
    let words: Vec<&str> = line.split(':').next().unwrap_or_default().split_whitespace().collect();
    let [bits, code, rest @ ..] = &words[..] else { panic!("{line}") };
    let bits = if *bits == "32" { Bits::ThirtyTwo } else { Bits::SixtyFour };
    let hex = |text: &str| u64::from_str_radix(text, 16).expect(line);
    let code: Vec<u8> = (0..code.len() / 2).map(|n| hex(&code[2 * n..2 * n + 2]) as u8).collect();
    let mut state = State::empty();
    state.memory.iter_mut().enumerate().for_each(|(n, b)| *b = n as u8);
    for word in rest {
        match word.split_once('=').expect(line) {
            ("flags", value) => state.rflags = hex(value),
            ("zmm", value) => state.zmm.iter_mut().for_each(|z| z.fill(hex(value) as u8)),
            (register, value) => state.gpr[register[1..].parse::<usize>().expect(line)] = hex(value),
        }
    }
    with_code(state, &code, bits)
}

#[test]
fn programs_that_once_differed() {
    let mut oracle = Oracle::start().expect("the child that runs instructions natively");
    let mut guests = [Tier::Translator, Tier::Both, Tier::Interpreter]
        .map(|tier| (tier, Guest::new(tier).expect("the engine's guest")));
    for line in include_str!("../data/programs.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut sides: Vec<(Tier, &mut dyn Subject)> =
            guests.iter_mut().map(|(tier, guest)| (*tier, guest as &mut dyn Subject)).collect();
        let sides = &mut Sides { oracle: &mut oracle, guests: &mut sides };
        let differ = sequence::check(&listed_program(line), sides).expect("both sides go on to the end");
        assert_eq!(differ, None, "{line}");
    }
}

#[test]
fn the_lists_name_what_exists() {
    let names: std::collections::HashSet<String> =
        iced_x86::Code::values().flat_map(|c| [format!("{c:?}"), format!("{:?}", c.mnemonic())]).collect();
    let unknown: Vec<&str> = coverage::listed().filter(|n| !names.contains(*n)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

/// The comparison itself: an engine that is wrong in one bit of one register is found out.
#[test]
fn a_wrong_engine_is_found_out() {
    struct Wrong(Guest);
    impl Subject for Wrong {
        fn offers(&self, code: iced_x86::Code) -> bool {
            self.0.offers(code)
        }
        fn run(&mut self, test: &Test) -> anyhow::Result<Outcome> {
            let mut outcome = self.0.run(test)?;
            outcome.state.zmm[31][63] ^= 1;
            Ok(outcome)
        }
    }
    let plan = Plan {
        bits: Bits::SixtyFour,
        seed: 3,
        time: Duration::ZERO,
        each: 2,
        only: Some("Addps_xmm_xmmm128".into()),
        until: None,
    };
    let mut oracle = Oracle::start().expect("the child");
    let summary = run(&plan, &mut oracle, &mut Wrong(Guest::new(Tier::Translator).expect("the guest")))
        .expect("both go on");
    assert_eq!(summary.failures.len(), summary.compared.len());
}
