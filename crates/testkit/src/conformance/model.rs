//! The processor that programs find: the same bits wherever the suite runs, so that a program can move between engines.

use umbra_x86::cpuid::{CpuidEntry, CpuidTable, Feature, KVM_FEATURES, KVM_SIGNATURE, feature as f};

/// Shown where every engine in play can give it.
const OFFERED: &[Feature] = &[
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
    f::PCID,
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
    f::TSC_ADJUST,
    f::BMI1,
    f::AVX2,
    f::SMEP,
    f::BMI2,
    f::ERMS,
    f::INVPCID,
    f::RDSEED,
    f::ADX,
    f::SMAP,
    f::UMIP,
    f::XSAVEOPT,
    f::XGETBV1,
    f::LAHF_LM,
    f::ABM,
    f::SYSCALL,
    f::NX,
    f::PDPE1GB,
    f::RDTSCP,
    f::LM,
];

/// Family 6, model 0x3c, stepping 3.
const SIGNATURE: u32 = 0x0003_06c3;

fn entry(leaf: u32, subleaf: u32, indexed: bool, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, subleaf, indexed, eax, ebx, ecx, edx }
}

/// What all of `supported` can show.
pub fn shown(supported: &[CpuidTable]) -> CpuidTable {
    let letters = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let mut t = CpuidTable::new([
        entry(0, 0, false, [0xd, letters(b"Genu"), letters(b"ntel"), letters(b"ineI")]),
        entry(1, 0, false, [SIGNATURE, 8 << 8 | 2 << 16, 0, 0]),
        entry(7, 0, true, [0; 4]),
        entry(
            KVM_SIGNATURE,
            0,
            false,
            [KVM_FEATURES, letters(b"KVMK"), letters(b"VMKV"), letters(b"M\0\0\0")],
        ),
        entry(KVM_FEATURES, 0, false, [0; 4]),
        entry(0x8000_0000, 0, false, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, false, [0; 4]),
        entry(0x8000_0008, 0, false, [48 << 8 | 40, 0, 0, 0]),
    ]);
    for feature in OFFERED {
        t.set_feature(*feature, supported.iter().all(|s| s.has(*feature)));
    }
    if t.has(f::XSAVE) {
        let (mask, len) = if t.has(f::AVX) { (7, 832) } else { (3, 576) };
        t.set(entry(0xd, 0, true, [mask, len, len, 0]));
        if t.has(f::AVX) {
            t.set(entry(0xd, 2, true, [256, 576, 0, 0]));
        }
    }
    t
}

/// `table` as processor `id` shows it.
pub fn of_processor(table: &CpuidTable, id: u32) -> CpuidTable {
    let mut t = table.clone();
    if let Some(e) = t.get_mut(1, 0) {
        e.ebx = e.ebx & 0x00ff_ffff | id << 24;
    }
    t
}
