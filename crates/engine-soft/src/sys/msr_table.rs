//! Model-specific registers that hold a value and do nothing else, or nothing at all.
//!
//! One row says who has a register, what it holds at power-on, and what may be written to it. See `msr` for the authorities.

use umbra_engine::MACHINE_CHECK_BANKS;
use umbra_x86::cpuid::{CpuidReg, Feature, feature};
use umbra_x86::msr::*;

use super::cpuid::{is_amd, physical_bits};
use crate::cpu::Cpu;

const IA32_MISC_FEATURES_ENABLES: u32 = 0x140;
const MC_FIRST: u32 = 0x400;
const MC_LAST: u32 = MC_FIRST + 4 * MACHINE_CHECK_BANKS - 1;

const fn bit(leaf: u32, reg: CpuidReg, bit: u8) -> Feature {
    Feature { leaf, subleaf: 0, reg, bit }
}
pub(super) const SPEC_CTRL: Feature = bit(7, CpuidReg::Edx, 26);
const STIBP: Feature = bit(7, CpuidReg::Edx, 27);
pub(super) const FLUSH_L1D: Feature = bit(7, CpuidReg::Edx, 28);
const SSBD: Feature = bit(7, CpuidReg::Edx, 31);
pub(super) const AMD_IBPB: Feature = bit(0x8000_0008, CpuidReg::Ebx, 12);
const AMD_IBRS: Feature = bit(0x8000_0008, CpuidReg::Ebx, 14);
const AMD_STIBP: Feature = bit(0x8000_0008, CpuidReg::Ebx, 15);
const AMD_SSBD: Feature = bit(0x8000_0008, CpuidReg::Ebx, 24);
const RRSBA_CTRL: Feature = Feature { subleaf: 2, ..bit(7, CpuidReg::Edx, 2) };
const BHI_CTRL: Feature = Feature { subleaf: 2, ..bit(7, CpuidReg::Edx, 4) };
const OSVW: Feature = bit(0x8000_0001, CpuidReg::Ecx, 9);

/// IA32_ARCH_CAPABILITIES, unless the machine was given another: what a processor says that needs no software against
/// any of the flaws it names (RDCL, L1TF, SSB, MDS, the page-size machine check, TAA, stale MMIO data, branch history, RSB after VM exits,
/// gather data sampling, register file data sampling, indirect target selection). Speculation inside a machine is out of scope.
const ARCH_CAPABILITIES_DEFAULT: u64 = 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 7 << 13
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// Which processors have a register of the table.
#[derive(Clone, Copy)]
enum Who {
    All,
    Intel,
    Amd,
    With(Feature),
}

/// What a write to a register of the table does.
#[derive(Clone, Copy)]
enum Write {
    /// It is kept if all set bits are in this mask; else #GP.
    Keep(u64),
    /// It is kept if the function says so; else #GP.
    Check(fn(&Cpu, u32, u64) -> bool),
    Ignore,
    Refuse,
}

/// Registers `first` to `last`, with the same value at power-on.
struct Row(u32, u32, Who, u64, Write);

const TABLE: &[Row] = &[
    Row(0x0, 0x1, Who::All, 0, Write::Ignore), // the Pentium's machine check
    Row(IA32_PLATFORM_ID, IA32_PLATFORM_ID, Who::Intel, 0, Write::Refuse),
    Row(0x2a, 0x2a, Who::Intel, 0, Write::Ignore), // EBL_CR_POWERON
    Row(0x34, 0x34, Who::Intel, 0, Write::Refuse), // SMI_COUNT
    Row(IA32_FEATURE_CONTROL, IA32_FEATURE_CONTROL, Who::Intel, 1, Write::Refuse), // locked
    Row(IA32_SPEC_CTRL, IA32_SPEC_CTRL, Who::All, 0, Write::Check(spec_ctrl)),
    Row(0xc1, 0xc2, Who::Intel, 0, Write::Ignore), // performance counters of the P6
    Row(MSR_PLATFORM_INFO, MSR_PLATFORM_INFO, Who::All, 1 << 31, Write::Refuse), // CPUID faulting
    Row(IA32_MTRRCAP, IA32_MTRRCAP, Who::With(feature::MTRR), 0x508, Write::Refuse),
    Row(
        IA32_ARCH_CAPABILITIES,
        IA32_ARCH_CAPABILITIES,
        Who::With(feature::ARCH_CAPABILITIES),
        ARCH_CAPABILITIES_DEFAULT,
        Write::Refuse,
    ),
    Row(IA32_MISC_FEATURES_ENABLES, IA32_MISC_FEATURES_ENABLES, Who::All, 0, Write::Keep(1)),
    Row(IA32_MCG_CAP, IA32_MCG_CAP, Who::With(feature::MCA), MACHINE_CHECK_BANKS as u64, Write::Refuse),
    Row(IA32_MCG_STATUS, IA32_MCG_STATUS, Who::With(feature::MCA), 0, Write::Keep(u64::MAX)),
    Row(0x186, 0x187, Who::Intel, 0, Write::Ignore), // event selectors of the P6
    Row(0x198, 0x198, Who::Intel, 1000 | 4 << 40, Write::Refuse), // PERF_STATUS
    Row(0x199, 0x199, Who::Intel, 0, Write::Ignore), // PERF_CTL
    Row(IA32_MISC_ENABLE, IA32_MISC_ENABLE, Who::All, 0x1801, Write::Keep(u64::MAX)),
    Row(0x1db, 0x1de, Who::All, 0, Write::Ignore), // the last branch and interrupt
    Row(
        IA32_MTRR_PHYSBASE0,
        IA32_MTRR_PHYSBASE0 + 15,
        Who::With(feature::MTRR),
        0,
        Write::Check(mtrr_variable),
    ),
    Row(
        IA32_MTRR_FIX64K_00000,
        IA32_MTRR_FIX64K_00000,
        Who::With(feature::MTRR),
        0,
        Write::Check(mtrr_fixed),
    ),
    Row(
        IA32_MTRR_FIX16K_80000,
        IA32_MTRR_FIX16K_80000 + 1,
        Who::With(feature::MTRR),
        0,
        Write::Check(mtrr_fixed),
    ),
    Row(
        IA32_MTRR_FIX4K_C0000,
        IA32_MTRR_FIX4K_C0000 + 7,
        Who::With(feature::MTRR),
        0,
        Write::Check(mtrr_fixed),
    ),
    Row(IA32_MTRR_DEF_TYPE, IA32_MTRR_DEF_TYPE, Who::With(feature::MTRR), 0, Write::Check(mtrr_default)),
    Row(MC_FIRST, MC_LAST, Who::With(feature::MCA), 0, Write::Check(machine_check)),
    Row(0x606, 0x606, Who::Intel, 0, Write::Refuse), // energy: units, package, memory, cores, graphics
    Row(0x611, 0x611, Who::Intel, 0, Write::Refuse),
    Row(0x619, 0x619, Who::Intel, 0, Write::Refuse),
    Row(0x639, 0x639, Who::Intel, 0, Write::Refuse),
    Row(0x641, 0x641, Who::Intel, 0, Write::Refuse),
    Row(0xc001_0000, 0xc001_0007, Who::Amd, 0, Write::Ignore), // performance counters of the K7
    Row(MSR_SYSCFG, MSR_SYSCFG, Who::Amd, 0, Write::Ignore),
    Row(MSR_HWCR, MSR_HWCR, Who::Amd, 1 << 24, Write::Check(hwcr)), // the TSC counts at the nominal frequency
    Row(0xc001_001f, 0xc001_001f, Who::Amd, 0, Write::Ignore),      // NB_CFG
    Row(0xc001_0055, 0xc001_0055, Who::Amd, 0, Write::Ignore),      // interrupt pending and C1E
    Row(0xc001_0058, 0xc001_0058, Who::Amd, 0, Write::Ignore),      // MMIO configuration base
    Row(0xc001_0112, 0xc001_0114, Who::Amd, 0, Write::Ignore),      // SMM memory, VM_CR
    Row(0xc001_0140, 0xc001_0141, Who::With(OSVW), 0, Write::Refuse),
    Row(0xc001_1021, 0xc001_1023, Who::Amd, 0, Write::Ignore), // IC_CFG, DC_CFG, TW_CFG
    Row(0xc001_1029, 0xc001_1029, Who::Amd, 2, Write::Keep(2)), // DE_CFG: LFENCE serializes
    Row(0xc001_102a, 0xc001_102a, Who::Amd, 0, Write::Ignore), // BU_CFG2
];

fn spec_ctrl(cpu: &Cpu, _: u32, value: u64) -> bool {
    let has = |a, b| u64::from(cpu.cpuid.has(a) || cpu.cpuid.has(b));
    let common = has(SPEC_CTRL, AMD_IBRS) | has(STIBP, AMD_STIBP) << 1 | has(SSBD, AMD_SSBD) << 2;
    let defences = has(RRSBA_CTRL, RRSBA_CTRL) << 6 | has(BHI_CTRL, BHI_CTRL) << 10;
    value & !(common | defences) == 0
}

fn is_mtrr_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

fn mtrr_fixed(_: &Cpu, _: u32, value: u64) -> bool {
    value.to_le_bytes().iter().all(|b| is_mtrr_type(u64::from(*b)))
}

fn mtrr_default(_: &Cpu, _: u32, value: u64) -> bool {
    value & !0xcff == 0 && is_mtrr_type(value & 0xff)
}

fn mtrr_variable(cpu: &Cpu, number: u32, value: u64) -> bool {
    let is_mask = number & 1 != 0;
    let above = value >> physical_bits(cpu) != 0;
    let low_fits =
        if is_mask { value & 0x7ff == 0 } else { value & 0xf00 == 0 && is_mtrr_type(value & 0xff) };
    !above && low_fits
}

/// Control registers of the banks are all ones or zero, status is only ever cleared, addresses and the rest are anything.
fn machine_check(_: &Cpu, number: u32, value: u64) -> bool {
    match number & 3 {
        0 => value == 0 || value | 1 << 10 | 1 == u64::MAX,
        1 => value == 0,
        _ => true,
    }
}

/// Writing machine-check status and the frequency of the TSC can be switched; cache flush filters and the like are accepted.
fn hwcr(_: &Cpu, _: u32, value: u64) -> bool {
    value & !(1 << 3 | 1 << 6 | 1 << 8 | 1 << 18 | 1 << 24) == 0
}

impl Who {
    fn includes(self, cpu: &Cpu) -> bool {
        match self {
            Self::All => true,
            Self::Intel => !is_amd(cpu),
            Self::Amd => is_amd(cpu),
            Self::With(feature) => cpu.cpuid.has(feature),
        }
    }
}

fn row(cpu: &Cpu, number: u32) -> Option<&'static Row> {
    TABLE.iter().find(|r| (r.0..=r.1).contains(&number)).filter(|r| r.2.includes(cpu))
}

fn has_spec_ctrl(cpu: &Cpu) -> bool {
    [SPEC_CTRL, STIBP, SSBD, AMD_IBRS, AMD_STIBP, AMD_SSBD].iter().any(|f| cpu.cpuid.has(*f))
}

/// Whether CPUID faulting is on.
pub(super) fn cpuid_faults(cpu: &Cpu) -> bool {
    cpu.msr.other.get(&IA32_MISC_FEATURES_ENABLES).is_some_and(|v| v & 1 != 0)
}

/// What a register of the table holds at power-on.
pub fn at_power_on(cpu: &Cpu, number: u32) -> Option<u64> {
    let row = row(cpu, number)?;
    Some(match number {
        MC_FIRST..=MC_LAST if number & 3 == 0 => u64::MAX,
        // IBRS can be left on for good, where there is one.
        IA32_ARCH_CAPABILITIES if cpu.cpuid.has(SPEC_CTRL) || cpu.cpuid.has(AMD_IBRS) => row.3 | 2,
        _ => row.3,
    })
}

/// Puts a value of a saved state into a register that the guest cannot write, or whose writes do nothing. Whether it is one.
pub(super) fn restore(cpu: &mut Cpu, number: u32, value: u64) -> bool {
    let fixed = row(cpu, number).is_some_and(|r| matches!(r.4, Write::Ignore | Write::Refuse));
    if fixed {
        cpu.msr.other.insert(number, value);
    }
    fixed
}

/// The value of a register of the table.
pub(super) fn read(cpu: &Cpu, number: u32) -> Option<u64> {
    if number == IA32_SPEC_CTRL && !has_spec_ctrl(cpu) {
        return None;
    }
    let reset = at_power_on(cpu, number)?;
    Some(cpu.msr.other.get(&number).copied().unwrap_or(reset))
}

/// Writes a register of the table; `None` if there is none or it refuses the value.
pub(super) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    let row = row(cpu, number)?;
    let kept = match row.4 {
        Write::Keep(mask) => value & !mask == 0,
        Write::Check(check) => check(cpu, number, value),
        Write::Ignore => return Some(()),
        Write::Refuse => false,
    };
    if !kept || number == IA32_SPEC_CTRL && !has_spec_ctrl(cpu) {
        return None;
    }
    cpu.msr.other.insert(number, value);
    Some(())
}
