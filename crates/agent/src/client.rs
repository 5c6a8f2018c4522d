//! A connection to an agent: made, and used for files.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::protocol::{
    BODY_MAX, END, EXIT, FAILED, HEAD, IN, OUT, PORT, READ, READY, STARTED, VERSION, WRITE, head, read_head,
};
use crate::{AgentError, pair};

/// How long a guest may take from one step of the beginning to the next.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long to wait before a guest that is starting is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// The longest line of the host's side of the sockets.
const LINE_MAX: usize = 32;
/// Sent at once of a file.
const PIECE: usize = 32 << 10;

/// An agent that waits for a request. Each does one.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
}

/// Sends a frame.
pub(crate) fn send(stream: &mut UnixStream, kind: u32, body: &[u8]) -> io::Result<()> {
    // In one piece where it is small, as most are.
    if body.len() <= 4096 {
        return stream.write_all(&[&head(kind, body.len()), body].concat());
    }
    stream.write_all(&head(kind, body.len()))?;
    stream.write_all(body)
}

/// Receives a frame: its kind, and its body in `body`.
pub(crate) fn receive(stream: &mut UnixStream, body: &mut Vec<u8>) -> Result<u32, AgentError> {
    let mut bytes = [0; HEAD];
    stream.read_exact(&mut bytes)?;
    let (kind, len) = read_head(bytes).ok_or(AgentError::Nonsense("a frame is too long"))?;
    body.resize(len, 0);
    stream.read_exact(body)?;
    Ok(kind)
}

/// The answer to a request: its body, or why it failed.
pub(crate) fn started(stream: &mut UnixStream) -> Result<Vec<u8>, AgentError> {
    let mut body = Vec::new();
    match receive(stream, &mut body)? {
        STARTED => Ok(body),
        FAILED => Err(AgentError::failed(&body)),
        _ => Err(AgentError::Nonsense("it has not begun")),
    }
}

impl Agent {
    /// Connects through the host's side of a machine's sockets, a Unix socket at `path`. A guest that has no agent yet is asked
    /// again for as long as `patience`.
    ///
    /// # Errors
    /// Nobody is there, or does not answer.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, AgentError> {
        let begun = Instant::now();
        loop {
            let stream = UnixStream::connect(path).map_err(AgentError::Unreachable)?;
            stream.set_read_timeout(Some(ANSWER_TIME))?;
            match Self::greet(stream) {
                Err(AgentError::NoAgent) if begun.elapsed() < patience => std::thread::sleep(RETRY),
                other => return other,
            }
        }
    }

    fn greet(mut stream: UnixStream) -> Result<Self, AgentError> {
        let refused = |e: io::Error| match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::Silent,
            _ => AgentError::NoAgent,
        };
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).map_err(refused)?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(refused)?;
            line.extend(byte);
            if line.len() > LINE_MAX {
                return Err(AgentError::Nonsense("the machine's sockets"));
            }
        }
        Self::with_stream(stream)
    }

    /// Takes a connection to an agent.
    ///
    /// # Errors
    /// It does not say that it is one.
    pub fn with_stream(mut stream: UnixStream) -> Result<Self, AgentError> {
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        let mut body = Vec::new();
        match receive(&mut stream, &mut body) {
            Ok(READY) if body == VERSION.to_le_bytes() => {}
            Ok(READY) => return Err(AgentError::Nonsense("it has another version; start the machine anew")),
            Err(AgentError::Broken(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(AgentError::Silent);
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(AgentError::Nonsense("it does not begin as agents do")),
        }
        stream.set_read_timeout(None)?;
        Ok(Self { stream })
    }

    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Writes a file in the guest from `source`; in a folder `path` it is called `name`. How many bytes there were.
    ///
    /// # Errors
    /// The guest cannot, or the source cannot be read.
    pub fn write_file(
        self,
        path: &str,
        name: &str,
        mode: u32,
        source: &mut dyn Read,
    ) -> Result<u64, AgentError> {
        let mut stream = self.stream;
        let request = [&mode.to_le_bytes()[..], path.as_bytes(), &[0], name.as_bytes(), &[0]].concat();
        if request.len() > BODY_MAX {
            return Err(AgentError::TooLarge);
        }
        send(&mut stream, WRITE, &request)?;
        started(&mut stream)?;
        let mut bytes = vec![0; PIECE];
        let mut sent = 0;
        let mut broken = None;
        loop {
            let read = source.read(&mut bytes)?;
            let piece = bytes.get(..read).unwrap_or_default();
            let (kind, len) = if read == 0 { (END, 0) } else { (IN, read) };
            if let Err(error) = send(&mut stream, kind, piece) {
                // The agent has said why, perhaps.
                broken = Some(error);
                break;
            }
            sent += len as u64;
            if read == 0 {
                break;
            }
        }
        let mut body = Vec::new();
        match (receive(&mut stream, &mut body), broken) {
            (Ok(FAILED), _) => Err(AgentError::failed(&body)),
            (_, Some(error)) => Err(error.into()),
            (Ok(EXIT), None) => Ok(sent),
            (Ok(_), None) => Err(AgentError::Nonsense("a file that is written has no end")),
            (Err(error), None) => Err(error),
        }
    }

    /// Reads a file of the guest. `begin` is called with permissions and size, as the guest says them, and gives what is written to;
    /// how many bytes there were. A file may be shorter or longer than its size.
    ///
    /// # Errors
    /// The guest cannot, or what is read cannot be written.
    pub fn read_file<W: Write>(
        self,
        path: &str,
        begin: impl FnOnce(u32, u64) -> io::Result<W>,
    ) -> Result<u64, AgentError> {
        let mut stream = self.stream;
        let request = [path.as_bytes(), &[0]].concat();
        if request.len() > BODY_MAX {
            return Err(AgentError::TooLarge);
        }
        send(&mut stream, READ, &request)?;
        let mut body = started(&mut stream)?;
        let odd = AgentError::Nonsense("a file without permissions and size");
        let (mode, size) = body.split_first_chunk::<4>().ok_or(odd)?;
        let size = size.try_into().map_err(|_| AgentError::Nonsense("a file without a size"))?;
        let mut out = begin(u32::from_le_bytes(*mode) & 0o777, u64::from_le_bytes(size))?;
        let mut read = 0;
        loop {
            match receive(&mut stream, &mut body)? {
                OUT => {
                    out.write_all(&body)?;
                    read += body.len() as u64;
                }
                EXIT if pair(&body) == Some((0, 0)) => break,
                FAILED => return Err(AgentError::failed(&body)),
                _ => return Err(AgentError::Nonsense("a file that is read has no end")),
            }
        }
        out.flush()?;
        Ok(read)
    }
}
