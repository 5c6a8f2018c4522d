//! A command in the guest, with its streams, signals and end.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::client::{receive, send, started};
use crate::protocol::{
    BODY_MAX, END, ERR, EXEC, EXIT, Exec, FAILED, IN, OUT, RESIZE, SIGNAL, STRINGS_MAX, TAKEN, WINDOW,
};
use crate::{Agent, AgentError, pair};

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; none means the user's shell, as after a login.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`, each.
    pub variables: Vec<String>,
    /// Where it runs; the user's home if it is empty.
    pub folder: String,
    /// Whose it is; the administrator's if it is empty.
    pub user: String,
    /// Rows and columns of its terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
}

impl Command {
    fn request(&self) -> Option<Vec<u8>> {
        let (arguments, variables) = (self.arguments.len(), self.variables.len());
        let (rows, columns) = self.terminal.map_or((0, 0), |(rows, columns)| (rows.max(1), columns));
        let head = Exec { rows, columns, arguments: arguments as u16, variables: variables as u16 };
        let mut request = head.to_bytes().to_vec();
        let strings = [&self.folder, &self.user].into_iter().chain(&self.arguments).chain(&self.variables);
        for string in strings {
            // A zero byte would end it.
            if string.contains('\0') {
                return None;
            }
            request.extend(string.as_bytes());
            request.push(0);
        }
        (arguments + variables <= STRINGS_MAX && request.len() <= BODY_MAX).then_some(request)
    }

    /// Starts it.
    ///
    /// # Errors
    /// The guest cannot.
    pub fn start(&self, agent: Agent) -> Result<Running, AgentError> {
        let mut stream = agent.into_stream();
        send(&mut stream, EXEC, &self.request().ok_or(AgentError::TooLarge)?)?;
        started(&mut stream)?;
        let sending = stream.try_clone()?;
        let input = Input(Arc::new(Shared {
            sending: Mutex::new(sending),
            window: Mutex::new(Some(WINDOW)),
            opened: Condvar::new(),
        }));
        Ok(Running { stream, input })
    }
}

struct Shared {
    sending: Mutex<UnixStream>,
    /// How much may be sent; `None` when the command has ended.
    window: Mutex<Option<usize>>,
    opened: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a command hears. Clones are the same one; any thread may use it.
#[derive(Clone)]
pub struct Input(Arc<Shared>);

impl Input {
    fn send(&self, kind: u32, body: &[u8]) -> io::Result<()> {
        send(&mut lock(&self.0.sending), kind, body)
    }

    /// Sends bytes for its standard input; waits while it does not read.
    ///
    /// # Errors
    /// It has ended.
    pub fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut window = lock(&self.0.window);
            let room = loop {
                match *window {
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                    Some(0) => window = self.0.opened.wait(window).unwrap_or_else(PoisonError::into_inner),
                    Some(room) => break room,
                }
            };
            let len = room.min(bytes.len()).min(BODY_MAX / 2);
            *window = Some(room - len);
            drop(window);
            let (piece, rest) = bytes.split_at(len);
            self.send(IN, piece)?;
            bytes = rest;
        }
        Ok(())
    }

    /// There is no more.
    ///
    /// # Errors
    /// It has ended.
    pub fn end(&self) -> io::Result<()> {
        self.send(END, &[])
    }

    /// Sends a signal to it and all that it has started.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.send(SIGNAL, &signal.to_le_bytes())
    }

    /// Its terminal has another size.
    ///
    /// # Errors
    /// It has ended.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let [[a, b], [c, d]] = [rows.max(1), columns].map(u16::to_le_bytes);
        self.send(RESIZE, &[a, b, c, d])
    }

    fn taken(&self, len: usize) -> Result<(), AgentError> {
        let mut window = lock(&self.0.window);
        let room = window.map(|room| room.saturating_add(len));
        if room.is_some_and(|room| room > WINDOW) {
            return Err(AgentError::Nonsense("it has taken what was not sent"));
        }
        *window = room;
        self.0.opened.notify_all();
        Ok(())
    }
}

/// What a command says.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// On its standard output, or its terminal.
    Out(&'a [u8]),
    /// On its standard error.
    Error(&'a [u8]),
}

/// A command that runs.
pub struct Running {
    stream: UnixStream,
    input: Input,
}

impl Running {
    /// What it hears.
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// Takes what it says until it ends: its exit code, which is 128 and the signal for one that a signal ended, as shells have it.
    ///
    /// # Errors
    /// The connection broke, or the guest makes no sense.
    pub fn finish(mut self, mut take: impl FnMut(Output<'_>)) -> Result<u8, AgentError> {
        let ended = self.listen(&mut take);
        *lock(&self.input.0.window) = None;
        self.input.0.opened.notify_all();
        // Whoever else has it may not hold it open: the agent waits for its end.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        ended
    }

    fn listen(&mut self, take: &mut dyn FnMut(Output<'_>)) -> Result<u8, AgentError> {
        let mut body = Vec::new();
        loop {
            match receive(&mut self.stream, &mut body)? {
                OUT => take(Output::Out(&body)),
                ERR => take(Output::Error(&body)),
                TAKEN => {
                    let len = body.as_slice().try_into().map(u32::from_le_bytes);
                    let len = len.map_err(|_| AgentError::Nonsense("how much it has taken"))?;
                    self.input.taken(len as usize)?;
                }
                EXIT => {
                    let (code, signal) = pair(&body).ok_or(AgentError::Nonsense("an end without a code"))?;
                    return Ok(if signal == 0 { code as u8 } else { 128u8.wrapping_add(signal as u8) });
                }
                FAILED => return Err(AgentError::failed(&body)),
                _ => return Err(AgentError::Nonsense("what it says while a command runs")),
            }
        }
    }
}

/// The code by which a process passes a command's end on.
impl From<&AgentError> for ExitCode {
    fn from(error: &AgentError) -> Self {
        use crate::protocol::step;
        let not_found = matches!(error, AgentError::Failed { step: step::PROGRAM, source, .. } if source.kind() == io::ErrorKind::NotFound);
        let not_run = error.step() == Some(step::PROGRAM);
        // As shells have it: 127 is not found, 126 cannot be run; and 125, as others have it, is ours.
        Self::from(if not_found {
            127
        } else if not_run {
            126
        } else {
            125
        })
    }
}
