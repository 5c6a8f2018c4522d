//! Marks are read right, figures follow from them, and the table of rows and the guest's script agree.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::profile::Profile;
use super::report::{Side, Who, class_means, clock_failure, disagreements, geometric_mean, row_times};
use super::rows::{BOOT, Class, ROWS, select};
use super::session::{Mark, Run, parse, read_run};
use super::{choose_qemu, first_processors, source};
use crate::guests::Qemu;
use crate::process::Line;

fn line(at: u64, text: &str) -> Line {
    Line { at: Duration::from_millis(at), text: text.into() }
}

fn run(seconds: f64, sum: &str) -> Run {
    Run { seconds, own_seconds: seconds, cpu_seconds: Some(seconds / 2.0), sum: sum.into() }
}

#[test]
fn marks_are_told_from_noise() {
    let end = Mark::End { row: "xz".into(), uptime: 12.5, code: 1 };
    assert_eq!(parse("[    1.2] noise cpu: end xz uptime 12.50 code 1"), Some(end));
    assert_eq!(parse("cpu: ready uptime 3.00"), Some(Mark::Ready { uptime: 3.0 }));
    assert_eq!(parse("cpu: end xz uptime twelve code 1"), None);
    assert_eq!(parse("smpboot: cpu: something else"), None);
}

#[test]
fn a_row_takes_the_time_between_its_marks() {
    let lines = [
        line(500, "cpu: result zstd 11"),
        line(1000, "cpu: begin xz uptime 7.00"),
        line(3500, "cpu: end xz uptime 9.40 code 0"),
        line(3600, "cpu: result xz 22"),
    ];
    let run = read_run("xz", &lines).expect("complete");
    assert_eq!((run.seconds, run.sum.as_str()), (2.5, "22"));
    assert!((run.own_seconds - 2.4).abs() < 1e-9);
    assert!(read_run("xz", &lines[1..3]).is_err());
    assert!(read_run("zstd", &lines).is_err());
}

#[test]
fn a_failed_row_says_why() {
    let lines = [
        line(1, "cpu: begin gcc uptime 1.00"),
        line(2, "cpu: end gcc uptime 1.00 code 4"),
        line(3, "cpu: says gcc internal compiler error"),
        line(4, "cpu: result gcc d41d"),
    ];
    let error = read_run("gcc", &lines).expect_err("it failed").to_string();
    assert!(error.contains("exit code 4") && error.contains("internal compiler error"), "{error}");
}

#[test]
fn ratios_are_of_medians_and_means_are_geometric() {
    let runs = [
        (Who::Umbra, run(2.0, "1")),
        (Who::Umbra, run(9.0, "1")),
        (Who::Umbra, run(1.0, "1")),
        (Who::Qemu, run(4.0, "1")),
        (Who::Host, run(0.5, "1")),
    ];
    let first = row_times(&ROWS[0], 1, &runs);
    assert_eq!((first.tcg_over_umbra, first.umbra_over_host), (Some(2.0), Some(4.0)));
    assert_eq!(first.tcg_over_umbra_cpu, Some(2.0));
    let second = row_times(&ROWS[1], 1, &[(Who::Umbra, run(1.0, "1")), (Who::Qemu, run(8.0, "1"))]);
    assert_eq!((second.tcg_over_umbra, second.umbra_over_host), (Some(8.0), None));
    let means = class_means(&[first, second]);
    assert_eq!(means.len(), 2);
    assert_eq!((means[0].class, means[0].rows, means[1].class), (Some(Class::Integer), 2, None));
    let close = |value: Option<f64>, wanted: f64| value.is_some_and(|value| (value - wanted).abs() < 1e-9);
    assert!(close(means[0].tcg_over_umbra, 4.0) && close(means[0].umbra_over_host, 4.0), "{means:?}");
    assert_eq!(geometric_mean(&[]), None);
}

#[test]
fn a_wrong_result_is_found_on_whichever_side() {
    let good = [(Who::Umbra, run(1.0, "a")), (Who::Qemu, run(1.0, "a")), (Who::Host, run(1.0, "a"))];
    assert!(disagreements("xz", &good).is_empty());
    let mut bad = good.to_vec();
    bad.push((Who::Umbra, run(1.0, "b")));
    assert_eq!(disagreements("xz", &bad), ["xz: umbra has result b, host has a"]);
    let without_host = [(Who::Umbra, run(1.0, "b")), (Who::Qemu, run(1.0, "a"))];
    assert_eq!(disagreements("xz", &without_host), ["xz: umbra has result b, qemu has a"]);
    let wavering = [(Who::Host, run(1.0, "a")), (Who::Host, run(1.0, "b"))];
    assert_eq!(disagreements("xz", &wavering).len(), 1);
}

#[test]
fn a_clock_may_be_one_percent_off() {
    let side = |clock| Side { who: Who::Umbra, name: "umbra".into(), ready: 1.0, clock };
    assert_eq!(clock_failure(&side(None)), None);
    assert_eq!(clock_failure(&side(Some(1.009))), None);
    assert!(clock_failure(&side(Some(0.98))).is_some());
    assert_eq!(clock_failure(&Side { who: Who::Qemu, ..side(Some(0.92)) }), None);
}

#[test]
fn counters_are_differences_of_whatever_numbers_there_are() {
    let before = json!({"vcpus": [{"exits": 5, "same": 1}], "name": "x"});
    let after = json!({"vcpus": [{"exits": 25, "same": 1, "new": {"hits": 4}}], "name": "x"});
    let profile = Profile::between("xz", 2.0, &before, &after);
    let counters: Vec<_> =
        profile.counters.iter().map(|one| (one.name.as_str(), one.count, one.a_second)).collect();
    assert_eq!(counters, [("vcpus.0.exits", 20.0, 10.0), ("vcpus.0.new.hits", 4.0, 2.0)]);
}

#[test]
fn times_of_a_profile_are_told_apart_from_counters() {
    let before = json!({"vcpus": [{"microseconds of translated code": 1_000_000, "exits": 1}]});
    let after = json!({"vcpus": [{
        "microseconds of translated code": 4_000_000, "microseconds of helper cpuid": 1_000_000, "exits": 2
    }]});
    let profile = Profile::between("xz", 5.0, &before, &after);
    let times: Vec<_> = profile.times.iter().map(|t| (t.what.as_str(), t.seconds, t.share)).collect();
    assert_eq!(times, [("translated code", 3.0, 0.75), ("helper cpuid", 1.0, 0.25)]);
    assert_eq!(profile.counters.len(), 1);
}

#[test]
fn the_script_knows_every_row() {
    let script = include_str!("../../init/cpu/rows.sh");
    for row in ROWS.iter().filter(|row| row.name != BOOT) {
        for function in ["row", "prepare"] {
            assert!(script.contains(&format!("\n{function}_{}() {{", row.name)), "{function}_{}", row.name);
        }
    }
    assert!(ROWS.iter().all(|row| row.amount > 0));
}

#[test]
fn rows_are_chosen_by_name() {
    let chosen = select(&["xz".into(), "shell".into()]).expect("known");
    assert_eq!(chosen.iter().map(|row| row.name).collect::<Vec<_>>(), ["shell", "xz"]);
    assert_eq!(select(&[]).expect("all").len(), ROWS.len());
    assert!(select(&["nonsense".into()]).is_err());
}

#[test]
fn the_c_file_is_the_same_everywhere() {
    let text = source::c_file();
    assert_eq!(text.lines().count(), source::C_LINES);
    assert_eq!(text, source::c_file());
    assert_eq!(text.matches('{').count(), text.matches('}').count());
}

#[test]
fn the_host_gets_as_many_processors_as_the_guest() {
    assert_eq!(first_processors("0,1", 1), "0");
    assert_eq!(first_processors("2-5,8", 3), "2,3,4");
    assert_eq!(first_processors("0-1,8", 4), "0,1,8");
    assert_eq!(first_processors("all", 1), "all");
}

#[test]
fn each_kernel_has_its_qemu() {
    let qemu = |version: &str| Qemu { version: version.into(), folder: PathBuf::new() };
    let (old, new) = (qemu("7.2.22"), qemu("10.0.2"));
    let choose = |series: &str, asked: Option<&str>| {
        choose_qemu(&[&old, &new], series, asked).ok().map(|qemu| qemu.version.clone())
    };
    assert_eq!(choose("6.1", None).as_deref(), Some("7.2.22"));
    assert_eq!(choose("6.12", None).as_deref(), Some("10.0.2"));
    assert_eq!(choose("6.1", Some("10.0")).as_deref(), Some("10.0.2"));
    assert_eq!(choose("6.1", Some("1")), None);
}
