//! A pseudo terminal with the program under test on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use super::process::Running;
use super::{Home, LIMIT, text};

/// The user's side of a terminal.
pub struct Terminal {
    master: Option<Arc<File>>,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        Self { master: Some(Arc::new(File::from(master))), slave, shown }
    }

    /// Runs `umbra` on it. `session` makes it the process' controlling terminal, so that its end is a signal.
    pub fn run(&self, home: &Home, arguments: &[&str], session: bool) -> Running {
        let mut command = if session {
            let mut all = vec!["--ctty", env!("CARGO_BIN_EXE_umbra")];
            all.extend(arguments);
            home.at_home("setsid", &all)
        } else {
            home.umbra(arguments)
        };
        let stream = || Stdio::from(self.slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let running = Running::adopt(spawn(command));
        self.collect();
        running
    }

    /// Reads what is shown; the thread ends with the terminal.
    fn collect(&self) {
        let (master, shown) = (Arc::downgrade(self.master.as_ref().unwrap()), self.shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The terminal's last owner must be able to close it, so nothing blocks while this holds it.
            while let Some(master) = master.upgrade() {
                let mut ready = [rustix::event::PollFd::new(&*master, rustix::event::PollFlags::IN)];
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                match rustix::event::poll(&mut ready, Some(&wait)) {
                    Ok(1..) => match (&*master).read(&mut bytes) {
                        Ok(n @ 1..) => shown.lock().unwrap().extend_from_slice(&bytes[..n]),
                        _ => return,
                    },
                    _ => std::thread::yield_now(),
                }
            }
        });
    }

    pub fn shown(&self) -> String {
        text(&self.shown.lock().unwrap())
    }

    /// Waits until `words` are shown.
    pub fn shows(&self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.shown().contains(words) {
            assert!(Instant::now() < deadline, "no {words:?} on the terminal, only {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn type_keys(&self, keys: &[u8]) {
        self.master.as_deref().unwrap().write_all(keys).unwrap();
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(self.slave.as_fd()).unwrap()
    }

    /// Whether it passes every key on, without echo.
    pub fn is_raw(&self) -> bool {
        !self.settings().local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Takes the terminal away, as when its window is closed.
    pub fn close(&mut self) {
        let master = self.master.take().unwrap();
        super::wait_until("the terminal's other users", || Arc::strong_count(&master) == 1);
    }
}

fn spawn(mut command: Command) -> std::process::Child {
    command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}
