//! A process under test: what it writes is collected while it runs, and nothing is waited for without a limit.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::{LIMIT, text, wait_until};

/// What has been written so far.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn from(mut source: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let collected = Self::default();
        let all = collected.0.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = source.read(&mut bytes) {
                all.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        (collected, thread)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

/// A running process. It is killed when the value is dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts it with all three standard streams as pipes.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (stdout, out) = Collected::from(child.stdout.take().unwrap());
        let (stderr, err) = Collected::from(child.stderr.take().unwrap());
        Self { stdin: child.stdin.take(), child, stdout, stderr, readers: vec![out, err] }
    }

    /// Adopts a process whose standard streams are somewhere else.
    pub fn adopt(child: Child) -> Self {
        let (stdout, stderr) = Default::default();
        Self { child, stdin: None, stdout, stderr, readers: Vec::new() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn written(&self) -> String {
        text(&self.stdout.bytes())
    }

    /// Waits until `words` are on standard output.
    pub fn says(&self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.written().contains(words) {
            let errors = text(&self.stderr.bytes());
            assert!(Instant::now() < deadline, "no {words:?}, only {:?} and {errors:?}", self.written());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Closes its standard input.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        wait_until("the end of a process", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for the end; standard input stays open until then.
    pub fn end(mut self) -> Output {
        let status = self.wait();
        for reader in self.readers.drain(..) {
            wait_until("the end of what a process writes", || reader.is_finished());
        }
        Output { status, stdout: self.stdout.bytes(), stderr: self.stderr.bytes() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
