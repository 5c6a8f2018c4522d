//! A child's lines carry their time; it is gone when its owner is.

use std::process::Command;
use std::time::{Duration, Instant};

use super::process::{Next, Process};

fn shell(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::start(&command).expect("sh starts")
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn lines_come_in_order_with_growing_times_and_both_streams() {
    let mut process = shell("echo one; sleep 0.2; echo two >&2; printf three; exit 7");
    let mut seen = Vec::new();
    assert!(process.wait_for(LIMIT, &mut seen, |_| false).is_none());
    let texts: Vec<&str> = seen.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(150), "{seen:?}");
    assert_eq!(process.finish(LIMIT).expect("waits").and_then(|status| status.code()), Some(7));
}

#[test]
fn a_silent_process_is_late_and_then_killed() {
    let mut process = shell("exec sleep 100");
    assert!(matches!(process.next(Duration::from_millis(50)), Next::Late));
    let before = Instant::now();
    assert!(process.finish(Duration::from_millis(60)).expect("kills").is_none());
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[test]
fn dropping_kills() {
    let process = shell("exec sleep 100");
    let id = process.id();
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists(), "the child is still there");
}

#[test]
fn processor_time_counts_descendants() {
    let process =
        shell("sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; exec sleep 100'; true");
    let mut seen = Vec::new();
    assert!(process.wait_for(LIMIT, &mut seen, |line| line == "done").is_some());
    let used = process.cpu_seconds();
    assert!((0.01..60.0).contains(&used), "{used}");
}
