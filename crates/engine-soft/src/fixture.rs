//! Machines and processors for tests.

use std::sync::Arc;

use umbra_device::Clock;
use umbra_engine::{Engine, VcpuSpec, Vm, VmSpec};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::cpuid::CpuidTable;

use crate::SoftEngine;
use crate::cpu::Cpu;
use crate::vm::Shared;

/// Guest memory of `len` bytes from address 0.
pub fn memory(len: u64) -> Arc<Memory> {
    let backing = Backing::memfd(c"test", len).unwrap();
    Arc::new(Memory::new(vec![Region::map(0, len, RegionKind::Ram, backing).unwrap()]).unwrap())
}

/// Everything that this engine can show.
pub fn cpuid() -> CpuidTable {
    engine().supported_cpuid().unwrap()
}

/// The engine, made once.
pub fn engine() -> &'static SoftEngine {
    static ENGINE: std::sync::OnceLock<SoftEngine> = std::sync::OnceLock::new();
    ENGINE.get_or_init(|| SoftEngine::new().unwrap())
}

/// What the processors of a machine share, on a host of 1 GHz.
pub fn shared(len: u64, vcpus: u32) -> Arc<Shared> {
    Shared::new(memory(len), Clock::new(), vcpus, 1_000_000)
}

/// A processor at power-on in a machine of its own.
pub fn processor(len: u64) -> Box<Cpu> {
    Cpu::new(shared(len, 1), 0, cpuid()).unwrap()
}

/// A machine whose time runs.
pub struct Rig {
    pub memory: Arc<Memory>,
    pub clock: Clock,
    pub vm: Arc<dyn Vm>,
}

impl Rig {
    /// A machine of `vcpus` processors, of which none has been made, with 1 MiB of memory.
    pub fn new(vcpus: u32) -> Self {
        let (memory, clock) = (memory(1 << 20), Clock::new());
        let spec = VmSpec { memory: memory.clone(), clock: clock.clone(), vcpus_max: vcpus };
        let vm = engine().create_vm(spec).unwrap();
        clock.start();
        vm.start_time().unwrap();
        Self { memory, clock, vm }
    }

    /// Makes processor `id`.
    pub fn vcpu(&self, id: u32) -> Box<dyn umbra_engine::Vcpu> {
        self.vm.create_vcpu(VcpuSpec { id, cpuid: cpuid() }).unwrap()
    }

    /// A 32-bit word of guest memory.
    pub fn word(&self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        self.memory.read(gpa, &mut data).unwrap();
        u32::from_le_bytes(data)
    }
}

/// Pseudo-random numbers (xorshift64*), so that a failure can be repeated by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}
