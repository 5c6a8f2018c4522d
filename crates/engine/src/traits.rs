//! Engine, virtual machine, virtual processor.

use std::sync::Arc;

use umbra_device::{Clock, Msi, MsiSink};
use umbra_memory::Memory;
use umbra_x86::cpuid::CpuidTable;

use crate::{Counters, CpuIo, CpuState, Doorbells, EngineError, Halt, IrqEvents, Kicker};

/// Inputs of the I/O APIC.
pub const PIN_COUNT: usize = 24;

/// Something that executes guest instructions.
pub trait Engine: Send + Sync {
    /// `kvm` or `soft`.
    fn name(&self) -> &'static str;
    /// Every CPUID leaf and feature that this engine can give on this host.
    ///
    /// # Errors
    /// The host does not say.
    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError>;
    /// Makes a machine without processors.
    ///
    /// # Errors
    /// The host refuses.
    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError>;
}

/// What an engine must know of a machine.
pub struct VmSpec {
    /// The guest physical address space.
    pub memory: Arc<Memory>,
    /// The machine's clock. Guest time (the KVM clock, the TSC, APIC timers) runs while it runs.
    pub clock: Clock,
    /// How many processors there will be at most; ids are below this.
    pub vcpus_max: u32,
}

/// What an engine must know of a processor.
#[derive(Debug, Clone)]
pub struct VcpuSpec {
    /// Its number, which is its APIC ID.
    pub id: u32,
    /// What CPUID shows; APIC ids and topology already filled in for this processor.
    pub cpuid: CpuidTable,
}

/// A machine's processors and what joins them: local APICs, memory mappings, time.
pub trait Vm: MsiSink {
    /// Makes processor `spec.id` in its state at power-on (0 runs, the others wait for SIPI).
    ///
    /// # Errors
    /// The host refuses, or CPUID shows what the engine cannot give.
    fn create_vcpu(&self, spec: VcpuSpec) -> Result<Box<dyn Vcpu>, EngineError>;
    /// The level of the PIC's interrupt output, which is wired to LINT0 of processor 0. While it is high
    /// and the processor accepts it, the engine takes the vector by [`CpuIo::external_interrupt`].
    fn set_external_interrupt(&self, high: bool);
    /// The messages that the I/O APIC's pins send, as its table now says; the engine reports the end of
    /// the level-triggered ones by [`CpuIo::end_of_interrupt`].
    ///
    /// # Errors
    /// The host refuses.
    fn set_routes(&self, routes: &[Option<Msi>; PIN_COUNT]) -> Result<(), EngineError>;
    /// Guest time stands from now on. Called while no vCPU runs, before the machine's clock stops.
    ///
    /// # Errors
    /// The host refuses.
    fn stop_time(&self) -> Result<(), EngineError>;
    /// Guest time goes on where it stood. Called while no vCPU runs, after the machine's clock was started and processors were loaded.
    ///
    /// # Errors
    /// The host refuses.
    fn start_time(&self) -> Result<(), EngineError>;
    /// Interrupts from event descriptors, where the engine has them.
    fn irq_events(&self) -> Option<&dyn IrqEvents>;
    /// Doorbells, where the engine has them.
    fn doorbells(&self) -> Option<&dyn Doorbells>;
}

/// A virtual processor. It may move between threads, but runs on one at a time.
pub trait Vcpu: Send {
    /// Runs until something above must decide. A halted processor waits inside. Returns at an instruction boundary, with port
    /// and memory-mapped accesses completed.
    fn run(&mut self, io: &dyn CpuIo) -> Halt;
    /// What makes `run` return soon.
    fn kicker(&self) -> Kicker;
    /// The processor's whole state.
    ///
    /// # Errors
    /// The host refuses.
    fn save(&mut self) -> Result<CpuState, EngineError>;
    /// Replaces the processor's whole state. CPUID must be what the processor was made with.
    ///
    /// # Errors
    /// State that this engine or host cannot run; the processor is then not to be used.
    fn load(&mut self, state: &CpuState) -> Result<(), EngineError>;
    /// What it counted.
    fn counters(&self) -> Arc<Counters>;
}
