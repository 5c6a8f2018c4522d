//! The software engine against the processor that the tests run on: every instruction form, a few times.

use std::time::Duration;

use umbra_testkit::diff::coverage;
use umbra_testkit::diff::engine::Guest;
use umbra_testkit::diff::oracle::Oracle;
use umbra_testkit::diff::run::{Plan, Subject, Summary, run};
use umbra_testkit::diff::state::Bits;

fn report(s: &Summary) -> String {
    let lines = s
        .failures
        .iter()
        .flat_map(|(form, reports)| [form.clone()].into_iter().chain(reports.iter().cloned()));
    lines.take(60).collect::<Vec<_>>().join("\n")
}

fn compare(plan: &Plan) -> Summary {
    let mut oracle = Oracle::start().expect("the child that runs instructions natively");
    let mut guest = Guest::new().expect("the engine's guest");
    let summary = run(plan, &mut oracle, &mut guest).expect("both sides go on to the end");
    assert!(summary.failures.is_empty(), "seed {}:\n{}", plan.seed, report(&summary));
    summary
}

/// Every form that the shown CPUID offers is compared, or on the list.
fn all_forms(bits: Bits) {
    let plan = Plan { bits, seed: 7, time: Duration::ZERO, each: 5, only: None };
    let summary = compare(&plan);
    assert_eq!(summary.unmade, Vec::<String>::new(), "forms of which no test can be made");
    assert_eq!(
        summary.never_completed(bits),
        Vec::<&str>::new(),
        "forms of which every test ended in an exception"
    );
    let guest = Guest::new().expect("the engine's guest");
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
        let plan = Plan { bits, seed: 11, time: Duration::ZERO, each, only: Some(only.to_owned()) };
        let summary = compare(&plan);
        // A host that has not got the feature offers none of these forms.
        assert!(summary.tests > 0 || summary.compared.is_empty(), "{line}");
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
        fn run(
            &mut self,
            test: &umbra_testkit::diff::state::Test,
        ) -> anyhow::Result<umbra_testkit::diff::state::Outcome> {
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
    };
    let mut oracle = Oracle::start().expect("the child");
    let summary = run(&plan, &mut oracle, &mut Wrong(Guest::new().expect("the guest"))).expect("both go on");
    assert_eq!(summary.failures.len(), summary.compared.len());
}
