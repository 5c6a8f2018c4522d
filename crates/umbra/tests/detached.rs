//! Machines without a terminal: their start, their console and log, and what they leave.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use common::process::Running;
use common::terminal::Terminal;
use common::tiny::{Code, console};
use common::{Home, LIMIT, accel, lives, one_sentence, text, wait_until};
use rustix::process::Signal;
use serde_json::Value;

fn pid(number: &Value) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(number.as_i64().unwrap()).unwrap()).unwrap()
}

/// `umbra console` whose input is a pipe.
fn visit(home: &Home, more: &[&str]) -> Running {
    Running::start(home.umbra(&[&["console", "web"], more].concat()))
}

/// The console guest, which has said that it is ready.
fn start(home: &Home, more: &[&str]) {
    home.detach_kernel(&console(), "web", more);
    wait_until("the guest", || home.succeed(&["logs", "web"]) == "ready\r\n");
}

#[test]
fn a_detached_machine_lives_on_and_is_visited() {
    let home = Home::new();
    start(&home, &[]);
    let info = home.info("web").unwrap();
    assert_eq!((&info["state"], &info["detached"]), (&"running".into(), &true.into()));
    // A session of its own, with nobody to hear it or be heard.
    let broker = &info["broker_pid"];
    let stat = std::fs::read_to_string(format!("/proc/{broker}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, broker.to_string());
    for stream in 0..3 {
        let file = std::fs::read_link(format!("/proc/{broker}/fd/{stream}")).unwrap();
        assert_eq!(file, std::path::Path::new("/dev/null"), "stream {stream}");
    }
    let (mut first, second) = (visit(&home, &[]), visit(&home, &["--read-only"]));
    first.says("ready");
    second.says("ready");
    first.send(b"c");
    first.says("aA");
    second.says("aA");
    assert!(home.succeed(&["logs", "web"]).ends_with("aA"));
    first.signal(Signal::TERM);
    assert_eq!(first.end().status.code(), Some(0));
    let mut third = visit(&home, &[]);
    third.says("aA");
    third.send(b"k");
    for visitor in [second, third] {
        let output = visitor.end();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr), "umbra: web has ended\n");
    }
    assert_eq!(home.end(&["wait", "web"]).status.code(), Some(3));
    let info = home.info("web").unwrap();
    assert_eq!(
        (&info["state"], &info["exit_code"], &info["ending"]),
        (&"ended".into(), &3.into(), &"panic".into())
    );
    assert_eq!(home.succeed(&["ls", "--json"]).trim(), "[]");
    assert_eq!(home.succeed(&["logs", "-n", "1", "web"]), "aA");
    home.nothing_left();
    home.succeed(&["rm", "web"]);
    assert!(home.info("web").is_none() && !home.state("web").exists());
    assert!(home.refuse(&["rm", "web"], &["no machine named `web`"]).contains("ls --all"));
}

#[test]
fn what_cannot_start_is_told_and_leaves_nothing() {
    let home = Home::new();
    let kernel = home.file("kernel", b"no kernel");
    let accel = accel();
    let arguments = home.run_arguments(&accel, &kernel, &["-d", "--name", "web"]);
    home.refuse(&arguments, &["kernel"]);
    assert!(!home.state("web").exists());
    let missing = home.run_arguments(&accel, "nowhere", &["-d"]);
    home.refuse(&missing, &["nowhere"]);
    start(&home, &[]);
    let again = home.end(&home.run_arguments(&accel, &kernel, &["-d", "--name", "web"]));
    assert_eq!(again.status.code(), Some(1));
    one_sentence(&text(&again.stderr));
    assert!(text(&again.stderr).contains("a machine named `web` is running"));
    assert!(home.info("web").is_some_and(|info| info["state"] == "running"), "its record is untouched");
    home.refuse_running(&["rm", "web"], "--force");
    home.succeed(&["rm", "--force", "web"]);
    home.nothing_left();
    assert!(!home.state("web").exists());
}

#[test]
fn a_start_that_is_interrupted_leaves_no_machine() {
    for signal in [Signal::INT, Signal::KILL] {
        let home = Home::new();
        // Its kernel is a pipe's, so that it waits for what never comes.
        let kernel = home.path("kernel");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &kernel,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let accel = accel();
        let mut start = Running::start(home.umbra(&home.run_arguments(
            &accel,
            kernel.to_str().unwrap(),
            &["-d", "--name", "web"],
        )));
        let child = || {
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", start.id()))
                .unwrap_or_default();
            children.split_whitespace().next().and_then(|pid| pid.parse::<u64>().ok())
        };
        wait_until("the one in the background", || child().is_some());
        let child = child().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        start.signal(signal);
        start.wait();
        wait_until("its end", || !lives(child));
        home.nothing_left();
    }
}

#[test]
fn who_waits_gets_the_exit_code() {
    for (key, code) in [(b"p", 0), (b"k", 3), (b"t", 4)] {
        let home = Home::new();
        start(&home, &["--rm"]);
        let waiting = Running::start(home.umbra(&["wait", "web"]));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut visitor = visit(&home, &[]);
        visitor.says("ready");
        visitor.send(key);
        assert_eq!(waiting.end().status.code(), Some(code));
        assert!(!home.state("web").exists(), "--rm leaves nothing");
        home.nothing_left();
        home.refuse(&["wait", "web"], &["no machine named `web`"]);
    }
}

#[test]
fn dead_machines_are_noticed() {
    for process in ["broker_pid", "worker_pid"] {
        let home = Home::new();
        start(&home, &[]);
        let info = home.info("web").unwrap();
        let waiting = Running::start(home.umbra(&["wait", "web"]));
        std::thread::sleep(std::time::Duration::from_millis(200));
        rustix::process::kill_process(pid(&info[process]), Signal::KILL).unwrap();
        assert_eq!(waiting.end().status.code(), Some(5), "{process}");
        wait_until("the end", || home.info("web").unwrap()["state"] == "ended");
        let ended = home.info("web").unwrap();
        let ending = if process == "broker_pid" { "killed" } else { "internal-error" };
        assert_eq!(ended["ending"], ending);
        assert!(ended["message"].as_str().unwrap().contains("kill") || process == "worker_pid");
        home.nothing_left();
        assert_eq!(home.succeed(&["logs", "web"]), "ready\r\n", "its log outlives it");
        assert!(!lives(info["worker_pid"].as_u64().unwrap()));
        // Its name is free, and its end is forgotten with the next start.
        start(&home, &["--rm"]);
        let next = home.info("web").unwrap();
        assert_eq!((&next["state"], &next["ending"]), (&"running".into(), &Value::Null));
        rustix::process::kill_process(pid(&next["broker_pid"]), Signal::KILL).unwrap();
        wait_until("--rm also of a dead one", || home.info("web").is_none() && !home.state("web").exists());
    }
}

#[test]
fn an_ended_machine_starts_again_as_it_was() {
    let home = Home::new();
    start(&home, &["--cpus", "2"]);
    assert!(text(&home.end(&["start", "web"]).stderr).contains("runs already"));
    home.succeed(&["stop", "-f", "web"]);
    assert_eq!(home.info("web").unwrap()["ending"], "stopped");
    assert_eq!(home.succeed(&["start", "web"]), "web\n");
    wait_until("the guest", || home.succeed(&["logs", "web"]) == "ready\r\n");
    let info = home.info("web").unwrap();
    assert_eq!((&info["state"], &info["cpus"]), (&"running".into(), &2.into()));
    // A start that fails leaves what there was.
    home.succeed(&["stop", "-f", "web"]);
    let kernel = std::fs::read(home.path("kernel-web")).unwrap();
    home.file("kernel-web", b"no kernel");
    assert_eq!(home.end(&["start", "web"]).status.code(), Some(1));
    assert_eq!(home.info("web").unwrap()["ending"], "stopped");
    home.file("kernel-web", &kernel);
    home.succeed(&["start", "web"]);
    home.succeed(&["rm", "-f", "web"]);
    home.refuse(&["start", "web"], &["no machine named `web`"]);
}

#[test]
fn a_guest_that_does_not_listen_is_told_of() {
    let home = Home::new();
    start(&home, &[]);
    let begun = std::time::Instant::now();
    home.refuse_running(&["stop", "--time", "1", "web"], "--force");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    home.succeed(&["stop", "--time", "0", "web"]);
    home.succeed(&["pause", "web"]);
    home.refuse_running(&["stop", "web"], "paused");
    home.succeed(&["stop", "--force", "web"]);
    home.nothing_left();
}

#[test]
fn a_console_on_a_terminal_is_raw_and_left_by_keys() {
    for key in [b"\x01x", b"\x01d"] {
        let (home, terminal) = (Home::new(), Terminal::new());
        start(&home, &[]);
        let before = format!("{:?}", terminal.settings());
        let mut visitor = terminal.run(&home, &["console", "web"], true);
        terminal.shows("ready");
        wait_until("raw mode", || terminal.is_raw());
        terminal.type_keys(b"c");
        terminal.shows("aA");
        terminal.type_keys(key);
        assert_eq!(visitor.wait().code(), Some(0));
        assert_eq!(format!("{:?}", terminal.settings()), before, "the terminal is as it was");
        assert_eq!(home.info("web").unwrap()["state"], "running");
        home.succeed(&["rm", "-f", "web"]);
    }
}

#[test]
fn a_machine_outlives_its_terminal() {
    let (home, mut terminal) = (Home::new(), Terminal::new());
    let (kernel, accel) = (home.file("kernel", &console()), accel());
    let arguments = home.run_arguments(&accel, &kernel, &["-d", "--name", "web"]);
    assert_eq!(terminal.run(&home, &arguments, true).wait().code(), Some(0));
    terminal.shows("web");
    terminal.close();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mut visitor = visit(&home, &[]);
    visitor.says("ready");
    visitor.send(b"p");
    assert_eq!(visitor.end().status.code(), Some(0));
    wait_until("the end", || home.info("web").unwrap()["exit_code"] == 0);
}

#[test]
fn a_visitor_that_sleeps_does_not_stop_the_guest() {
    let home = Home::new();
    start(&home, &[]);
    let sleeper = visit(&home, &[]);
    sleeper.says("ready");
    sleeper.signal(Signal::STOP);
    let mut visitor = visit(&home, &[]);
    visitor.says("ready");
    // More than the sleeper's queue and sockets hold.
    let line = [b'.'; 64 << 10];
    for _ in 0..40 {
        visitor.send(&line);
    }
    visitor.send(b"c");
    visitor.says("aA");
    home.succeed(&["pause", "web"]);
    home.succeed(&["rm", "-f", "web"]);
    sleeper.signal(Signal::CONT);
    assert_eq!(sleeper.end().status.code(), Some(0));
}

#[test]
fn a_log_is_followed_to_the_end() {
    let home = Home::new();
    start(&home, &[]);
    let following = Running::start(home.umbra(&["logs", "-f", "web"]));
    following.says("ready");
    let mut visitor = visit(&home, &[]);
    visitor.says("ready");
    visitor.send(b"one\r\nend\r\n");
    following.says("end\r\n");
    visitor.send(b"p");
    let output = following.end();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "ready\r\none\r\nend\r\n"));
    assert_eq!(home.succeed(&["logs", "-n", "1", "web"]), "end\r\n");
    home.refuse(&["logs", "other"], &["no machine named `other`"]);
    let mut foreground = home.start_kernel(&console(), "shown", &[]);
    foreground.says("ready");
    let said = text(&home.end(&["logs", "shown"]).stderr);
    assert!(said.contains("umbra console shown"), "{said}");
    // It has a console for others nevertheless.
    let mut visitor = Running::start(home.umbra(&["console", "shown"]));
    visitor.says("ready");
    visitor.send(b"c");
    foreground.says("aA");
    foreground.send(b"p");
    assert_eq!(foreground.end().status.code(), Some(0));
    assert_eq!(visitor.end().status.code(), Some(0));
    assert!(!home.state("shown").exists(), "one on a terminal leaves nothing");
}

#[test]
fn a_start_paused_is_a_start() {
    let home = Home::new();
    home.detach_kernel(&Code::new().say("hello").power_off().kernel(), "web", &["--paused"]);
    assert_eq!(home.info("web").unwrap()["state"], "paused");
    assert_eq!(home.succeed(&["logs", "web"]), "");
    home.succeed(&["resume", "web"]);
    assert_eq!(home.end(&["wait", "web"]).status.code(), Some(0));
    assert_eq!(home.succeed(&["logs", "web"]), "hello");
}

#[test]
fn a_saved_machine_goes_on_without_a_terminal() {
    let home = Home::new();
    start(&home, &["--cpu-model", "portable"]);
    home.succeed(&["save", "web", "saved"]);
    assert_eq!(home.info("web").unwrap()["ending"], "stopped");
    assert_eq!(home.succeed(&["restore", "-q", "-d", "--accel", &accel(), "saved"]), "web\n");
    let mut visitor = visit(&home, &[]);
    let deadline = std::time::Instant::now() + LIMIT;
    visitor.send(b"c");
    visitor.says("aA");
    assert!(std::time::Instant::now() < deadline);
    home.succeed(&["stop", "-f", "web"]);
    home.refuse_running(&["start", "web"], "was restored");
    home.succeed(&["rm", "web"]);
}

/// A port of the host that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn ports_come_and_go_while_a_machine_runs() {
    let home = Home::new();
    let first = free_port();
    let publish = format!("{first}:80");
    start(&home, &["--net", "user", "-p", &publish]);
    let reached = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(reached(first));
    assert_eq!(home.info("web").unwrap()["ports"][0]["host"], format!("127.0.0.1:{first}"));
    let said = home.succeed(&["port", "add", "web", "0:22"]);
    let second: u16 =
        said.trim().strip_prefix("127.0.0.1:").unwrap().strip_suffix("->22").unwrap().parse().unwrap();
    assert!(reached(second));
    home.succeed(&["port", "add", "web", &format!("{second}:53/udp")]);
    assert!(UdpSocket::bind(("127.0.0.1", second)).is_err(), "it is open");
    assert_eq!(
        home.succeed(&["port", "ls", "web"]),
        format!("127.0.0.1:{first}->80\n127.0.0.1:{second}->22\n127.0.0.1:{second}->53/udp\n")
    );
    assert!(home.succeed(&["ls"]).contains(&format!("127.0.0.1:{second}->53/udp")));
    home.refuse_running(&["port", "add", "web", &publish], "choose another port");
    home.succeed(&["port", "remove", "web", &publish]);
    home.succeed(&["port", "rm", "web", &format!("{second}/udp")]);
    wait_until("the port's end", || !reached(first));
    assert!(UdpSocket::bind(("127.0.0.1", second)).is_ok());
    assert!(reached(second));
    home.refuse_running(&["port", "remove", "web", &publish], "leads to nowhere");
    home.succeed(&["rm", "-f", "web"]);
    home.detach_kernel(&console(), "other", &["--net", "none"]);
    home.refuse_running(&["port", "add", "other", "0:22"], "no network in user space");
    home.succeed(&["rm", "-f", "other"]);
}

#[test]
fn the_console_is_a_protocol_of_the_control_socket() {
    let home = Home::new();
    start(&home, &[]);
    let mut stream = std::os::unix::net::UnixStream::connect(home.sockets().join("web.sock")).unwrap();
    stream
        .write_all(b"GET /v1/vm/console HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: umbra-console\r\n\r\nc")
        .unwrap();
    let mut all = Vec::new();
    let mut bytes = [0; 512];
    while !text(&all).ends_with("aA") {
        // What follows the head at once may have been read with it.
        let n = stream.read(&mut bytes).unwrap();
        assert!(n > 0, "{}", text(&all));
        all.extend_from_slice(&bytes[..n]);
        if text(&all).ends_with("ready\r\n") {
            stream.write_all(b"c").unwrap();
        }
    }
    assert!(text(&all).starts_with("HTTP/1.1 101 "), "{}", text(&all));
    home.succeed(&["rm", "-f", "web"]);
}
