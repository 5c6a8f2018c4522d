//! What CPUID can show under KVM: what the kernel offers, less what a saved machine could not carry.
//!
//! Left out: nested virtualization (its state is not part of a processor's saved state), performance counters, tracing, branch records
//! and their like (MSRs that are not saved), protection by enclaves, and the XSAVE components that [`umbra_engine::xcomp`] lacks.
//! Facts of the host processor on which the question happened to be asked (APIC id, topology) are zeroed: the machine fills them in.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use umbra_engine::{EngineError, xcomp};
use umbra_x86::cpuid::{CpuidEntry, CpuidReg, CpuidTable, Feature, KVM_FEATURES, KVM_SIGNATURE, feature};

/// Leaves that say nothing of use without the features left out.
const LEAVES_OUT: &[u32] =
    &[0xa, 0x12, 0x14, 0x19, 0x1c, 0x1d, 0x1e, 0x8000_000a, 0x8000_001b, 0x8000_001f, 0x8000_0022];

/// Leaves with the host's topology.
const TOPOLOGY: &[u32] = &[0xb, 0x1f, 0x8000_001e, 0x8000_0026];

const fn bit(leaf: u32, subleaf: u32, reg: CpuidReg, bit: u8) -> Feature {
    Feature { leaf, subleaf, reg, bit }
}

/// Features that are left out.
const FEATURES_OUT: &[Feature] = &[
    feature::MONITOR,
    feature::VMX,
    feature::SVM,
    bit(1, 0, CpuidReg::Ecx, 2),            // DTES64
    bit(1, 0, CpuidReg::Ecx, 6),            // SMX
    bit(1, 0, CpuidReg::Ecx, 15),           // PDCM
    bit(1, 0, CpuidReg::Edx, 21),           // DS
    bit(7, 0, CpuidReg::Ebx, 2),            // SGX
    bit(7, 0, CpuidReg::Ebx, 12),           // RDT monitoring
    bit(7, 0, CpuidReg::Ebx, 14),           // MPX
    bit(7, 0, CpuidReg::Ebx, 15),           // RDT allocation
    bit(7, 0, CpuidReg::Ebx, 25),           // processor trace
    bit(7, 0, CpuidReg::Ecx, 7),            // CET shadow stacks
    bit(7, 0, CpuidReg::Ecx, 30),           // SGX launch control
    bit(7, 0, CpuidReg::Ecx, 31),           // PKS
    bit(7, 0, CpuidReg::Edx, 19),           // architectural LBR
    bit(7, 0, CpuidReg::Edx, 20),           // CET branch tracking
    bit(7, 0, CpuidReg::Edx, 22),           // AMX-BF16
    bit(7, 0, CpuidReg::Edx, 24),           // AMX-TILE
    bit(7, 0, CpuidReg::Edx, 25),           // AMX-INT8
    bit(7, 1, CpuidReg::Eax, 21),           // AMX-FP16
    bit(7, 1, CpuidReg::Edx, 8),            // AMX-COMPLEX
    bit(7, 1, CpuidReg::Edx, 18),           // CET supervisor shadow stacks
    bit(7, 1, CpuidReg::Edx, 21),           // APX
    bit(0xd, 1, CpuidReg::Eax, 4),          // XFD
    bit(0x8000_0001, 0, CpuidReg::Ecx, 10), // IBS
    bit(0x8000_0001, 0, CpuidReg::Ecx, 12), // SKINIT
    bit(0x8000_0001, 0, CpuidReg::Ecx, 15), // LWP
    bit(0x8000_0001, 0, CpuidReg::Ecx, 23), // core performance counters
    bit(0x8000_0001, 0, CpuidReg::Ecx, 24), // northbridge performance counters
    bit(0x8000_0001, 0, CpuidReg::Ecx, 28), // cache performance counters
];

/// KVM_FEATURE_MSI_EXT_DEST_ID: message addresses carry 15 bits of destination. A promise of ours (see [`crate::routes`]), not the kernel's.
const MSI_EXTENDED_DESTINATION: Feature = bit(KVM_FEATURES, 0, CpuidReg::Eax, 15);

/// Where the host's standard XSAVE format has each component.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct XsaveLayout {
    /// Component, offset and size, ascending; those above SSE.
    pub(crate) components: Vec<(u32, usize, usize)>,
}

impl XsaveLayout {
    /// The layout that CPUID leaf 0xD tells.
    pub(crate) fn new(cpuid: &CpuidTable) -> Self {
        let at = |&(number, size): &(u32, usize)| {
            let e = cpuid.get(0xd, number).filter(|e| number > xcomp::SSE && e.eax as usize == size)?;
            Some((number, e.ebx as usize, size))
        };
        Self { components: xcomp::SIZES.iter().filter_map(at).collect() }
    }

    /// Where component `number` is.
    pub(crate) fn offset(&self, number: u32) -> Option<usize> {
        self.components.iter().find(|c| c.0 == number).map(|c| c.1)
    }

    /// XCR0 with every component that can be had.
    pub(crate) fn mask(&self) -> u64 {
        self.components.iter().fold(3, |m, c| m | 1 << c.0)
    }

    /// Bytes of an image with all components.
    fn len(&self) -> usize {
        self.components.iter().map(|c| c.1 + c.2).fold(576, usize::max)
    }
}

/// The kernel's list as a table.
pub(crate) fn from_kvm(list: &CpuId) -> CpuidTable {
    CpuidTable::new(list.as_slice().iter().map(|e| CpuidEntry {
        leaf: e.function,
        subleaf: e.index,
        indexed: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    }))
}

/// A table as the kernel wants it.
pub(crate) fn to_kvm(table: &CpuidTable) -> Result<CpuId, EngineError> {
    let entry = |e: &CpuidEntry| kvm_cpuid_entry2 {
        function: e.leaf,
        index: e.subleaf,
        flags: if e.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        ..kvm_cpuid_entry2::default()
    };
    let entries: Vec<_> = table.entries().iter().map(entry).collect();
    CpuId::from_entries(&entries)
        .map_err(|_| EngineError::Unavailable(format!("KVM takes no {} CPUID leaves", entries.len())))
}

/// What the engine supports, of what the kernel says it does. `tsc_deadline` is whether the kernel has that timer.
pub(crate) fn supported(mut table: CpuidTable, tsc_deadline: bool) -> CpuidTable {
    table.retain(|e| !LEAVES_OUT.contains(&e.leaf));
    for f in FEATURES_OUT.iter().filter(|f| table.get(f.leaf, f.subleaf).is_some()).collect::<Vec<_>>() {
        table.set_feature(*f, false);
    }
    table.set_feature(feature::HYPERVISOR, true);
    table.set_feature(feature::X2APIC, true);
    table.set_feature(feature::TSC_DEADLINE, tsc_deadline);
    if table.get(KVM_SIGNATURE, 0).is_some() {
        table.set_feature(MSI_EXTENDED_DESTINATION, true);
    }
    limit_xsave(&mut table);
    forget_the_host(&mut table);
    table
}

/// Leaf 0xD with the components that a machine may have, and none of supervisor state.
fn limit_xsave(table: &mut CpuidTable) {
    let layout = XsaveLayout::new(table);
    table.retain(|e| e.leaf != 0xd || e.subleaf < 2 || layout.offset(e.subleaf).is_some());
    if let Some(e) = table.get_mut(0xd, 0) {
        e.eax &= layout.mask() as u32;
        e.edx = 0;
        e.ecx = layout.len() as u32;
        e.ebx = e.ecx;
    }
    if let Some(e) = table.get_mut(0xd, 1) {
        (e.ebx, e.ecx, e.edx) = (0, 0, 0);
    }
}

/// Zeroes what depends on the host processor that was asked.
fn forget_the_host(table: &mut CpuidTable) {
    let leaf1 = table.get(1, 0).copied();
    if let Some(e) = leaf1 {
        table.set(CpuidEntry { ebx: e.ebx & 0xffff, ..e });
    }
    table.retain(|e| !TOPOLOGY.contains(&e.leaf) || e.subleaf == 0);
    for leaf in TOPOLOGY {
        if let Some(e) = table.get_mut(*leaf, 0) {
            (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0);
        }
    }
}

/// Refuses a table that shows what the engine has not: a guest would use it and fault.
pub(crate) fn check_shown(shown: &CpuidTable, supported: &CpuidTable) -> Result<(), EngineError> {
    // These two tell of the machine and of CR4, not of what the engine can do.
    let told = [feature::HTT, feature::OSXSAVE];
    let lacks = |f: &Feature| shown.has(*f) && !supported.has(*f) && !told.contains(f);
    let missing: Vec<_> = feature::ALL.iter().filter(|(_, f)| lacks(f)).map(|(n, _)| *n).collect();
    if !missing.is_empty() {
        let names = missing.join(", ").to_lowercase();
        return Err(EngineError::Unavailable(format!(
            "the CPU model shows what KVM has not on this host: {names}; choose a smaller model"
        )));
    }
    let xcr0 = |t: &CpuidTable| t.get(0xd, 0).map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.eax));
    let layout = XsaveLayout::new(supported);
    for component in (2..63).filter(|c| xcr0(shown) >> c & 1 != 0) {
        let offset = shown.get(0xd, component).map(|e| e.ebx as usize);
        if offset.is_none() || offset != layout.offset(component) {
            return Err(EngineError::Unavailable(format!(
                "the CPU model shows XSAVE component {component} at offset {offset:?}, this host has it at {:?}",
                layout.offset(component)
            )));
        }
    }
    Ok(())
}
