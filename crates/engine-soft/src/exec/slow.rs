//! Instructions whose handlers work from the whole decoded instruction, and those that the host's processor runs.

use std::mem::transmute;

use super::op::{Exit, OpRef};
use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Flow};
use crate::native::{self, Thunk};

#[inline(always)]
fn run(cpu: &mut Cpu, op: OpRef, f: impl FnOnce(&mut Cpu) -> Exec<Flow>) -> Exit {
    let start = cpu.rip;
    cpu.rip = start.wrapping_add(op.offset.into());
    cpu.settle();
    let flow = f(cpu);
    cpu.unsettle();
    if cpu.fast.event != 0 {
        cpu.host_written();
    }
    match flow {
        Ok(Flow::Next) if cpu.fast.event == 0 => {
            cpu.rip = start;
            op.next(cpu)
        }
        Ok(flow) => leave(cpu, op, flow),
        Err(fault) => {
            cpu.fast.fault = fault;
            Exit::Fault
        }
    }
}

#[inline(never)]
fn leave(cpu: &mut Cpu, op: OpRef, flow: Flow) -> Exit {
    match flow {
        Flow::Jump => Exit::State,
        Flow::Again => Exit::Again,
        Flow::Next | Flow::End | Flow::Wait => {
            cpu.rip = cpu.next_rip(op.instruction());
            if flow == Flow::Wait { Exit::Wait } else { Exit::State }
        }
    }
}

/// A handler of type [`Slow`], which is the immediate.
pub(crate) fn call_slow(cpu: &mut Cpu, op: OpRef) -> Exit {
    // SAFETY: the decoder puts a `Slow` there for this handler.
    let f: Slow = unsafe { transmute(op.imm as usize) };
    run(cpu, op, |cpu| f(cpu, op.instruction()))
}

/// A thunk as the immediate of its operation.
pub(crate) fn thunk_bits(thunk: Thunk) -> u64 {
    // SAFETY: both are eight bytes without padding.
    unsafe { transmute(thunk) }
}

/// The host's processor runs it; the immediate is its thunk.
pub(crate) fn call_native(cpu: &mut Cpu, op: OpRef) -> Exit {
    // SAFETY: the decoder puts a `Thunk` there for this handler.
    let thunk: Thunk = unsafe { transmute(op.imm) };
    run(cpu, op, |cpu| native::run(cpu, op.instruction(), thunk))
}
