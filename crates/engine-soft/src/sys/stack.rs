//! A stack on which frames are made and taken apart, before anything in the processor changes.
//!
//! SDM volume 3, "Stack Switching", "Stack Switching in 64-bit Mode". What is stored below the stack pointer of a push that fails later is
//! lost anyway; registers change only in [`Stack::commit`].

use iced_x86::Instruction;
use umbra_x86::reg::gpr::{RBP, RSP};
use umbra_x86::segment::{Segment, access, sreg};

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::{is_canonical, mask};

/// A stack: segment, pointer, and at what privilege it is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack {
    segment: Segment,
    /// The stack pointer.
    pub sp: u64,
    /// Width of the stack pointer: 16, 32, 64.
    bits: u32,
    cpl: u8,
    /// What a violation of the segment raises.
    fault: Fault,
}

impl Stack {
    /// The stack in use.
    pub fn current(cpu: &Cpu) -> Self {
        let bits = u32::from(cpu.mode.stack);
        let sp = cpu.gpr[RSP] & mask(bits);
        Self { segment: cpu.seg[sreg::SS], sp, bits, cpl: cpu.mode.cpl, fault: Fault::SS0 }
    }

    /// Another stack, of an inner privilege level, in a segment of 16 or 32 bits.
    pub fn inner(segment: Segment, sp: u64, cpl: u8) -> Self {
        let bits = if segment.access & access::DB != 0 { 32 } else { 16 };
        Self { segment, sp: sp & mask(bits), bits, cpl, fault: Fault::ss(segment.selector) }
    }

    /// A stack of 64-bit mode.
    pub fn long(sp: u64, cpl: u8) -> Self {
        Self { segment: Segment::default(), sp, bits: 64, cpl, fault: Fault::SS0 }
    }

    fn linear(&self, offset: u64, len: u64) -> Exec<u64> {
        let last = offset.wrapping_add(len - 1);
        if self.bits == 64 {
            return if is_canonical(offset) && is_canonical(last) { Ok(offset) } else { Err(self.fault) };
        }
        let s = &self.segment;
        let expand_down = s.access & (access::CODE | access::DC) == access::DC;
        let top = mask(if s.access & access::DB != 0 { 32 } else { 16 });
        let inside = match expand_down {
            true => offset > u64::from(s.limit) && last <= top,
            false => last <= u64::from(s.limit),
        };
        if !inside || s.unusable {
            return Err(self.fault);
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes the low `bytes` bytes of `value`.
    pub fn push(&mut self, cpu: &mut Cpu, value: u64, bytes: u32) -> Exec {
        self.push_part(cpu, value, bytes, bytes)
    }

    /// Moves the pointer by `slot` bytes and writes the low `bytes` of them.
    pub fn push_part(&mut self, cpu: &mut Cpu, value: u64, slot: u32, bytes: u32) -> Exec {
        let sp = self.sp.wrapping_sub(u64::from(slot)) & mask(self.bits);
        let linear = self.linear(sp, u64::from(bytes))?;
        cpu.at_cpl(self.cpl, |cpu| match bytes {
            2 => cpu.store(linear, value as u16),
            4 => cpu.store(linear, value as u32),
            _ => cpu.store(linear, value),
        })?;
        self.sp = sp;
        Ok(())
    }

    /// Reads the value of `bytes` bytes that lies `offset` bytes above the pointer.
    pub fn peek(&self, cpu: &mut Cpu, offset: u64, bytes: u32) -> Exec<u64> {
        let at = self.sp.wrapping_add(offset) & mask(self.bits);
        let linear = self.linear(at, u64::from(bytes))?;
        cpu.at_cpl(self.cpl, |cpu| match bytes {
            2 => cpu.load::<u16>(linear).map(u64::from),
            4 => cpu.load::<u32>(linear).map(u64::from),
            _ => cpu.load::<u64>(linear),
        })
    }

    /// Pops a value of `bytes` bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, bytes: u32) -> Exec<u64> {
        let value = self.peek(cpu, 0, bytes)?;
        self.skip(u64::from(bytes));
        Ok(value)
    }

    /// Pops `N` values of `bytes` bytes. The deepest is read first and comes first: that is the order in which processors read the frames of
    /// returns, and in which these fault.
    pub fn pop_all<const N: usize>(&mut self, cpu: &mut Cpu, bytes: u32) -> Exec<[u64; N]> {
        let mut values = [0; N];
        for (n, value) in (0..N as u64).rev().zip(&mut values) {
            *value = self.peek(cpu, n * u64::from(bytes), bytes)?;
        }
        self.skip(N as u64 * u64::from(bytes));
        Ok(values)
    }

    /// Moves the pointer up.
    pub fn skip(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & mask(self.bits);
    }

    /// Makes the pointer that of the processor; the part of RSP above the stack's width stays where the width is 16.
    pub fn commit(self, cpu: &mut Cpu) {
        cpu.set_gpr(RSP, self.bits, self.sp);
    }
}

impl Cpu {
    /// Does memory accesses at another privilege level.
    pub(super) fn at_cpl<R>(&mut self, cpl: u8, f: impl FnOnce(&mut Self) -> Exec<R>) -> Exec<R> {
        let own = self.mode.cpl;
        if cpl == own {
            return f(self);
        }
        self.mode.cpl = cpl;
        self.update_context();
        let result = f(self);
        self.mode.cpl = own;
        self.update_context();
        result
    }
}

/// ENTER: makes a stack frame with up to 31 pointers to outer frames.
pub(super) fn enter(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let slot = match i.code() {
        iced_x86::Code::Enterw_imm16_imm8 => 2u32,
        iced_x86::Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let (bytes, level) = (u64::from(i.immediate16()), u64::from(i.immediate8_2nd() & 31));
    let mut stack = Stack::current(cpu);
    let bits = stack.bits;
    let rbp = cpu.gpr[RBP];
    stack.push(cpu, rbp, slot)?;
    // All of RSP, the part above a 16-bit stack pointer too.
    let frame = cpu.gpr[RSP] & !mask(bits) | stack.sp;
    for n in 1..level {
        let at = Stack { sp: rbp.wrapping_sub(n * u64::from(slot)) & mask(bits), ..stack };
        let outer = at.peek(cpu, 0, slot)?;
        stack.push(cpu, outer, slot)?;
    }
    if level > 0 {
        stack.push(cpu, frame, slot)?;
    }
    let sp = stack.sp.wrapping_sub(bytes) & mask(bits);
    let probe = stack.linear(sp, u64::from(slot))?;
    cpu.host(probe, u64::from(slot), true)?;
    Stack { sp, ..stack }.commit(cpu);
    cpu.set_gpr(RBP, slot * 8, frame);
    Ok(Flow::Next)
}

/// LEAVE: undoes ENTER.
pub(super) fn leave(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let slot = match i.code() {
        iced_x86::Code::Leavew => 2u32,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    };
    let mut stack = Stack::current(cpu);
    stack.sp = cpu.gpr[RBP] & mask(stack.bits);
    let value = stack.pop(cpu, slot)?;
    stack.commit(cpu);
    cpu.set_gpr(RBP, slot * 8, value);
    Ok(Flow::Next)
}
