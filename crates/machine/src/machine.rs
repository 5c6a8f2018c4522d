//! One machine: made, started, paused, reset, taken down.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use umbra_block::Disk;
use umbra_boot::Layout;
use umbra_device::Clock;
use umbra_engine::{CpuState, Engine, VcpuSpec, Vm, VmSpec};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_net::Backend;
use umbra_virtio::vsock::Host as VsockHost;
use umbra_x86::cpuid::CpuidTable;

use crate::board::{Board, BoardParts};
use crate::cpu_model::{Processors, physical_bits};
use crate::crew::{Crew, Gate};
use crate::image::{self, BootFiles};
use crate::spec::MachineSpec;
use crate::timer::Timers;
use crate::{Event, MachineError};

/// Takes the serial line's output.
pub type Console = Box<dyn FnMut(&[u8]) + Send>;

/// What a machine is given from outside.
pub struct Parts {
    /// What executes instructions.
    pub engine: Box<dyn Engine>,
    /// Guest memory is a file, which can be shared with other processes; else it is this process's own, in huge pages.
    pub shared_memory: bool,
    /// Where the serial line's output goes; called on a vCPU thread.
    pub console: Console,
    /// Where events go.
    pub events: Sender<Event>,
    /// The disks of the specification, open, in its order.
    pub disks: Vec<Disk>,
    /// What is at the other end of each network card's cable, in the specification's order.
    pub networks: Vec<Box<dyn Backend>>,
    /// What its socket device is joined to.
    pub vsock: Option<VsockHost>,
}

/// A machine. While it is paused (as it is when made), no vCPU runs and its clock stands.
pub struct Machine {
    pub(crate) spec: MachineSpec,
    pub(crate) memory: Arc<Memory>,
    pub(crate) clock: Clock,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) board: Arc<Board>,
    pub(crate) crew: Crew,
    pub(crate) cpus: Processors,
    /// What CPUID shows on each processor, for as long as the machine lives, wherever it came from.
    shown: Vec<CpuidTable>,
    layout: Layout,
    timers: Arc<Timers>,
    timer_thread: Option<JoinHandle<()>>,
    engine: Box<dyn Engine>,
    running: Mutex<bool>,
}

impl Machine {
    /// A machine with empty memory, processors at power-on.
    ///
    /// # Errors
    /// The specification is wrong, or the host refuses.
    pub fn new(spec: MachineSpec, parts: Parts) -> Result<Self, MachineError> {
        Self::with_cpuid(spec, parts, None)
    }

    /// As [`Machine::new`]; `saved` are processors whose CPUID shall be shown instead of the model's.
    pub(crate) fn with_cpuid(
        spec: MachineSpec,
        parts: Parts,
        saved: Option<&[CpuState]>,
    ) -> Result<Self, MachineError> {
        spec.check()?;
        let Parts { engine, shared_memory, console, events, disks, networks, vsock } = parts;
        let cpus = Processors::new(spec.cpu_model, spec.cpus, &engine.supported_cpuid()?)?;
        // A machine that comes from another host keeps the layout that its guest was told there.
        let saved_bits = saved.and_then(|s| s.first()).and_then(|s| physical_bits(&s.cpuid_table()));
        let layout = Layout::new(spec.memory, saved_bits.unwrap_or(cpus.physical_bits()))?;
        let memory = Arc::new(guest_memory(&layout, shared_memory)?);
        let clock = Clock::new();
        let vm = engine.create_vm(VmSpec {
            memory: memory.clone(),
            clock: clock.clone(),
            vcpus_max: spec.cpus,
        })?;
        let timers = Timers::new(clock.clone());
        let gate = Gate::new();
        let board = Board::new(BoardParts {
            vm: &vm,
            clock: &clock,
            timers: &timers,
            gate: &gate,
            events: &events,
            console,
            layout: &layout,
            spec: &spec,
            memory: &memory,
            disks,
            networks,
            vsock,
        });
        let board = Arc::new(board?);
        let (mut vcpus, mut shown) = (Vec::new(), Vec::new());
        for id in 0..spec.cpus {
            let saved = saved.and_then(|s| s.get(id as usize)).map(CpuState::cpuid_table);
            let cpuid = saved.unwrap_or_else(|| cpus.cpuid(id));
            vcpus.push(vm.create_vcpu(VcpuSpec { id, cpuid: cpuid.clone() })?);
            shown.push(cpuid);
        }
        let crew = Crew::new(gate, vcpus, &board, &events)?;
        let timer_thread =
            timers.start().map_err(|e| MachineError::Host("cannot start the timer thread", e))?;
        let running = Mutex::new(false);
        Ok(Self {
            spec,
            memory,
            clock,
            vm,
            board,
            crew,
            cpus,
            shown,
            layout,
            timers,
            timer_thread: Some(timer_thread),
            engine,
            running,
        })
    }

    /// Puts the kernel into memory and the processors before its first instruction.
    ///
    /// # Errors
    /// The files are no kernel, or do not fit.
    pub fn boot(&self, files: &BootFiles) -> Result<(), MachineError> {
        let entry = image::put(files, &self.spec, &self.layout, &self.memory)?;
        for ((id, shown), mut vcpu) in (0..).zip(&self.shown).zip(self.crew.vcpus()) {
            let mut state = CpuState::power_on(id, shown);
            self.cpus.set_msrs(&mut state);
            if id == 0 {
                image::enter(&mut state, &entry);
            }
            vcpu.load(&state)?;
        }
        Ok(())
    }

    /// Resets a paused machine: devices to power-on, the kernel put back, processors before its first instruction.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn reset(&self, files: &BootFiles) -> Result<(), MachineError> {
        self.board.reset();
        self.boot(files)
    }

    /// Lets time and processors run. Idempotent.
    ///
    /// # Errors
    /// The host refuses.
    pub fn resume(&self) -> Result<(), MachineError> {
        let mut running = self.running();
        if !*running {
            self.clock.start();
            self.vm.start_time()?;
            self.timers.clock_changed();
            self.board.functions.resume();
            *running = true;
        }
        self.crew.run();
        Ok(())
    }

    /// Stops processors, devices and time, and waits until they stand. Idempotent.
    ///
    /// # Errors
    /// The host refuses.
    pub fn pause(&self) -> Result<(), MachineError> {
        let mut running = self.running();
        self.crew.stand();
        if *running {
            self.board.functions.pause();
            self.vm.stop_time()?;
            self.clock.stop();
            self.timers.clock_changed();
            *running = false;
        }
        Ok(())
    }

    /// Leaves the images of its disks as ones that were closed in order. The machine is paused and does not go on.
    ///
    /// # Errors
    /// An image cannot be written.
    pub fn close_disks(&self) -> Result<(), MachineError> {
        self.board.functions.close_disks()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, bool> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether time and processors run, or did until a moment ago an [`Event`] was sent.
    pub fn is_running(&self) -> bool {
        *self.running()
    }

    /// What it was made from.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The engine's name.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Input for the serial line. Returns how many bytes it took; the rest later.
    pub fn console_input(&self, data: &[u8]) -> usize {
        self.board.console_input(data)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// Each processor's counters: exits by cause and the like.
    pub fn counters(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.crew.counters().iter().map(|c| c.read().collect()).collect()
    }
}

impl Machine {
    /// What came up to be counted, over all processors; see [`umbra_engine::Counters::named`].
    pub fn named_counters(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for (name, value) in self.crew.counters().iter().flat_map(|c| c.named()) {
            let sum: &mut u64 = sums.entry(name).or_default();
            *sum = sum.saturating_add(value);
        }
        sums
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.timers.end();
        if let Some(thread) = self.timer_thread.take() {
            // A timer thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn guest_memory(layout: &Layout, shared: bool) -> Result<Memory, MachineError> {
    let host = |e| MachineError::Memory(umbra_memory::MemoryError::Map(e));
    let backing = match shared {
        true => Backing::memfd(c"guest-ram", layout.ram_bytes()).map_err(host)?,
        false => Backing::Anonymous,
    };
    let mut offset = 0;
    let mut regions = Vec::new();
    for range in layout.ram() {
        let len = range.end - range.start;
        regions.push(Region::map(range.start, len, RegionKind::Ram, backing.further(offset)).map_err(host)?);
        offset += len;
    }
    Ok(Memory::new(regions)?)
}
