//! The loop that runs blocks.

use std::sync::atomic::Ordering;

use umbra_x86::reg::Rflags;

use super::op::Exit;
use crate::cpu::{Cpu, Shadow};
use crate::decode::{Block, Link, Want};
use crate::fault::{Exec, Fault};
use crate::operand::is_canonical;
use crate::sys::{self, debug};
use crate::translate::{Full, Left};
use crate::vm::{Activity, Port, attention, count, host_tsc, set_alarm};

/// Why [`run`] returned; always at an instruction boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Something in the attention word, or an interrupt that can now be taken.
    Attention,
    /// The processor waits: see `Cpu::run_state`.
    Wait,
    /// A fault while delivering a double fault.
    TripleFault,
    /// A translation differs from the interpreter: `Cpu::lockstep` has the report.
    Different,
}

/// Runs guest code until something wants attention. Delivers exceptions itself.
pub fn run(cpu: &mut Cpu) -> Stop {
    let shared = cpu.shared.clone();
    let Some(port) = shared.ports.get(cpu.id as usize) else { return Stop::Attention };
    cpu.enter_world();
    let stop = loop {
        cpu.update_context();
        if let Some(stop) = attend(cpu, port) {
            break stop;
        }
        cpu.unsettle();
        let done = if debug::is_stepping(cpu) { step(cpu) } else { run_blocks(cpu, port) };
        cpu.settle();
        if let Err(stop) = done {
            break stop;
        }
    };
    cpu.leave_world();
    stop
}

/// What must be seen to before guest code runs.
fn attend(cpu: &mut Cpu, port: &Port) -> Option<Stop> {
    const OWN: u32 =
        attention::WORLD | attention::FLUSH | attention::FLUSH_WRITES | attention::TIMER | attention::PROFILE;
    let bits = port.attention.load(Ordering::Acquire);
    if bits & attention::FLUSH != 0 {
        port.attention.fetch_and(!attention::FLUSH, Ordering::SeqCst);
        cpu.flush_all();
    }
    if bits & (attention::WORLD | attention::FLUSH_WRITES) != 0 {
        cpu.leave_world();
        cpu.enter_world();
    }
    if bits & attention::PROFILE != 0 {
        port.clear(attention::PROFILE);
        cpu.name_samples();
    }
    let interrupt = cpu.interrupt_hint && cpu.flag(Rflags::IF) && cpu.shadow == Shadow::None;
    let nmi = cpu.nmi_pending && !cpu.nmi_masked && cpu.shadow != Shadow::MovSs;
    let timer = timer_is_due(cpu, port, bits);
    (bits & !OWN != 0 || interrupt || nmi || timer).then_some(Stop::Attention)
}

/// Whether the local APIC's timer goes off; if it will later, the alarm is set for that.
#[inline(always)]
fn timer_is_due(cpu: &mut Cpu, port: &Port, bits: u32) -> bool {
    if bits & attention::TIMER != 0 {
        port.clear(attention::TIMER);
        cpu.alarm_at = u64::MAX;
    }
    if cpu.timer_at < cpu.alarm_at {
        if host_tsc() >= cpu.timer_at {
            return true;
        }
        set_alarm(cpu.timer_at, cpu.shared.time.khz);
        cpu.alarm_at = cpu.timer_at;
    }
    false
}

/// Runs blocks until one ends in a way after which more must be looked at than where to go on.
fn run_blocks(cpu: &mut Cpu, port: &Port) -> Result<(), Stop> {
    cpu.agree_on_flags();
    let mut block = match cpu.find_block() {
        Ok(block) => block,
        Err(fault) => return deliver(cpu, fault),
    };
    loop {
        if port.wanted() {
            return Ok(());
        }
        // SAFETY: `find_block` and links give blocks that stay until the cache is emptied; see `follow`.
        if !unsafe { (*block).is_current() } {
            return Ok(());
        }
        let Ok(code) = translation(cpu, block) else {
            // What was hot will be so again.
            cpu.cache.clear();
            return Ok(());
        };
        let found = match code {
            Some(code) => match cpu.run_block(block, code) {
                Left::Exit(Exit::Fall | Exit::Taken | Exit::Jump) => cpu.find_block(),
                Left::Exit(exit) => return end(cpu, exit),
                Left::Attention => return Ok(()),
                Left::Different => return Err(Stop::Different),
                left => {
                    let epoch = cpu.cache.epoch;
                    let found = match left {
                        Left::Link(site) => cpu.find_linked(site),
                        Left::Window(_, want) => cpu.look_up_block(want),
                        _ => cpu.find_block(),
                    };
                    if let Ok(next) = found
                        && cpu.cache.epoch == epoch
                    {
                        cpu.link(left, next);
                    }
                    found
                }
            },
            None => {
                let start = cpu.rip;
                cpu.agree_on_flags();
                match interpret(cpu, block) {
                    exit @ (Exit::Fall | Exit::Taken) => {
                        // SAFETY: as above; nobody else refers to this processor's blocks.
                        let link = unsafe { &(&(*block).links)[exit as usize] };
                        if link.rip == cpu.rip && link.key == cpu.fast.key {
                            block = link.block;
                            continue;
                        }
                        follow(cpu, block, exit, start)
                    }
                    Exit::Jump => match cpu.check_near_target(cpu.rip) {
                        Ok(()) => cpu.find_block(),
                        Err(fault) => Err(back(cpu, block, start, fault)),
                    },
                    exit => return end(cpu, exit),
                }
            }
        };
        block = match found {
            Ok(block) => block,
            Err(fault) => return deliver(cpu, fault),
        };
    }
}

/// The translation of a block, made now if it has become hot.
#[inline(always)]
fn translation(cpu: &mut Cpu, block: *mut Block) -> Result<Option<*const u8>, Full> {
    // SAFETY: the run loop gives a block that exists.
    let b = unsafe { &mut *block };
    if b.code_at.is_null() {
        b.heat = b.heat.saturating_add(1);
        // The others are run where the first could not be.
        let times = if b.windows() == Want::All { 1 } else { 8 };
        let after = cpu.translator.after.saturating_mul(times);
        if b.heat <= after || !cpu.translate(block)? {
            return Ok(None);
        }
    }
    Ok(Some(b.code_at))
}

/// Runs a block in the interpreter.
#[inline(always)]
fn interpret(cpu: &mut Cpu, block: *mut Block) -> Exit {
    // SAFETY: the run loop gives a block that exists.
    cpu.fast.instructions += u64::from(unsafe { (*block).count });
    let first = Block::ops(block);
    cpu.turn_to(Activity::Blocks);
    let exit = (first.run)(cpu, first);
    cpu.turn_to(Activity::Dispatch);
    exit
}

/// Ends the running of blocks by an exit after which more must be looked at than where to go on.
fn end(cpu: &mut Cpu, exit: Exit) -> Result<(), Stop> {
    match exit {
        Exit::Fault => deliver(cpu, cpu.fast.fault),
        Exit::Wait => Err(Stop::Wait),
        _ => {
            cpu.fast.event = 0;
            Ok(())
        }
    }
}

/// Puts RIP back to the branch that is at fault.
fn back(cpu: &mut Cpu, block: *mut Block, start: u64, fault: Fault) -> Fault {
    // SAFETY: the block has just run, and nothing has emptied the cache.
    cpu.rip = start.wrapping_add(unsafe { (*block).last }.into());
    fault
}

/// Finds where an exit leads, and links it.
#[inline(never)]
fn follow(cpu: &mut Cpu, block: *mut Block, exit: Exit, start: u64) -> Exec<*mut Block> {
    let branch = exit == Exit::Taken && (!is_canonical(cpu.rip) || cpu.rip > cpu.fast.rip_max);
    if branch {
        return Err(back(cpu, block, start, Fault::GP0));
    }
    let epoch = cpu.cache.epoch;
    let next = cpu.find_block()?;
    // SAFETY: `find_block` gives a block that exists; the one before does unless the cache has been emptied meanwhile.
    unsafe {
        if cpu.cache.epoch == epoch && (*next).lasting && (*block).lasting {
            (&mut (*block).links)[exit as usize] = Link { rip: cpu.rip, key: cpu.fast.key, block: next };
        }
    }
    Ok(next)
}

/// Delivers an exception.
fn deliver(cpu: &mut Cpu, fault: Fault) -> Result<(), Stop> {
    cpu.settle();
    cpu.fast.event = 0;
    cpu.counters.add(count::EXCEPTIONS, 1);
    cpu.turn_to(Activity::Deliver);
    let delivered = sys::deliver_fault(cpu, fault);
    cpu.turn_to(Activity::Dispatch);
    cpu.fast.event = 0;
    cpu.unsettle();
    delivered.map_err(|_| Stop::TripleFault)
}

/// Runs one instruction, with what is checked before and after each.
fn step(cpu: &mut Cpu) -> Result<(), Stop> {
    let exit = match debug::begin_step(cpu).and_then(|()| cpu.look_up_block(Want::Alone)) {
        Ok(block) => {
            cpu.fast.instructions += 1;
            let start = cpu.rip;
            let first = Block::ops(block);
            match (first.run)(cpu, first) {
                exit @ (Exit::Taken | Exit::Jump) if !is_canonical(cpu.rip) || cpu.rip > cpu.fast.rip_max => {
                    cpu.fast.fault = back(cpu, block, start, Fault::GP0);
                    debug_assert!(exit != Exit::Fault);
                    Exit::Fault
                }
                exit => exit,
            }
        }
        Err(fault) => {
            cpu.fast.fault = fault;
            Exit::Fault
        }
    };
    cpu.fast.event = 0;
    if exit == Exit::Fault {
        return deliver(cpu, cpu.fast.fault);
    }
    cpu.settle();
    if let Err(fault) = debug::end_step(cpu, exit == Exit::Again) {
        deliver(cpu, fault)?;
    }
    cpu.unsettle();
    if exit == Exit::Wait { Err(Stop::Wait) } else { Ok(()) }
}
