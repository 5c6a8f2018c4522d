//! The engine: /dev/kvm, opened by somebody else, and what this host's KVM has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use umbra_engine::{Engine, EngineError, Vm, VmSpec};
use umbra_x86::cpuid::CpuidTable;

use crate::vm::KvmVm;
use crate::{cpuid, kick};

/// What the engine cannot do without, and the version of Linux that brought the last of it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::MpState, "MP state"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::AdjustClock, "clock"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE"),
    (Cap::Xcrs, "extended control registers"),
    (Cap::SignalMsi, "MSI"),
    (Cap::SplitIrqchip, "split irqchip"),
    (Cap::X2ApicApi, "x2APIC"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Guest physical addresses that KVM takes for itself on processors that cannot run real mode (4 pages, below the highest 16 MiB): no region may be there.
pub const RESERVED: std::ops::Range<u64> = 0xfeff_c000..0xff00_0000;

/// What the kernel has beyond what is required.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    pub(crate) readonly_memory: bool,
    pub(crate) tsc_control: bool,
    pub(crate) clock_control: bool,
    pub(crate) identity_map: bool,
}

/// KVM.
pub struct KvmEngine {
    kvm: Kvm,
    supported: CpuidTable,
}

impl std::fmt::Debug for KvmEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmEngine").field("fd", &self.kvm.as_raw_fd()).finish_non_exhaustive()
    }
}

impl KvmEngine {
    /// The engine on an open /dev/kvm.
    ///
    /// # Errors
    /// The descriptor is no KVM, or its kernel is too old.
    pub fn open(fd: OwnedFd) -> Result<Self, EngineError> {
        // SAFETY: an owned descriptor, given away. If it is no KVM, the calls below fail with ENOTTY.
        let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version < 0 {
            return Err(EngineError::Unavailable("the descriptor given as /dev/kvm is not KVM".into()));
        }
        if version.cast_unsigned() != KVM_API_VERSION {
            return Err(EngineError::Unavailable(format!(
                "KVM speaks version {version} of its interface, not 12"
            )));
        }
        let missing: Vec<_> =
            REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
        if !missing.is_empty() {
            return Err(EngineError::Unavailable(format!(
                "this host's KVM lacks: {}; Linux 4.11 or newer has them",
                missing.join(", ")
            )));
        }
        kick::install_handler().map_err(EngineError::host("install the handler of the kick signal"))?;
        let list = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let list = list.map_err(io::Error::from).map_err(EngineError::host("KVM_GET_SUPPORTED_CPUID"))?;
        let supported = cpuid::supported(cpuid::from_kvm(&list), kvm.check_extension(Cap::TscDeadlineTimer));
        Ok(Self { kvm, supported })
    }

    /// The most processors that a machine can have here.
    pub fn vcpus_max(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX)
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        Ok(self.supported.clone())
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        if spec.vcpus_max > self.vcpus_max() {
            return Err(EngineError::Unavailable(format!(
                "KVM runs at most {} processors on this host, not {}",
                self.vcpus_max(),
                spec.vcpus_max
            )));
        }
        let caps = Caps {
            readonly_memory: self.kvm.check_extension(Cap::ReadonlyMem),
            tsc_control: self.kvm.check_extension(Cap::TscControl),
            clock_control: self.kvm.check_extension(Cap::KvmclockCtrl),
            identity_map: self.kvm.check_extension(Cap::SetIdentityMapAddr),
        };
        let fd = self.kvm.create_vm().map_err(io::Error::from).map_err(EngineError::host("KVM_CREATE_VM"))?;
        Ok(Arc::new(KvmVm::new(fd, caps, spec, self.supported.clone())?))
    }
}
