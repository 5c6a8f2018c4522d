//! What registers a processor can hold (SDM volume 3, "Control Registers", "Checks on Guest State": what hardware checks when a virtual machine is entered).

use umbra_engine::CpuState;
use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags};
use umbra_x86::segment::sreg;

use super::Refused;
use crate::cpu::Cpu;
use crate::operand::is_canonical;
use crate::sys;

/// XSAVE components that CPUID shows; x87 and SSE are always there.
pub(super) fn components_offered(cpu: &Cpu) -> u64 {
    cpu.cpuid.get(0xd, 0).map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32) | 3
}

/// Whether the processor caches page-directory-pointer entries: PAE paging outside of long mode.
pub(super) fn has_pdptes(cpu: &Cpu) -> bool {
    cpu.cr0.contains(Cr0::PG) && cpu.cr4.contains(Cr4::PAE) && !cpu.efer.contains(Efer::LMA)
}

/// Refuses registers that no processor could hold, or not this one.
pub(super) fn registers(cpu: &Cpu, state: &CpuState) -> Result<(), Refused> {
    control(cpu, state)?;
    if !sys::is_valid_xcr0(cpu, state.xcr0) && state.xcr0 != 1 {
        return Err(format!("XCR0 {:#x} has components that this processor does not show", state.xcr0));
    }
    if state.dr7 >> 32 != 0 || state.dr6 >> 32 != 0 {
        return Err("DR6 or DR7 has bits above 31".into());
    }
    addresses(state)
}

fn control(cpu: &Cpu, state: &CpuState) -> Result<(), Refused> {
    let cr0 = Cr0::from_bits(state.cr0).ok_or_else(|| format!("CR0 {:#x} has reserved bits", state.cr0))?;
    let cr4 = Cr4::from_bits(state.cr4).filter(|v| sys::cr4_supported(cpu).contains(*v));
    let cr4 =
        cr4.ok_or_else(|| format!("CR4 {:#x} has bits that this processor does not offer", state.cr4))?;
    let efer = Efer::from_bits(state.efer).filter(|v| sys::efer_supported(cpu).contains(*v));
    let efer =
        efer.ok_or_else(|| format!("EFER {:#x} has bits that this processor does not offer", state.efer))?;
    let (paging, long) = (cr0.contains(Cr0::PG), efer.contains(Efer::LMA));
    let impossible = paging && !cr0.contains(Cr0::PE)
        || cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD)
        || long != (paging && efer.contains(Efer::LME))
        || long && !cr4.contains(Cr4::PAE)
        || cr4.contains(Cr4::PCIDE) && !long
        || long && state.rflags & Rflags::VM.bits() != 0;
    if impossible {
        let (cr0, cr4, efer) = (state.cr0, state.cr4, state.efer);
        return Err(format!(
            "CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x} and RFLAGS {:#x} contradict one another",
            state.rflags
        ));
    }
    if state.cr3 >> sys::physical_bits(cpu) != 0 {
        return Err(format!("CR3 {:#x} is beyond this processor's physical addresses", state.cr3));
    }
    Ok(())
}

/// Bases of segments that 64-bit code uses, and of the tables, are canonical.
fn addresses(state: &CpuState) -> Result<(), Refused> {
    let bases = [
        ("FS", state.segments[sreg::FS].0.base),
        ("GS", state.segments[sreg::GS].0.base),
        ("LDTR", state.ldtr.0.base),
        ("TR", state.tr.0.base),
        ("GDTR", state.gdtr.0.base),
        ("IDTR", state.idtr.0.base),
    ];
    match bases.iter().find(|(_, base)| !is_canonical(*base)) {
        Some((name, base)) => Err(format!("the base of {name}, {base:#x}, is not canonical")),
        None => Ok(()),
    }
}
