//! The machine as `umbra-engine` has it.

use std::sync::Arc;

use umbra_apic::Message;
use umbra_device::{Msi, MsiSink};
use umbra_engine::{Doorbells, EngineError, IrqEvents, PIN_COUNT, Vcpu, VcpuSpec, Vm, VmSpec};
use umbra_x86::cpuid::CpuidTable;

use super::{Shared, VCPUS_MAX};
use crate::engine::{Options, check_shown};
use crate::vcpu::SoftVcpu;

/// A machine under the software engine. It has no thread of its own: all happens on the threads of its processors and of its devices.
pub struct SoftVm {
    shared: Arc<Shared>,
    supported: CpuidTable,
    options: Options,
}

impl SoftVm {
    /// A machine without processors, on a host whose time-stamp counter runs at `khz`.
    ///
    /// # Errors
    /// Too many processors: for the engine, or for lock-step.
    pub(crate) fn new(
        spec: VmSpec,
        supported: CpuidTable,
        khz: u32,
        options: Options,
    ) -> Result<Self, EngineError> {
        let VmSpec { memory, clock, vcpus_max } = spec;
        if vcpus_max > VCPUS_MAX {
            let what = format!("the software engine runs at most {VCPUS_MAX} processors, not {vcpus_max}");
            return Err(EngineError::Unavailable(what));
        }
        if options.lockstep.is_some() && vcpus_max > 1 {
            let what = "lock-step compares what one processor does with memory; give the machine --cpus 1";
            return Err(EngineError::Unavailable(what.into()));
        }
        let shared = Shared::new(memory, clock, vcpus_max, khz);
        Ok(Self { shared, supported, options })
    }
}

impl MsiSink for SoftVm {
    fn send(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi.address, msi.data) {
            self.shared.deliver(&message, None);
        }
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, spec: VcpuSpec) -> Result<Box<dyn Vcpu>, EngineError> {
        check_shown(&spec.cpuid, &self.supported)?;
        Ok(Box::new(SoftVcpu::new(self.shared.clone(), spec, self.options)?))
    }

    fn set_external_interrupt(&self, high: bool) {
        self.shared.set_external(high);
    }

    /// There is nothing to be told: each message says itself whether it is level-triggered.
    fn set_routes(&self, _: &[Option<Msi>; PIN_COUNT]) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop_time(&self) -> Result<(), EngineError> {
        self.shared.time.stop();
        Ok(())
    }

    fn start_time(&self) -> Result<(), EngineError> {
        self.shared.time.start(&self.shared.clock);
        Ok(())
    }

    fn irq_events(&self) -> Option<&dyn IrqEvents> {
        None
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }
}
