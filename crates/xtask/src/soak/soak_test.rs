//! Names choose cases, guests' lines and memtest's screen are judged right, and the document keeps one row a case.

use std::time::Duration;

use super::cases::{Length, Program, all, select};
use super::document::{Row, updated};
use super::linux::judge;
use super::memtest::{State, state};
use super::screen::Screen;
use crate::process::Line;

fn lines(texts: &[&str]) -> Vec<Line> {
    texts.iter().map(|text| Line { at: Duration::from_secs(1), text: (*text).into() }).collect()
}

#[test]
fn names_are_unique_and_choose_by_whole_parts() {
    let names: std::collections::BTreeSet<String> = all().iter().map(|case| case.name()).collect();
    assert_eq!(names.len(), all().len());
    let chosen = |name: &str| select(&[name.to_owned()]).map(|cases| cases.len()).unwrap_or(0);
    assert_eq!(
        (chosen("stress"), chosen("stress-6.1"), chosen("stress-6.1-4"), chosen("memtest")),
        (4, 2, 1, 1)
    );
    assert_eq!((chosen("stress-6"), chosen("mem"), chosen("")), (0, 0, 0));
    assert_eq!(select(&[]).expect("all").len(), all().len());
}

#[test]
fn each_task_has_a_function() {
    let tasks = include_str!("../init/soak/tasks.sh");
    for case in all().iter().filter(|case| case.kernel.is_some()) {
        assert!(tasks.contains(&format!("task_{}() {{", case.program.name())), "{}", case.name());
    }
}

const STRESS: [&str; 8] = [
    "soak: begin stress processors 2",
    "soak: says stress-ng: info:  [9] dispatching hogs: 2 cpu, 2 vm, 2 fork, 2 switch, 2 mmap",
    "soak: says stress-ng: metrc: [9] cpu                 598     60.36",
    "soak: says stress-ng: metrc: [9] vm               184564     61.08",
    "soak: says stress-ng: metrc: [9] fork               7307     60.00",
    "soak: says stress-ng: metrc: [9] mmap                  4     62.52",
    "soak: says stress-ng: info:  [9] successful run completed in 62.77s",
    "soak: end stress code 0",
];

#[test]
fn a_clean_run_passes_and_any_blemish_fails_it() {
    let verdict = |texts: &[&str]| judge(Program::Stress, Length::SMOKE, &lines(texts));
    verdict(&STRESS).expect("it is clean");
    for (missing, line) in STRESS.iter().enumerate().skip(1) {
        let mut rest = STRESS.to_vec();
        rest.remove(missing);
        assert!(verdict(&rest).is_err(), "without {line}");
    }
    for complaint in ["soak: kernel BUG: soft lockup", "soak: says stress-ng: fail:  [9] cpu: sum differs"] {
        let error =
            verdict(&[&[complaint], &STRESS[..]].concat()).expect_err("there was a complaint").to_string();
        assert!(error.contains("complained"), "{error}");
    }
    let failed = [&STRESS[..7], &["soak: end stress code 2"]].concat();
    assert!(verdict(&failed).is_err());
}

#[test]
fn a_program_must_write_the_same_in_every_round() {
    let one =
        "soak: says java 17984 830448000.000 -781351108 1500 9836099488831 9d06cf6f06bb443f 8530 -1111197950";
    let end = "soak: end java code 0";
    let long = Length { seconds: 1, long: true };
    let mut all = vec![one; 10];
    all.push(end);
    judge(Program::Java, long, &lines(&all)).expect("ten times");
    all[3] = "soak: says java 17984 830448000.000 -781351108 1500 9836099488831 9d06cf6f06bb443f 8530 -1";
    assert!(judge(Program::Java, long, &lines(&all)).is_err());
}

#[test]
fn memtest_s_screen_is_read_as_it_is_drawn() {
    let mut screen = Screen::new();
    assert_eq!(state(&screen), None);
    for piece in [
        "umbra: runs",
        "[2J",
        "[?25l",
        "[4;1HL3 Cache:   16MB            | Test #                ",
        "[9;1HUsing: Core #0                            | Pass:  0        Errors: 0           ",
        "[4;35H #10 [Bit fade test, 2 patterns]              ",
        "[99;99Hnowhere",
        "[0m and on",
        "[",
        "",
    ] {
        screen.draw(piece);
    }
    // The number stands behind the words that it completes.
    assert_eq!(state(&screen), Some(State { test: 10, passes: 0, errors: 0 }));
    screen.draw("[9;1HUsing: Core #0                            | Pass:  1        Errors: 12          ");
    assert_eq!(state(&screen), Some(State { test: 10, passes: 1, errors: 12 }));
    screen.draw("[2J");
    assert_eq!(screen.told(), "");
}

#[test]
fn the_document_keeps_one_row_a_case() {
    let row = |name: &str, result: &str| Row {
        name: name.into(),
        what: "it".into(),
        date: "2026-01-02".into(),
        commit: "0123".into(),
        minutes: "10.1".into(),
        result: result.into(),
    };
    let mut text = updated("", &row("a", "FAILED: x | y\nz"));
    assert!(text.ends_with("|\n| a | it | 2026-01-02 | 0123 | 10.1 | FAILED: x |\n"), "{text}");
    text = updated(&updated(&text, &row("b", "passed")), &row("a", "passed"));
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("2026")).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].starts_with("| a |") && rows[0].ends_with("| passed |"), "{text}");
}
