//! Model-specific registers.
//!
//! SDM volume 4; AMD64 APM volume 2, appendix "MSR Cross-Reference". Registers with an effect are handled by name; the others are in
//! one table (`msr_table`). What is in neither does not exist. Where a virtual processor
//! shall behave in a way that neither manual says (a register that only a real machine needs), it is KVM's way.

use iced_x86::Instruction;
use umbra_x86::cpuid::{Feature, feature};
use umbra_x86::msr::*;
use umbra_x86::reg::gpr::{RAX, RCX, RDX};
use umbra_x86::reg::{Cr0, Efer};
use umbra_x86::segment::sreg;

use super::control::check_cpl0;
use super::cpuid::is_amd;
use super::msr_table::{self, AMD_IBPB, FLUSH_L1D, SPEC_CTRL};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::is_canonical;
use crate::vm::hooks;

pub use super::msr_table::at_power_on;

const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const MSR_PATCH_LOADER: u32 = 0xc001_0020;
const KVM_FIRST: u32 = 0x4b56_4d00;
const KVM_LAST: u32 = 0x4b56_4dff;

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
    if msr_table::restore(cpu, number, value) {
        return Stored::Yes;
    }
    let exists = read(cpu, number).is_some();
    match write(cpu, number, value) {
        Some(()) => Stored::Yes,
        None if exists => Stored::Refused,
        None => Stored::Unknown,
    }
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
        _ => return msr_table::read(cpu, number),
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
        _ => return msr_table::write(cpu, number, value),
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
