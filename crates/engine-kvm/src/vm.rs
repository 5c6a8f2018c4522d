//! A machine: memory slots, interrupt messages, time, processors.

use std::io;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{Cap, VmFd};
use umbra_device::{Msi, MsiSink};
use umbra_engine::{Doorbells, EngineError, IrqEvents, PIN_COUNT, Vcpu, VcpuSpec, Vm, VmSpec};
use umbra_memory::{Memory, Region};
use umbra_x86::cpuid::CpuidTable;

use crate::cpuid::{self, XsaveLayout};
use crate::doorbells::KvmDoorbells;
use crate::engine::{Caps, RESERVED};
use crate::extint::ExternalLine;
use crate::routes::Routes;
use crate::slots::Slots;
use crate::sys::XSAVE_LEN_MIN;
use crate::time::Time;
use crate::vcpu::KvmVcpu;

/// What a machine and its processors share. Whoever can run the guest holds it, and it holds the guest's memory.
pub(crate) struct Shared {
    pub(crate) fd: Arc<VmFd>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) caps: Caps,
    /// What CPUID may show.
    pub(crate) supported: CpuidTable,
    /// Bytes of an XSAVE image, and where its components are.
    pub(crate) xsave_len: usize,
    pub(crate) xsave: XsaveLayout,
    /// The MSRs that the machine's processors have, with their values at power-on; the first processor finds out.
    pub(crate) msrs: OnceLock<Vec<(u32, u64)>>,
    pub(crate) time: Time,
    pub(crate) external: ExternalLine,
}

/// A machine under KVM.
pub(crate) struct KvmVm {
    shared: Arc<Shared>,
    routes: Routes,
    doorbells: KvmDoorbells,
    vcpus_max: u32,
}

impl KvmVm {
    pub(crate) fn new(
        fd: VmFd,
        caps: Caps,
        spec: VmSpec,
        supported: CpuidTable,
    ) -> Result<Self, EngineError> {
        let VmSpec { memory, clock, vcpus_max } = spec;
        let overlaps = |r: &Region| r.gpa() < RESERVED.end && r.gpa() + r.len() > RESERVED.start;
        if memory.regions().any(|(r, _)| overlaps(r)) {
            return Err(EngineError::Internal(format!("guest memory lies in KVM's own {RESERVED:x?}")));
        }
        let fd = Arc::new(fd);
        if caps.identity_map {
            let done = fd.set_identity_map_address(RESERVED.start).map_err(io::Error::from);
            done.map_err(EngineError::host("KVM_SET_IDENTITY_MAP_ADDR"))?;
        }
        let tss = (RESERVED.start + 0x1000) as usize;
        let done = fd.set_tss_address(tss).map_err(io::Error::from);
        done.map_err(EngineError::host("KVM_SET_TSS_ADDR"))?;
        enable(&fd, KVM_CAP_SPLIT_IRQCHIP, PIN_COUNT as u64, "KVM_CAP_SPLIT_IRQCHIP")?;
        let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(&fd, KVM_CAP_X2APIC_API, x2apic.into(), "KVM_CAP_X2APIC_API")?;
        let slots = Slots { vm: Arc::downgrade(&fd), readonly: caps.readonly_memory };
        memory.observe(Arc::new(slots)).map_err(EngineError::host("map guest memory into KVM"))?;
        let xsave_len = usize::try_from(fd.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE_LEN_MIN);
        let shared = Shared {
            memory,
            caps,
            xsave: XsaveLayout::new(&supported),
            supported,
            xsave_len,
            msrs: OnceLock::new(),
            time: Time::new(Arc::clone(&fd), clock, caps.clock_control),
            external: ExternalLine::default(),
            fd: Arc::clone(&fd),
        };
        Ok(Self {
            shared: Arc::new(shared),
            routes: Routes::new(Arc::clone(&fd)),
            doorbells: KvmDoorbells(fd),
            vcpus_max,
        })
    }
}

fn enable(fd: &VmFd, cap: u32, argument: u64, what: &'static str) -> Result<(), EngineError> {
    let arg = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..kvm_enable_cap::default() };
    fd.enable_cap(&arg).map_err(io::Error::from).map_err(EngineError::host(what))
}

impl MsiSink for KvmVm {
    fn send(&self, msi: Msi) {
        self.routes.send(msi);
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, spec: VcpuSpec) -> Result<Box<dyn Vcpu>, EngineError> {
        if spec.id >= self.vcpus_max {
            return Err(EngineError::Internal(format!(
                "processor {} of a machine that has at most {}",
                spec.id, self.vcpus_max
            )));
        }
        cpuid::check_shown(&spec.cpuid, &self.shared.supported)?;
        Ok(Box::new(KvmVcpu::new(Arc::clone(&self.shared), spec)?))
    }

    fn set_external_interrupt(&self, high: bool) {
        self.shared.external.set(high);
    }

    fn set_routes(&self, routes: &[Option<Msi>; PIN_COUNT]) -> Result<(), EngineError> {
        self.routes.set_pins(routes)
    }

    fn stop_time(&self) -> Result<(), EngineError> {
        self.shared.time.stop()
    }

    fn start_time(&self) -> Result<(), EngineError> {
        self.shared.time.start()
    }

    fn irq_events(&self) -> Option<&dyn IrqEvents> {
        Some(&self.routes)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(&self.doorbells)
    }
}
