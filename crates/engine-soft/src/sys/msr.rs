//! Model-specific registers.
//!
//! SDM volume 4; AMD64 APM volume 2, appendix "MSR Cross-Reference". Registers with an effect are handled by name; the others are in one table: who
//! has them, what they hold at power-on, what may be written. What is in neither does not exist. Where a virtual processor
//! shall behave in a way that neither manual says (a register that only a real machine needs), it is KVM's way.

use iced_x86::Instruction;
use umbra_x86::cpuid::{CpuidReg, Feature, feature};
use umbra_x86::msr::*;
use umbra_x86::reg::gpr::{RAX, RCX, RDX};
use umbra_x86::reg::{Cr0, Efer};
use umbra_x86::segment::sreg;

use super::control::check_cpl0;
use super::cpuid::is_amd;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::is_canonical;
use crate::vm::hooks;

const IA32_MISC_FEATURES_ENABLES: u32 = 0x140;
const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const MSR_PATCH_LOADER: u32 = 0xc001_0020;
const KVM_FIRST: u32 = 0x4b56_4d00;
const KVM_LAST: u32 = 0x4b56_4dff;
const MC_FIRST: u32 = 0x400;
const MC_LAST: u32 = 0x47f;

const fn bit(leaf: u32, reg: CpuidReg, bit: u8) -> Feature {
    Feature { leaf, subleaf: 0, reg, bit }
}
const SPEC_CTRL: Feature = bit(7, CpuidReg::Edx, 26);
const STIBP: Feature = bit(7, CpuidReg::Edx, 27);
const FLUSH_L1D: Feature = bit(7, CpuidReg::Edx, 28);
const SSBD: Feature = bit(7, CpuidReg::Edx, 31);
const AMD_IBPB: Feature = bit(0x8000_0008, CpuidReg::Ebx, 12);
const AMD_IBRS: Feature = bit(0x8000_0008, CpuidReg::Ebx, 14);
const AMD_STIBP: Feature = bit(0x8000_0008, CpuidReg::Ebx, 15);
const AMD_SSBD: Feature = bit(0x8000_0008, CpuidReg::Ebx, 24);
const OSVW: Feature = bit(0x8000_0001, CpuidReg::Ecx, 9);

/// IA32_ARCH_CAPABILITIES, unless the machine was given another: what a processor says that needs no software against
/// any of the flaws it names (RDCL, L1TF, SSB, MDS, the page-size machine check, TAA, stale MMIO data, branch history, RSB after VM exits,
/// gather data sampling, register file data sampling, indirect target selection). Speculation inside a machine is out of scope.
pub const ARCH_CAPABILITIES_DEFAULT: u64 = 1
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
    Row(IA32_MCG_CAP, IA32_MCG_CAP, Who::With(feature::MCA), 0x20, Write::Refuse), // 32 banks
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
    value & !(has(SPEC_CTRL, AMD_IBRS) | has(STIBP, AMD_STIBP) << 1 | has(SSBD, AMD_SSBD) << 2) == 0
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
    let above = value >> super::cpuid::physical_bits(cpu) != 0;
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
        _ => row.3,
    })
}

/// What became of a value of a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It has been stored.
    Yes,
    /// The register cannot hold it.
    Refused,
    /// There is no such register.
    Unknown,
}

/// Sets a register of the table, or one with a name of its own that a guest can write, from a saved state: what the guest cannot
/// write takes any value.
pub fn load(cpu: &mut Cpu, number: u32, value: u64) -> Stored {
    match row(cpu, number).map(|r| r.4) {
        Some(Write::Ignore | Write::Refuse) => {
            cpu.msr.other.insert(number, value);
            Stored::Yes
        }
        None if read(cpu, number).is_none() => Stored::Unknown,
        _ if write(cpu, number, value).is_some() => Stored::Yes,
        _ => Stored::Refused,
    }
}

/// The value of a register of the table.
fn read_stored(cpu: &Cpu, number: u32) -> Option<u64> {
    if number == IA32_SPEC_CTRL && !has_spec_ctrl(cpu) {
        return None;
    }
    let reset = at_power_on(cpu, number)?;
    Some(cpu.msr.other.get(&number).copied().unwrap_or(reset))
}

fn write_stored(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
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

/// The value of an MSR; `None` if it does not exist.
pub fn read(cpu: &mut Cpu, number: u32) -> Option<u64> {
    let has = |f: Feature| cpu.cpuid.has(f).then_some(());
    let m = &cpu.msr;
    let value = match number {
        IA32_TSC => hooks::rdtsc(cpu),
        IA32_TSC_ADJUST => has(feature::TSC_ADJUST).map(|()| m.tsc_adjust)?,
        IA32_TSC_DEADLINE => has(feature::TSC_DEADLINE).map(|()| hooks::tsc_deadline(cpu))?,
        IA32_APIC_BASE => has(feature::APIC).map(|()| hooks::apic_base(cpu))?,
        X2APIC_FIRST..=X2APIC_LAST => return hooks::apic_msr_read(cpu, number),
        KVM_WALL_CLOCK | KVM_SYSTEM_TIME | KVM_FIRST..=KVM_LAST => return hooks::kvm_msr_read(cpu, number),
        IA32_BIOS_SIGN_ID if is_amd(cpu) => 0x0100_0065,
        IA32_BIOS_SIGN_ID => 1 << 32,
        IA32_SYSENTER_CS => has(feature::SEP).map(|()| m.sysenter_cs)?,
        IA32_SYSENTER_ESP => has(feature::SEP).map(|()| m.sysenter_esp)?,
        IA32_SYSENTER_EIP => has(feature::SEP).map(|()| m.sysenter_eip)?,
        IA32_DEBUGCTL => 0,
        IA32_PAT => has(feature::PAT).map(|()| m.pat)?,
        IA32_XSS => has(feature::XSAVES).map(|()| m.xss)?,
        IA32_EFER => cpu.efer.bits(),
        IA32_STAR => has(feature::SYSCALL).map(|()| m.star)?,
        IA32_LSTAR => has(feature::LM).map(|()| m.lstar)?,
        IA32_CSTAR => has(feature::LM).map(|()| m.cstar)?,
        IA32_FMASK => has(feature::SYSCALL).map(|()| m.fmask)?,
        IA32_FS_BASE => has(feature::LM).map(|()| cpu.seg[sreg::FS].base)?,
        IA32_GS_BASE => has(feature::LM).map(|()| cpu.seg[sreg::GS].base)?,
        IA32_KERNEL_GS_BASE => has(feature::LM).map(|()| m.kernel_gs_base)?,
        IA32_TSC_AUX => has(feature::RDTSCP).or(has(feature::RDPID)).map(|()| m.tsc_aux)?,
        _ => return read_stored(cpu, number),
    };
    Some(value)
}

/// Writes an MSR; `None` if it does not exist or refuses the value.
pub fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    match number {
        IA32_TSC => {
            let delta = value.wrapping_sub(hooks::rdtsc(cpu));
            cpu.msr.tsc_adjust = cpu.msr.tsc_adjust.wrapping_add(delta);
            hooks::adjust_tsc(cpu, delta);
        }
        IA32_TSC_ADJUST => {
            cpu.cpuid.has(feature::TSC_ADJUST).then_some(())?;
            let delta = value.wrapping_sub(cpu.msr.tsc_adjust);
            cpu.msr.tsc_adjust = value;
            hooks::adjust_tsc(cpu, delta);
        }
        IA32_TSC_DEADLINE => {
            cpu.cpuid.has(feature::TSC_DEADLINE).then(|| hooks::set_tsc_deadline(cpu, value))?;
        }
        IA32_APIC_BASE => {
            cpu.cpuid.has(feature::APIC).then_some(())?;
            hooks::apic_base_write(cpu, value)?;
        }
        X2APIC_FIRST..=X2APIC_LAST => hooks::apic_msr_write(cpu, number, value)?,
        KVM_WALL_CLOCK | KVM_SYSTEM_TIME | KVM_FIRST..=KVM_LAST => hooks::kvm_msr_write(cpu, number, value)?,
        IA32_PRED_CMD => {
            (cpu.cpuid.has(SPEC_CTRL) || cpu.cpuid.has(AMD_IBPB)).then_some(())?;
            (value & !1 == 0).then_some(())?;
        }
        IA32_FLUSH_CMD => (cpu.cpuid.has(FLUSH_L1D) && value & !1 == 0).then_some(())?,
        // Microcode updates do nothing.
        IA32_BIOS_SIGN_ID | IA32_BIOS_UPDT_TRIG => {}
        MSR_PATCH_LOADER => is_amd(cpu).then_some(())?,
        // Recording of branches and stepping by them are not there; asking for them is not an error.
        IA32_DEBUGCTL => (value & !3 == 0).then_some(())?,
        IA32_EFER => write_efer(cpu, value)?,
        _ => return write_register(cpu, number, value),
    }
    Some(())
}

/// Those that hold a checked value and exist if they can be read.
fn write_register(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    let canonical = || is_canonical(value).then_some(value);
    let narrow = || u32::try_from(value).ok().map(u64::from);
    let checked = match number {
        IA32_PAT => value.to_le_bytes().iter().all(|b| matches!(b, 0 | 1 | 4..=7)).then_some(value)?,
        IA32_XSS => (value & !supported_xss(cpu) == 0).then_some(value)?,
        IA32_SYSENTER_CS => value & 0xffff_ffff,
        IA32_FMASK | IA32_TSC_AUX if is_amd(cpu) => value & 0xffff_ffff,
        IA32_FMASK | IA32_TSC_AUX => narrow()?,
        IA32_STAR => value,
        IA32_SYSENTER_ESP | IA32_SYSENTER_EIP | IA32_LSTAR | IA32_CSTAR => canonical()?,
        IA32_FS_BASE | IA32_GS_BASE | IA32_KERNEL_GS_BASE => canonical()?,
        _ => return write_stored(cpu, number, value),
    };
    read(cpu, number)?;
    let m = &mut cpu.msr;
    let place = match number {
        IA32_PAT => &mut m.pat,
        IA32_XSS => &mut m.xss,
        IA32_SYSENTER_CS => &mut m.sysenter_cs,
        IA32_SYSENTER_ESP => &mut m.sysenter_esp,
        IA32_SYSENTER_EIP => &mut m.sysenter_eip,
        IA32_FMASK => &mut m.fmask,
        IA32_TSC_AUX => &mut m.tsc_aux,
        IA32_STAR => &mut m.star,
        IA32_LSTAR => &mut m.lstar,
        IA32_CSTAR => &mut m.cstar,
        IA32_KERNEL_GS_BASE => &mut m.kernel_gs_base,
        IA32_FS_BASE => &mut cpu.seg[sreg::FS].base,
        _ => &mut cpu.seg[sreg::GS].base,
    };
    *place = checked;
    Some(())
}

fn supported_xss(cpu: &Cpu) -> u64 {
    cpu.cpuid.get(0xd, 1).map_or(0, |e| u64::from(e.ecx) | u64::from(e.edx) << 32)
}

/// The bits of EFER that the processor has.
pub(crate) fn efer_supported(cpu: &Cpu) -> Efer {
    let features = [(Efer::SCE, feature::SYSCALL), (Efer::LME, feature::LM), (Efer::NXE, feature::NX)];
    features.iter().filter(|(_, f)| cpu.cpuid.has(*f)).fold(Efer::LMA, |all, (b, _)| all | *b)
}

/// EFER: what is offered may be set; LME not while paging; LMA is the processor's.
fn write_efer(cpu: &mut Cpu, value: u64) -> Option<()> {
    let new = Efer::from_bits(value).filter(|v| efer_supported(cpu).contains(*v))?;
    let new = new.difference(Efer::LMA) | cpu.efer & Efer::LMA;
    let changed = cpu.efer ^ new;
    if changed.contains(Efer::LME) && cpu.cr0.contains(Cr0::PG) {
        return None;
    }
    cpu.efer = new;
    if changed.contains(Efer::NXE) {
        cpu.paging_changed();
    }
    Some(())
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    let value = read(cpu, cpu.gpr[RCX] as u32).ok_or(Fault::GP0)?;
    cpu.set_gpr(RAX, 32, value);
    cpu.set_gpr(RDX, 32, value >> 32);
    Ok(Flow::Next)
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    let value = cpu.gpr[RAX] & 0xffff_ffff | cpu.gpr[RDX] << 32;
    write(cpu, cpu.gpr[RCX] as u32, value).ok_or(Fault::GP0)?;
    Ok(Flow::End)
}
