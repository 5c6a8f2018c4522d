//! A machine from its start to each of its ends: exit codes, events, names, signals, and what kills what.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use common::process::Running;
use common::tiny::{Code, console};
use common::{Home, accel, lives, one_sentence, text, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// The lines of an events file.
fn events(home: &Home) -> Vec<Value> {
    let file = std::fs::read_to_string(home.path("events")).unwrap();
    file.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs the console guest with one key to its end: exit code, standard error, and names of events with their reasons.
fn ends_by(key: &[u8], more: &[&str]) -> (Option<i32>, String, Vec<String>) {
    let home = Home::new();
    let more = [&["--events", "events"], more].concat();
    let mut vm = home.start_kernel(&console(), "web", &more);
    vm.says("ready");
    vm.send(key);
    let output = vm.end();
    home.nothing_left();
    let told = |event: &Value| match event["reason"].as_str() {
        Some(reason) => format!("{} {reason}", event["event"].as_str().unwrap()),
        None => event["event"].as_str().unwrap().to_owned(),
    };
    (output.status.code(), text(&output.stderr), events(&home).iter().map(told).collect())
}

#[test]
fn power_off_is_success() {
    let (code, said, events) = ends_by(b"p", &[]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(events, ["created", "booted", "halted power-off"]);
}

#[test]
fn a_panic_has_its_own_exit_code() {
    let (code, said, events) = ends_by(b"k", &[]);
    assert_eq!(code, Some(3));
    one_sentence(&said);
    assert!(said.contains("panic"), "{said}");
    assert_eq!(events, ["created", "booted", "crashed panic"]);
}

#[test]
fn a_triple_fault_has_its_own_exit_code() {
    let (code, said, events) = ends_by(b"t", &[]);
    assert_eq!(code, Some(4));
    one_sentence(&said);
    assert!(said.contains("triple fault"), "{said}");
    assert_eq!(events, ["created", "booted", "crashed triple-fault"]);
}

#[test]
fn a_reset_without_reboot_is_success() {
    let (code, said, events) = ends_by(b"r", &["--no-reboot"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(events, ["created", "booted", "halted reset"]);
}

#[test]
fn a_reset_starts_the_machine_again() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &["--events", "events"]);
    vm.says("ready");
    vm.send(b"cc");
    vm.says("aAbB");
    for times in 2..5 {
        vm.send(b"r");
        wait_until("the next start", || vm.written().matches("ready").count() == times);
    }
    // Memory and registers are those of a first start.
    vm.send(b"c");
    wait_until("the counter", || vm.written().ends_with("aA"));
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    let names: Vec<_> =
        events(&home).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["created", "booted", "reset", "reset", "reset", "halted"]);
    home.nothing_left();
}

#[test]
fn events_say_when_and_who() {
    let home = Home::new();
    let kernel = Code::new().say("hello").power_off().kernel();
    let more = ["--name", "web", "--cpus", "3", "--events", "events"];
    let output = home.run_kernel(&kernel, &more);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "hello"));
    let events = events(&home);
    assert_eq!(events[0]["event"], "created");
    assert_eq!((&events[0]["cpus"], &events[0]["memory"]), (&3.into(), &(16 << 20).into()));
    assert_eq!(events[0]["engine"], accel());
    assert!(events.iter().all(|event| event["name"] == "web"));
    let times: Vec<_> = events.iter().map(|event| event["time_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 1_600_000_000_000, "{times:?}");
}

#[test]
fn what_cannot_start_is_an_event_too() {
    let home = Home::new();
    let output = home.run_kernel(b"no kernel", &["--name", "web", "--events", "events"]);
    assert_eq!(output.status.code(), Some(1));
    let events = events(&home);
    assert_eq!(
        (events.len(), &events[0]["event"], &events[0]["reason"]),
        (1, &"crashed".into(), &"not-started".into())
    );
}

#[test]
fn a_running_machine_is_listed_paused_and_resumed() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &["--cpus", "2"]);
    vm.says("ready");
    let info = home.info("web").unwrap();
    assert_eq!(
        (&info["state"], &info["cpus"], &info["memory"]),
        (&"running".into(), &2.into(), &(16 << 20).into())
    );
    assert_eq!(info["broker_pid"], vm.id());
    assert!(home.succeed(&["ls"]).contains("web "));
    home.succeed(&["pause", "web"]);
    home.succeed(&["pause", "web"]);
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    vm.send(b"c");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!vm.written().contains("aA"), "it stands");
    home.succeed(&["resume", "web"]);
    home.succeed(&["resume", "web"]);
    vm.says("aA");
    assert_eq!(home.info("web").unwrap()["state"], "running");
    home.succeed(&["stop", "--force", "web"]);
    assert_eq!(vm.end().status.code(), Some(0));
    home.nothing_left();
}

#[test]
fn a_machine_that_is_made_paused_waits_for_resume() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &["--paused", "--events", "events"]);
    wait_until("the machine", || home.info("web").is_some());
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    assert_eq!(vm.written(), "");
    home.succeed(&["resume", "web"]);
    vm.says("ready");
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    let names: Vec<_> =
        events(&home).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["created", "booted", "halted"]);
}

#[test]
fn input_that_is_no_terminal_is_passed_as_it_is() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &[]);
    // More than any buffer on the way holds, sent before anybody reads.
    let line = [b"every byte \x01x\x01h\x03\x1a".as_slice(), &[0x80, 0xff, 0]].concat();
    let line: Vec<u8> = line.into_iter().filter(|byte| !b"prktc".contains(byte)).collect();
    let sent = line.repeat(2000);
    vm.send(&sent);
    vm.send(b"\nend.");
    vm.hang_up();
    vm.says("\nend.");
    assert!(!vm.has_ended(), "the end of the input is not the end of the machine");
    home.succeed(&["stop", "--force", "web"]);
    let output = vm.end();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, [b"ready\r\n".as_slice(), &sent, b"\nend."].concat());
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_machine() {
    let home = Home::new();
    let kernel = home.file("kernel", &console());
    let accel = accel();
    let mut command = home.umbra(&home.run_arguments(&accel, &kernel, &["--name", "web"]));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 7]).unwrap();
    drop(output);
    input.write_all(b"ccccp").unwrap();
    assert_eq!(Running::adopt(child).end().status.code(), Some(0));
}

#[test]
fn signals_end_the_machine_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let home = Home::new();
        let vm = home.start_kernel(&console(), "web", &["--events", "events"]);
        vm.says("ready");
        let worker = home.info("web").unwrap()["worker_pid"].as_u64().unwrap();
        vm.signal(signal);
        let output = vm.end();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{signal:?}");
        assert_eq!(events(&home).last().unwrap()["reason"], "stopped");
        assert!(!lives(worker));
        home.nothing_left();
    }
}

#[test]
fn a_name_belongs_to_one_machine() {
    let home = Home::new();
    let first = home.start_kernel(&console(), "web", &[]);
    first.says("ready");
    let second = home.run_kernel(&console(), &["--name", "web"]);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("a machine named `web` is running") && said.contains("--name"), "{said}");
    assert!(home.info("web").is_some(), "the first one still answers");
    let mut other = home.start_kernel(&console(), "other", &[]);
    other.says("ready");
    assert_eq!(home.succeed(&["ls"]).lines().count(), 3);
    other.send(b"p");
    assert_eq!(other.end().status.code(), Some(0));
    home.succeed(&["stop", "--force", "web"]);
    assert_eq!(first.end().status.code(), Some(0));
    home.nothing_left();
}

#[test]
fn many_of_one_name_at_once_give_one_machine() {
    let home = Home::new();
    let (kernel, accel) = (home.file("kernel", &console()), accel());
    let start = || Running::start(home.umbra(&home.run_arguments(&accel, &kernel, &["--name", "web"])));
    let mut all: Vec<_> = (0..4).map(|_| start()).collect();
    wait_until("three refusals", || {
        all.iter_mut().filter_map(|vm| vm.has_ended().then_some(())).count() == 3
    });
    wait_until("the one machine", || home.info("web").is_some());
    home.succeed(&["stop", "--force", "web"]);
    let mut codes: Vec<_> = all.into_iter().map(|vm| vm.end().status.code().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1, 1, 1]);
    home.nothing_left();
}

#[test]
fn what_a_dead_machine_left_is_no_hindrance() {
    let home = Home::new();
    std::fs::create_dir(home.sockets()).unwrap();
    std::fs::set_permissions(home.sockets(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    drop(UnixListener::bind(home.sockets().join("web.sock")).unwrap());
    std::fs::write(home.sockets().join("web.lock"), b"").unwrap();
    assert_eq!(home.succeed(&["ls", "--json"]).trim(), "[]");
    let said = text(&home.end(&["pause", "web"]).stderr);
    assert!(said.contains("no machine named `web` is running"), "{said}");
    let mut vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    assert!(home.info("web").is_some());
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
    home.nothing_left();
}

#[test]
fn a_killed_broker_takes_its_worker_along() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    let worker = home.info("web").unwrap()["worker_pid"].as_u64().unwrap();
    assert!(lives(worker));
    vm.signal(Signal::KILL);
    vm.wait();
    wait_until("the worker's end", || !lives(worker));
    // The name is free at once.
    let mut again = home.start_kernel(&console(), "web", &[]);
    again.says("ready");
    again.send(b"p");
    assert_eq!(again.end().status.code(), Some(0));
    home.nothing_left();
}

#[test]
fn a_killed_worker_is_an_internal_error() {
    let home = Home::new();
    let vm = home.start_kernel(&console(), "web", &["--events", "events"]);
    vm.says("ready");
    let worker = pid(&home.info("web").unwrap()["worker_pid"]);
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    let output = vm.end();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    one_sentence(&said);
    assert!(said.contains("internal error") && said.contains("signal: 9"), "{said}");
    assert_eq!(events(&home).last().unwrap()["reason"], "internal-error");
    home.nothing_left();
}

fn pid(number: &Value) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(number.as_i64().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_worker_that_does_not_hear_is_made_to_end() {
    let home = Home::new();
    let vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    let info = home.info("web").unwrap();
    rustix::process::kill_process(pid(&info["worker_pid"]), Signal::STOP).unwrap();
    home.succeed(&["stop", "--force", "web"]);
    assert!(!lives(info["worker_pid"].as_u64().unwrap()), "it has ended when the command has");
    assert!(vm.end().status.code().is_some());
    home.nothing_left();
}

#[test]
fn the_second_signal_does_not_wait_for_the_worker() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    let worker = home.info("web").unwrap()["worker_pid"].clone();
    rustix::process::kill_process(pid(&worker), Signal::STOP).unwrap();
    let started = std::time::Instant::now();
    while !vm.has_ended() {
        vm.signal(Signal::TERM);
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(started.elapsed() < common::LIMIT);
    }
    assert!(!lives(worker.as_u64().unwrap()));
    home.nothing_left();
}

#[test]
fn a_control_socket_that_cannot_be_made_is_told() {
    let home = Home::new();
    std::fs::create_dir_all(home.sockets().join("web.sock/in-the-way")).unwrap();
    std::fs::set_permissions(home.sockets(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let output = home.run_kernel(&console(), &["--name", "web"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("cannot listen at"), "{said}");
}

#[test]
fn streams_that_nobody_reads_are_no_error() {
    let home = Home::new();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let ends = |arguments: &[&str]| {
        let mut command = home.umbra(arguments);
        let child = command.stdin(Stdio::null()).stdout(closed()).stderr(closed()).spawn().unwrap();
        Running::adopt(child).end().status.code()
    };
    let accel = accel();
    assert_eq!(ends(&["ls"]), Some(0));
    assert_eq!(ends(&["ls", "--json"]), Some(0));
    assert_eq!(ends(&["pause", "web"]), Some(1));
    let panics = home.file("kernel", &Code::new().say("some words").panic().kernel());
    assert_eq!(ends(&["run", "--accel", &accel, "--memory", "16M", "--kernel", &panics]), Some(3));
}

/// What the control socket answers to these bytes.
fn ask(home: &Home, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(home.sockets().join("web.sock")).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    text(&answer)
}

#[test]
fn the_control_socket_speaks_http_and_survives_what_does_not() {
    let home = Home::new();
    let mut vm = home.start_kernel(&console(), "web", &[]);
    vm.says("ready");
    let status = |request: &str| ask(&home, request.as_bytes()).split_whitespace().nth(1).map(str::to_owned);
    assert_eq!(status("GET /v1/vm HTTP/1.1\r\n\r\n").as_deref(), Some("200"));
    assert_eq!(status("GET /v2/vm HTTP/1.1\r\n\r\n").as_deref(), Some("404"));
    assert_eq!(status("GET /v1/vm/pause HTTP/1.1\r\n\r\n").as_deref(), Some("405"));
    assert_eq!(status("PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").as_deref(), Some("400"));
    let relative = "PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 12\r\n\r\n{\"path\":\"x\"}";
    assert_eq!(status(relative).as_deref(), Some("400"));
    assert_eq!(
        status("PUT /v1/vm/save HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n").as_deref(),
        Some("413")
    );
    assert_eq!(status("\0\u{1}\u{2} nonsense\r\n\r\n").as_deref(), Some("400"));
    let stats = ask(&home, b"GET /v1/stats HTTP/1.1\r\n\r\n");
    assert!(stats.contains("\"vcpus\":[{"), "{stats}");
    // One that says nothing keeps nobody else from being answered.
    let silent = UnixStream::connect(home.sockets().join("web.sock")).unwrap();
    assert!(home.info("web").is_some());
    drop(silent);
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
}

#[test]
fn counters_and_a_profile_are_told_at_the_end() {
    let home = Home::new();
    if accel() != "soft" {
        return home.refuse_kernel(&console(), &["--profile"], &["give --accel soft"]);
    }
    let mut vm = home.start_kernel(&console(), "web", &["--stats", "--profile"]);
    vm.says("ready");
    vm.send(b"p");
    let said = text(&vm.end().stderr);
    assert!(said.contains("% of instructions ran as translated code"), "{said}");
    assert!(said.contains(" s of the processors' time, of which"), "{said}");
}
