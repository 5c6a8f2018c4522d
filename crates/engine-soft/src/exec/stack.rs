//! PUSH, POP, CALL, RET, LEAVE where the stack is flat and as wide as the code: 64-bit mode and flat 32-bit code.

use umbra_x86::reg::gpr::{RBP, RSP};

use super::address::Address;
use super::int::Int;
use super::op::{Exit, OpRef, get};
use crate::cpu::Cpu;

/// Writes below the stack pointer and moves it. Whether the block must end after the instruction.
#[inline(always)]
fn push<T: Int>(cpu: &mut Cpu, op: OpRef, value: T) -> Result<bool, Exit> {
    let sp = T::from_u64(cpu.gpr[RSP].wrapping_sub(u64::from(T::BITS / 8))).to_u64();
    let event = cpu.write_stack(op, sp, value)?;
    cpu.gpr[RSP] = sp;
    Ok(event)
}

/// Reads at the stack pointer, which stays.
#[inline(always)]
fn top<T: Int>(cpu: &mut Cpu, op: OpRef) -> Result<T, Exit> {
    let sp = T::from_u64(cpu.gpr[RSP]).to_u64();
    cpu.read_at(op, sp)
}

#[inline(always)]
fn skip<T: Int>(cpu: &mut Cpu, bytes: u64) {
    cpu.gpr[RSP] = T::from_u64(cpu.gpr[RSP].wrapping_add(bytes)).to_u64();
}

/// PUSH register.
pub(crate) fn push_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = cpu.get::<T>(op.a);
    let event = get!(push(cpu, op, value));
    cpu.go_on(op, event)
}

/// PUSH immediate.
pub(crate) fn push_i<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let event = get!(push(cpu, op, T::from_u64(op.imm)));
    cpu.go_on(op, event)
}

/// PUSH memory.
pub(crate) fn push_m<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = get!(cpu.read::<T, A>(op));
    let event = get!(push(cpu, op, value));
    cpu.go_on(op, event)
}

/// POP register.
pub(crate) fn pop_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let value = get!(top::<T>(cpu, op));
    skip::<T>(cpu, u64::from(T::BITS / 8));
    cpu.set(op.a, value);
    op.next(cpu)
}

/// LEAVE.
pub(crate) fn leave<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let frame = T::from_u64(cpu.gpr[RBP]).to_u64();
    let value = get!(cpu.read_at::<T>(op, frame));
    cpu.gpr[RSP] = T::from_u64(frame.wrapping_add(u64::from(T::BITS / 8))).to_u64();
    cpu.gpr[RBP] = value.to_u64();
    op.next(cpu)
}

#[inline(always)]
fn call<T: Int>(cpu: &mut Cpu, op: OpRef, target: u64, exit: Exit) -> Exit {
    let next = cpu.following(op);
    if let Err(fault) = cpu.check_near_target(target) {
        // Processors push first, and take the stack pointer back.
        let top = cpu.gpr[RSP];
        get!(push(cpu, op, T::from_u64(next)));
        cpu.gpr[RSP] = top;
        return cpu.raise(op, fault);
    }
    let event = get!(push(cpu, op, T::from_u64(next)));
    cpu.rip = target;
    if event { Exit::State } else { exit }
}

/// CALL relative.
pub(crate) fn call_near<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let target = cpu.rip.wrapping_add(op.imm) & cpu.fast.rip_mask;
    call::<T>(cpu, op, target, Exit::Taken)
}

/// CALL register.
pub(crate) fn call_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let target = cpu.get::<T>(op.a).to_u64();
    call::<T>(cpu, op, target, Exit::Jump)
}

/// CALL memory. The stack pointer is the one before the push if the address uses it.
pub(crate) fn call_m<T: Int, A: Address>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let target = get!(cpu.read::<T, A>(op)).to_u64();
    call::<T>(cpu, op, target, Exit::Jump)
}

/// RET, with the bytes to drop in the immediate.
pub(crate) fn ret<T: Int>(cpu: &mut Cpu, op: OpRef) -> Exit {
    let target = get!(top::<T>(cpu, op)).to_u64();
    if let Err(fault) = cpu.check_near_target(target) {
        return cpu.raise(op, fault);
    }
    skip::<T>(cpu, op.imm);
    cpu.rip = target;
    Exit::Jump
}
