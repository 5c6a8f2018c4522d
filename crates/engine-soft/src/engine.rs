//! The engine: what this host can do for it, and what its processors can show.

use std::sync::Arc;

use umbra_engine::{Engine, EngineError, Vm, VmSpec};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, HYPERVISOR_FREQUENCY, feature};

use crate::native;
use crate::translate::lockstep;
use crate::vm::{SoftVm, host_khz};

/// KVM's features that this engine gives, besides those that `native` lists.
const PARAVIRTUAL: &[umbra_x86::cpuid::Feature] = &[
    feature::KVM_CLOCKSOURCE,
    feature::KVM_CLOCKSOURCE2,
    feature::KVM_CLOCKSOURCE_STABLE,
    feature::KVM_PV_SEND_IPI,
];
/// Frequency of the local APIC's bus in kHz.
const BUS_KHZ: u32 = 1_000_000;

/// The software engine.
#[derive(Debug)]
pub struct SoftEngine {
    supported: CpuidTable,
    /// Frequency of the host's time-stamp counter in kHz.
    khz: u32,
    options: Options,
}

/// What may be asked of the engine besides running a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// See [`SoftEngine::translating_after`].
    pub translate_after: Option<u32>,
    /// See [`SoftEngine::in_lockstep`].
    pub lockstep: Option<u32>,
    /// See [`SoftEngine::profiled`].
    pub profiled: bool,
    /// See [`SoftEngine::counting`].
    pub counting: bool,
}

impl SoftEngine {
    /// The engine on this host. May take some 20 ms to find out how fast the host's time-stamp counter is.
    ///
    /// # Errors
    /// The host allows no executable memory, or its time-stamp counter is of no use.
    pub fn new() -> Result<Self, EngineError> {
        native::check_host()?;
        let khz = host_khz()?;
        let mut supported = native::host_features();
        PARAVIRTUAL.iter().for_each(|f| supported.set_feature(*f, true));
        supported.set(CpuidEntry {
            leaf: HYPERVISOR_FREQUENCY,
            eax: khz,
            ebx: BUS_KHZ,
            ..CpuidEntry::default()
        });
        let lockstep = lockstep::asked();
        let options = Options { translate_after: None, lockstep, profiled: false, counting: false };
        Ok(Self { supported, khz, options })
    }

    /// How often a block runs in the interpreter before it is translated: `u32::MAX` for ever. For tests of one tier.
    #[must_use]
    pub fn translating_after(mut self, runs: u32) -> Self {
        self.options.translate_after = Some(runs);
        self
    }

    /// Takes samples of what processors do: counters come up that tell where their time went.
    #[must_use]
    pub fn profiled(mut self) -> Self {
        self.options.profiled = true;
        self
    }

    /// Counts guest instructions, which costs translations a store in each run of a block.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.options.counting = true;
        self
    }

    /// Runs translated blocks in both tiers and compares what comes of it: every run of each with 1, so many of them with more. Only
    /// for machines of one processor, and many times slower.
    #[must_use]
    pub fn in_lockstep(mut self, runs: u32) -> Self {
        self.options.lockstep = Some(runs);
        self
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        Ok(self.supported.clone())
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(Arc::new(SoftVm::new(spec, self.supported.clone(), self.khz, self.options)?))
    }
}

/// Refuses a table that shows what the engine has not: a guest would use it and fault.
pub(crate) fn check_shown(shown: &CpuidTable, supported: &CpuidTable) -> Result<(), EngineError> {
    // These follow the processor's state and the machine's topology.
    let live = [feature::OSXSAVE, feature::HTT];
    let missing =
        feature::ALL.iter().filter(|(_, f)| shown.has(*f) && !supported.has(*f) && !live.contains(f));
    let missing: Vec<_> = missing.map(|(name, _)| name.to_lowercase()).collect();
    if !missing.is_empty() {
        return Err(EngineError::Unavailable(format!(
            "the CPU model shows what the software engine has not on this host: {}; choose a smaller model",
            missing.join(", ")
        )));
    }
    let xcr0 = |t: &CpuidTable| t.get(0xd, 0).map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.eax));
    let extra = xcr0(shown) & !xcr0(supported);
    if extra != 0 {
        return Err(EngineError::Unavailable(format!(
            "the CPU model shows XSAVE components {extra:#x}, which the software engine has not on this host"
        )));
    }
    Ok(())
}
