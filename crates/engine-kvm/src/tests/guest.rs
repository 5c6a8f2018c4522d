//! Small guests, and a machine around them that writes down what they do.
//!
//! Some hosts' KVM runs only part of what processors do (see [`crate::probe`]). A test that needs what is missing says so and is counted; with
//! `UMBRA_TEST_KVM=real` in the environment it fails instead.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use umbra_device::Clock;
use umbra_engine::{CpuIo, CpuState, Engine, Halt, Kicker, SavedSegment, Vcpu, VcpuSpec, Vm, VmSpec};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::cpuid::CpuidTable;
use umbra_x86::segment::Segment;

use crate::KvmEngine;

/// How long a guest may take. Generous: the host may be busy, and the KVM an emulator.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where programs begin, and the port that ends them.
pub(super) const CODE: u64 = 0x1000;
pub(super) const DONE: u16 = 0xf4;

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Says that a test cannot run here.
pub(super) fn skip(test: &str, why: &str) {
    let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({number} so far) {test}: {why}");
    let wanted = std::env::var("UMBRA_TEST_KVM").is_ok_and(|v| v == "real");
    assert!(!wanted, "UMBRA_TEST_KVM=real, but {test} cannot run: {why}");
}

pub(super) fn open_kvm() -> Result<OwnedFd, String> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.map(OwnedFd::from).map_err(|e| crate::diagnose(&e))
}

/// The engine, or `None` where the host has none.
pub(super) fn engine(test: &str) -> Option<KvmEngine> {
    match open_kvm() {
        Ok(fd) => Some(KvmEngine::open(fd).unwrap()),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

/// The engine, if it runs kernels.
pub(super) fn kernel_engine(test: &str) -> Option<KvmEngine> {
    static VERDICT: OnceLock<Result<(), String>> = OnceLock::new();
    let verdict = VERDICT.get_or_init(|| {
        use std::os::fd::AsFd;
        let fd = open_kvm()?;
        crate::probe(fd.as_fd()).map(drop).map_err(|e| e.to_string())
    });
    match verdict {
        Ok(()) => engine(test),
        Err(why) => {
            skip(test, why);
            None
        }
    }
}

/// Something that a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Did {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
    TookVector,
    EndOfInterrupt(u8),
}

type Hook = Box<dyn Fn(&Did) -> u64 + Send + Sync>;

/// The machine around the guest.
#[derive(Default)]
pub(super) struct Io {
    log: Mutex<Vec<Did>>,
    grown: Condvar,
    /// Called for each thing before it is written down; for reads and vectors, its result is the answer.
    pub(super) hook: OnceLock<Hook>,
    kickers: Mutex<Vec<Kicker>>,
}

impl Io {
    pub(super) fn new(hook: impl Fn(&Did) -> u64 + Send + Sync + 'static) -> Self {
        let io = Self::default();
        let _ = io.hook.set(Box::new(hook));
        io
    }

    fn did(&self, did: Did) -> u64 {
        let answer = self.hook.get().map_or(0, |h| h(&did));
        if matches!(did, Did::Out(DONE, _)) {
            self.stop();
        }
        self.log.lock().unwrap().push(did);
        self.grown.notify_all();
        answer
    }

    pub(super) fn stop(&self) {
        self.kickers.lock().unwrap().iter().for_each(Kicker::kick);
    }

    /// Everything that happened, and forgets it.
    pub(super) fn take(&self) -> Vec<Did> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Waits until the guest has done `did`, `count` times in all.
    pub(super) fn wait_for(&self, did: &Did, count: usize) {
        let begun = Instant::now();
        let mut log = self.log.lock().unwrap();
        while log.iter().filter(|d| *d == did).count() < count {
            let left = PATIENCE.checked_sub(begun.elapsed());
            let left = left.unwrap_or_else(|| panic!("the guest never did {did:?}, but {log:?}"));
            log = self.grown.wait_timeout(log, left).unwrap().0;
        }
    }
}

impl CpuIo for Io {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let answer = self.did(Did::In(port, data.len())).to_le_bytes();
        data.copy_from_slice(&answer[..data.len()]);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.did(Did::Out(port, data.to_vec()));
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        let answer = self.did(Did::Read(gpa, data.len())).to_le_bytes();
        data.copy_from_slice(&answer[..data.len()]);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.did(Did::Write(gpa, data.to_vec()));
    }
    fn external_interrupt(&self) -> Option<u8> {
        Some(self.did(Did::TookVector) as u8).filter(|v| *v != 0)
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.did(Did::EndOfInterrupt(vector));
    }
}

/// A machine with some processors, 640 KiB of memory, and ROM at 0xC0000.
pub(super) struct Guest {
    pub(super) memory: Arc<Memory>,
    pub(super) clock: Clock,
    pub(super) vm: Arc<dyn Vm>,
    pub(super) vcpus: Vec<Box<dyn Vcpu>>,
    pub(super) cpuid: CpuidTable,
}

pub(super) const LOW_LEN: u64 = 0xa0000;
pub(super) const ROM: u64 = 0xc0000;

impl Guest {
    pub(super) fn new(engine: &KvmEngine, vcpus: u32) -> Self {
        Self::with_cpuid(engine, vcpus, &engine.supported_cpuid().unwrap())
    }

    pub(super) fn with_cpuid(engine: &KvmEngine, vcpus: u32, cpuid: &CpuidTable) -> Self {
        let region =
            |gpa, len, kind| Region::map(gpa, len, kind, Backing::memfd(c"guest", len).unwrap()).unwrap();
        let regions = vec![region(0, LOW_LEN, RegionKind::Ram), region(ROM, 0x1000, RegionKind::Rom)];
        let memory = Arc::new(Memory::new(regions).unwrap());
        let clock = Clock::new();
        let spec = VmSpec { memory: Arc::clone(&memory), clock: clock.clone(), vcpus_max: vcpus };
        let vm = engine.create_vm(spec).unwrap();
        let cpuid = cpuid.clone();
        let vcpus =
            (0..vcpus).map(|id| vm.create_vcpu(VcpuSpec { id, cpuid: cpuid.clone() }).unwrap()).collect();
        Self { memory, clock, vm, vcpus, cpuid }
    }

    /// One processor in real mode, about to run `code`.
    pub(super) fn real_mode(engine: &KvmEngine, code: &[u8]) -> Self {
        let mut guest = Self::new(engine, 1);
        guest.memory.write(CODE, code).unwrap();
        let state = real_mode_state(&guest.cpuid, 0, CODE);
        guest.vcpus[0].load(&state).unwrap();
        guest.start();
        guest
    }

    pub(super) fn start(&self) {
        self.clock.start();
        self.vm.start_time().unwrap();
    }

    pub(super) fn stop(&self) {
        self.vm.stop_time().unwrap();
        self.clock.stop();
    }

    /// Runs every processor until they are kicked, and `meanwhile` beside them. Each must stop for that reason.
    pub(super) fn run(&mut self, io: &Io, meanwhile: impl FnOnce(&dyn Vm)) {
        let halts = self.run_to_halts(io, meanwhile);
        for halt in halts {
            assert!(matches!(halt, Halt::Stopped), "{halt:?}; {:?}", io.take());
        }
    }

    pub(super) fn run_to_halts(&mut self, io: &Io, meanwhile: impl FnOnce(&dyn Vm)) -> Vec<Halt> {
        *io.kickers.lock().unwrap() = self.vcpus.iter().map(|v| v.kicker()).collect();
        let begun = Instant::now();
        let halts = std::thread::scope(|threads| {
            let runs: Vec<_> = self.vcpus.iter_mut().map(|v| threads.spawn(move || v.run(io))).collect();
            let guard = StopOnPanic(io);
            meanwhile(&*self.vm);
            std::mem::forget(guard);
            while !runs.iter().all(|r| r.is_finished()) && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !runs.iter().all(|r| r.is_finished()) {
                io.stop(); // a kick that nobody needs would end the next run
            }
            runs.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert!(begun.elapsed() < PATIENCE, "the guest did not end: {:?}", io.take());
        halts
    }

    pub(super) fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(gpa, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Lets the processors go when the test's own thread fails beside them.
struct StopOnPanic<'a>(&'a Io);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Real mode, all segments at zero, a stack, the APIC in x2APIC mode and on, interrupt vectors at zero.
pub(super) fn real_mode_state(cpuid: &CpuidTable, id: u32, rip: u64) -> CpuState {
    let mut state = CpuState::power_on(id, cpuid);
    state.segments = [SavedSegment(Segment::real(0, false)); 6];
    state.segments[1] = SavedSegment(Segment::real(0, true));
    state.rip = rip;
    state.gpr[4] = 0x8000;
    let apic = state.apic.as_mut().unwrap();
    apic.base |= 0x400;
    apic.page[0x20..0x24].copy_from_slice(&id.to_le_bytes());
    apic.page[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    state
}

/// The bytes of the APIC page's register at `offset`.
pub(super) fn set_apic(state: &mut CpuState, offset: usize, value: u32) {
    let page = &mut state.apic.as_mut().unwrap().page;
    page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// Real-mode code: OUT of `value` to `port`.
pub(super) fn out(port: u16, value: u8) -> Vec<u8> {
    vec![0xb0, value, 0xe6, port as u8]
}

/// Real-mode code: writes a 64-bit value to an MSR.
pub(super) fn wrmsr(msr: u32, value: u64) -> Vec<u8> {
    let mov = |op: u8, v: u32| [&[0x66, op][..], &v.to_le_bytes()].concat();
    [mov(0xb9, msr), mov(0xb8, value as u32), mov(0xba, (value >> 32) as u32), vec![0x0f, 0x30]].concat()
}

/// Writes a handler for `vector` that tells of itself by an OUT to the port of the same number, ends the interrupt if `eoi`, and returns.
pub(super) fn write_handler(guest: &Guest, vector: u8, eoi: bool) {
    let at = 0x2000 + u64::from(vector) * 0x40;
    let save = [0x66, 0x60].to_vec(); // pushad
    let end = if eoi { wrmsr(0x80b, 0) } else { vec![] };
    let code = [save, out(vector.into(), vector), end, vec![0x66, 0x61, 0xcf]].concat(); // popad; iret
    guest.memory.write(at, &code).unwrap();
    guest.memory.write(u64::from(vector) * 4, &(at as u32).to_le_bytes()).unwrap();
}

/// Real-mode code: waits for interrupts for ever.
pub(super) const WAIT: [u8; 4] = [0xfb, 0xf4, 0xeb, 0xfc]; // sti; hlt; jmp
