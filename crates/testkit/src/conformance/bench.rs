//! Runs one program on one engine, or on several in turn, and finds what is not as it must be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use umbra_device::Clock;
use umbra_engine::{CpuState, Engine, EngineError, Halt, RunState, Vcpu, VcpuSpec, Vm, VmSpec};
use umbra_memory::Memory;
use umbra_state::Saved;
use umbra_x86::cpuid::CpuidTable;

use super::known::Platform;
use super::program::{End, Fault, Mode, Program};
use super::recorder::{Recorded, Recorder, joined};
use super::{layout, model};

/// How long a program may take, unless it is to sleep for ever.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one is watched that sleeps.
const SLEEP: Duration = Duration::from_millis(100);
/// How long one may run that need not end.
const WILD: Duration = Duration::from_millis(500);
/// How many exceptions are told of a program that went wrong.
const FAULTS_TOLD_MAX: usize = 16;
/// How much is told of one difference; all of it is ASCII.
const DIFFERENCE_LEN_MAX: usize = 400;
/// Most moves of one program.
const MOVES_MAX: u32 = 12;

/// When a machine is saved, to go on as a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Never.
    Never,
    /// At each MARK and LOG of ring 0.
    AtMarks,
    /// Whenever so much time has passed, wherever the program is.
    Every(Duration),
}

/// How programs are run.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// The engines; with more than one, a program moves to the next at each mark.
    pub engines: &'a [&'a dyn Engine],
    /// When a program is saved, to go on in a fresh machine.
    pub moves: Moves,
    /// Where they run.
    pub platform: Platform,
}

/// A machine with its processors.
struct Machine {
    vcpus: Vec<Box<dyn Vcpu>>,
    vm: Arc<dyn Vm>,
    clock: Clock,
}

impl Machine {
    fn new(
        engine: &dyn Engine,
        memory: &Arc<Memory>,
        shown: &CpuidTable,
        states: &[CpuState],
        clock: Clock,
    ) -> Result<Self, EngineError> {
        let spec =
            VmSpec { memory: Arc::clone(memory), clock: clock.clone(), vcpus_max: states.len() as u32 };
        let vm = engine.create_vm(spec)?;
        let mut vcpus = Vec::new();
        for id in 0..states.len() as u32 {
            vcpus.push(vm.create_vcpu(VcpuSpec { id, cpuid: model::of_processor(shown, id) })?);
        }
        for (vcpu, state) in vcpus.iter_mut().zip(states) {
            vcpu.load(state)?;
        }
        clock.start();
        vm.start_time()?;
        Ok(Self { vcpus, vm, clock })
    }

    fn stop(mut self) -> Result<(Vec<CpuState>, Clock), EngineError> {
        self.vm.stop_time()?;
        self.clock.stop();
        let states = self.vcpus.iter_mut().map(|v| v.save()).collect::<Result<_, _>>()?;
        Ok((states, self.clock))
    }
}

/// Runs all processors until one of them has something to say; returns what each said.
fn run_all(vcpus: &mut [Box<dyn Vcpu>], recorder: &Recorder) -> Vec<Halt> {
    if let [vcpu] = vcpus {
        return vec![vcpu.run(recorder)];
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(move || {
                    let halt = vcpu.run(recorder);
                    recorder.kick();
                    halt
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a processor's thread")).collect()
    })
}

/// What differs in a processor that was saved, loaded and saved again. Time goes on.
fn changed(before: &CpuState, after: &CpuState) -> Vec<String> {
    let timeless = |s: &CpuState| {
        let mut s = s.clone();
        (s.tsc, s.tsc_khz) = (0, 0);
        if let Some(apic) = &mut s.apic {
            // The timer's count, and the processor's priority, which follows from the rest and may be computed when it is needed.
            apic.page[0x390..0x394].fill(0);
            apic.page[0xa0..0xa4].fill(0);
        }
        s
    };
    let mut all = timeless(before).differences(&timeless(after));
    all.iter_mut().for_each(|d| d.truncate(DIFFERENCE_LEN_MAX));
    all
}

/// Stops the processors for a move when it is time, and for good when the limit is reached, again and again until the run has ended.
fn watch(recorder: &Recorder, moves: Moves, limit: Duration, late: &AtomicBool, ended: &mpsc::Receiver<()>) {
    let begun = Instant::now();
    let mut left = if matches!(moves, Moves::Every(_)) { MOVES_MAX } else { 0 };
    let wait_for = |left: u32| match moves {
        Moves::Every(period) if left > 0 => period.min(limit),
        _ => limit.saturating_sub(begun.elapsed()),
    };
    let mut wait = wait_for(left);
    while ended.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
        if begun.elapsed() >= limit {
            late.store(true, Ordering::SeqCst);
            wait = Duration::from_millis(20);
        } else {
            recorder.seen().marked |= left > 0;
            left = left.saturating_sub(1);
            wait = wait_for(left);
        }
        recorder.kick();
    }
}

/// How a run ended.
#[derive(Debug)]
enum Ending {
    Done(u8),
    TripleFault,
    Late,
    Error(String),
}

struct Run<'a> {
    manner: Manner<'a>,
    shown: &'a CpuidTable,
    memory: Arc<Memory>,
    recorder: Arc<Recorder>,
    moves: u32,
    wrong: Vec<String>,
}

impl Run<'_> {
    fn machine(&self, states: &[CpuState], clock: Clock) -> Result<Machine, EngineError> {
        let engine = self.manner.engines[self.moves as usize % self.manner.engines.len()];
        let machine = Machine::new(engine, &self.memory, self.shown, states, clock)?;
        let kickers = machine.vcpus.iter().map(|v| v.kicker()).collect();
        self.recorder.connect(&machine.vm, kickers);
        Ok(machine)
    }

    /// Saves the machine, by way of bytes, into a fresh one.
    fn moved(&mut self, machine: Machine) -> Result<Machine, EngineError> {
        self.recorder.disconnect();
        self.moves += 1;
        let (states, clock) = machine.stop()?;
        let bytes = |s: &CpuState| {
            CpuState::from_record(&s.to_record("vcpu")).map_err(|e| EngineError::State(e.to_string()))
        };
        let states = states.iter().map(bytes).collect::<Result<Vec<_>, _>>()?;
        let mut machine = self.machine(&states, clock)?;
        for (vcpu, state) in machine.vcpus.iter_mut().zip(&states) {
            let changes = changed(state, &vcpu.save()?);
            self.wrong.extend(changes.into_iter().map(|c| format!("changed by move {}: {c}", self.moves)));
        }
        Ok(machine)
    }

    fn run(
        &mut self,
        states: &[CpuState],
        late: &AtomicBool,
    ) -> Result<(Ending, Vec<CpuState>), EngineError> {
        let mut machine = self.machine(states, Clock::new())?;
        let ending = loop {
            let halts = run_all(&mut machine.vcpus, &self.recorder);
            let mut fault = false;
            let mut error = None;
            for halt in halts {
                match halt {
                    Halt::Stopped => (),
                    Halt::TripleFault => fault = true,
                    Halt::Debug => error = Some("a debug stop that nobody asked for".to_owned()),
                    Halt::Error(e) => error = Some(e.to_string()),
                }
            }
            if let Some(e) = error {
                break Ending::Error(e);
            }
            if fault {
                break Ending::TripleFault;
            }
            let (done, marked) = {
                let mut seen = self.recorder.seen();
                (seen.done, std::mem::take(&mut seen.marked))
            };
            if let Some(code) = done {
                break Ending::Done(code);
            }
            if late.load(Ordering::SeqCst) {
                break Ending::Late;
            }
            if marked && self.moves < MOVES_MAX {
                machine = self.moved(machine)?;
            }
        };
        self.recorder.disconnect();
        Ok((ending, machine.stop()?.0))
    }

    /// Runs within a time limit.
    fn watched(
        &mut self,
        states: &[CpuState],
        limit: Duration,
    ) -> Result<(Ending, Vec<CpuState>), EngineError> {
        let late = AtomicBool::new(false);
        let moves = self.manner.moves;
        let recorder = Arc::clone(&self.recorder);
        let (done, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (recorder, late) = (&*recorder, &late);
            scope.spawn(move || watch(recorder, moves, limit, late, &ended));
            let result = self.run(states, late);
            drop(done);
            result
        })
    }

    fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(gpa, &mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
    }
}

/// Runs a processor for a while, whatever it does.
///
/// # Errors
/// The engine fails, in words.
pub(super) fn run_wild(
    manner: Manner<'_>,
    shown: &CpuidTable,
    memory: Arc<Memory>,
    state: &CpuState,
    limit: Duration,
) -> Result<(), String> {
    let recorder = Arc::new(Recorder::new(false));
    let mut run = Run { manner, shown, memory, recorder: Arc::clone(&recorder), moves: 0, wrong: Vec::new() };
    match run.watched(std::slice::from_ref(state), limit) {
        Ok((Ending::Error(e), _)) if manner.platform == Platform::Soft => Err(e),
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

/// Runs a program; what is wrong, in words.
pub(super) fn run(manner: Manner<'_>, shown: &CpuidTable, program: &Program, code: &[u8]) -> Vec<String> {
    let memory = match layout::memory(program.mode, code) {
        Ok(memory) => memory,
        Err(e) => return vec![e.to_string()],
    };
    let states: Vec<_> = (0..program.vcpus)
        .map(|id| {
            if id > 0 && program.waits_for_sipi {
                CpuState::power_on(id, &model::of_processor(shown, id))
            } else {
                layout::state(program.mode, id, &model::of_processor(shown, id))
            }
        })
        .collect();
    let manner = Manner { moves: if program.can_move { manner.moves } else { Moves::Never }, ..manner };
    let recorder = Arc::new(Recorder::new(manner.moves == Moves::AtMarks));
    let mut run = Run { manner, shown, memory, recorder, moves: 0, wrong: Vec::new() };
    let limit = match program.end {
        End::Sleeps if manner.platform == Platform::Soft => SLEEP,
        End::Sleeps => SLEEP * 10,
        End::Any => WILD,
        End::Done | End::TripleFault if manner.platform == Platform::Soft => DEADLINE,
        // The host with KVM may be an emulated one.
        End::Done | End::TripleFault => DEADLINE * 3,
    };
    let result = run.watched(&states, limit);
    match result {
        Ok((ending, states)) => check(&mut run, program, &ending, &states),
        Err(e) => run.wrong.push(format!("the engine: {e}")),
    }
    run.wrong
}

fn check(run: &mut Run<'_>, program: &Program, ending: &Ending, states: &[CpuState]) {
    let asleep = states.first().is_some_and(|s| s.run_state == RunState::Halted);
    let right = match (program.end, ending) {
        (End::Done, Ending::Done(0))
        | (End::Any, Ending::Done(_) | Ending::Late)
        | (End::TripleFault | End::Any, Ending::TripleFault) => true,
        (End::Sleeps, Ending::Late) => asleep,
        // KVM leaves some instructions on some addresses to its user, who can only end the machine.
        (End::Any, Ending::Error(_)) => run.manner.platform != Platform::Soft,
        _ => false,
    };
    if !right {
        let at = states.first().map_or(0, |s| s.rip);
        run.wrong.push(format!("ends as {ending:x?} at {at:#x}, not as {:?}", program.end));
    }
    if program.end == End::Any {
        return;
    }
    let results: Vec<u64> =
        (0..program.results.len() as u64).map(|i| run.word(layout::RESULTS + i * 8)).collect();
    for (i, (is, must)) in results.iter().zip(program.results).enumerate() {
        if is != must {
            run.wrong.push(format!("result {i} is {is:#x}, must be {must:#x}"));
        }
    }
    let beyond = run.word(layout::RESULTS + program.results.len() as u64 * 8);
    if beyond != layout::UNSET {
        run.wrong.push(format!("there is a further result, {beyond:#x}"));
    }
    check_faults(run, program);
    check_io(run, program);
    for (gpa, must) in program.memory {
        let mut is = vec![0; must.len()];
        if run.memory.read(*gpa, &mut is).is_err() || is != *must {
            run.wrong.push(format!("memory at {gpa:#x} is {is:x?}, must be {must:x?}"));
        }
    }
}

fn check_faults(run: &mut Run<'_>, program: &Program) {
    let count = (run.word(layout::LOG_COUNT) & 0xffff).min(layout::LOG_MAX);
    let logged = |i: u64| {
        let at = layout::LOG + i * 64;
        let narrow = |v: u64| if program.mode == Mode::Long { v as i64 } else { i64::from(v as i32) };
        Fault {
            vector: run.word(at) as u8,
            error: run.word(at + 8) as u32,
            at: Some(narrow(run.word(at + 16))),
            cr2: Some(run.word(at + 56)),
        }
    };
    let is: Vec<Fault> = (0..count).map(logged).collect();
    let fits = |is: &Fault, must: &Fault| {
        is.vector == must.vector
            && is.error == must.error
            && (must.at.is_none() || is.at == must.at)
            && (must.cr2.is_none() || is.cr2 == must.cr2)
    };
    if is.len() != program.faults.len() || !is.iter().zip(program.faults).all(|(i, m)| fits(i, m)) {
        let list = |faults: &[Fault]| faults.iter().take(FAULTS_TOLD_MAX).map(told).collect::<String>();
        run.wrong.push(format!("exceptions are{}, must be{}", list(&is), list(program.faults)));
    }
}

/// A fault in short: vector, error code, distance of the instruction pointer, CR2.
fn told(f: &Fault) -> String {
    let at = f.at.map_or_else(String::new, |at| format!("@{at:x}"));
    let cr2 = f.cr2.filter(|_| f.vector == 14).map_or_else(String::new, |cr2| format!(" cr2 {cr2:x}"));
    format!(" [{} {:x}{at}{cr2}]", f.vector, f.error)
}

fn check_io(run: &mut Run<'_>, program: &Program) {
    let mut is = std::mem::take(&mut run.recorder.seen().accesses);
    let mut must: Vec<Recorded> = program.io.iter().map(Recorded::from).collect();
    if program.io_in_parts {
        (is, must) = (joined(&is), joined(&must));
    }
    if is != must {
        run.wrong.push(format!("accesses are {is:x?}, must be {must:x?}"));
    }
}
