//! The control socket's server side: one thread that listens, one a connection.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::deadline::Deadline;
use crate::http::{CONSOLE, Request, read_request, write_response, write_switch};
use crate::types::{ApiError, Ended, Port, PortName, SaveRequest, Status, VcpuStats, VmInfo};

/// Connections at a time, besides consoles; more are closed at once.
const CONNECTIONS_MAX: usize = 16;
/// How often it is looked whether who waits for a machine's end is still there.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// How long a client may take to send its request or take its answer.
const CLIENT_TIME: Duration = Duration::from_secs(10);
/// How long the last requests are answered when the machine is gone.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(1);

/// What can be done to a machine.
pub trait Manage: Send + Sync {
    /// What it is.
    fn info(&self) -> Result<VmInfo, ApiError>;
    /// Counters of each vCPU.
    fn stats(&self) -> Result<Vec<VcpuStats>, ApiError>;
    /// Stops processors and time.
    fn pause(&self) -> Result<(), ApiError>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), ApiError>;
    /// Pauses and writes the machine to a file.
    fn save(&self, path: &Path) -> Result<(), ApiError>;
    /// Presses the power button.
    fn power_button(&self) -> Result<(), ApiError>;
    /// Ends the machine at once.
    fn stop(&self) -> Result<(), ApiError>;
    /// Waits for the machine's end, but no longer than this.
    fn wait(&self, time: Duration) -> Result<Option<Ended>, ApiError>;
    /// The ports of the host that lead to the guest.
    fn ports(&self) -> Result<Vec<Port>, ApiError>;
    /// Opens one; what was opened.
    fn add_port(&self, port: Port) -> Result<Port, ApiError>;
    /// Closes one.
    fn remove_port(&self, port: PortName) -> Result<(), ApiError>;
    /// Attaches a client to the serial console.
    fn console(&self) -> Result<Console, ApiError>;
}

/// Passes the guest's serial line over a connection until either ends. How many there may be is up to who gives it.
pub type Console = Box<dyn FnOnce(UnixStream) + Send>;

/// A listening control socket. When it is dropped, requests that have been read are answered, and the socket file is removed.
pub struct Server {
    path: PathBuf,
    answering: Arc<AtomicUsize>,
}

impl Server {
    /// Listens at `path` and answers for `machine`. Only the user who runs this may connect.
    ///
    /// # Errors
    /// A running machine listens there already (`AddrInUse`); what the system says. A socket that a dead machine left is replaced.
    pub fn start(path: &Path, machine: Arc<dyn Manage>) -> io::Result<Self> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let answering = Arc::new(AtomicUsize::new(0));
        let server = Self { path: path.to_owned(), answering: answering.clone() };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || listen(&listener, &machine, &answering))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it is gone already, all is well.
        let _ = fs::remove_file(&self.path);
        // The process may end next, and whoever asked for that waits for an answer.
        let deadline = Instant::now() + LAST_ANSWERS_TIME;
        while self.answering.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn listen(listener: &UnixListener, machine: &Arc<dyn Manage>, answering: &Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // No descriptors left, say: do not spin on it.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (machine, open, answering) = (machine.clone(), open.clone(), answering.clone());
        let counted = open.clone();
        let thread = std::thread::Builder::new().name("client".into()).spawn(move || {
            // A client that goes away loses its answer; nobody else does.
            let _ = serve(stream, &*machine, &open, &answering);
            open.fetch_sub(1, Ordering::SeqCst);
        });
        if thread.is_err() {
            counted.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve(
    stream: UnixStream,
    machine: &dyn Manage,
    open: &AtomicUsize,
    answering: &AtomicUsize,
) -> io::Result<()> {
    let request = read_request(&mut Deadline::new(&stream, CLIENT_TIME));
    let console = match &request {
        Ok(request) if request.path == "/v1/vm/console" && request.method == "GET" => {
            Some(console(request, machine))
        }
        _ => None,
    };
    if let Some(Ok(console)) = console {
        write_switch(&mut Deadline::new(&stream, CLIENT_TIME))?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        open.fetch_sub(1, Ordering::SeqCst);
        console(stream);
        open.fetch_add(1, Ordering::SeqCst);
        return Ok(());
    }
    answering.fetch_add(1, Ordering::SeqCst);
    let answer = match console {
        Some(refused) => refused.map(|_| json!({})),
        None => request.and_then(|request| answer(&request, machine, &stream)),
    };
    let (status, body) = match answer {
        Ok(value) => (Status::Ok, value),
        Err(e) => (e.status, json!({ "error": e.message })),
    };
    let mut out = Deadline::new(&stream, CLIENT_TIME);
    let written = write_response(&mut out, status, body.to_string().as_bytes());
    let written = written.and_then(|()| stream.shutdown(Shutdown::Write));
    answering.fetch_sub(1, Ordering::SeqCst);
    written
}

fn console(request: &Request, machine: &dyn Manage) -> Result<Console, ApiError> {
    match &request.upgrade {
        Some(protocol) if protocol == CONSOLE && request.body.is_empty() => machine.console(),
        _ => Err(ApiError::new(
            Status::UpgradeRequired,
            format!("a console is no HTTP; ask for it with `Upgrade: {CONSOLE}`"),
        )),
    }
}

fn answer(request: &Request, machine: &dyn Manage, stream: &UnixStream) -> Result<Value, ApiError> {
    if (request.method.as_str(), request.path.as_str()) != ("GET", "/v1/vm/wait") {
        return route(request, machine);
    }
    loop {
        if let Some(ended) = machine.wait(WAIT_STEP)? {
            return to_json(ended);
        }
        // Who has gone away shall not keep others from being answered.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        if matches!(recv(stream, &mut [0u8; 1], flags), Ok((0, _))) {
            return Err(ApiError::new(Status::BadRequest, "nobody waits any more"));
        }
    }
}

fn to_json(value: impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|e| ApiError::new(Status::Internal, e.to_string()))
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, ApiError> {
    serde_json::from_slice(&request.body)
        .map_err(|e| ApiError::new(Status::BadRequest, format!("the request's body is wrong: {e}")))
}

fn route(request: &Request, machine: &dyn Manage) -> Result<Value, ApiError> {
    let done = |()| json!({});
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v1/version") => Ok(json!({ "umbra": env!("CARGO_PKG_VERSION"), "api": 1 })),
        ("GET", "/v1/vm") => to_json(machine.info()?),
        ("GET", "/v1/stats") => Ok(json!({ "vcpus": to_json(machine.stats()?)? })),
        ("PUT", "/v1/vm/pause") => machine.pause().map(done),
        ("PUT", "/v1/vm/resume") => machine.resume().map(done),
        ("PUT", "/v1/vm/power-button") => machine.power_button().map(done),
        ("PUT", "/v1/vm/stop") => machine.stop().map(done),
        ("PUT", "/v1/vm/save") => {
            let save: SaveRequest = body(request)?;
            if !save.path.is_absolute() {
                return Err(ApiError::new(Status::BadRequest, "the path must be absolute"));
            }
            machine.save(&save.path).map(done)
        }
        ("GET", "/v1/vm/ports") => Ok(json!({ "ports": to_json(machine.ports()?)? })),
        ("POST", "/v1/vm/ports") => to_json(machine.add_port(body(request)?)?),
        ("DELETE", "/v1/vm/ports") => machine.remove_port(body(request)?).map(done),
        (_, path) if KNOWN.contains(&path) => {
            Err(ApiError::new(Status::MethodNotAllowed, format!("{path} does not take {}", request.method)))
        }
        (_, path) => Err(ApiError::new(
            Status::NotFound,
            format!("there is no {}", path.chars().take(100).collect::<String>()),
        )),
    }
}

const KNOWN: &[&str] = &[
    "/v1/version",
    "/v1/vm",
    "/v1/stats",
    "/v1/vm/pause",
    "/v1/vm/resume",
    "/v1/vm/power-button",
    "/v1/vm/stop",
    "/v1/vm/save",
    "/v1/vm/wait",
    "/v1/vm/ports",
    "/v1/vm/console",
];
