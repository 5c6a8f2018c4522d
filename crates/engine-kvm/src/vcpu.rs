//! A virtual processor: what it is made of, and the traits' side of it. Running is [`crate::run`], its state [`crate::state`].

use std::io;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use umbra_engine::{
    Counters, CpuIo, CpuState, EngineError, Halt, Kicker, MACHINE_CHECK_BANKS, Vcpu, VcpuSpec,
};
use umbra_x86::cpuid::CpuidTable;

use crate::kick::Kick;
use crate::page::RunPage;
use crate::run::COUNTER_NAMES;
use crate::vm::Shared;
use crate::{cpuid, state, sys};

/// A virtual processor under KVM.
pub(crate) struct KvmVcpu {
    pub(crate) id: u32,
    pub(crate) page: RunPage,
    pub(crate) fd: Arc<VcpuFd>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) kick: Arc<Kick>,
    pub(crate) counters: Arc<Counters>,
    /// What CPUID shows.
    pub(crate) cpuid: CpuidTable,
    /// The TSC's frequency as the guest was told it, in kHz; 0 is not known.
    pub(crate) tsc_khz: u32,
    /// The last exit was an access that KVM completes on the next entry.
    pub(crate) is_access_open: bool,
    /// KVM_RUN has returned since the state was last replaced: what the page says of interrupts is true.
    pub(crate) is_page_current: bool,
    /// A vector taken from the PIC and given to KVM, which may not have delivered it yet.
    pub(crate) acknowledged: Option<u8>,
}

impl KvmVcpu {
    pub(crate) fn new(shared: Arc<Shared>, spec: VcpuSpec) -> Result<Self, EngineError> {
        let VcpuSpec { id, cpuid: shown } = spec;
        let vm = &shared.fd;
        let fd = vm.create_vcpu(id.into()).map_err(io::Error::from);
        let fd = Arc::new(fd.map_err(EngineError::host("KVM_CREATE_VCPU"))?);
        let page =
            RunPage::map(&fd, vm.run_size()).map_err(EngineError::host("map the vCPU's shared page"))?;
        let list = cpuid::to_kvm(&shown)?;
        let done = fd.set_cpuid2(&list).map_err(io::Error::from);
        done.map_err(EngineError::host("KVM_SET_CPUID2"))?;
        sys::set_machine_check_banks(&fd, MACHINE_CHECK_BANKS.into())
            .map_err(EngineError::host("KVM_X86_SETUP_MCE"))?;
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        if shared.msrs.get().is_none() {
            let found = state::available_msrs(&fd).map_err(EngineError::host("KVM_GET_MSRS"))?;
            let _ = shared.msrs.set(found);
        }
        shared.time.add(id, Arc::clone(&fd));
        let kick = Arc::new(Kick::default());
        if id == 0 {
            shared.external.connect(&kick);
        }
        let mut vcpu = Self {
            id,
            page,
            fd,
            shared,
            kick,
            counters: Counters::new(COUNTER_NAMES),
            tsc_khz,
            is_access_open: false,
            is_page_current: false,
            acknowledged: None,
            cpuid: shown,
        };
        let power_on = CpuState::power_on(id, &vcpu.cpuid);
        state::load(&mut vcpu, &power_on)?;
        Ok(vcpu)
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Halt {
        self.run_until_halt(io)
    }

    fn kicker(&self) -> Kicker {
        let kick = Arc::clone(&self.kick);
        Kicker::new(move || kick.kick())
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        state::save(self)
    }

    fn load(&mut self, state: &CpuState) -> Result<(), EngineError> {
        state::load(self, state)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}
