//! The conformance suite on the engines that this machine can run.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use umbra_engine::Engine;
use umbra_engine_kvm::{KvmEngine, probe};
use umbra_engine_soft::SoftEngine;
use umbra_testkit::conformance::{
    Manner, Moves, hostile_rounds, list, platform_of_kvm, platform_of_soft, run_suite,
};

fn check(engine: &dyn Engine, moves: Moves) {
    let platform = if engine.name() == "soft" { platform_of_soft() } else { platform_of_kvm() };
    let manner = Manner { engines: &[engine], moves, platform };
    let report = run_suite(manner, "", |_| ()).expect("the engine says what it supports");
    println!("{}, {moves:?}: {}", engine.name(), report.summary());
    let failures = report.failures();
    assert!(failures.is_empty(), "{} programs fail:\n{}", failures.len(), failures.join("\n"));
}

/// The software engine in both its tiers: everything interpreted, everything translated at once.
fn tiers() -> [SoftEngine; 2] {
    [u32::MAX, 0].map(|runs| SoftEngine::new().expect("the software engine").translating_after(runs))
}

#[test]
fn software_engine() {
    tiers().iter().for_each(|engine| check(engine, Moves::Never));
}

#[test]
fn software_engine_saved_and_restored_at_each_mark() {
    tiers().iter().for_each(|engine| check(engine, Moves::AtMarks));
}

#[test]
fn software_engine_saved_and_restored_every_millisecond() {
    tiers().iter().for_each(|engine| check(engine, Moves::Every(Duration::from_millis(1))));
}

#[test]
fn a_whole_machine_survives_random_accesses() {
    let starts = hostile_rounds(|| Ok(Box::new(SoftEngine::new()?.translating_after(1))), 12)
        .expect("each round ends well");
    println!("guests started: {starts:?}");
    assert!(starts.iter().all(|n| *n > 0));
}

#[test]
fn kvm_where_it_can_run_kernels() {
    let file = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => file,
        Err(e) => return println!("skipped: /dev/kvm: {e}"),
    };
    if let Err(why) = probe(file.as_fd()) {
        return println!("skipped: {why}");
    }
    let engine = KvmEngine::open(file.into()).expect("the KVM engine");
    check(&engine, Moves::Never);
    check(&engine, Moves::AtMarks);
}

#[test]
fn names_are_unique() {
    let names = list();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names.len(), sorted.len());
    assert!(names.len() >= 250, "{} programs", names.len());
}
