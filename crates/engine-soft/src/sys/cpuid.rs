//! CPUID, and what else depends on what it shows.
//!
//! SDM volume 2, CPUID. The table in the state block is fixed; a few bits follow the processor's state.

use iced_x86::Instruction;
use umbra_x86::cpuid::{CpuidEntry, CpuidReg, Feature, feature};
use umbra_x86::reg::Cr4;
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX};

use super::msr_table;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::vm::hooks;

/// Bit of IA32_APIC_BASE: the local APIC is on.
const APIC_GLOBAL_ENABLE: u64 = 1 << 11;
/// The legacy area and the header of XSAVE.
const XSAVE_BASE: u32 = 576;
/// Loading a null selector clears the segment's base (AMD's processors; Intel's always do).
const NULL_SELECTOR_CLEARS_BASE: Feature =
    Feature { leaf: 0x8000_0021, subleaf: 0, reg: CpuidReg::Eax, bit: 6 };

/// Whether the vendor shown is AMD or Hygon, whose processors behave alike.
pub(super) fn is_amd(cpu: &Cpu) -> bool {
    cpu.cpuid.is_amd()
}

/// Whether loading a null selector clears the base of FS and GS.
pub(super) fn null_selector_clears_base(cpu: &Cpu) -> bool {
    !is_amd(cpu) || cpu.cpuid.has(NULL_SELECTOR_CLEARS_BASE)
}

/// The width of physical addresses.
pub(crate) fn physical_bits(cpu: &Cpu) -> u32 {
    cpu.cpuid.get(0x8000_0008, 0).map_or(36, |e| e.eax & 0xff).clamp(32, 52)
}

/// The size of an XSAVE area with these components, in the standard or the compacted form.
fn xsave_size(cpu: &Cpu, components: u64, compacted: bool) -> u32 {
    let mut size = XSAVE_BASE;
    for n in (2..63).filter(|n| components >> n & 1 != 0) {
        let Some(e) = cpu.cpuid.get(0xd, n) else { continue };
        size = match compacted {
            false => size.max(e.ebx.saturating_add(e.eax)),
            true if e.ecx & 2 != 0 => size.next_multiple_of(64).saturating_add(e.eax),
            true => size.saturating_add(e.eax),
        };
    }
    size
}

fn set_bit(word: &mut u32, bit: u8, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}

/// What CPUID answers now.
fn answer(cpu: &Cpu, leaf: u32, subleaf: u32) -> CpuidEntry {
    let mut e = cpu.cpuid.answer(leaf, subleaf);
    let apic_is_on = || hooks::apic_base(cpu) & APIC_GLOBAL_ENABLE != 0;
    match (e.leaf, e.subleaf) {
        (1, _) => {
            set_bit(&mut e.ecx, feature::OSXSAVE.bit, cpu.cr4.contains(Cr4::OSXSAVE));
            e.edx &= !(u32::from(!apic_is_on()) << feature::APIC.bit);
        }
        (7, 0) => set_bit(&mut e.ecx, 4, cpu.cr4.contains(Cr4::PKE)),
        (0xd, 0) if e.eax != 0 => e.ebx = xsave_size(cpu, cpu.xcr0, false),
        (0xd, 1) if e.eax & 0xa != 0 => e.ebx = xsave_size(cpu, cpu.xcr0 | cpu.msr.xss, true),
        (0x8000_0001, _) if is_amd(cpu) => e.edx &= !(u32::from(!apic_is_on()) << feature::APIC.bit),
        _ => {}
    }
    e
}

/// CPUID. With CPUID faulting on it is for CPL 0 alone.
pub(super) fn cpuid(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    if cpu.mode.cpl > 0 && msr_table::cpuid_faults(cpu) {
        return Err(Fault::GP0);
    }
    let e = answer(cpu, cpu.gpr[RAX] as u32, cpu.gpr[RCX] as u32);
    for (n, value) in [(RAX, e.eax), (RBX, e.ebx), (RCX, e.ecx), (RDX, e.edx)] {
        cpu.set_gpr(n, 32, u64::from(value));
    }
    Ok(Flow::Next)
}
