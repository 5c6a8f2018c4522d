//! IN, OUT, INS, OUTS.
//!
//! SDM volume 1, chapter "Input/Output"; volume 3, "I/O Permission Bit Map".

use iced_x86::{Code, Instruction, OpKind, Register};
use umbra_x86::reg::Rflags;
use umbra_x86::reg::gpr::{RAX, RCX, RDI, RDX, RSI};
use umbra_x86::segment::sreg;

use super::debug;
use super::descriptor::kind;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::{mask, segment_number};
use crate::vm::count;

/// Iterations of a repeated instruction before the run loop looks whether something wants attention.
const ITERATIONS_MAX: u32 = 256;
/// Where a TSS says where its permission bit map is.
const MAP_BASE: u64 = 0x66;

/// Whether the program may reach `len` ports from `port`.
fn check(cpu: &mut Cpu, port: u16, len: usize) -> Exec {
    if !cpu.mode.protected || !cpu.mode.v86 && cpu.mode.cpl <= cpu.iopl() {
        return Ok(());
    }
    let tr = cpu.tr;
    let has_map = !tr.unusable && tr.access & 0x1f & !kind::BUSY == kind::TSS32 && tr.limit >= 0x67;
    if !has_map {
        return Err(Fault::GP0);
    }
    let map: u16 = cpu.load_system(cpu.system_address(tr.base, MAP_BASE))?;
    // Two bytes are read always, so that ports at the end of one find their bits in the next.
    let offset = u64::from(map) + u64::from(port / 8);
    if offset + 1 > u64::from(tr.limit) {
        return Err(Fault::GP0);
    }
    let bits: u16 = cpu.load_system(cpu.system_address(tr.base, offset))?;
    let refused = bits >> (port % 8) & ((1 << len) - 1);
    if refused == 0 { Ok(()) } else { Err(Fault::GP0) }
}

fn read(cpu: &mut Cpu, port: u16, len: usize) -> u32 {
    let mut data = [0; 4];
    cpu.counters.add(count::PORT_IO, 1);
    cpu.with_io(|io| io.port_read(port, &mut data[..len]));
    debug::port_access(cpu, port, len as u64);
    u32::from_le_bytes(data)
}

fn write(cpu: &mut Cpu, port: u16, len: usize, value: u32) {
    cpu.counters.add(count::PORT_IO, 1);
    cpu.with_io(|io| io.port_write(port, &value.to_le_bytes()[..len]));
    debug::port_access(cpu, port, len as u64);
}

/// The bytes that an instruction moves at once.
fn width(code: Code) -> usize {
    match code {
        Code::In_AL_imm8 | Code::In_AL_DX | Code::Out_imm8_AL | Code::Out_DX_AL => 1,
        Code::Insb_m8_DX | Code::Outsb_DX_m8 => 1,
        Code::In_AX_imm8 | Code::In_AX_DX | Code::Out_imm8_AX | Code::Out_DX_AX => 2,
        Code::Insw_m16_DX | Code::Outsw_DX_m16 => 2,
        _ => 4,
    }
}

/// The port of an operand: an immediate byte or DX.
fn port(cpu: &Cpu, i: &Instruction, operand: u32) -> u16 {
    if i.op_kind(operand) == OpKind::Register { cpu.gpr[RDX] as u16 } else { u16::from(i.immediate8()) }
}

/// IN.
pub(super) fn input(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (port, len) = (port(cpu, i, 1), width(i.code()));
    check(cpu, port, len)?;
    let value = read(cpu, port, len);
    cpu.set_gpr(RAX, len as u32 * 8, u64::from(value));
    Ok(Flow::End)
}

/// OUT.
pub(super) fn output(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (port, len) = (port(cpu, i, 0), width(i.code()));
    check(cpu, port, len)?;
    write(cpu, port, len, cpu.gpr[RAX] as u32);
    Ok(Flow::End)
}

/// The address size of a string operand, in bits.
fn address_bits(kind: OpKind) -> u32 {
    match kind {
        OpKind::MemoryESDI | OpKind::MemorySegSI => 16,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => 32,
        _ => 64,
    }
}

/// INS, with or without REP.
pub(super) fn ins(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (port, len) = (cpu.gpr[RDX] as u16, width(i.code()));
    let bits = address_bits(i.op0_kind());
    check(cpu, port, len)?;
    repeat(cpu, i, bits, |cpu| {
        let linear = cpu.linear(sreg::ES, cpu.gpr[RDI] & mask(bits), len as u64, true)?;
        // What is read from a port is gone, so the store must not fail after it.
        cpu.host(linear, len as u64, true)?;
        let value = read(cpu, port, len);
        cpu.store_bytes(linear, &value.to_le_bytes()[..len])?;
        advance(cpu, RDI, bits, len);
        Ok(())
    })
}

/// OUTS, with or without REP.
pub(super) fn outs(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (port, len) = (cpu.gpr[RDX] as u16, width(i.code()));
    let bits = address_bits(i.op1_kind());
    let segment = match i.memory_segment() {
        Register::None => sreg::DS,
        r => segment_number(r).unwrap_or(sreg::DS),
    };
    check(cpu, port, len)?;
    repeat(cpu, i, bits, |cpu| {
        let linear = cpu.linear(segment, cpu.gpr[RSI] & mask(bits), len as u64, false)?;
        let mut data = [0; 4];
        cpu.load_bytes(linear, &mut data[..len])?;
        write(cpu, port, len, u32::from_le_bytes(data));
        advance(cpu, RSI, bits, len);
        Ok(())
    })
}

/// Moves an index register to the next element.
fn advance(cpu: &mut Cpu, register: usize, bits: u32, len: usize) {
    let step = if cpu.flag(Rflags::DF) { (len as u64).wrapping_neg() } else { len as u64 };
    let value = cpu.gpr[register].wrapping_add(step) & mask(bits);
    cpu.set_gpr(register, bits, value);
}

/// Does `once` as often as the prefix and (E/R)CX say. A fault leaves the registers where the iterations before it brought them.
fn repeat(cpu: &mut Cpu, i: &Instruction, bits: u32, mut once: impl FnMut(&mut Cpu) -> Exec) -> Exec<Flow> {
    if !i.has_rep_prefix() && !i.has_repne_prefix() {
        once(cpu)?;
        return Ok(Flow::End);
    }
    for _ in 0..ITERATIONS_MAX {
        let count = cpu.gpr[RCX] & mask(bits);
        if count == 0 {
            return Ok(Flow::End);
        }
        once(cpu)?;
        cpu.set_gpr(RCX, bits, count - 1);
        if count == 1 {
            return Ok(Flow::End);
        }
        if debug::traps_iterations(cpu) || cpu.port().wanted() {
            break;
        }
    }
    Ok(Flow::Again)
}
