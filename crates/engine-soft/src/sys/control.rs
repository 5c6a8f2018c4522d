//! Control registers: MOV CR, LMSW, SMSW, CLTS, XSETBV, and what invalidates translations.
//!
//! SDM volume 2, "MOV—Move to/from Control Registers", INVPCID, XSETBV; volume 3, "Control Registers", "Initializing IA-32e Mode".

use iced_x86::{Instruction, OpKind, Register};
use umbra_engine::xcomp;
use umbra_x86::cpuid::feature;
use umbra_x86::reg::gpr::{RAX, RCX, RDX};
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{access, sreg};

use super::cpuid::{is_amd, physical_bits};
use super::descriptor::kind;
use super::segment::store_selector;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::{is_canonical, segment_number};
use crate::vm::hooks;

/// What may be at CPL 0 only.
pub(super) fn check_cpl0(cpu: &Cpu) -> Exec {
    if cpu.mode.cpl == 0 { Ok(()) } else { Err(Fault::GP0) }
}

/// User-mode instruction prevention.
pub(super) fn check_umip(cpu: &Cpu) -> Exec {
    if cpu.mode.cpl > 0 && cpu.cr4.contains(Cr4::UMIP) { Err(Fault::GP0) } else { Ok(()) }
}

/// The number of a control register that exists. LOCK MOV CR0, another way to say CR8, is AMD's alone.
fn number(cpu: &Cpu, i: &Instruction, r: Register) -> Exec<u32> {
    let n = (r as u32).wrapping_sub(Register::CR0 as u32);
    let exists = matches!(n, 0 | 2 | 3 | 4) || n == 8 && (cpu.mode.code == 64 || i.has_lock_prefix());
    if exists && (!i.has_lock_prefix() || is_amd(cpu)) { Ok(n) } else { Err(Fault::UD) }
}

/// MOV from a control register.
pub(super) fn mov_from_cr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = number(cpu, i, i.op1_register())?;
    check_cpl0(cpu)?;
    let value = match n {
        0 => cpu.cr0.bits(),
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4.bits(),
        _ => u64::from(hooks::apic_tpr(cpu)),
    };
    cpu.set_reg(i.op0_register(), value);
    Ok(Flow::Next)
}

/// MOV to a control register.
pub(super) fn mov_to_cr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = number(cpu, i, i.op0_register())?;
    check_cpl0(cpu)?;
    let value = cpu.reg(i.op1_register());
    match n {
        0 => write_cr0(cpu, value)?,
        2 => cpu.cr2 = value,
        3 => write_cr3(cpu, value)?,
        4 => write_cr4(cpu, value)?,
        _ => {
            let class = u8::try_from(value).ok().filter(|v| *v < 16).ok_or(Fault::GP0)?;
            hooks::set_tpr(cpu, class);
        }
    }
    Ok(if n == 2 { Flow::Next } else { Flow::End })
}

/// Writes CR0 and, with EFER.LME, enters or leaves long mode.
pub(super) fn write_cr0(cpu: &mut Cpu, value: u64) -> Exec {
    let new = Cr0::from_bits_truncate(value & 0xffff_ffff) | Cr0::ET;
    let old = cpu.cr0;
    let bad = value >> 32 != 0
        || new.contains(Cr0::PG) && !new.contains(Cr0::PE)
        || new.contains(Cr0::NW) && !new.contains(Cr0::CD);
    if bad {
        return Err(Fault::GP0);
    }
    let mut efer = cpu.efer;
    if new.contains(Cr0::PG) && !old.contains(Cr0::PG) {
        if efer.contains(Efer::LME) {
            check_long_entry(cpu)?;
            efer |= Efer::LMA;
        } else if cpu.cr4.contains(Cr4::PAE) {
            cpu.load_pdptes(cpu.cr3)?;
        }
    }
    if !new.contains(Cr0::PG) && old.contains(Cr0::PG) {
        if cpu.mode.code == 64 || cpu.cr4.contains(Cr4::PCIDE) {
            return Err(Fault::GP0);
        }
        efer -= Efer::LMA;
    }
    cpu.cr0 = new;
    cpu.efer = efer;
    cpu.update_mode();
    if (old ^ new).intersects(Cr0::PG | Cr0::PE | Cr0::WP) {
        cpu.paging_changed();
    }
    Ok(())
}

/// What must hold when paging is switched on with EFER.LME.
fn check_long_entry(cpu: &Cpu) -> Exec {
    let tss16 = !cpu.tr.unusable && matches!(cpu.tr.access & access::TYPE, kind::TSS16 | kind::TSS16_BUSY);
    let long_code = cpu.seg[sreg::CS].access & access::L != 0;
    if !cpu.cr4.contains(Cr4::PAE) || long_code || tss16 { Err(Fault::GP0) } else { Ok(()) }
}

/// Writes CR3.
fn write_cr3(cpu: &mut Cpu, value: u64) -> Exec {
    let mut value = value;
    let mut keep = false;
    if cpu.mode.long {
        if cpu.cr4.contains(Cr4::PCIDE) {
            keep = value >> 63 != 0;
            value &= !(1 << 63);
        }
        if value >> physical_bits(cpu) != 0 {
            return Err(Fault::GP0);
        }
    } else if cpu.cr0.contains(Cr0::PG) && cpu.cr4.contains(Cr4::PAE) {
        cpu.load_pdptes(value)?;
    }
    cpu.cr3 = value;
    cpu.cr3_written(keep);
    Ok(())
}

/// The bits of CR4 that the processor has. Virtual-8086 extensions, VMX, SMX, CET and PKS are never offered.
pub(crate) fn cr4_supported(cpu: &Cpu) -> Cr4 {
    let always = Cr4::TSD | Cr4::PCE;
    let by_feature = [
        (Cr4::DE, feature::DE),
        (Cr4::PSE, feature::PSE),
        (Cr4::PAE, feature::PAE),
        (Cr4::MCE, feature::MCE),
        (Cr4::PGE, feature::PGE),
        (Cr4::OSFXSR, feature::FXSR),
        (Cr4::OSXMMEXCPT, feature::SSE),
        (Cr4::UMIP, feature::UMIP),
        (Cr4::FSGSBASE, feature::FSGSBASE),
        (Cr4::PCIDE, feature::PCID),
        (Cr4::OSXSAVE, feature::XSAVE),
        (Cr4::SMEP, feature::SMEP),
        (Cr4::SMAP, feature::SMAP),
        (Cr4::PKE, feature::PKU),
    ];
    by_feature.iter().filter(|(_, f)| cpu.cpuid.has(*f)).fold(always, |all, (bit, _)| all | *bit)
}

/// Writes CR4.
fn write_cr4(cpu: &mut Cpu, value: u64) -> Exec {
    let new = Cr4::from_bits(value).filter(|v| cr4_supported(cpu).contains(*v)).ok_or(Fault::GP0)?;
    let old = cpu.cr4;
    let set = new - old;
    if cpu.mode.long && !new.contains(Cr4::PAE) {
        return Err(Fault::GP0);
    }
    if set.contains(Cr4::PCIDE) && (!cpu.mode.long || cpu.cr3 & 0xfff != 0) {
        return Err(Fault::GP0);
    }
    let translation = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
    let changed = (old ^ new).intersects(translation);
    let legacy_paging = cpu.cr0.contains(Cr0::PG) && !cpu.mode.long;
    if legacy_paging
        && new.contains(Cr4::PAE)
        && (old ^ new).intersects(Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::SMEP)
    {
        cpu.load_pdptes(cpu.cr3)?;
    }
    cpu.cr4 = new;
    if changed {
        cpu.paging_changed();
    }
    Ok(())
}

/// LMSW: the four low bits of CR0; PE cannot be cleared.
pub(super) fn lmsw(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    let value = u64::from(cpu.operand::<u16>(i, 0)?) & 0xf;
    let old = cpu.cr0.bits();
    write_cr0(cpu, old & !0xe | value | old & 1)?;
    Ok(Flow::End)
}

/// SMSW: 16 bits to memory, as much of CR0 as fits to a register.
pub(super) fn smsw(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_umip(cpu)?;
    let value = cpu.cr0.bits();
    if i.op0_kind() == OpKind::Register {
        cpu.set_reg(i.op0_register(), value);
    } else {
        store_selector(cpu, i, value as u16)?;
    }
    Ok(Flow::Next)
}

/// CLTS.
pub(super) fn clts(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    cpu.cr0.remove(Cr0::TS);
    Ok(Flow::Next)
}

/// INVLPG. An address that is not canonical names no page; segment limits do not count.
pub(super) fn invlpg(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    let n = segment_number(i.memory_segment()).unwrap_or(sreg::DS);
    let offset = cpu.effective_address(i);
    let is_long = cpu.mode.code == 64;
    let base = if is_long && n < sreg::FS { 0 } else { cpu.seg[n].base };
    let linear = base.wrapping_add(offset);
    if !is_long {
        cpu.flush_page(linear & 0xffff_ffff);
    } else if is_canonical(linear) {
        cpu.flush_page(linear);
    }
    Ok(Flow::End)
}

/// INVPCID.
pub(super) fn invpcid(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    let what = cpu.reg(i.op0_register());
    let descriptor: u128 = cpu.operand(i, 1)?;
    let (low, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    if what > 3 || low >> 12 != 0 {
        return Err(Fault::GP0);
    }
    let pcid = low as u16;
    if what < 2 && pcid != 0 && !cpu.cr4.contains(Cr4::PCIDE) {
        return Err(Fault::GP0);
    }
    match what {
        0 if !is_canonical(linear) => return Err(Fault::GP0),
        0 => cpu.flush_page(linear),
        1 => cpu.flush_pcid(pcid),
        _ => cpu.flush_all(),
    }
    Ok(Flow::End)
}

/// Whether XCR0 may be `value` (SDM volume 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features").
pub(crate) fn is_valid_xcr0(cpu: &Cpu, value: u64) -> bool {
    let offered = cpu.cpuid.get(0xd, 0).map_or(1, |e| u64::from(e.eax) | u64::from(e.edx) << 32);
    let bit = |n: u32| value >> n & 1 != 0;
    let avx512 = [bit(xcomp::OPMASK), bit(xcomp::ZMM_HI256), bit(xcomp::HI16_ZMM)];
    let any512 = avx512.contains(&true);
    value & !offered == 0
        && bit(xcomp::X87)
        && (bit(xcomp::SSE) || !bit(xcomp::AVX))
        && (!any512 || bit(xcomp::AVX) && !avx512.contains(&false))
}

/// XSETBV.
pub(super) fn xsetbv(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(Fault::UD);
    }
    check_cpl0(cpu)?;
    let value = cpu.gpr[RAX] & 0xffff_ffff | cpu.gpr[RDX] << 32;
    if cpu.gpr[RCX] as u32 != 0 || !is_valid_xcr0(cpu, value) {
        return Err(Fault::GP0);
    }
    cpu.xcr0 = value;
    Ok(Flow::End)
}

/// The XSAVE components that are not in their initial state; x87 always counts as such.
fn components_in_use(cpu: &Cpu) -> u64 {
    let v = &cpu.vector;
    let is_used = |bytes: &[u8]| bytes.iter().any(|b| *b != 0);
    let low = &v.zmm[..16];
    let used = [
        (xcomp::X87, true),
        (xcomp::SSE, low.iter().any(|z| is_used(&z[..16]))),
        (xcomp::AVX, low.iter().any(|z| is_used(&z[16..32]))),
        (xcomp::OPMASK, v.k != [0; 8]),
        (xcomp::ZMM_HI256, low.iter().any(|z| is_used(&z[32..]))),
        (xcomp::HI16_ZMM, v.zmm[16..].iter().any(|z| is_used(z))),
        (xcomp::PKRU, v.pkru != 0),
    ];
    used.iter().filter(|(_, u)| *u).fold(0, |bits, (n, _)| bits | 1 << n)
}

/// XGETBV: XCR0, and with its feature also which components are in use.
pub(super) fn xgetbv(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(Fault::UD);
    }
    let value = match cpu.gpr[RCX] as u32 {
        0 => cpu.xcr0,
        1 if cpu.cpuid.has(feature::XGETBV1) => cpu.xcr0 & components_in_use(cpu),
        _ => return Err(Fault::GP0),
    };
    cpu.set_gpr(RAX, 32, value);
    cpu.set_gpr(RDX, 32, value >> 32);
    Ok(Flow::Next)
}
