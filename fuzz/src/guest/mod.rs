//! A small guest for the software engine: tables that work, registers in every mode, and a run that is bounded.

mod state;
mod tables;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use umbra_device::Clock;
use umbra_engine::{CpuIo, CpuState, Engine, EngineError, Halt, Kicker, Vcpu, VcpuSpec, Vm, VmSpec};
use umbra_engine_soft::SoftEngine;
use umbra_machine::{Event, Parts};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, feature};

use crate::Input;

pub use state::{MODES, Mode, registers};
pub use tables::{CODE, CODE_MAX, MEMORY, write as write_tables};

/// The engine, made once.
pub fn engine() -> &'static SoftEngine {
    static ENGINE: OnceLock<SoftEngine> = OnceLock::new();
    ENGINE.get_or_init(|| SoftEngine::new().expect("this host can run the software engine"))
}

/// What a machine is made of: this engine, and a console that nobody reads; and where its events come.
pub fn parts() -> (Parts, Receiver<Event>) {
    let (events, receiver) = channel();
    let parts = Parts {
        engine: Box::new(Borrowed),
        shared_memory: true,
        console: Box::new(|_: &[u8]| {}),
        events,
        disks: Vec::new(),
        networks: Vec::new(),
        vsock: None,
    };
    (parts, receiver)
}

struct Borrowed;

impl Engine for Borrowed {
    fn name(&self) -> &'static str {
        engine().name()
    }
    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        engine().supported_cpuid()
    }
    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        engine().create_vm(spec)
    }
}

/// All that this engine shows on this host.
pub fn cpuid() -> &'static CpuidTable {
    static CPUID: OnceLock<CpuidTable> = OnceLock::new();
    CPUID.get_or_init(|| engine().supported_cpuid().expect("the engine knows it"))
}

/// A processor at power-on that is the same on every host.
pub fn power_on(id: u32) -> CpuState {
    let leaf = |leaf, eax| CpuidEntry { leaf, eax, ..CpuidEntry::default() };
    let mut table = CpuidTable::new([leaf(0, 0xd), leaf(1, 0x306c3), leaf(0x8000_0000, 0x8000_0008)]);
    table.set_feature(feature::APIC, true);
    CpuState::power_on(id, &table)
}

/// A write to this port ends the run: the guest's handlers do that when they have seen enough.
const EXIT: u16 = 0xf4;

/// The rest of the machine: ports and addresses answer with numbers that differ, a PIC that gives vectors.
struct Io {
    exit: Mutex<Option<Kicker>>,
    answer: AtomicU64,
}

impl Io {
    fn fill(&self, data: &mut [u8]) {
        let answer = self.answer.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        data.iter_mut().zip(answer.to_le_bytes().into_iter().cycle()).for_each(|(byte, n)| *byte = n);
    }
}

impl CpuIo for Io {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.fill(data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        if port == EXIT {
            self.exit.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Kicker::kick);
        }
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        assert!(
            matches!(data.len(), 1..=64) && gpa % 4096 + data.len() as u64 <= 4096,
            "{gpa:#x} {}",
            data.len()
        );
        assert!(gpa >= MEMORY, "there is memory at {gpa:#x}");
        self.fill(data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        assert!(
            matches!(data.len(), 1..=64) && gpa % 4096 + data.len() as u64 <= 4096,
            "{gpa:#x} {}",
            data.len()
        );
        assert!(gpa >= MEMORY, "there is memory at {gpa:#x}");
    }
    fn external_interrupt(&self) -> Option<u8> {
        Some(self.answer.fetch_add(1, Ordering::Relaxed) as u8)
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// A machine of one processor with [`MEMORY`] bytes.
pub struct Guest {
    /// Its memory.
    pub memory: Arc<Memory>,
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    io: Io,
}

impl Guest {
    /// A machine whose time runs.
    ///
    /// # Panics
    /// The host refuses it.
    #[expect(clippy::new_without_default, reason = "it makes a machine")]
    pub fn new() -> Self {
        let backing = Backing::memfd(c"fuzz", MEMORY).expect("a memfd");
        let region = Region::map(0, MEMORY, RegionKind::Ram, backing).expect("memory");
        let memory = Arc::new(Memory::new(vec![region]).expect("memory"));
        let clock = Clock::new();
        let spec = VmSpec { memory: memory.clone(), clock: clock.clone(), vcpus_max: 1 };
        let vm = engine().create_vm(spec).expect("a machine");
        let vcpu = vm.create_vcpu(VcpuSpec { id: 0, cpuid: cpuid().clone() }).expect("a processor");
        clock.start();
        vm.start_time().expect("time runs");
        let io = Io { exit: Mutex::new(Some(vcpu.kicker())), answer: AtomicU64::new(0) };
        Self { memory, vm, vcpu, io }
    }

    /// Writes words where the fuzzer wants them, tables included.
    ///
    /// # Panics
    /// Never: the addresses are the memory's.
    pub fn patch(&self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % 8 {
            let gpa = u64::from(input.u16()) * 8 % MEMORY;
            self.memory.write(gpa, &input.u64().to_le_bytes()).expect("it is memory");
        }
    }

    /// Loads `state` and runs a bounded time. False where the engine refuses the state.
    ///
    /// # Panics
    /// The engine breaks a promise: it gives up, or refuses what it saved.
    pub fn run(&mut self, state: &CpuState, external_interrupt: bool) -> bool {
        if self.vcpu.load(state).is_err() {
            return false;
        }
        self.vm.set_external_interrupt(external_interrupt);
        let watched = watch::begin(self.vcpu.kicker());
        let halt = self.vcpu.run(&self.io);
        drop(watched);
        assert!(!matches!(halt, Halt::Error(_)), "{halt:?}");
        let after = self.vcpu.save().expect("it can be saved");
        assert_ne!(after.rflags & 2, 0, "RFLAGS {:#x}", after.rflags);
        if let Err(e) = self.vcpu.load(&after) {
            panic!("it refuses what it saved: {e}");
        }
        let again = self.vcpu.save().expect("it can be saved");
        let differences: Vec<_> = after.differences(&again).into_iter().filter(|d| !is_time(d)).collect();
        assert!(differences.is_empty(), "{differences:?}");
        true
    }
}

/// Time runs between two saves.
fn is_time(difference: &str) -> bool {
    difference.starts_with("tsc: ") || difference.starts_with("apic: ")
}
