//! The agent's program on this host, joined to the host's side by a socket pair instead of a guest's.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Cursor, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use umbra_agent::protocol::{self, step};
use umbra_agent::{Agent, AgentError, Command, Output, agent_binary};

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("umbra-agent-{}", std::process::id()));
        fs::write(&path, agent_binary()).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    })
}

/// An agent's process, and our end of its connection.
fn start() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut process = Process::new(program());
    process.arg("--stdin").stdin(Stdio::from(OwnedFd::from(theirs)));
    // A file that was just written may still be open in a child of another test's.
    let child = loop {
        match process.spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            other => break other.unwrap(),
        }
    };
    (child, ours)
}

/// A running agent, which is waited for in the end.
struct Guest(Child);

impl Guest {
    fn new() -> (Self, Agent) {
        let (child, stream) = start();
        (Self(child), Agent::with_stream(stream).unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(20) {
                let _ = self.0.kill();
                panic!("the agent does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn command(words: &[&str]) -> Command {
    Command { arguments: words.iter().map(|word| (*word).to_owned()).collect(), ..Command::default() }
}

fn shell(script: &str) -> Command {
    command(&["sh", "-c", script])
}

/// Runs a command: code, output, error output.
fn run(command: &Command, input: &[u8]) -> (u8, String, String) {
    let (_guest, agent) = Guest::new();
    let running = command.start(agent).unwrap();
    let (hears, bytes) = (running.input(), input.to_vec());
    let writer = std::thread::spawn(move || {
        // A command may end before it has read all.
        let _ = hears.write(&bytes).and_then(|()| hears.end());
    });
    let (mut out, mut error) = (Vec::new(), Vec::new());
    let code = running.finish(|output| match output {
        Output::Out(bytes) => out.extend_from_slice(bytes),
        Output::Error(bytes) => error.extend_from_slice(bytes),
    });
    writer.join().unwrap();
    (code.unwrap(), String::from_utf8_lossy(&out).into(), String::from_utf8_lossy(&error).into())
}

fn fails(command: &Command) -> AgentError {
    let (_guest, agent) = Guest::new();
    command.start(agent).err().unwrap()
}

#[test]
fn it_is_small_and_needs_nothing() {
    let elf = agent_binary();
    assert_eq!(elf[..4], *b"\x7fELF");
    assert!(elf.len() < 64 << 10, "{} bytes", elf.len());
    assert!(!elf.windows(8).any(|bytes| bytes == b"ld-linux"), "no dynamic linker");
}

#[test]
fn commands_have_output_errors_and_codes() {
    assert_eq!(run(&shell("echo out; echo error >&2; exit 7"), b""), (7, "out\n".into(), "error\n".into()));
    assert_eq!(run(&command(&["true"]), b"").0, 0);
    let words = command(&["printf", "%s|", "a b", "", "ü", "'"]);
    assert_eq!(run(&words, b"").1, "a b||ü|'|");
}

#[test]
fn signals_end_commands_and_are_told() {
    assert_eq!(run(&shell("kill -KILL $$"), b"").0, 128 + 9);
    let (_guest, agent) = Guest::new();
    let running = shell("trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
        .start(agent)
        .unwrap();
    let input = running.input();
    let mut said = String::new();
    let code = running.finish(|output| {
        // What the signal does to `sleep`, the shell tells on its other stream.
        let Output::Out(bytes) = output else { return };
        said += &String::from_utf8_lossy(bytes);
        if said == "ready\n" {
            input.signal(15).unwrap();
        }
    });
    assert_eq!((code.unwrap(), said.as_str()), (3, "ready\ncaught\n"));
}

#[test]
fn input_arrives_whole_however_much() {
    let bytes: Vec<u8> = (0..3_000_000).map(|i| ((i * 31) >> 2) as u8).collect();
    let (code, out, error) = run(&shell("sleep 0.2; cksum; echo done >&2"), &bytes);
    assert_eq!((code, error.as_str()), (0, "done\n"));
    let mut cksum = Process::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cksum.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(out.as_bytes(), cksum.wait_with_output().unwrap().stdout);
    // One that does not read all of it.
    assert_eq!(run(&command(&["head", "-c", "3"]), b"abc".repeat(1_000_000).as_slice()).1, "abc");
    // What it says while it is told something.
    let (_, out, _) = run(&command(&["cat"]), &b"0123456789abcdef".repeat(100_000));
    assert!(out.as_bytes() == b"0123456789abcdef".repeat(100_000));
}

#[test]
fn output_that_nobody_takes_stops_the_command_and_not_its_signals() {
    let (_guest, agent) = Guest::new();
    let running = command(&["yes"]).start(agent).unwrap();
    let input = running.input();
    std::thread::sleep(Duration::from_millis(200));
    input.signal(15).unwrap();
    let mut taken = 0;
    let code = running.finish(|output| {
        let (Output::Out(bytes) | Output::Error(bytes)) = output;
        taken += bytes.len();
    });
    assert_eq!(code.unwrap(), 128 + 15);
    assert!(taken < 4 << 20, "{taken} bytes went somewhere");
}

#[test]
fn folder_user_and_variables_are_as_asked_for() {
    let there = Command { folder: "/usr".into(), ..shell("pwd; echo $HOME $USER $SHELL $X") };
    let there = Command { variables: vec!["X=1 2".into(), "SHELL=/bin/none".into()], ..there };
    assert_eq!(run(&there, b"").1, "/usr\n/root root /bin/none 1 2\n");
    let user = Command { user: "daemon".into(), folder: "/".into(), ..command(&["id", "-u"]) };
    // Another user is for who may become one.
    let is_root = run(&command(&["id", "-u"]), b"").1 == "0\n";
    if is_root {
        assert_eq!(run(&user, b"").1, "1\n");
    } else {
        assert_eq!(fails(&user).step(), Some(step::USER));
    }
    let login = run(&Command::default(), b"echo $0; exit 4\n");
    assert_eq!(login.0, 4);
    assert!(login.1.starts_with('-'), "{login:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let failures = [
        (command(&["no-such-program"]), step::PROGRAM, 2),
        (command(&["/etc/passwd"]), step::PROGRAM, 13),
        (Command { folder: "/no/folder".into(), ..command(&["true"]) }, step::FOLDER, 2),
        (Command { user: "nobody-at-all".into(), ..command(&["true"]) }, step::USER, 2),
    ];
    for (command, step, errno) in failures {
        match fails(&command) {
            AgentError::Failed { step: at, source, .. } => {
                assert_eq!((at, source.raw_os_error()), (step, Some(errno)), "{command:?}");
            }
            other => panic!("{command:?}: {other}"),
        }
    }
    let long = command(&["true", &"x".repeat(protocol::BODY_MAX)]);
    assert!(matches!(fails(&long), AgentError::TooLarge));
    assert!(matches!(fails(&command(&["a\0b"])), AgentError::TooLarge));
}

#[test]
fn a_terminal_has_a_size_an_echo_and_control_keys() {
    let command = Command {
        terminal: Some((33, 77)),
        ..shell("stty size; tty -s && echo ready; read x; stty size; exec cat")
    };
    let (_guest, agent) = Guest::new();
    let running = command.start(agent).unwrap();
    let (input, mut said, mut step) = (running.input(), String::new(), 0);
    let code = running.finish(|output| {
        let Output::Out(bytes) = output else { panic!("{output:?}") };
        said += &String::from_utf8_lossy(bytes);
        if step == 0 && said.contains("ready") {
            step = 1;
            input.resize(10, 20).unwrap();
            input.write(b"line\r").unwrap();
        } else if step == 1 && said.contains("10 20") {
            step = 2;
            input.write(b"more\r").unwrap();
        } else if step == 2 && said.contains("more\r\nmore\r\n") {
            step = 3;
            // `cat` has said it again. Ctrl-C.
            input.write(&[3]).unwrap();
        }
    });
    assert_eq!(code.unwrap(), 128 + 2, "{said}");
    assert!(said.starts_with("33 77\r\n"), "{said}");
}

#[test]
fn a_terminals_input_ends_and_no_more_is_taken_than_was_sent() {
    let cat = Command { terminal: Some((24, 80)), ..command(&["cat"]) };
    // What ends it is not the host's: told of as taken, it would be found out as a lie.
    assert_eq!(run(&cat, b"").0, 0);
    let (code, said, _) = run(&cat, b"line\n");
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("line\r\nline\r\n"), "its echo, and what is read: {said:?}");
}

#[test]
fn what_a_command_leaves_running_holds_nobody_up() {
    let begun = Instant::now();
    assert_eq!(run(&shell("sleep 20 & echo on"), b"").1, "on\n");
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_host_that_goes_ends_its_command() {
    let file = std::env::temp_dir().join(format!("umbra-agent-hup-{}", std::process::id()));
    let script = format!(
        "exec 2> /dev/null; trap 'echo gone > {0}.new; mv {0}.new {0}; exit' HUP; : > {0}.ready; while :; do sleep 0.01; done",
        file.display()
    );
    let (guest, agent) = Guest::new();
    let running = shell(&script).start(agent).unwrap();
    let appears = |file: &std::path::Path| {
        let begun = Instant::now();
        while !file.exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no {}", file.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(file).unwrap();
    };
    appears(&file.with_extension("ready"));
    drop(running);
    drop(guest);
    appears(&file);
}

#[test]
fn files_go_both_ways_with_their_permissions() {
    let folder = std::env::temp_dir().join(format!("umbra-agent-files-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let bytes: Vec<u8> = (0..5_000_000).map(|i| ((i * 31) >> 2) as u8).collect();
    let path = folder.join("one");
    for (to, name) in [(path.to_str().unwrap(), "ignored"), (folder.to_str().unwrap(), "two")] {
        let (_guest, agent) = Guest::new();
        assert_eq!(agent.write_file(to, name, 0o751, &mut Cursor::new(&bytes)).unwrap(), 5_000_000);
    }
    for name in ["one", "two"] {
        let path = folder.join(name);
        assert!(fs::read(&path).unwrap() == bytes);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o751);
        let (_guest, agent) = Guest::new();
        let mut got = Vec::new();
        let out = &mut got;
        let begin = move |mode, size| {
            assert_eq!((mode, size), (0o751, 5_000_000));
            Ok(out)
        };
        assert_eq!(agent.read_file(path.to_str().unwrap(), begin).unwrap(), 5_000_000);
        assert!(got == bytes);
    }
    let refused = |path: &str| {
        let (_guest, agent) = Guest::new();
        agent.read_file(path, |_, _| Ok(Vec::new())).err().unwrap()
    };
    assert_eq!(refused(folder.to_str().unwrap()).step(), Some(step::IS_FOLDER));
    assert_eq!(refused("/no/such/file").step(), Some(step::OPEN));
    let (_guest, agent) = Guest::new();
    let error = agent.write_file("/no/such/file", "x", 0o600, &mut Cursor::new(&bytes)).err().unwrap();
    assert_eq!(error.step(), Some(step::OPEN));
    let (_guest, agent) = Guest::new();
    let error = agent.write_file("/dev/full", "x", 0o600, &mut Cursor::new(&bytes)).err().unwrap();
    assert_eq!(error.step(), Some(step::WRITE));
    fs::remove_dir_all(folder).unwrap();
}

/// What a guest that was taken over might say instead of an agent.
fn liar(words: &[(u32, &[u8])]) -> Result<u8, AgentError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    for (kind, body) in words {
        theirs.write_all(&protocol::head(*kind, body.len())).unwrap();
        theirs.write_all(body).unwrap();
    }
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    command(&["true"]).start(Agent::with_stream(ours)?)?.finish(|_| {})
}

#[test]
fn a_guest_that_lies_is_found_out() {
    let ready = (protocol::READY, &protocol::VERSION.to_le_bytes()[..]);
    let started = (protocol::STARTED, &[][..]);
    assert_eq!(liar(&[ready, started, (protocol::EXIT, &[9, 0, 0, 0, 0, 0, 0, 0])]).unwrap(), 9);
    let lies: [&[(u32, &[u8])]; 10] = [
        &[],
        &[(protocol::READY, &[9, 9, 9, 9])],
        &[(99, &[])],
        &[ready],
        &[ready, (protocol::OUT, b"early")],
        &[ready, (protocol::FAILED, &[1])],
        &[ready, started],
        &[ready, started, (protocol::TAKEN, &[0xff; 4])],
        &[ready, started, (protocol::TAKEN, &[1])],
        &[ready, started, (protocol::EXIT, &[0])],
    ];
    for lie in lies {
        assert!(liar(lie).is_err(), "{lie:?}");
    }
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[1, 0, 0, 0, 0, 0, 0, 0xff]).unwrap();
    assert!(matches!(Agent::with_stream(ours), Err(AgentError::Nonsense(_))), "a frame of 4 GiB");
}
