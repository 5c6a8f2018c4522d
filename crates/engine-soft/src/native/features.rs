//! Which instructions a guest is offered, and what the software engine can show of this host.
//!
//! Authority: SDM volume 2, CPUID; volume 1, chapter 13 for leaf 0xD; Linux's documentation of KVM's leaves.

use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature as F, Instruction, Mnemonic};
use umbra_x86::cpuid::{
    CpuidEntry, CpuidReg, CpuidTable, Feature, HYPERVISOR_FREQUENCY, KVM_FEATURES, KVM_SIGNATURE, feature,
};

use crate::cpu::Cpu;

const fn at(leaf: u32, subleaf: u32, reg: CpuidReg, bit: u8) -> Feature {
    Feature { leaf, subleaf, reg, bit }
}

const MOVDIRI: Feature = at(7, 0, CpuidReg::Ecx, 27);
pub const SERIALIZE: Feature = at(7, 0, CpuidReg::Edx, 14);
const AVX512_FP16: Feature = at(7, 0, CpuidReg::Edx, 23);
const AVX_VNNI: Feature = at(7, 1, CpuidReg::Eax, 4);
const AVX512_BF16: Feature = at(7, 1, CpuidReg::Eax, 5);
const AVX_IFMA: Feature = at(7, 1, CpuidReg::Eax, 23);
const AVX_VNNI_INT8: Feature = at(7, 1, CpuidReg::Edx, 4);
const AVX_NE_CONVERT: Feature = at(7, 1, CpuidReg::Edx, 5);
const FDP_EXCEPTION_ONLY: Feature = at(7, 0, CpuidReg::Ebx, 6);
const FCS_FDS_DEPRECATED: Feature = at(7, 0, CpuidReg::Ebx, 13);

/// Whether the host's processor is AMD's or Hygon's: what runs natively behaves as it does. What the engine does itself goes by the vendor that
/// the guest is shown, [`CpuidTable::is_amd`].
pub fn host_is_amd() -> bool {
    static AMD: LazyLock<bool> = LazyLock::new(|| CpuidTable::new([host(0, 0)]).is_amd());
    *AMD
}

/// Whether every 64-bit processor has an instruction of this feature, or executes it as something harmless without it.
fn is_always(f: F) -> bool {
    matches!(
        f,
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CPUID | F::MULTIBYTENOP | F::SMM | F::RDPMC
            // No-operations, or other instructions, where the feature is missing.
            | F::PAUSE | F::PREFETCHW | F::PREFETCHWT1 | F::PREFETCHITI | F::CLDEMOTE | F::WBNOINVD | F::LZCNT
    )
}

/// The bit that shows a feature of the vector, x87 or MMX units.
fn vector_bit(f: F) -> Option<Feature> {
    Some(match f {
        F::FPU287 | F::FPU387 | F::FPU => feature::FPU,
        F::AES => feature::AES,
        F::AVX => feature::AVX,
        F::AVX2 => feature::AVX2,
        F::AVX512_BF16 => AVX512_BF16,
        F::AVX512_BITALG => feature::AVX512BITALG,
        F::AVX512_IFMA => feature::AVX512IFMA,
        F::AVX512_VBMI => feature::AVX512VBMI,
        F::AVX512_VBMI2 => feature::AVX512VBMI2,
        F::AVX512_VNNI => feature::AVX512VNNI,
        F::AVX512_VPOPCNTDQ => feature::AVX512VPOPCNTDQ,
        F::AVX512_FP16 => AVX512_FP16,
        F::AVX512BW => feature::AVX512BW,
        F::AVX512CD => feature::AVX512CD,
        F::AVX512DQ => feature::AVX512DQ,
        F::AVX512F => feature::AVX512F,
        F::AVX512VL => feature::AVX512VL,
        F::AVX_VNNI => AVX_VNNI,
        F::AVX_IFMA => AVX_IFMA,
        F::AVX_VNNI_INT8 => AVX_VNNI_INT8,
        F::AVX_NE_CONVERT => AVX_NE_CONVERT,
        F::F16C => feature::F16C,
        F::FMA => feature::FMA,
        F::FXSR => feature::FXSR,
        F::GFNI => feature::GFNI,
        F::MMX => feature::MMX,
        F::PCLMULQDQ => feature::PCLMULQDQ,
        F::SHA => feature::SHA,
        F::SSE => feature::SSE,
        F::SSE2 => feature::SSE2,
        F::SSE3 => feature::SSE3,
        F::SSE4_1 => feature::SSE4_1,
        F::SSE4_2 => feature::SSE4_2,
        F::SSE4A => feature::SSE4A,
        F::SSSE3 => feature::SSSE3,
        F::VAES => feature::VAES,
        F::VPCLMULQDQ => feature::VPCLMULQDQ,
        F::XSAVE => feature::XSAVE,
        F::XSAVEC => feature::XSAVEC,
        F::XSAVEOPT => feature::XSAVEOPT,
        F::XSAVES => feature::XSAVES,
        _ => return None,
    })
}

/// The bit that shows any other feature; `None` where this engine does not offer it.
fn other_bit(f: F) -> Option<Feature> {
    Some(match f {
        F::ADX => feature::ADX,
        F::BMI1 => feature::BMI1,
        F::BMI2 => feature::BMI2,
        F::CLFSH => feature::CLFSH,
        F::CLFLUSHOPT => feature::CLFLUSHOPT,
        F::CLWB => feature::CLWB,
        F::CMOV => feature::CMOV,
        F::CMPXCHG16B => feature::CX16,
        F::CX8 => feature::CX8,
        F::FSGSBASE => feature::FSGSBASE,
        F::INVPCID => feature::INVPCID,
        F::MOVBE => feature::MOVBE,
        F::MOVDIRI => MOVDIRI,
        F::MSR => feature::MSR,
        F::POPCNT => feature::POPCNT,
        F::RDPID => feature::RDPID,
        F::RDRAND => feature::RDRAND,
        F::RDSEED => feature::RDSEED,
        F::RDTSCP => feature::RDTSCP,
        F::SEP => feature::SEP,
        F::SERIALIZE => SERIALIZE,
        F::SMAP => feature::SMAP,
        F::SYSCALL => feature::SYSCALL,
        F::TSC => feature::TSC,
        _ => return None,
    })
}

/// What a processor without the feature executes as a no-operation.
pub fn is_nop_without_feature(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(m, M::Endbr32 | M::Endbr64 | M::Rdsspd | M::Rdsspq | M::Cldemote)
}

fn is_prefetch_of_register(code: Code) -> bool {
    matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    )
}

/// Whether the guest of `cpu` is shown what `i` needs; if not, `i` raises #UD.
pub fn offered(cpu: &Cpu, i: &Instruction) -> bool {
    offers(&cpu.cpuid, i.code())
}

/// Whether a processor that shows `cpuid` executes instructions of this form, rather than raise #UD.
pub fn offers(cpuid: &CpuidTable, code: Code) -> bool {
    let m = code.mnemonic();
    match m {
        Mnemonic::INVALID => return false,
        // LZCNT and TZCNT are BSR and BSF with a meaningless prefix to a processor that has not got them.
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => return true,
        // The two ways to call KVM; a guest takes that of the vendor which it sees, or tries both.
        Mnemonic::Vmcall | Mnemonic::Vmmcall => return true,
        _ if is_nop_without_feature(m) => return true,
        // PREFETCH and its like without memory (AMD64 APM volume 3, PREFETCHlevel).
        Mnemonic::Reservednop if is_prefetch_of_register(code) => return !cpuid.is_amd(),
        _ => {}
    }
    code.cpuid_features()
        .iter()
        .all(|f| is_always(*f) || vector_bit(*f).or_else(|| other_bit(*f)).is_some_and(|bit| cpuid.has(bit)))
}

/// Features of the host's processor that tier 0 executes if the host has them.
const FROM_HOST: &[Feature] = {
    use feature::*;
    &[
        SSE3,
        PCLMULQDQ,
        SSSE3,
        FMA,
        CX16,
        SSE4_1,
        SSE4_2,
        MOVBE,
        POPCNT,
        AES,
        XSAVE,
        AVX,
        F16C,
        RDRAND,
        FPU,
        TSC,
        MSR,
        CX8,
        SEP,
        CMOV,
        CLFSH,
        MMX,
        FXSR,
        SSE,
        SSE2,
        BMI1,
        AVX2,
        BMI2,
        ERMS,
        AVX512F,
        AVX512DQ,
        RDSEED,
        ADX,
        AVX512IFMA,
        CLFLUSHOPT,
        CLWB,
        AVX512CD,
        SHA,
        AVX512BW,
        AVX512VL,
        AVX512VBMI,
        AVX512VBMI2,
        GFNI,
        VAES,
        VPCLMULQDQ,
        AVX512VNNI,
        AVX512BITALG,
        AVX512VPOPCNTDQ,
        FSRM,
        LAHF_LM,
        ABM,
        SSE4A,
        PREFETCHW,
        MOVDIRI,
        SERIALIZE,
        AVX512_FP16,
        AVX_VNNI,
        AVX512_BF16,
        AVX_IFMA,
        AVX_VNNI_INT8,
        AVX_NE_CONVERT,
        FDP_EXCEPTION_ONLY,
        FCS_FDS_DEPRECATED,
    ]
};

/// Features that the engine gives by itself, whatever the host has.
const EMULATED: &[Feature] = {
    use feature::*;
    &[
        PCID,
        X2APIC,
        TSC_DEADLINE,
        HYPERVISOR,
        DE,
        PSE,
        PAE,
        MCE,
        APIC,
        MTRR,
        PGE,
        MCA,
        PAT,
        PSE36,
        FSGSBASE,
        TSC_ADJUST,
        SMEP,
        INVPCID,
        SMAP,
        UMIP,
        RDPID,
        ARCH_CAPABILITIES,
        SYSCALL,
        NX,
        PDPE1GB,
        RDTSCP,
        LM,
        INVARIANT_TSC,
        KVM_CLOCKSOURCE2,
        KVM_CLOCKSOURCE_STABLE,
    ]
};

/// Switches against speculation, which do nothing: with IBRS that can be left on, without IBPB, and free of the flaw that
/// the last one names, a guest needs no retpolines, flushes or fences between its own programs. Speculation inside a machine is out of scope.
const DEFENCES: &[Feature] = &[
    at(0x8000_0008, 0, CpuidReg::Ebx, 14), // IBRS
    at(7, 2, CpuidReg::Edx, 4),            // BHI_CTRL
    at(0x8000_0008, 0, CpuidReg::Ebx, 29), // BTC_NO
];

/// Features that the engine gives because it does XSAVE and its kin itself.
const WITH_XSAVE: &[Feature] = &[feature::XSAVEOPT, feature::XSAVEC, feature::XGETBV1, feature::XSAVES];

/// XSAVE components: x87, SSE, AVX, and the three of AVX-512.
const COMPONENTS: u32 = 0b1110_0111;
/// Those of AVX-512.
const COMPONENTS_AVX512: u32 = 0b1110_0000;
const PHYSICAL_BITS_MAX: u32 = 46;
const LINEAR_BITS: u32 = 48;

fn host(leaf: u32, subleaf: u32) -> CpuidEntry {
    let r = __cpuid_count(leaf, subleaf);
    CpuidEntry { leaf, subleaf, indexed: false, eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// Everything that the software engine can show on this host. Cache, topology and APIC leaves are the machine's.
pub fn host_features() -> CpuidTable {
    let mut t = CpuidTable::default();
    let vendor = host(0, 0);
    t.set(CpuidEntry { eax: 0xd, ..vendor });
    let version = host(1, 0);
    // CLFLUSH line size; the APIC ID and the number of processors are the machine's.
    t.set(CpuidEntry { ebx: version.ebx & 0xff00, ecx: 0, edx: 0, ..version });
    t.set(CpuidEntry { leaf: 6, eax: 1 << 2, ..CpuidEntry::default() });
    for subleaf in 0..=2 {
        let eax = if subleaf == 0 { 2 } else { 0 };
        t.set(CpuidEntry { leaf: 7, subleaf, indexed: true, eax, ..CpuidEntry::default() });
    }
    let extended_max = host(0x8000_0000, 0);
    t.set(CpuidEntry { eax: 0x8000_0008, ..extended_max });
    t.set(CpuidEntry { leaf: 0x8000_0001, eax: host(0x8000_0001, 0).eax, ..CpuidEntry::default() });
    (0x8000_0002..=0x8000_0004).for_each(|leaf| t.set(host(leaf, 0)));
    t.set(host(0x8000_0006, 0));
    t.set(CpuidEntry { leaf: 0x8000_0007, ..CpuidEntry::default() });
    let physical = if extended_max.eax >= 0x8000_0008 { host(0x8000_0008, 0).eax & 0xff } else { 36 };
    let sizes = physical.min(PHYSICAL_BITS_MAX) | LINEAR_BITS << 8;
    t.set(CpuidEntry { leaf: 0x8000_0008, eax: sizes, ..CpuidEntry::default() });
    if host_is_amd() {
        amd_leaves(&mut t, extended_max);
    }
    hypervisor_leaves(&mut t);
    set_features(&mut t);
    if t.has(feature::XSAVE) {
        xsave_leaves(&mut t);
    }
    t
}

/// Leaf 0x8000_0021 of AMD's processors (AMD64 APM volume 3, appendix E): LFENCE serializes, a null selector clears its base, and there is
/// no way to mislead the prediction of returns (SRSO_NO), since what is translated returns by jumps.
fn amd_leaves(t: &mut CpuidTable, extended_max: CpuidEntry) {
    t.set(CpuidEntry { eax: 0x8000_0021, ..extended_max });
    t.set(CpuidEntry { leaf: 0x8000_0021, eax: 1 << 2 | 1 << 6 | 1 << 29, ..CpuidEntry::default() });
}

fn hypervisor_leaves(t: &mut CpuidTable) {
    let word = |s: &[u8; 4]| u32::from_le_bytes(*s);
    let (ebx, ecx, edx) = (word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0"));
    t.set(CpuidEntry {
        leaf: KVM_SIGNATURE,
        eax: HYPERVISOR_FREQUENCY,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    });
    t.set(CpuidEntry { leaf: KVM_FEATURES, ..CpuidEntry::default() });
    // The frequencies are the machine's to fill in.
    t.set(CpuidEntry { leaf: HYPERVISOR_FREQUENCY, ..CpuidEntry::default() });
}

fn set_features(t: &mut CpuidTable) {
    let greatest = host(0, 0).eax;
    for f in FROM_HOST {
        let basic_missing = f.leaf < 0x8000_0000 && f.leaf > greatest;
        let subleaf_missing = f.subleaf > 0 && host(f.leaf, 0).eax < f.subleaf;
        if !basic_missing && !subleaf_missing && host(f.leaf, f.subleaf).reg(f.reg) >> f.bit & 1 != 0 {
            t.set_feature(*f, true);
        }
    }
    EMULATED.iter().chain(DEFENCES).for_each(|f| t.set_feature(*f, true));
    if t.has(feature::XSAVE) {
        WITH_XSAVE.iter().for_each(|f| t.set_feature(*f, true));
    } else {
        without_vectors(t);
    }
}

fn without_vectors(t: &mut CpuidTable) {
    [feature::AVX, feature::AVX2, feature::AVX512F, feature::FMA, feature::F16C]
        .iter()
        .for_each(|f| t.set_feature(*f, false));
}

fn xsave_leaves(t: &mut CpuidTable) {
    let xcr0 = if t.has(feature::AVX512F) {
        COMPONENTS
    } else if t.has(feature::AVX) {
        COMPONENTS & !COMPONENTS_AVX512
    } else {
        3
    };
    let available = host(0xd, 0).eax & xcr0;
    let mut size = 576;
    for n in 2..32 {
        if available >> n & 1 != 0 {
            let c = host(0xd, n);
            // No supervisor component is shown; bit 1 of ECX, alignment in the compacted format, is kept.
            t.set(CpuidEntry { indexed: true, ecx: c.ecx & 2, edx: 0, ..c });
            size = size.max(c.eax + c.ebx);
        }
    }
    t.set(CpuidEntry { leaf: 0xd, subleaf: 0, indexed: true, eax: available, ebx: size, ecx: size, edx: 0 });
    let options = t.get(0xd, 1).map_or(0, |e| e.eax);
    t.set(CpuidEntry { leaf: 0xd, subleaf: 1, indexed: true, eax: options, ebx: size, ecx: 0, edx: 0 });
}

#[cfg(test)]
#[path = "features_test.rs"]
mod features_test;
