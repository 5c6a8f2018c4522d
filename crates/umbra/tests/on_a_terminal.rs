//! The guest's serial line on a user's terminal: raw while the machine runs, as it was on every way out.

mod common;

use common::process::Running;
use common::terminal::Terminal;
use common::tiny::console;
use common::{Home, accel, lives, wait_until};
use rustix::process::Signal;

/// The console guest on a terminal of its own.
fn start(home: &Home, terminal: &Terminal, session: bool) -> Running {
    let kernel = home.file("kernel", &console());
    let accel = accel();
    let vm = terminal.run(home, &home.run_arguments(&accel, &kernel, &["--name", "web"]), session);
    terminal.shows("ready");
    vm
}

/// Runs on a terminal until `end` ends it; the exit code. The terminal must be as it was before.
fn ends(end: impl FnOnce(&Home, &Terminal, &Running)) -> Option<i32> {
    let (home, terminal) = (Home::new(), Terminal::new());
    let before = format!("{:?}", terminal.settings());
    let mut vm = start(&home, &terminal, true);
    wait_until("raw mode", || terminal.is_raw());
    end(&home, &terminal, &vm);
    let code = vm.wait().code();
    assert_eq!(format!("{:?}", terminal.settings()), before, "the terminal is as it was");
    home.nothing_left();
    code
}

fn key(key: &'static [u8]) -> impl FnOnce(&Home, &Terminal, &Running) {
    move |_, terminal, _| terminal.type_keys(key)
}

#[test]
fn the_terminal_is_put_back_when_the_guest_ends() {
    assert_eq!(ends(key(b"p")), Some(0));
    assert_eq!(ends(key(b"k")), Some(3));
    assert_eq!(ends(key(b"t")), Some(4));
}

#[test]
fn the_terminal_is_put_back_when_the_user_leaves() {
    assert_eq!(ends(key(b"\x01x")), Some(0));
}

#[test]
fn the_terminal_is_put_back_after_signals() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        assert_eq!(ends(|_, _, vm| vm.signal(signal)), Some(0), "{signal:?}");
    }
}

#[test]
fn the_terminal_is_put_back_when_the_worker_dies() {
    let code = ends(|home, _, _| {
        let worker = home.info("web").unwrap()["worker_pid"].as_i64().unwrap();
        let worker = rustix::process::Pid::from_raw(worker as i32).unwrap();
        rustix::process::kill_process(worker, Signal::KILL).unwrap();
    });
    assert_eq!(code, Some(5));
}

#[test]
fn the_terminal_is_put_back_when_the_machine_is_saved() {
    let code = ends(|home, _, _| drop(home.succeed(&["save", "web", "saved"])));
    assert_eq!(code, Some(0));
}

#[test]
fn a_stopped_process_leaves_the_terminal_to_others() {
    let (home, terminal) = (Home::new(), Terminal::new());
    let before = format!("{:?}", terminal.settings());
    let mut vm = start(&home, &terminal, true);
    for _ in 0..2 {
        wait_until("raw mode", || terminal.is_raw());
        vm.signal(Signal::TSTP);
        wait_until("the stop", || is_stopped(vm.id()));
        assert_eq!(format!("{:?}", terminal.settings()), before);
        vm.signal(Signal::CONT);
    }
    wait_until("raw mode", || terminal.is_raw());
    terminal.type_keys(b"[\x1a]");
    terminal.shows("[\x1a]");
    terminal.type_keys(b"\x01x");
    assert_eq!(vm.wait().code(), Some(0));
    assert_eq!(format!("{:?}", terminal.settings()), before);
}

fn is_stopped(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

#[test]
fn a_machine_that_cannot_start_leaves_the_terminal_alone() {
    let (home, terminal) = (Home::new(), Terminal::new());
    let before = format!("{:?}", terminal.settings());
    let kernel = home.file("kernel", b"no kernel");
    let mut vm = terminal.run(&home, &["run", "--accel", "soft", "--kernel", &kernel], true);
    assert_eq!(vm.wait().code(), Some(1));
    assert_eq!(format!("{:?}", terminal.settings()), before);
    terminal.shows("not a Linux kernel");
}

#[test]
fn every_key_but_our_own_reaches_the_guest() {
    let (home, mut terminal) = (Home::new(), Terminal::new());
    let mut vm = start(&home, &terminal, true);
    wait_until("raw mode", || terminal.is_raw());
    // Ctrl-C, Ctrl-Z, Ctrl-S, Ctrl-Q, Ctrl-D, Ctrl-\, and return, which stays what it is.
    terminal.type_keys(b"[\x03\x1a\x13\x11\x04\x1c\r]");
    terminal.shows("[\x03\x1a\x13\x11\x04\x1c\r]");
    terminal.type_keys(b"<\x01\x01>");
    terminal.shows("<\x01>");
    assert!(!terminal.shown().contains("this help"));
    terminal.type_keys(b"\x01h");
    terminal.shows("Ctrl-A x   leave");
    // The two keys need not come together.
    terminal.type_keys(b"\x01");
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!vm.has_ended());
    terminal.type_keys(b"x");
    assert_eq!(vm.wait().code(), Some(0));
    terminal.close();
}

/// A terminal that is closed ends the machine, whether the kernel tells by a signal (`session`) or not.
fn closed(session: bool) {
    let (home, mut terminal) = (Home::new(), Terminal::new());
    let mut vm = start(&home, &terminal, session);
    let worker = home.info("web").unwrap()["worker_pid"].as_u64().unwrap();
    terminal.close();
    assert_eq!(vm.wait().code(), Some(0));
    wait_until("the worker's end", || !lives(worker));
    home.nothing_left();
}

#[test]
fn a_terminal_that_goes_away_ends_the_machine() {
    closed(true);
}

#[test]
fn a_terminal_that_goes_away_ends_the_machine_without_a_signal_too() {
    closed(false);
}
