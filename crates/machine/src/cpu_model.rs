//! What the processors show by CPUID: one model a machine.
//!
//! `host` shows what engine and host can give. `portable-1` is a fixed list, the same bits wherever it runs, so that
//! a machine can move between engines and hosts: the level x86-64-v3 with what operating systems need. It has neither invariant TSC nor TSC-deadline
//! timer, because the frequency changes when it moves; guests keep time by the KVM clock.

use umbra_engine::{CpuState, EngineError};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, Feature, KVM_FEATURES, KVM_SIGNATURE, feature as f};
use umbra_x86::msr;

use crate::MachineError;
use crate::spec::CpuModel;

/// All that `portable-1` shows. Fixed for ever.
const PORTABLE_1: &[Feature] = &[
    f::FPU,
    f::DE,
    f::PSE,
    f::TSC,
    f::MSR,
    f::PAE,
    f::MCE,
    f::CX8,
    f::APIC,
    f::SEP,
    f::MTRR,
    f::PGE,
    f::MCA,
    f::CMOV,
    f::PAT,
    f::PSE36,
    f::CLFSH,
    f::MMX,
    f::FXSR,
    f::SSE,
    f::SSE2,
    f::SSE3,
    f::PCLMULQDQ,
    f::SSSE3,
    f::FMA,
    f::CX16,
    f::SSE4_1,
    f::SSE4_2,
    f::X2APIC,
    f::MOVBE,
    f::POPCNT,
    f::AES,
    f::XSAVE,
    f::AVX,
    f::F16C,
    f::RDRAND,
    f::HYPERVISOR,
    f::FSGSBASE,
    f::BMI1,
    f::AVX2,
    f::SMEP,
    f::BMI2,
    f::ERMS,
    f::RDSEED,
    f::ADX,
    f::SMAP,
    f::UMIP,
    f::XSAVEOPT,
    f::LAHF_LM,
    f::ABM,
    f::SYSCALL,
    f::NX,
    f::PDPE1GB,
    f::RDTSCP,
    f::LM,
    f::KVM_CLOCKSOURCE,
    f::KVM_CLOCKSOURCE2,
    f::KVM_CLOCKSOURCE_STABLE,
    f::ARCH_CAPABILITIES,
];

/// IA32_ARCH_CAPABILITIES of `portable-1`: not subject to Meltdown, MDS, TAA, L1TF at entry, SSB, machine-check on page-size change, MMIO stale data,
/// BHI, PBRSB, GDS, RFDS. A guest that believes it leaves out costly defences between its own processes;
/// between machines the host's defences stand.
const PORTABLE_ARCH_CAPABILITIES: u64 = 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// IA32_MTRR_DEF_TYPE as firmware leaves it: MTRRs on, all memory write-back. With MTRRs off Linux does without PAT.
const MTRR_ON_WRITE_BACK: u64 = 0x806;

/// Leaf 6, EAX: the local APIC's timer always runs. A guest that knows leaves the PIT alone.
const ALWAYS_RUNNING_APIC_TIMER: u32 = 1 << 2;

/// Family 6, model 0x3c, stepping 3: an x86-64-v3 processor.
const PORTABLE_SIGNATURE: u32 = 0x0003_06c3;

/// Leaves that describe each processor's place, or power and trace hardware that no guest has.
const DROPPED: &[u32] =
    &[2, 3, 5, 6, 9, 0xa, 0xb, 0xf, 0x10, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1a, 0x1b, 0x1c, 0x1f];

/// The processors of a machine.
pub(crate) struct Processors {
    table: CpuidTable,
    count: u32,
    model: CpuModel,
}

impl Processors {
    /// The processors of `model` on an engine that can give `supported`.
    pub(crate) fn new(model: CpuModel, count: u32, supported: &CpuidTable) -> Result<Self, MachineError> {
        let table = match model {
            CpuModel::Host => host(supported),
            CpuModel::Portable1 => portable(supported)?,
        };
        Ok(Self { table, count, model })
    }

    /// What processor `id` shows.
    pub(crate) fn cpuid(&self, id: u32) -> CpuidTable {
        let mut t = self.table.clone();
        if let Some(e) = t.get_mut(1, 0) {
            e.ebx = e.ebx & 0xffff | self.count.min(255).next_power_of_two().min(255) << 16 | id << 24;
        }
        t.set_feature(f::HTT, self.count > 1);
        t.set(entry(6, 0, false, [ALWAYS_RUNNING_APIC_TIMER, 0, 0, 0]));
        caches(&mut t);
        topology(&mut t, id, self.count);
        t
    }

    /// Sets the MSRs that a kernel does not find at their value at power-on: this model's, and what firmware sets.
    pub(crate) fn set_msrs(&self, state: &mut CpuState) {
        if self.table.has(f::MTRR) {
            state.set_msr(msr::IA32_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK);
        }
        if self.model == CpuModel::Portable1 {
            state.set_msr(msr::IA32_ARCH_CAPABILITIES, PORTABLE_ARCH_CAPABILITIES);
        }
    }

    /// Physical address bits that the guest is shown.
    pub(crate) fn physical_bits(&self) -> u8 {
        physical_bits(&self.table).unwrap_or(36)
    }
}

/// Physical address bits that a table shows, if it does.
pub(crate) fn physical_bits(table: &CpuidTable) -> Option<u8> {
    table.get(0x8000_0008, 0).map(|e| (e.eax & 0xff) as u8)
}

fn host(supported: &CpuidTable) -> CpuidTable {
    let mut t = supported.clone();
    t.retain(|e| !DROPPED.contains(&e.leaf) && e.leaf != 4 && e.leaf != 0x8000_001d && e.leaf != 0x8000_001e);
    for hidden in [f::VMX, f::SVM, f::MONITOR, f::LA57] {
        if t.has(hidden) {
            t.set_feature(hidden, false);
        }
    }
    t.set_feature(f::HYPERVISOR, true);
    t
}

fn entry(leaf: u32, subleaf: u32, indexed: bool, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, subleaf, indexed, eax, ebx, ecx, edx }
}

/// Four characters a register, as CPUID spells.
fn letters(text: &[u8]) -> u32 {
    text.iter().rev().fold(0, |n, c| n << 8 | u32::from(*c))
}

fn portable(supported: &CpuidTable) -> Result<CpuidTable, MachineError> {
    let lacking = |p: &&Feature| !supported.has(**p);
    let name = |p: &Feature| f::ALL.iter().find(|a| a.1 == *p).map_or("?", |a| a.0);
    let missing: Vec<_> = PORTABLE_1.iter().filter(lacking).map(name).collect();
    if !missing.is_empty() {
        let what = format!(
            "the CPU model portable-1 needs features that this host or engine lacks: {}; use --cpu-model host",
            missing.join(", ")
        );
        return Err(MachineError::Engine(EngineError::Unavailable(what)));
    }
    let vendor = [0xd, letters(b"Genu"), letters(b"ntel"), letters(b"ineI")];
    let brand = b"Umbra portable-1 processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let word = |i: usize| letters(&brand[i * 4..i * 4 + 4]);
    let kvm = [KVM_FEATURES, letters(b"KVMK"), letters(b"VMKV"), letters(b"M\0\0\0")];
    let mut t = CpuidTable::new([
        entry(0, 0, false, vendor),
        entry(1, 0, false, [PORTABLE_SIGNATURE, 8 << 8, 0, 0]),
        entry(7, 0, true, [0; 4]),
        // x87, SSE and AVX: 576 bytes of legacy area and header, 256 of AVX at 576.
        entry(0xd, 0, true, [7, 832, 832, 0]),
        entry(0xd, 1, true, [0; 4]),
        entry(0xd, 2, true, [256, 576, 0, 0]),
        entry(KVM_SIGNATURE, 0, false, kvm),
        entry(0x8000_0000, 0, false, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0008, 0, false, [48 << 8 | 40, 0, 0, 0]),
    ]);
    for n in 0..3 {
        let at = n as usize * 4;
        t.set(entry(0x8000_0002 + n, 0, false, [word(at), word(at + 1), word(at + 2), word(at + 3)]));
    }
    PORTABLE_1.iter().for_each(|p| t.set_feature(*p, true));
    Ok(t)
}

/// Leaf 4: 32 KiB of L1 data and instructions, 1 MiB of L2, 16 MiB of L3, not shared.
fn caches(t: &mut CpuidTable) {
    let cache = |kind: u32, level: u32, ways: u32, sets: u32| {
        [kind | level << 5 | 1 << 8, 63 | (ways - 1) << 22, sets - 1, 0]
    };
    let leaves = [cache(1, 1, 8, 64), cache(2, 1, 8, 64), cache(3, 2, 16, 1024), cache(3, 3, 16, 16384)];
    leaves.into_iter().enumerate().for_each(|(i, regs)| t.set(entry(4, i as u32, true, regs)));
    t.set(entry(4, 4, true, [0; 4]));
}

/// Leaf 0xB: one thread a core, all cores in one package.
fn topology(t: &mut CpuidTable, id: u32, count: u32) {
    if t.get(0, 0).is_none_or(|e| e.eax < 0xb) {
        return;
    }
    let package_bits = u32::BITS - (count.max(1) - 1).leading_zeros();
    t.set(entry(0xb, 0, true, [0, 1, 1 << 8, id]));
    t.set(entry(0xb, 1, true, [package_bits, count, 1 | 2 << 8, id]));
    t.set(entry(0xb, 2, true, [0, 0, 2, id]));
}
