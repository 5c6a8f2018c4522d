//! Descriptor-table registers and instructions that look at descriptors: LGDT to STR, LAR, LSL, VERR, VERW, ARPL.
//!
//! SDM volume 2, those instructions.

use iced_x86::{Code, Instruction, OpKind};
use umbra_x86::reg::Rflags;
use umbra_x86::segment::{Segment, Table};

use super::control::{check_cpl0, check_umip};
use super::descriptor::{Descriptor, is_null, kind, rpl};
use super::segment::{null_segment, store_selector};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::is_canonical;

/// These instructions know no real and virtual-8086 mode.
fn check_protected(cpu: &Cpu) -> Exec {
    if cpu.mode.protected && !cpu.mode.v86 { Ok(()) } else { Err(Fault::UD) }
}

/// The bytes of the base in a table operand.
fn base_bytes(code: Code) -> usize {
    match code {
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    }
}

fn load_table(cpu: &mut Cpu, i: &Instruction) -> Exec<Table> {
    check_cpl0(cpu)?;
    let len = 2 + base_bytes(i.code());
    let linear = cpu.memory_operand(i, len as u64, false)?;
    let mut data = [0; 16];
    cpu.load_bytes(linear, &mut data[..len])?;
    let word = u128::from_le_bytes(data);
    let mut base = (word >> 16) as u64;
    if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    Ok(Table { base, limit: word as u16 })
}

fn store_table(cpu: &mut Cpu, i: &Instruction, table: Table) -> Exec<Flow> {
    check_umip(cpu)?;
    let len = 2 + base_bytes(i.code());
    let linear = cpu.memory_operand(i, len as u64, true)?;
    let word = u128::from(table.limit) | u128::from(table.base) << 16;
    cpu.store_bytes(linear, &word.to_le_bytes()[..len])?;
    Ok(Flow::Next)
}

/// LGDT.
pub(super) fn lgdt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    cpu.gdtr = load_table(cpu, i)?;
    Ok(Flow::Next)
}

/// LIDT.
pub(super) fn lidt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    cpu.idtr = load_table(cpu, i)?;
    Ok(Flow::Next)
}

/// SGDT.
pub(super) fn sgdt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    store_table(cpu, i, cpu.gdtr)
}

/// SIDT.
pub(super) fn sidt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    store_table(cpu, i, cpu.idtr)
}

/// SLDT.
pub(super) fn sldt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_protected(cpu)?;
    check_umip(cpu)?;
    store_selector(cpu, i, cpu.ldtr.selector)?;
    Ok(Flow::Next)
}

/// STR.
pub(super) fn str(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_protected(cpu)?;
    check_umip(cpu)?;
    store_selector(cpu, i, cpu.tr.selector)?;
    Ok(Flow::Next)
}

/// A descriptor for LDTR or TR: from the GDT, of one of `kinds`, present.
fn system_descriptor(cpu: &mut Cpu, selector: u16, kinds: &[u16]) -> Exec<Descriptor> {
    if selector & 4 != 0 {
        return Err(Fault::gp(selector));
    }
    let d = cpu.fetch_descriptor(selector, Fault::gp)?;
    if !d.system_kind().is_some_and(|k| kinds.contains(&k)) {
        return Err(Fault::gp(selector));
    }
    if d.is_present() { Ok(d) } else { Err(Fault::np(selector)) }
}

/// LLDT.
pub(super) fn lldt(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_protected(cpu)?;
    check_cpl0(cpu)?;
    let selector: u16 = cpu.operand(i, 0)?;
    cpu.ldtr = if is_null(selector) {
        null_segment(selector, 0)
    } else {
        let d = system_descriptor(cpu, selector, &[kind::LDT])?;
        cpu.system_segment(&d, Fault::gp)?
    };
    Ok(Flow::Next)
}

/// LTR.
pub(super) fn ltr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_protected(cpu)?;
    check_cpl0(cpu)?;
    let selector: u16 = cpu.operand(i, 0)?;
    if is_null(selector) {
        return Err(Fault::GP0);
    }
    let kinds: &[u16] = if cpu.mode.long { &[kind::TSS32] } else { &[kind::TSS16, kind::TSS32] };
    let mut d = system_descriptor(cpu, selector, kinds)?;
    let tr = cpu.system_segment(&d, Fault::gp)?;
    d.mark_busy(cpu, true)?;
    cpu.tr = Segment { access: tr.access | kind::BUSY, ..tr };
    Ok(Flow::Next)
}

/// The descriptor of a selector in operand `n`, if this program may see it and `is_valid` says so of the type of a system descriptor.
fn visible_descriptor(
    cpu: &mut Cpu,
    i: &Instruction,
    n: u32,
    is_valid: impl Fn(u16) -> bool,
) -> Exec<Option<Descriptor>> {
    check_protected(cpu)?;
    let selector: u16 = cpu.operand(i, n)?;
    if is_null(selector) {
        return Ok(None);
    }
    let Some(d) = cpu.find_descriptor(selector)? else { return Ok(None) };
    let level = cpu.mode.cpl.max(rpl(selector));
    let seen = d.is_conforming() || level <= d.dpl();
    Ok(Some(d).filter(|d| seen && d.system_kind().is_none_or(is_valid)))
}

/// LAR.
pub(super) fn lar(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let long = cpu.mode.long;
    let d = visible_descriptor(cpu, i, 1, |k| match k {
        kind::LDT | kind::TSS32 | kind::TSS32_BUSY | kind::CALL32 => true,
        kind::TSS16 | kind::TSS16_BUSY | kind::CALL16 | kind::TASK_GATE => !long,
        _ => false,
    })?;
    if let Some(d) = d {
        // The upper bits of the limit are shown too, which the manual leaves open.
        cpu.set_reg(i.op0_register(), d.raw >> 32 & 0x00ff_ff00);
    }
    cpu.set_flag(Rflags::ZF, d.is_some());
    Ok(Flow::Next)
}

/// LSL.
pub(super) fn lsl(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let long = cpu.mode.long;
    let d = visible_descriptor(cpu, i, 1, |k| match k {
        kind::LDT | kind::TSS32 | kind::TSS32_BUSY => true,
        kind::TSS16 | kind::TSS16_BUSY => !long,
        _ => false,
    })?;
    if let Some(d) = d {
        cpu.set_reg(i.op0_register(), u64::from(d.segment().limit));
    }
    cpu.set_flag(Rflags::ZF, d.is_some());
    Ok(Flow::Next)
}

/// VERR.
pub(super) fn verr(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let d = visible_descriptor(cpu, i, 0, |_| false)?;
    cpu.set_flag(Rflags::ZF, d.is_some_and(|d| d.is_readable()));
    Ok(Flow::Next)
}

/// VERW.
pub(super) fn verw(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let d = visible_descriptor(cpu, i, 0, |_| false)?;
    cpu.set_flag(Rflags::ZF, d.is_some_and(|d| d.is_writable_data()));
    Ok(Flow::Next)
}

/// ARPL.
pub(super) fn arpl(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    check_protected(cpu)?;
    let own: u16 = cpu.operand(i, 0)?;
    let least = cpu.reg(i.op1_register()) as u16 & 3;
    let raise = own & 3 < least;
    if raise {
        let value = own & 0xfffc | least;
        match i.op0_kind() {
            OpKind::Register => {
                cpu.gpr[i.op0_register().number()] =
                    cpu.gpr[i.op0_register().number()] & !0xffff | u64::from(value)
            }
            _ => cpu.set_operand(i, 0, value)?,
        }
    }
    cpu.set_flag(Rflags::ZF, raise);
    Ok(Flow::Next)
}
