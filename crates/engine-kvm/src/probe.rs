//! Whether this KVM can run a 64-bit kernel: found out by running, because opening it says nothing.
//!
//! Some KVMs run only user mode on the processor and emulate the rest, slowly and in part. So a few instructions are run as a kernel's would
//! be, in long mode at CPL 0 with paging: vector moves, POPCNT, CMPXCHG16B, a software interrupt through an IDT with IRETQ, and a counted loop that is timed.
//! The time is bounded; nothing is left behind.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use umbra_device::Clock;
use umbra_engine::{
    CpuIo, CpuState, Engine, EngineError, Halt, Kicker, SavedSegment, SavedTable, VcpuSpec, VmSpec,
};
use umbra_memory::{Backing, Memory, PAGE_SIZE, Region, RegionKind};
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{Segment, Table};

use crate::engine::KvmEngine;
use crate::report::REGISTERS_BEGIN;

/// How long the guest may run.
const DEADLINE: Duration = Duration::from_millis(500);
/// Instructions of one timed loop, two an iteration.
const LOOP_INSTRUCTIONS: u32 = 100_000;
/// How often the loop is timed, as the host may be busy; the fastest counts.
const ROUNDS: u32 = 8;
/// Emulation by KVM reaches a few millions of instructions a second; a processor, even an emulated one on a busy host, a hundred.
const INSTRUCTIONS_PER_SECOND_MIN: u64 = 10_000_000;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeReport {
    /// Guest instructions a second in a plain loop, its two exits included.
    pub instructions_per_second: u64,
    /// How long the probe took.
    pub took: Duration,
}

/// Why this KVM cannot run a kernel.
#[derive(Debug, Error)]
pub enum ProbeFailure {
    /// It could not even be tried.
    #[error("KVM cannot be tried: {0}")]
    Setup(#[source] EngineError),
    /// It failed at one of the steps.
    #[error("KVM opens but cannot run a kernel: it fails at {step} ({})", cause(source))]
    Fails {
        /// What was tried.
        step: &'static str,
        /// How it failed.
        source: EngineError,
    },
    /// A step had a wrong result.
    #[error("KVM opens but cannot run a kernel: wrong result of {step}")]
    Wrong {
        /// What was tried.
        step: &'static str,
    },
    /// A step had no end in time.
    #[error("KVM opens but cannot run a kernel: no end of {step} within {} ms", DEADLINE.as_millis())]
    Hangs {
        /// What was tried.
        step: &'static str,
    },
    /// Kernel code is emulated.
    #[error(
        "KVM opens but emulates kernel code: {} million instructions a second",
        instructions_per_second / 1_000_000
    )]
    Slow {
        /// What a plain loop reached.
        instructions_per_second: u64,
    },
}

/// An error without the registers behind it.
fn cause(error: &EngineError) -> String {
    let text = error.to_string();
    let end = text.find(REGISTERS_BEGIN).unwrap_or(text.len());
    text[..end].trim_start_matches("processor 0: ").to_owned()
}

const STEPS: [&str; 6] =
    ["the start", "vector instructions", "POPCNT", "CMPXCHG16B", "a software interrupt", "a plain loop"];
const LOOP_STEP: usize = 5;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const DATA: u64 = 0x6000;
const CODE: u64 = 0x8000;
const HANDLER: u64 = 0x9000;
/// The handler's last instruction.
const IRETQ: u64 = HANDLER + 8;
const STACK: u64 = 0x10000;
const MEMORY_LEN: u64 = 0x20000;
const VECTOR: u64 = 0x30;
const DEBUG: u64 = 1;

/// In the data page: operands and results.
const VECTOR_SUM: u64 = DATA + 0x10;
const EXCHANGED: u64 = DATA + 0x20;
const INTERRUPTS: u64 = DATA + 0x30;
const STEP: u64 = DATA + 0x38;
const POPCOUNT: u64 = DATA + 0x40;

const PORT_LOOP_BEGINS: u16 = 0x10;
const PORT_LOOP_ENDS: u16 = 0x11;

#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xc6, 0x04, 0x25, 0x38, 0x60, 0, 0, 1,             // mov byte [STEP], 1
    0xf3, 0x0f, 0x6f, 0x04, 0x25, 0x00, 0x60, 0, 0,    // movdqu xmm0, [DATA]
    0x66, 0x0f, 0xef, 0xc9,                            // pxor xmm1, xmm1
    0x66, 0x0f, 0xd4, 0xc8,                            // paddq xmm1, xmm0
    0x66, 0x0f, 0xd4, 0xc8,                            // paddq xmm1, xmm0
    0xf3, 0x0f, 0x7f, 0x0c, 0x25, 0x10, 0x60, 0, 0,    // movdqu [VECTOR_SUM], xmm1
    0xc6, 0x04, 0x25, 0x38, 0x60, 0, 0, 2,             // mov byte [STEP], 2
    0x48, 0xbb, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, // mov rbx, 0x0123456789abcdef
    0xf3, 0x48, 0x0f, 0xb8, 0xc3,                      // popcnt rax, rbx
    0x48, 0x89, 0x04, 0x25, 0x40, 0x60, 0, 0,          // mov [POPCOUNT], rax
    0xc6, 0x04, 0x25, 0x38, 0x60, 0, 0, 3,             // mov byte [STEP], 3
    0x31, 0xc0, 0x31, 0xd2,                            // xor eax, eax; xor edx, edx
    0xb9, 0x22, 0x22, 0x22, 0x22,                      // mov ecx, 0x22222222
    0xbb, 0x11, 0x11, 0x11, 0x11,                      // mov ebx, 0x11111111
    0x9c, 0x9d,                                        // pushfq; popfq: the stack is there when flags are odd, see DEBUG
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x20, 0x60, 0, 0, // lock cmpxchg16b [EXCHANGED]
    0xc6, 0x04, 0x25, 0x38, 0x60, 0, 0, 4,             // mov byte [STEP], 4
    0xcd, 0x30,                                        // int VECTOR
    0xc6, 0x04, 0x25, 0x38, 0x60, 0, 0, 5,             // mov byte [STEP], 5
    0xb9, 0x50, 0xc3, 0, 0,                            // again: mov ecx, 50000
    0xe6, 0x10,                                        // out PORT_LOOP_BEGINS, al
    0xff, 0xc9, 0x75, 0xfc,                            // round: dec ecx; jnz round
    0xe6, 0x11,                                        // out PORT_LOOP_ENDS, al
    0xeb, 0xf1,                                        // jmp again
];

#[rustfmt::skip]
const HANDLER_PROGRAM: &[u8] = &[
    0x48, 0xff, 0x04, 0x25, 0x30, 0x60, 0, 0, // inc qword [INTERRUPTS]
    0x48, 0xcf,                               // iretq
];

const CODE_SELECTOR: u16 = 0x8;
const DATA_SELECTOR: u16 = 0x10;
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Decides whether the KVM behind `kvm` (an open /dev/kvm) can run a 64-bit kernel.
///
/// # Errors
/// It cannot; the text says why.
pub fn probe(kvm: BorrowedFd<'_>) -> Result<ProbeReport, ProbeFailure> {
    let begun = Instant::now();
    let fd = kvm.try_clone_to_owned().map_err(EngineError::host("duplicate the descriptor of /dev/kvm"));
    let instructions_per_second = fd.map_err(ProbeFailure::Setup).and_then(measure)?;
    Ok(ProbeReport { instructions_per_second, took: begun.elapsed() })
}

fn measure(fd: OwnedFd) -> Result<u64, ProbeFailure> {
    let setup = || {
        let engine = KvmEngine::open(fd)?;
        let memory = Arc::new(memory().map_err(|e| EngineError::Internal(e.to_string()))?);
        let spec = VmSpec { memory: Arc::clone(&memory), clock: Clock::new(), vcpus_max: 1 };
        let vm = engine.create_vm(spec)?;
        let cpuid = engine.supported_cpuid()?;
        let state = kernel_state(CpuState::power_on(0, &cpuid));
        let mut vcpu = vm.create_vcpu(VcpuSpec { id: 0, cpuid })?;
        vcpu.load(&state)?;
        Ok((memory, vcpu))
    };
    let (memory, mut vcpu) = setup().map_err(ProbeFailure::Setup)?;
    let watch = Watch { memory: Arc::clone(&memory), kicker: vcpu.kicker(), seen: Mutex::default() };
    let (done, wait) = mpsc::channel::<()>();
    let halt = std::thread::scope(|threads| {
        let kicker = vcpu.kicker();
        threads.spawn(move || {
            if wait.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let halt = vcpu.run(&watch);
        drop(done);
        halt
    });
    let step = STEPS[watch.step().min(LOOP_STEP)];
    let seen = watch.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (halt, seen.wrong, seen.best) {
        (Halt::Error(source), ..) => Err(ProbeFailure::Fails { step, source }),
        (Halt::TripleFault | Halt::Debug, ..) => {
            Err(ProbeFailure::Fails { step, source: EngineError::Internal("the processor shut down".into()) })
        }
        (Halt::Stopped, Some(step), _) => Err(ProbeFailure::Wrong { step }),
        (Halt::Stopped, None, None) => Err(ProbeFailure::Hangs { step }),
        (Halt::Stopped, None, Some(best)) => {
            let rate = rate(best);
            if rate < INSTRUCTIONS_PER_SECOND_MIN {
                return Err(ProbeFailure::Slow { instructions_per_second: rate });
            }
            Ok(rate)
        }
    }
}

fn rate(loop_took: Duration) -> u64 {
    u64::from(LOOP_INSTRUCTIONS) * 1_000_000_000 / (loop_took.as_nanos() as u64).max(1)
}

/// Memory with page tables that map its first 2 MiB to themselves, descriptors, and the programs.
fn memory() -> Result<Memory, umbra_memory::MemoryError> {
    let map = |e| umbra_memory::MemoryError::Map(e);
    let backing = Backing::memfd(c"probe", MEMORY_LEN).map_err(map)?;
    let region = Region::map(0, MEMORY_LEN, RegionKind::Ram, backing).map_err(map)?;
    let memory = Memory::new(vec![region])?;
    let words = |gpa: u64, words: &[u64]| {
        words.iter().zip((gpa..).step_by(8)).try_for_each(|(w, at)| memory.write(at, &w.to_le_bytes()))
    };
    // Present, writable; the directory's entry is a large page, accessed and dirty.
    words(PML4, &[PDPT | 3])?;
    words(PDPT, &[PD | 3])?;
    words(PD, &[0xe3])?;
    words(GDT, &[0, CODE_DESCRIPTOR, DATA_DESCRIPTOR])?;
    let gate = |to: u64| to & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (to >> 16) << 48;
    words(IDT + 16 * VECTOR, &[gate(HANDLER), 0])?;
    // A debug exception that nobody asked for is passed over, as kernels do: an emulated SVM raises one after a fault on the stack
    // when its KVM uses shadow paging.
    words(IDT + 16 * DEBUG, &[gate(IRETQ), 0])?;
    words(DATA, &[3, 5])?;
    memory.write(CODE, PROGRAM)?;
    memory.write(HANDLER, HANDLER_PROGRAM)?;
    Ok(memory)
}

/// A processor in long mode at CPL 0, about to run the program.
fn kernel_state(mut state: CpuState) -> CpuState {
    let data = SavedSegment(Segment::from_descriptor(DATA_SELECTOR, DATA_DESCRIPTOR));
    state.segments = [data; 6];
    state.segments[1] = SavedSegment(Segment::from_descriptor(CODE_SELECTOR, CODE_DESCRIPTOR));
    state.gdtr = SavedTable(Table { base: GDT, limit: 23 });
    state.idtr = SavedTable(Table { base: IDT, limit: (PAGE_SIZE - 1) as u16 });
    state.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG).bits();
    state.cr3 = PML4;
    state.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits();
    state.efer = (Efer::LME | Efer::LMA).bits();
    state.rip = CODE;
    state.gpr[4] = STACK;
    state
}

#[derive(Default)]
struct Seen {
    begun: Option<Instant>,
    best: Option<Duration>,
    rounds: u32,
    wrong: Option<&'static str>,
}

/// Looks at the results and the clock.
struct Watch {
    memory: Arc<Memory>,
    kicker: Kicker,
    seen: Mutex<Seen>,
}

impl Watch {
    fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(gpa, &mut bytes).map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
    }

    fn step(&self) -> usize {
        (self.word(STEP) & 0xff) as usize
    }

    /// The first step with a wrong result.
    fn wrong(&self) -> Option<&'static str> {
        let right = [
            true,
            self.word(VECTOR_SUM) == 6 && self.word(VECTOR_SUM + 8) == 10,
            self.word(POPCOUNT) == 32,
            self.word(EXCHANGED) == 0x1111_1111 && self.word(EXCHANGED + 8) == 0x2222_2222,
            self.word(INTERRUPTS) == 1,
        ];
        right.iter().position(|r| !r).and_then(|i| STEPS.get(i)).copied()
    }
}

impl CpuIo for Watch {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _: &[u8]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            PORT_LOOP_BEGINS => {
                seen.wrong = self.wrong();
                seen.begun = Some(Instant::now());
            }
            PORT_LOOP_ENDS => {
                let took = seen.begun.map(|b| b.elapsed());
                seen.best = [seen.best, took].into_iter().flatten().min();
                seen.rounds += 1;
            }
            _ => (),
        }
        let fast = seen.best.is_some_and(|b| rate(b) >= INSTRUCTIONS_PER_SECOND_MIN);
        if fast || seen.wrong.is_some() || seen.rounds >= ROUNDS {
            self.kicker.kick();
        }
    }

    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) {}

    fn external_interrupt(&self) -> Option<u8> {
        None
    }

    fn end_of_interrupt(&self, _: u8) {}
}
