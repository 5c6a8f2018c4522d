//! The broker: the process that the user started.
//!
//! It reads the command line, opens files and sockets, starts the worker, hands it descriptors, owns the terminal and answers the
//! control socket. It never touches guest memory.

mod control;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use umbra_machine::MachineSpec;
use umbra_server::{Ended, Port, Server};

use crate::detach::Report;
use crate::disk::grant::Grant;
use crate::events::Events;
use crate::hub::Hub;
use crate::kept::Kept;
use crate::paths::{claim_name, control_socket};
use crate::protocol::{Answer, Ending, Link, Message, Order, Start};
use crate::record::{Record, now_ms};
use crate::stats;
use crate::terminal::{self, Command, Keys, Raw, pass_input, say};
use crate::vsock::{Listening, default_path};

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
    /// Where the host's side of its sockets is to be.
    pub vsock: Option<PathBuf>,
    /// Where events are written.
    pub events: Events,
    /// Ports of the host that lead to the guest from the start.
    pub ports: Vec<Port>,
    /// Where the start of a machine without a terminal is reported; none for one with.
    pub report: Option<Report>,
    /// Nothing is to be left of it.
    pub remove: bool,
}

impl Job {
    fn record(&self) -> Record {
        Record {
            name: self.name.clone(),
            engine: self.engine.into(),
            spec: serde_json::Value::Null,
            arguments: std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(),
            folder: std::env::current_dir().unwrap_or_default(),
            detached: self.report.is_some(),
            remove: self.remove,
            started_ms: now_ms(),
            ended_ms: None,
            exit_code: None,
            ending: None,
            message: None,
        }
    }
}

/// Runs a machine to its end.
///
/// # Errors
/// It could not be started.
pub fn run(job: Job) -> anyhow::Result<ExitCode> {
    let socket = control_socket(&job.name)?;
    let _lock = claim_name(&job.name)?.with_context(|| {
        format!("a machine named `{0}` is running; choose another --name, or end it with `umbra stop --force {0}`", job.name)
    })?;
    let kept = Kept::begin(job.record())?;
    let run = live(job, &kept, &socket);
    if let Err(e) = &run {
        kept.end(&ended_of(&Ending::NotStarted(format!("{e:#}"))));
    }
    run
}

/// Runs a machine whose name is ours.
fn live(mut job: Job, kept: &Kept, socket: &Path) -> anyhow::Result<ExitCode> {
    let _vsock = listen(&mut job)?;
    let (console, theirs) = UnixStream::pair().context("cannot make the console")?;
    let (worker, link) = start_worker(&mut job, theirs)?;
    let report = job.report.take();
    let broker = Arc::new(Broker::new(&job, worker, link, Arc::new(Hub::new(console)), report));
    let watch = watch_signals(broker.clone())?;
    let mut server = None;
    let ending = broker.serve(&job, kept, socket, &mut server);
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
    let ended = ended_of(&ending);
    broker.conclude(&job, &ended);
    kept.end(&ended);
    let code = ExitCode::from(ended.exit_code);
    *lock(&broker.ended) = Some(ended);
    broker.has_ended.notify_all();
    // Who waits is answered before we go.
    drop(server);
    Ok(code)
}

/// Listens where the host's side of the machine's sockets is to be: now that the name is ours, so is the path.
fn listen(job: &mut Job) -> anyhow::Result<Option<Listening>> {
    let Some(path) = &job.vsock else { return Ok(None) };
    let (listening, descriptors) = Listening::start(path)?;
    job.descriptors.extend(descriptors);
    listening.known_as(default_path(&job.name)?).map(Some)
}

/// How an ending is told: exit code, name, and what more there is to say.
fn ended_of(ending: &Ending) -> Ended {
    let (exit_code, name, message) = match ending {
        Ending::PowerOff => (0, "power-off", None),
        Ending::Stopped => (0, "stopped", None),
        Ending::Reset => (0, "reset", None),
        Ending::Panicked => (3, "panic", Some("the guest's kernel panicked".to_owned())),
        Ending::TripleFault => {
            (4, "triple-fault", Some("triple fault: the guest's processor shut down".to_owned()))
        }
        Ending::Error(why) => (5, "internal-error", Some(why.clone())),
        Ending::NotStarted(why) => (1, "not-started", Some(why.clone())),
    };
    Ended { exit_code, ending: name.to_owned(), message }
}

/// What the software engine looks for in its environment, to find faults of one tier.
const ENGINE: [&str; 3] = ["UMBRA_TRANSLATE_AFTER", "UMBRA_VALIDATE", "UMBRA_LOCKSTEP"];

fn start_worker(job: &mut Job, console: UnixStream) -> anyhow::Result<(Child, Link)> {
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
    if job.report.is_some() {
        // Who could read it will be gone. What ends it is in the record.
        process.stderr(Stdio::null());
    }
    let worker = process.spawn().context("cannot start the machine's process")?;
    drop(process);
    // They are the worker's from now on: a port that it closes shall be closed.
    let descriptors: Vec<_> = [OwnedFd::from(console)].into_iter().chain(job.descriptors.drain(..)).collect();
    let all: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
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
    hub: Arc<Hub>,
    ports: Mutex<Vec<Port>>,
    report: Option<Report>,
    started_ms: u64,
    /// How it ended, when it has.
    ended: Mutex<Option<Ended>>,
    has_ended: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    fn new(job: &Job, worker: Child, link: Link, hub: Arc<Hub>, report: Option<Report>) -> Self {
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
            hub,
            ports: Mutex::new(job.ports.clone()),
            report,
            started_ms: now_ms(),
            ended: Mutex::new(None),
            has_ended: Condvar::new(),
        }
    }
}

impl Broker {
    /// Passes messages, console and requests until the machine ends; `None` if the worker ended without a word.
    fn serve(
        self: &Arc<Self>,
        job: &Job,
        kept: &Kept,
        socket: &Path,
        server: &mut Option<Server>,
    ) -> anyhow::Result<Option<Ending>> {
        let (hub, reader) = (self.hub.clone(), kept.reader()?);
        let output =
            std::thread::Builder::new().name("output".into()).spawn(move || hub.pass_output(reader))?;
        let mut raw = None;
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
                    kept.made(&spec);
                    raw = self.created(job, spec, socket, server)?;
                }
                Message::Booted => self.runs(job, "booted")?,
                Message::Restored => self.runs(job, "restored")?,
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
        // The worker closes its end when it ends; all that the guest wrote is shown before we go on.
        self.end_worker();
        let _ = output.join();
        drop(raw);
        stats::print(&counted, job.start.stats, job.start.profile);
        Ok(ending)
    }

    /// The machine is there: from now on it is managed and typed to.
    fn created(
        self: &Arc<Self>,
        job: &Job,
        spec: MachineSpec,
        socket: &Path,
        server: &mut Option<Server>,
    ) -> anyhow::Result<Option<Raw>> {
        let made = json!({ "engine": self.engine, "cpus": spec.cpus, "memory": spec.memory });
        job.events.write("created", &self.name, &made);
        *lock(&self.spec) = Some(spec);
        let started = Server::start(socket, self.clone());
        *server = Some(started.with_context(|| format!("cannot listen at {}", socket.display()))?);
        match &self.report {
            Some(report) if job.start.paused => report.ready(&self.name).map(|()| None),
            Some(_) => Ok(None),
            None => {
                let raw = Raw::enter().context("cannot use the terminal")?;
                self.clone().start_input(raw.is_some())?;
                Ok(raw)
            }
        }
    }

    /// Its processors run for the first time.
    fn runs(&self, job: &Job, event: &str) -> anyhow::Result<()> {
        job.events.write(event, &self.name, &json!({}));
        match &self.report {
            Some(report) if !job.start.paused => report.ready(&self.name),
            _ => Ok(()),
        }
    }

    fn start_input(self: Arc<Self>, raw: bool) -> io::Result<()> {
        std::thread::Builder::new().name("input".into()).spawn(move || {
            if pass_input(self.hub.input(), raw.then(Keys::of_machine)) == Some(Command::Leave) {
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

    /// Writes the last event and tells the user.
    fn conclude(&self, job: &Job, ended: &Ended) {
        let Ended { exit_code, ending, message } = ended;
        if *exit_code == 0 {
            return job.events.write("halted", &self.name, &json!({ "reason": ending }));
        }
        // What has a name needs no other words.
        let more = message.as_deref().filter(|_| matches!(exit_code, 1 | 5)).unwrap_or_default();
        job.events.write("crashed", &self.name, &json!({ "reason": ending, "message": more }));
        let why = message.as_deref().unwrap_or(ending);
        say(&if *exit_code == 5 { format!("internal error: {why}") } else { why.to_owned() });
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
                _ if terminal::stopped(signal) => {}
                _ if std::mem::replace(&mut again, true) => broker.kill_worker(),
                _ => broker.stop_worker(),
            }
        }
    })?;
    Ok(handle)
}
