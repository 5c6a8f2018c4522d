//! The broker: the process that the user started.
//!
//! It reads the command line, opens files and sockets, starts the worker, hands it descriptors, owns the terminal and answers the
//! control socket. It never touches guest memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use umbra_machine::MachineSpec;
use umbra_server::{ApiError, Manage, Server, Status, VcpuStats, VmInfo, VmState};

use crate::disk::grant::Grant;
use crate::events::Events;
use crate::paths::{control_socket, take_name};
use crate::protocol::{Answer, Ending, Link, Message, Order, Request, Start};
use crate::stats;
use crate::terminal::{self, Command, Raw, pass_input, pass_output, say};

/// How long a worker may take to end when it is asked to.
const STOP_TIME: Duration = Duration::from_secs(5);

/// What shall run.
pub struct Job {
    /// Name by which it is managed.
    pub name: String,
    /// The first message to the worker.
    pub start: Start,
    /// The descriptors after the console, in the order that [`Start`] says.
    pub descriptors: Vec<OwnedFd>,
    /// `kvm` or `soft`.
    pub engine: &'static str,
    /// Where events are written.
    pub events: Events,
}

/// Runs a machine to its end.
///
/// # Errors
/// It could not be started.
pub fn run(job: Job) -> anyhow::Result<ExitCode> {
    let socket = control_socket(&job.name)?;
    let _lock = take_name(&job.name)?.with_context(|| {
        format!("a machine named `{0}` is running; choose another --name, or end it with `umbra stop --force {0}`", job.name)
    })?;
    let (console, theirs) = UnixStream::pair().context("cannot make the console")?;
    let (worker, link) = start_worker(&job, theirs)?;
    let broker = Arc::new(Broker::new(&job, worker, link));
    let watch = watch_signals(broker.clone())?;
    let ending = broker.serve(&job, &socket, console);
    watch.close();
    if ending.is_err() {
        // Nobody has asked it to end, and nobody needs it any more.
        broker.kill_worker();
    }
    let status = broker.reap();
    let ending = match ending? {
        Some(ending) => ending,
        None => Ending::Error(format!("the machine's process ended by itself ({status})")),
    };
    Ok(broker.conclude(&job, &ending))
}

/// What the software engine looks for in its environment, to find faults of one tier.
const ENGINE: [&str; 3] = ["UMBRA_TRANSLATE_AFTER", "UMBRA_VALIDATE", "UMBRA_LOCKSTEP"];

fn start_worker(job: &Job, console: UnixStream) -> anyhow::Result<(Child, Link)> {
    let (link, theirs) = Link::pair().context("cannot make the worker's socket")?;
    let mut process = Process::new("/proc/self/exe");
    process
        .arg("worker")
        .arg(std::process::id().to_string())
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null());
    // Nothing of the user's environment is the worker's business, and signals from the terminal are the broker's.
    process.env_clear().process_group(0);
    process.envs(ENGINE.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    let worker = process.spawn().context("cannot start the machine's process")?;
    drop(process);
    let console = OwnedFd::from(console);
    let mut all: Vec<BorrowedFd<'_>> = vec![console.as_fd()];
    all.extend(job.descriptors.iter().map(AsFd::as_fd));
    link.send(&job.start, &all).context("cannot talk to the machine's process")?;
    Ok((worker, link))
}

type WorkerAnswer = Result<Answer, String>;

/// The broker of one machine.
struct Broker {
    link: Link,
    worker: Mutex<Child>,
    worker_pid: u32,
    name: String,
    engine: &'static str,
    spec: Mutex<Option<MachineSpec>>,
    paused: AtomicBool,
    /// Held from a request to its answer: one at a time.
    answers: Mutex<Receiver<WorkerAnswer>>,
    /// Gone when the worker is.
    answer: Mutex<Option<Sender<WorkerAnswer>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    fn new(job: &Job, worker: Child, link: Link) -> Self {
        let (sender, receiver) = channel();
        Self {
            link,
            worker_pid: worker.id(),
            worker: Mutex::new(worker),
            name: job.name.clone(),
            engine: job.engine,
            spec: Mutex::new(None),
            paused: AtomicBool::new(job.start.paused),
            answers: Mutex::new(receiver),
            answer: Mutex::new(Some(sender)),
        }
    }
}

impl Broker {
    /// Passes messages, console and requests until the machine ends; `None` if the worker ended without a word.
    fn serve(
        self: &Arc<Self>,
        job: &Job,
        socket: &Path,
        console: UnixStream,
    ) -> anyhow::Result<Option<Ending>> {
        let output = console.try_clone().context("cannot make the console")?;
        let output = std::thread::Builder::new().name("output".into()).spawn(move || pass_output(output))?;
        let mut raw = None;
        let mut server = None;
        let mut counted = Vec::new();
        let mut grant = Grant::new(&job.start.disks);
        let ending = loop {
            // A message that is no message: the worker is not in order, whatever the reason.
            let Ok(Some((message, _))) = self.link.receive::<Message>() else { break None };
            match message {
                Message::Open(wanted) => {
                    let file = grant.open(&wanted);
                    let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
                    let order = Order::File(file.as_ref().map(drop).map_err(Clone::clone));
                    if self.link.send(&order, &descriptors).is_err() {
                        break None;
                    }
                }
                Message::Created(spec) => {
                    grant.end();
                    job.events.write(
                        "created",
                        &self.name,
                        &json!({ "engine": self.engine, "cpus": spec.cpus, "memory": spec.memory }),
                    );
                    *lock(&self.spec) = Some(spec);
                    server = Some(
                        Server::start(socket, self.clone())
                            .with_context(|| format!("cannot listen at {}", socket.display()))?,
                    );
                    raw = Raw::enter().context("cannot use the terminal")?;
                    self.clone().start_input(console.try_clone()?, raw.is_some())?;
                }
                Message::Booted => job.events.write("booted", &self.name, &json!({})),
                Message::Restored => job.events.write("restored", &self.name, &json!({})),
                Message::Reset => job.events.write("reset", &self.name, &json!({})),
                Message::Answer(answer) => {
                    if let Some(sender) = &*lock(&self.answer) {
                        // Nobody waits if the asker has given up.
                        let _ = sender.send(answer);
                    }
                }
                Message::Counted(each) => counted = each,
                Message::Ended(ending) => break Some(ending),
            }
        };
        lock(&self.answer).take();
        drop(server);
        drop(console);
        // The worker closes its end when it ends; all that the guest wrote is shown before we go on.
        self.end_worker();
        let _ = output.join();
        drop(raw);
        stats::print(&counted, job.start.stats, job.start.profile);
        Ok(ending)
    }

    fn start_input(self: Arc<Self>, console: UnixStream, raw: bool) -> io::Result<()> {
        std::thread::Builder::new().name("input".into()).spawn(move || {
            if pass_input(console, raw) == Some(Command::Leave) {
                self.stop_worker();
            }
        })?;
        Ok(())
    }

    /// Asks the worker to end, and makes it after a while.
    fn stop_worker(self: &Arc<Self>) {
        // If it is gone, that is what was asked for.
        let _ = self.link.send(&Order::Stop, &[]);
        let broker = self.clone();
        let _ = std::thread::Builder::new().name("stop".into()).spawn(move || {
            std::thread::sleep(STOP_TIME);
            broker.kill_worker();
        });
    }

    fn kill_worker(&self) {
        let mut worker = lock(&self.worker);
        if matches!(worker.try_wait(), Ok(None)) {
            // It may end between the look and the kill.
            let _ = worker.kill();
        }
    }

    /// Waits a moment for a worker that has said or was asked to end; then makes it.
    fn end_worker(&self) {
        let steps = STOP_TIME.as_millis() / 5;
        for _ in 0..steps {
            if !matches!(lock(&self.worker).try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill_worker();
    }

    fn reap(&self) -> String {
        self.end_worker();
        lock(&self.worker).wait().map_or_else(|e| e.to_string(), |status| status.to_string())
    }

    /// Writes the last event, tells the user, and gives the exit code.
    fn conclude(&self, job: &Job, ending: &Ending) -> ExitCode {
        let crashed = |reason: &str, more: &str| {
            job.events.write("crashed", &self.name, &json!({ "reason": reason, "message": more }))
        };
        match ending {
            Ending::PowerOff => job.events.write("halted", &self.name, &json!({ "reason": "power-off" })),
            Ending::Stopped => job.events.write("halted", &self.name, &json!({ "reason": "stopped" })),
            Ending::Reset => job.events.write("halted", &self.name, &json!({ "reason": "reset" })),
            Ending::Panicked => {
                crashed("panic", "");
                say("the guest's kernel panicked");
                return ExitCode::from(3);
            }
            Ending::TripleFault => {
                crashed("triple-fault", "");
                say("triple fault: the guest's processor shut down");
                return ExitCode::from(4);
            }
            Ending::Error(why) => {
                crashed("internal-error", why);
                say(&format!("internal error: {why}"));
                return ExitCode::from(5);
            }
            Ending::NotStarted(why) => {
                crashed("not-started", why);
                say(why);
                return ExitCode::from(1);
            }
        }
        ExitCode::SUCCESS
    }

    /// Asks the worker and waits for its answer.
    fn ask(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answer, ApiError> {
        let failed = |why: String| ApiError::new(Status::Internal, why);
        let answers = lock(&self.answers);
        self.link
            .send(&Order::Ask(request), descriptors)
            .map_err(|e| failed(format!("the machine's process does not answer: {e}")))?;
        match answers.recv() {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed("the machine has ended".into())),
        }
    }

    fn save_to(&self, path: &Path) -> Result<(), ApiError> {
        let refused = |what: &str, e: io::Error| {
            ApiError::new(Status::Internal, format!("{what} {}: {e}", path.display()))
        };
        let temporary = Temporary::beside(path).map_err(|e| refused("cannot write", e))?;
        let was_paused = self.paused.swap(true, Ordering::SeqCst);
        let saved = self.ask(Request::Save, &[temporary.file.as_fd()]);
        let saved = saved.and_then(|_| temporary.keep(path).map_err(|e| refused("cannot write", e)));
        if saved.is_err() && !was_paused {
            // A machine that could not be saved goes on.
            self.paused.store(false, Ordering::SeqCst);
            self.ask(Request::Resume, &[])?;
        }
        saved
    }
}

/// A file that becomes another one when it is complete, and goes away if it does not.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        let path = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    fn keep(&self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        // The name is safe only when its folder is.
        File::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `keep` there is nothing there any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Manage for Broker {
    fn info(&self) -> Result<VmInfo, ApiError> {
        let spec = lock(&self.spec);
        let spec =
            spec.as_ref().ok_or_else(|| ApiError::new(Status::Conflict, "the machine is being made"))?;
        let state = if self.paused.load(Ordering::SeqCst) { VmState::Paused } else { VmState::Running };
        Ok(VmInfo {
            name: self.name.clone(),
            engine: self.engine.into(),
            state,
            cpus: spec.cpus,
            memory: spec.memory,
            broker_pid: std::process::id(),
            worker_pid: self.worker_pid,
        })
    }

    fn stats(&self) -> Result<Vec<VcpuStats>, ApiError> {
        match self.ask(Request::Stats, &[])? {
            Answer::Stats(all) => Ok(all.into_iter().map(|one| one.into_iter().collect()).collect()),
            Answer::Done => Err(ApiError::new(Status::Internal, "the machine's process gave another answer")),
        }
    }

    fn pause(&self) -> Result<(), ApiError> {
        self.ask(Request::Pause, &[])?;
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), ApiError> {
        self.ask(Request::Resume, &[])?;
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), ApiError> {
        self.save_to(path)
    }

    fn power_button(&self) -> Result<(), ApiError> {
        self.ask(Request::PowerButton, &[]).map(drop)
    }

    fn stop(&self) -> Result<(), ApiError> {
        // If it is gone, that is what was asked for; one that does not hear is made to end.
        let _ = self.link.send(&Order::Stop, &[]);
        self.end_worker();
        Ok(())
    }
}

/// Ends the machine on the signals that ask a program to end; gives the terminal back while the process is stopped.
fn watch_signals(broker: Arc<Broker>) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])
        .context("cannot handle signals")?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut again = false;
        for signal in signals.forever() {
            match signal {
                SIGTSTP => {
                    terminal::leave_for_stop();
                    // It stops here. If the system refuses, the machine just goes on.
                    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
                }
                SIGCONT => terminal::return_from_stop(),
                _ if std::mem::replace(&mut again, true) => broker.kill_worker(),
                _ => broker.stop_worker(),
            }
        }
    })?;
    Ok(handle)
}
