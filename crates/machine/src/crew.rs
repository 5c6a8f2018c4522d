//! The vCPU threads: they run together and stand together.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use umbra_engine::{Counters, CpuIo, Halt, Kicker, Vcpu};

use crate::{Event, MachineError};

/// What the threads shall do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stand,
    Run,
    End,
}

struct State {
    phase: Phase,
    standing: usize,
}

/// Where the threads wait.
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    kickers: Mutex<Vec<Kicker>>,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { phase: Phase::Stand, standing: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), kickers: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all threads stop soon; does not wait, so that a device may call it from a vCPU thread.
    pub(crate) fn stop_soon(&self) {
        {
            let mut state = self.lock();
            if state.phase == Phase::Run {
                state.phase = Phase::Stand;
            }
        }
        self.kickers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Kicker::kick);
    }

    /// Waits at the gate; false if the thread shall end.
    fn pass(&self) -> bool {
        let mut state = self.lock();
        state.standing += 1;
        self.changed.notify_all();
        while state.phase == Phase::Stand {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.standing -= 1;
        state.phase == Phase::Run
    }
}

type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

/// All vCPUs and their threads.
pub(crate) struct Crew {
    gate: Arc<Gate>,
    vcpus: Vec<SharedVcpu>,
    counters: Vec<Arc<Counters>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts one thread a vCPU; all stand.
    pub(crate) fn new(
        gate: Arc<Gate>,
        vcpus: Vec<Box<dyn Vcpu>>,
        io: &Arc<impl CpuIo + Send + 'static>,
        events: &Sender<Event>,
    ) -> Result<Self, MachineError> {
        *gate.kickers.lock().unwrap_or_else(PoisonError::into_inner) =
            vcpus.iter().map(|v| v.kicker()).collect();
        let counters = vcpus.iter().map(|v| v.counters()).collect();
        let vcpus: Vec<SharedVcpu> = vcpus.into_iter().map(|v| Arc::new(Mutex::new(v))).collect();
        let mut crew = Self { gate, vcpus, counters, threads: Vec::new() };
        for (id, vcpu) in crew.vcpus.iter().enumerate() {
            let (gate, vcpu, io, events) = (crew.gate.clone(), vcpu.clone(), io.clone(), events.clone());
            let thread = std::thread::Builder::new().name(format!("vcpu{id}"));
            let thread = thread.spawn(move || work(&gate, &vcpu, &*io, id, &events));
            crew.threads.push(thread.map_err(|e| MachineError::Host("cannot start a vCPU thread", e))?);
        }
        Ok(crew)
    }

    /// Lets all vCPUs run.
    pub(crate) fn run(&self) {
        let mut state = self.gate.lock();
        if state.phase == Phase::Stand {
            state.phase = Phase::Run;
        }
        self.gate.changed.notify_all();
    }

    /// Stops all vCPUs and waits until they stand.
    pub(crate) fn stand(&self) {
        self.gate.stop_soon();
        let mut state = self.gate.lock();
        while state.standing < self.threads.len() {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The vCPUs; they must stand.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, Box<dyn Vcpu>>> {
        self.vcpus.iter().map(|v| v.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What each vCPU counted.
    pub(crate) fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.gate.lock().phase = Phase::End;
        self.gate.changed.notify_all();
        self.gate.kickers.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|k| k.kick());
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has said so; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn work(gate: &Gate, vcpu: &SharedVcpu, io: &dyn CpuIo, id: usize, events: &Sender<Event>) {
    let report = Report { gate, id, events };
    while gate.pass() {
        let halt = vcpu.lock().unwrap_or_else(PoisonError::into_inner).run(io);
        let event = match halt {
            Halt::Stopped | Halt::Debug => continue,
            Halt::TripleFault => Event::TripleFault { vcpu: id },
            Halt::Error(e) => Event::Error(format!("vCPU {id}: {e}")),
        };
        gate.stop_soon();
        // The receiver is gone only when the machine is being taken down.
        let _ = events.send(event);
    }
    std::mem::forget(report);
}

/// Reports a vCPU thread that panics, so that the machine stops with a reason instead of hanging.
struct Report<'a> {
    gate: &'a Gate,
    id: usize,
    events: &'a Sender<Event>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.gate.stop_soon();
        self.gate.lock().standing += 1;
        self.gate.changed.notify_all();
        let _ = self
            .events
            .send(Event::Error(format!("vCPU {}: internal error, see the message above", self.id)));
    }
}
