//! Stack and branch instructions in every mode and size, with segments and limits: what the fast handlers leave out.
//!
//! SDM volume 2, those instructions; volume 1, "Stacks" for which size of pointer is used.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use umbra_x86::reg::gpr::{RCX, RSP};
use umbra_x86::segment::sreg;

use super::flags::{condition, from_rflags};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::mask;

/// Bytes that the instruction moves the stack pointer by: its operand's size.
fn size(i: &Instruction) -> u32 {
    i.stack_pointer_increment().unsigned_abs()
}

fn load_sized(cpu: &mut Cpu, linear: u64, bytes: u32) -> Exec<u64> {
    match bytes {
        2 => cpu.load::<u16>(linear).map(u64::from),
        4 => cpu.load::<u32>(linear).map(u64::from),
        _ => cpu.load::<u64>(linear),
    }
}

fn store_sized(cpu: &mut Cpu, linear: u64, bytes: u32, value: u64) -> Exec {
    match bytes {
        2 => cpu.store(linear, value as u16),
        4 => cpu.store(linear, value as u32),
        _ => cpu.store(linear, value),
    }
}

fn push_value(cpu: &mut Cpu, bytes: u32, value: u64) -> Exec {
    let width = u32::from(cpu.mode.stack);
    let sp = cpu.gpr[RSP].wrapping_sub(bytes.into()) & mask(width);
    let linear = cpu.linear(sreg::SS, sp, bytes.into(), true)?;
    store_sized(cpu, linear, bytes, value).map_err(on_stack)?;
    cpu.set_gpr(RSP, width, sp);
    Ok(())
}

fn top(cpu: &mut Cpu, bytes: u32) -> Exec<u64> {
    let sp = cpu.gpr[RSP] & mask(cpu.mode.stack.into());
    let linear = cpu.linear(sreg::SS, sp, bytes.into(), false)?;
    load_sized(cpu, linear, bytes).map_err(on_stack)
}

fn on_stack(fault: Fault) -> Fault {
    if fault == Fault::GP0 { Fault::SS0 } else { fault }
}

fn skip(cpu: &mut Cpu, bytes: u64) {
    let width = u32::from(cpu.mode.stack);
    cpu.set_gpr(RSP, width, cpu.gpr[RSP].wrapping_add(bytes) & mask(width));
}

/// Operand 0 in the size of a stack slot.
fn value(cpu: &mut Cpu, i: &Instruction, bytes: u32) -> Exec<u64> {
    match bytes {
        2 => cpu.operand::<u16>(i, 0).map(u64::from),
        4 => cpu.operand::<u32>(i, 0).map(u64::from),
        _ => cpu.operand::<u64>(i, 0),
    }
}

/// PUSH of a general register, an immediate or memory.
pub(crate) fn push(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = size(i);
    let value = value(cpu, i, bytes)?;
    push_value(cpu, bytes, value)?;
    Ok(Flow::Next)
}

/// POP into a general register or memory, whose address is computed after the stack pointer has moved.
pub(crate) fn pop(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = size(i);
    let value = top(cpu, bytes)?;
    let sp = cpu.gpr[RSP];
    skip(cpu, bytes.into());
    if i.op0_kind() == OpKind::Register {
        cpu.set_reg(i.op0_register(), value);
        return Ok(Flow::Next);
    }
    let stored =
        cpu.memory_operand(i, bytes.into(), true).and_then(|linear| store_sized(cpu, linear, bytes, value));
    if stored.is_err() {
        cpu.gpr[RSP] = sp;
    }
    stored.map(|()| Flow::Next)
}

/// Where a near branch goes, and how wide RIP is afterwards.
fn target(cpu: &mut Cpu, i: &Instruction) -> Exec<u64> {
    let bits = match i.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        OpKind::NearBranch64 => 64,
        OpKind::Register => return Ok(cpu.reg(i.op0_register())),
        _ => return value(cpu, i, i.memory_size().size() as u32),
    };
    Ok(cpu.rip.wrapping_add(i.near_branch_target()) & mask(bits))
}

fn jump(cpu: &mut Cpu, target: u64) -> Exec<Flow> {
    cpu.check_near_target(target)?;
    cpu.rip = target;
    Ok(Flow::Jump)
}

/// JMP near.
pub(crate) fn jmp(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let to = target(cpu, i)?;
    jump(cpu, to)
}

/// CALL near.
pub(crate) fn call(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let to = target(cpu, i)?;
    let next = cpu.next_rip(i);
    let top = cpu.gpr[RSP];
    push_value(cpu, size(i), next)?;
    // Processors push first, and take the stack pointer back.
    cpu.check_near_target(to).inspect_err(|_| cpu.gpr[RSP] = top)?;
    jump(cpu, to)
}

/// RET near.
pub(crate) fn ret(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let drop = if i.op_count() > 0 { u64::from(i.immediate16()) } else { 0 };
    let bytes = (size(i) - drop as u32).max(2);
    let to = top(cpu, bytes)?;
    cpu.check_near_target(to)?;
    skip(cpu, u64::from(bytes) + drop);
    jump(cpu, to)
}

/// Jcc whose operand size is not that of the code.
pub(crate) fn jcc_sized(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if !holds(i.condition_code() as u8 - 1, cpu.rflags) {
        return Ok(Flow::Next);
    }
    jmp(cpu, i)
}

/// Whether condition `c` (its number in Jcc's opcodes) holds.
fn holds(c: u8, rflags: u64) -> bool {
    let s = from_rflags(rflags);
    let holds = match c >> 1 {
        0 => condition::<0>(s),
        1 => condition::<2>(s),
        2 => condition::<4>(s),
        3 => condition::<6>(s),
        4 => condition::<8>(s),
        5 => condition::<10>(s),
        6 => condition::<12>(s),
        _ => condition::<14>(s),
    };
    holds != (c & 1 != 0)
}

/// Width of the count register of LOOP and JCXZ: the address size.
fn count_bits(i: &Instruction) -> u32 {
    use Code as C;
    match i.code() {
        C::Loop_rel8_16_CX | C::Loop_rel8_32_CX | C::Loope_rel8_16_CX | C::Loope_rel8_32_CX => 16,
        C::Loopne_rel8_16_CX | C::Loopne_rel8_32_CX | C::Jcxz_rel8_16 | C::Jcxz_rel8_32 => 16,
        C::Loop_rel8_16_RCX | C::Loop_rel8_64_RCX | C::Loope_rel8_16_RCX | C::Loope_rel8_64_RCX => 64,
        C::Loopne_rel8_16_RCX | C::Loopne_rel8_64_RCX | C::Jrcxz_rel8_16 | C::Jrcxz_rel8_64 => 64,
        _ => 32,
    }
}

/// LOOP, LOOPE, LOOPNE.
pub(crate) fn loop_(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bits = count_bits(i);
    let count = cpu.gpr[RCX].wrapping_sub(1) & mask(bits);
    let zero = holds(4, cpu.rflags);
    let again = match i.mnemonic() {
        Mnemonic::Loope => zero,
        Mnemonic::Loopne => !zero,
        _ => true,
    };
    let to = target(cpu, i)?;
    if count != 0 && again {
        cpu.check_near_target(to)?;
        cpu.set_gpr(RCX, bits, count);
        return jump(cpu, to);
    }
    cpu.set_gpr(RCX, bits, count);
    Ok(Flow::Next)
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jcxz(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if cpu.gpr[RCX] & mask(count_bits(i)) != 0 {
        return Ok(Flow::Next);
    }
    jmp(cpu, i)
}

/// PUSHA: RSP as it was before.
pub(crate) fn pusha(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = size(i) / 8;
    let (old, values) = (cpu.gpr[RSP], cpu.gpr);
    for value in &values[..8] {
        if let Err(fault) = push_value(cpu, bytes, *value) {
            cpu.gpr[RSP] = old;
            return Err(fault);
        }
    }
    Ok(Flow::Next)
}

/// POPA: the image of RSP is skipped.
pub(crate) fn popa(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = size(i) / 8;
    let old = cpu.gpr[RSP];
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        match top(cpu, bytes) {
            Ok(v) => *value = v,
            Err(fault) => {
                cpu.gpr[RSP] = old;
                return Err(fault);
            }
        }
        skip(cpu, bytes.into());
    }
    for (n, value) in values.into_iter().enumerate().filter(|(n, _)| *n != RSP) {
        cpu.set_gpr(n, bytes * 8, value);
    }
    Ok(Flow::Next)
}
