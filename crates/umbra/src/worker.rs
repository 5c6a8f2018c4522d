//! The worker: the process that is the machine.
//!
//! It is started by the broker with its socket as standard input, takes descriptors, opens nothing by path, and enters the jail before the
//! first guest instruction runs. It ends when the machine does, or when the broker does.

use std::cmp::Reverse;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use umbra_engine::{Engine, EngineError};
use umbra_engine_kvm::KvmEngine;
use umbra_engine_soft::SoftEngine;
use umbra_machine::{BootFiles, Event, Machine, MachineError, MachineSpec, Parts, SavedMachine};
use umbra_net::user::UserControl;

use crate::console::Output;
use crate::protocol::{Answer, DiskFile, Ending, Link, Message, Order, Request, Start};
use crate::{disk, net, vsock};

/// Bytes that wait for the guest's serial line.
const INPUT_CHUNK: usize = 4096;
/// The most counters of a profile that are told.
const NAMED_MAX: usize = 100;
/// How long to wait before input that the serial line did not take is offered again.
const INPUT_RETRY: Duration = Duration::from_millis(5);

/// What the main loop waits for.
enum Wake {
    Machine(Event),
    Broker(Order, Vec<OwnedFd>),
    BrokerGone,
}

/// Runs as the worker of broker `parent`; returns when the machine has ended.
///
/// # Errors
/// The broker is gone or speaks otherwise.
pub fn main(parent: u32) -> anyhow::Result<()> {
    if !umbra_sandbox::die_with_parent(parent)? {
        anyhow::bail!("the broker is gone");
    }
    let link = Arc::new(Link::new(io::stdin().as_fd().try_clone_to_owned()?));
    let Some((start, descriptors)) = link.receive::<Start>()? else { return Ok(()) };
    umbra_sandbox::enter()?;
    let ending = match live(&link, start, descriptors) {
        Ok(ending) => ending,
        Err(e) => Ending::NotStarted(format!("{e:#}")),
    };
    // A broker that is gone needs no answer.
    let _ = link.send(&Message::Ended(ending), &[]);
    Ok(())
}

/// A machine and what it needs to start again.
struct Life {
    machine: Machine,
    files: Option<BootFiles>,
    no_reboot: bool,
    link: Arc<Link>,
    /// Its networks.
    controls: Vec<UserControl>,
    /// What is told when the processors run for the first time.
    first: Mutex<Option<Message>>,
}

fn live(link: &Arc<Link>, start: Start, descriptors: Vec<OwnedFd>) -> anyhow::Result<Ending> {
    let mut descriptors = descriptors.into_iter();
    let mut next = |wanted: bool, what: &'static str| match wanted {
        true => descriptors
            .next()
            .map(Some)
            .ok_or_else(|| anyhow::anyhow!("the broker sent no descriptor for {what}")),
        false => Ok(None),
    };
    let console = UnixStream::from(next(true, "the console")?.ok_or_else(|| anyhow::anyhow!("no console"))?);
    let engine: Box<dyn Engine> = match next(start.kvm, "/dev/kvm")? {
        Some(kvm) => Box::new(KvmEngine::open(kvm)?),
        None => Box::new(soft_engine(&start)?),
    };
    let kernel = next(start.kernel, "the kernel")?.map(File::from);
    let initrd = next(start.initrd, "the initrd")?.map(File::from);
    let saved = next(start.saved, "the saved machine")?.map(File::from);
    let files = kernel.map(|kernel| BootFiles { kernel, initrd });

    let (events, machine_events) = channel();
    // Huge pages are worth more under KVM than a descriptor that nobody shares yet.
    let shared_memory = !start.kvm;
    let output = Output::start(console.try_clone()?)?;
    // A saved machine's cards are told by the specification that the file has.
    let (saved, saved_spec) = match saved {
        Some(file) => {
            let (saved, spec) = open_saved(file, &start.disks)?;
            (Some(saved), Some(spec))
        }
        None => (None, None),
    };
    let spec =
        start.spec.or(saved_spec).ok_or_else(|| anyhow::anyhow!("the broker sent no specification"))?;
    let (networks, controls) = net::open::make(&start.networks, &spec.networks, &mut descriptors)?;
    let vsock = start.vsock.then(|| vsock::make(&mut descriptors)).transpose()?;
    let parts = Parts {
        engine,
        shared_memory,
        console: output.console(),
        events,
        disks: disk::open::disks(link, &start.disks)?,
        networks,
        vsock,
    };
    let machine = match saved {
        Some(saved) => saved.restore(spec, parts)?,
        None => {
            let machine = Machine::new(spec, parts)?;
            machine.boot(files.as_ref().ok_or_else(|| anyhow::anyhow!("the broker sent no kernel"))?)?;
            machine
        }
    };
    link.send(&Message::Created(machine.spec().clone()), &[])?;
    let first = if start.saved { Message::Restored } else { Message::Booted };
    let first = Mutex::new(Some(first));
    let (no_reboot, link) = (start.no_reboot, link.clone());
    let life = Arc::new(Life { machine, files, no_reboot, link: link.clone(), controls, first });
    if !start.paused {
        life.resume()?;
    }
    let wakes = gather(&link, machine_events)?;
    feed_console(life.clone(), console)?;
    let mut ending = life.run(&wakes)?;
    if let Err(error) = life.machine.close_disks() {
        ending = Ending::Error(error.to_string());
    }
    if start.stats || start.profile {
        // A broker that is gone needs no answer.
        let _ = link.send(&Message::Counted(life.counters()), &[]);
    }
    Ok(ending)
}

fn soft_engine(start: &Start) -> Result<SoftEngine, EngineError> {
    let mut engine = SoftEngine::new()?;
    if start.stats {
        engine = engine.counting();
    }
    if start.profile {
        engine = engine.profiled();
    }
    Ok(engine)
}

fn open_saved(
    file: File,
    disks: &[DiskFile],
) -> Result<(SavedMachine<BufReader<File>>, MachineSpec), MachineError> {
    let saved = SavedMachine::open(BufReader::with_capacity(1 << 20, file))?;
    let mut spec: MachineSpec = serde_json::from_slice(saved.spec_json())
        .map_err(|e| MachineError::Spec(format!("the saved specification cannot be read: {e}")))?;
    // Their images may have other names by now.
    spec.disks.iter_mut().zip(disks).for_each(|(disk, file)| disk.file.clone_from(&file.name));
    Ok((saved, spec))
}

/// Everything that wakes the main loop, in one queue.
fn gather(link: &Arc<Link>, machine_events: Receiver<Event>) -> io::Result<Receiver<Wake>> {
    let (wake, wakes) = channel();
    let from_machine: Sender<Wake> = wake.clone();
    std::thread::Builder::new().name("events".into()).spawn(move || {
        for event in machine_events {
            if from_machine.send(Wake::Machine(event)).is_err() {
                return;
            }
        }
    })?;
    let link = link.clone();
    std::thread::Builder::new().name("broker".into()).spawn(move || {
        while let Ok(Some((order, descriptors))) = link.receive::<Order>() {
            if wake.send(Wake::Broker(order, descriptors)).is_err() {
                return;
            }
        }
        // The main loop is gone only when the process ends.
        let _ = wake.send(Wake::BrokerGone);
    })?;
    Ok(wakes)
}

fn feed_console(life: Arc<Life>, mut console: UnixStream) -> io::Result<()> {
    std::thread::Builder::new().name("console".into()).spawn(move || {
        let mut bytes = [0; INPUT_CHUNK];
        while let Ok(n @ 1..) = console.read(&mut bytes) {
            let mut rest = &bytes[..n];
            while !rest.is_empty() {
                let taken = life.machine.console_input(rest);
                rest = rest.get(taken..).unwrap_or_default();
                if taken == 0 {
                    std::thread::sleep(INPUT_RETRY);
                }
            }
        }
    })?;
    Ok(())
}

impl Life {
    fn run(&self, wakes: &Receiver<Wake>) -> anyhow::Result<Ending> {
        loop {
            match wakes.recv()? {
                Wake::Machine(event) => {
                    if let Some(ending) = self.event(event) {
                        // All vCPUs stand before we leave: their threads use what is torn down.
                        self.machine.pause()?;
                        return Ok(ending);
                    }
                }
                Wake::Broker(Order::Stop, _) | Wake::BrokerGone => {
                    self.machine.pause()?;
                    return Ok(Ending::Stopped);
                }
                // An answer to nobody's question.
                Wake::Broker(Order::File(_), _) => {}
                Wake::Broker(Order::Ask(request), descriptors) => {
                    let answer = self.answer(&request, descriptors).map_err(|e| format!("{e:#}"));
                    self.link.send(&Message::Answer(answer), &[])?;
                }
            }
        }
    }

    fn event(&self, event: Event) -> Option<Ending> {
        match event {
            Event::PowerOff => Some(Ending::PowerOff),
            Event::Panicked => Some(Ending::Panicked),
            Event::TripleFault { .. } => Some(Ending::TripleFault),
            Event::Error(what) => Some(Ending::Error(what)),
            Event::Reset if self.no_reboot => Some(Ending::Reset),
            Event::Reset => {
                self.reset().err().map(|e| Ending::Error(format!("the machine could not be reset: {e:#}")))
            }
        }
    }

    fn reset(&self) -> anyhow::Result<()> {
        let files = self.files.as_ref();
        let files = files.ok_or_else(|| {
            anyhow::anyhow!("a restored machine has no kernel to start from; give `umbra restore` --kernel")
        })?;
        // A user may have paused it in the moment in which the guest reset it.
        let was_running = self.machine.is_running();
        self.machine.pause()?;
        self.machine.reset(files)?;
        // The guest that starts knows no connection of the one before.
        self.controls.iter().try_for_each(UserControl::restart)?;
        if was_running {
            self.machine.resume()?;
        }
        self.link.send(&Message::Reset, &[])?;
        Ok(())
    }

    fn resume(&self) -> anyhow::Result<()> {
        self.machine.resume()?;
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or(Ok(()), |message| self.link.send(&message, &[]))?;
        Ok(())
    }

    fn answer(&self, request: &Request, descriptors: Vec<OwnedFd>) -> anyhow::Result<Answer> {
        match request {
            Request::Pause => self.machine.pause()?,
            Request::Resume => self.resume()?,
            Request::PowerButton => self.machine.press_power_button(),
            Request::Save => {
                let file = descriptors
                    .into_iter()
                    .next()
                    .ok_or_else(|| anyhow::anyhow!("no file came with the request"))?;
                self.machine.pause()?;
                let spec = serde_json::to_vec(self.machine.spec())?;
                let mut out =
                    self.machine.save(&spec, BufWriter::with_capacity(1 << 20, File::from(file)))?;
                out.flush()?;
            }
            Request::Stats => return Ok(Answer::Stats(self.counters())),
            Request::AddPort(port) => {
                let socket = descriptors.into_iter().next();
                let socket = socket.ok_or_else(|| anyhow::anyhow!("no socket came with the request"))?;
                self.network()?.add_forward(net::open::listening(port, socket))?;
            }
            Request::RemovePort { udp, host } => {
                if !self.network()?.remove_forward(net::open::protocol(*udp), *host)? {
                    anyhow::bail!("{host} leads to nowhere in the guest");
                }
            }
        }
        Ok(Answer::Done)
    }

    /// The network that ports lead to.
    fn network(&self) -> anyhow::Result<&UserControl> {
        self.controls
            .first()
            .ok_or_else(|| anyhow::anyhow!("it has no network in user space, to which ports could lead"))
    }

    /// What each processor counted.
    fn counters(&self) -> Vec<Vec<(String, u64)>> {
        let mut all = self.machine.counters();
        // Where time went is told once for all processors, and of what took least nothing.
        let mut named: Vec<_> = self.machine.named_counters().into_iter().collect();
        named.sort_by_key(|(_, value)| Reverse(*value));
        if let Some(first) = all.first_mut() {
            first.extend(named.into_iter().take(NAMED_MAX));
        }
        let owned = |c: Vec<(&'static str, u64)>| c.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        all.into_iter().map(owned).collect()
    }
}
