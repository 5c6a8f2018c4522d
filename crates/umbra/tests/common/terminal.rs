//! A pseudo terminal with the program under test on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use super::process::Running;
use super::{Home, LIMIT, text};

/// The user's side of a terminal.
pub struct Terminal {
    master: Option<Arc<File>>,
    slave: Option<OwnedFd>,
    shown: Arc<Mutex<Vec<u8>>>,
    closing: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    pub fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let master = Arc::new(File::from(master));
        let (shown, closing) = (Arc::default(), Arc::default());
        let reader = collect(master.clone(), Arc::clone(&shown), Arc::clone(&closing));
        Self { master: Some(master), slave: Some(slave), shown, closing, reader: Some(reader) }
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
        let stream = || Stdio::from(self.slave.as_ref().unwrap().try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        Running::adopt(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
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
        tcgetattr(self.slave.as_ref().unwrap()).unwrap()
    }

    /// Whether it passes every key on, without echo.
    pub fn is_raw(&self) -> bool {
        !self.settings().local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Takes the terminal away, as when its window is closed.
    pub fn close(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        self.reader.take().unwrap().join().unwrap();
        self.slave = None;
        let master = Arc::into_inner(self.master.take().unwrap());
        assert!(master.is_some(), "nobody else holds it open");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The reader ends soon; nobody waits for it.
        self.closing.store(true, Ordering::SeqCst);
    }
}

/// Collects what is shown.
fn collect(master: Arc<File>, shown: Arc<Mutex<Vec<u8>>>, closing: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while !closing.load(Ordering::SeqCst) {
            let mut ready = [PollFd::new(&*master, PollFlags::IN)];
            let wait = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            if poll(&mut ready, Some(&wait)).is_ok_and(|count| count > 0) {
                match (&*master).read(&mut bytes) {
                    Ok(n @ 1..) => shown.lock().unwrap().extend_from_slice(&bytes[..n]),
                    _ => return,
                }
            }
        }
    })
}
