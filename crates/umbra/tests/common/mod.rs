//! What the tests of the program share: a home of their own, processes with limits, small guests, a terminal.
//!
//! The engine is the software engine; `UMBRA_TEST_ACCEL=kvm` runs the same tests under KVM.
#![allow(dead_code)]

pub mod process;
pub mod terminal;
pub mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use process::Running;

/// Nothing that is waited for takes longer, on a machine that has much else to do.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The engine under test.
pub fn accel() -> String {
    std::env::var("UMBRA_TEST_ACCEL").unwrap_or_else(|_| "soft".into())
}

/// A folder for one test, with everything that Umbra would keep elsewhere in it. It goes away with the value.
pub struct Home(PathBuf);

impl Home {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short, because a socket's path must be.
        let folder = std::env::temp_dir().join(format!("umbra-test-{}-{number}", std::process::id()));
        for part in ["run", "cache", "files"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        Self(folder)
    }

    /// A path for a file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join("files").join(name)
    }

    /// A file of the test, as a string.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// The folder of control sockets.
    pub fn sockets(&self) -> PathBuf {
        self.0.join("run/umbra")
    }

    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// `umbra` with these arguments.
    pub fn umbra(&self, arguments: &[&str]) -> Command {
        self.at_home(env!("CARGO_BIN_EXE_umbra"), arguments)
    }

    /// Any program, in this home.
    pub fn at_home(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.0.join("files"));
        command.env("XDG_RUNTIME_DIR", self.0.join("run")).env("XDG_CACHE_HOME", self.cache());
        command.env("XDG_STATE_HOME", self.0.join("state"));
        command
    }

    /// The arguments that run `kernel` without a word about the engine, and `more`.
    pub fn run_arguments<'a>(&self, accel: &'a str, kernel: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["run", "--quiet", "--accel", accel, "--memory", "16M", "--kernel", kernel];
        all.extend(more);
        all
    }

    /// Runs `umbra run` with a kernel of these bytes to its end.
    pub fn run_kernel(&self, kernel: &[u8], more: &[&str]) -> Output {
        let kernel = self.file("kernel", kernel);
        self.end(&self.run_arguments(&accel(), &kernel, more))
    }

    /// Starts `umbra run` with a kernel of these bytes, named `name`.
    pub fn start_kernel(&self, kernel: &[u8], name: &str, more: &[&str]) -> Running {
        let kernel = self.file(&format!("kernel-{name}"), kernel);
        let more = [&["--name", name], more].concat();
        Running::start(self.umbra(&self.run_arguments(&accel(), &kernel, &more)))
    }

    /// Runs `umbra` with these arguments to its end.
    pub fn end(&self, arguments: &[&str]) -> Output {
        Running::start(self.umbra(arguments)).end()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.end(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output.stdout)
    }

    /// Runs a command that must be refused: one sentence that holds `words`, exit code 1 or (a wrong command line) 2.
    pub fn refuse(&self, arguments: &[&str], words: &[&str]) -> String {
        let output = self.end(arguments);
        let said = text(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{arguments:?} ended with {code:?}: {said}");
        if code == Some(1) {
            one_sentence(&said);
        }
        for word in words {
            assert!(said.contains(word), "{arguments:?} says {said:?}, not {word:?}");
        }
        assert_eq!(text(&output.stdout), "", "a refusal prints nothing else");
        self.nothing_left();
        said
    }

    /// Runs a command that must be refused while a machine runs: one sentence with `words`.
    pub fn refuse_running(&self, arguments: &[&str], words: &str) {
        let output = self.end(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        one_sentence(&said);
        assert!(said.contains(words), "{arguments:?} says {said:?}, not {words:?}");
    }

    /// Refuses `umbra run` with this kernel.
    pub fn refuse_kernel(&self, kernel: &[u8], more: &[&str], words: &[&str]) {
        let kernel = self.file("kernel", kernel);
        self.refuse(&self.run_arguments(&accel(), &kernel, more), words);
    }

    /// No control socket, lock, unfinished file or process of this home is left.
    pub fn nothing_left(&self) {
        let left = |folder: &Path| -> Vec<_> {
            let entries = fs::read_dir(folder).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert_eq!(left(&self.sockets()), [""; 0], "in the folder of control sockets");
        let parts = left(&self.0.join("files")).into_iter().filter(|name| name.starts_with('.'));
        assert_eq!(parts.collect::<Vec<_>>(), [""; 0], "unfinished files");
    }

    /// What machine `name` leaves.
    pub fn state(&self, name: &str) -> PathBuf {
        self.0.join("state/umbra").join(name)
    }

    /// Starts a kernel of these bytes without a terminal.
    pub fn detach_kernel(&self, kernel: &[u8], name: &str, more: &[&str]) {
        let kernel = self.file(&format!("kernel-{name}"), kernel);
        let more = [&["--detach", "--name", name], more].concat();
        assert_eq!(self.succeed(&self.run_arguments(&accel(), &kernel, &more)), format!("{name}\n"));
    }

    /// What `umbra ls --all` tells of machine `name`.
    pub fn info(&self, name: &str) -> Option<serde_json::Value> {
        let all: serde_json::Value = serde_json::from_str(&self.succeed(&["ls", "--all", "--json"])).unwrap();
        all.as_array().unwrap().iter().find(|vm| vm["name"] == name).cloned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The text is one line that begins with the program's name, without a trace of a panic.
pub fn one_sentence(said: &str) {
    assert!(said.starts_with("umbra: "), "{said:?} does not begin with the program's name");
    assert_eq!(said.trim_end().lines().count(), 1, "{said:?} is not one line");
    assert!(!said.contains("panicked at"), "{said:?}");
}

/// Waits until `done` says so.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there and no zombie.
pub fn lives(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
