//! Far JMP and CALL, direct and through gates, and far RET.
//!
//! SDM volume 2, CALL, JMP, RET; volume 3, "Privilege Level Checking When Transferring Program Control Between Code Segments".

use iced_x86::{Code, Instruction};
use umbra_x86::reg::gpr::RSP;
use umbra_x86::segment::{Segment, access, sreg};

use super::descriptor::{Descriptor, is_null, kind, rpl, with_rpl};
use super::segment::{far_pointer, null_segment, v86_segment};
use super::stack::Stack;
use super::task;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::{is_canonical, mask};

/// A code segment that has been checked, as CS shall hold it, and the offset in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub cs: Segment,
    pub rip: u64,
}

impl Target {
    /// Goes there. The privilege level is that of SS, which is set by whoever changes it.
    pub fn enter(self, cpu: &mut Cpu) -> Flow {
        cpu.rip = self.rip;
        cpu.set_segment(sreg::CS, self.cs);
        Flow::Jump
    }
}

/// What a far transfer's operand says, and its operand size in bytes.
#[derive(Debug, Clone, Copy)]
struct Operand {
    selector: u16,
    offset: u64,
    bytes: u32,
}

impl Operand {
    fn of(cpu: &mut Cpu, i: &Instruction) -> Exec<Self> {
        let (offset, selector, bytes) = match i.code() {
            Code::Jmp_ptr1616 | Code::Call_ptr1616 => {
                (u64::from(i.far_branch16()), i.far_branch_selector(), 2)
            }
            Code::Jmp_ptr1632 | Code::Call_ptr1632 => {
                (u64::from(i.far_branch32()), i.far_branch_selector(), 4)
            }
            _ => {
                let (offset, selector) = far_pointer(cpu, i)?;
                (offset, selector, i.memory_size().size() as u32 - 2)
            }
        };
        Ok(Self { selector, offset, bytes })
    }
}

impl Cpu {
    /// Real and virtual-8086 mode: a code segment at `selector`. The offset must lie inside.
    pub(super) fn real_target(&self, selector: u16, rip: u64) -> Exec<Target> {
        let cs = if self.mode.v86 { v86_segment(selector) } else { self.real_segment(sreg::CS, selector) };
        if rip > u64::from(cs.limit) {
            return Err(Fault::GP0);
        }
        Ok(Target { cs, rip })
    }

    /// Whether `rip` can be fetched from in the code segment.
    pub(super) fn check_entry(&self, cs: &Segment, rip: u64) -> Exec {
        let is_long = self.mode.long && cs.access & access::L != 0;
        let inside = if is_long { is_canonical(rip) } else { rip <= u64::from(cs.limit) };
        if inside { Ok(()) } else { Err(Fault::GP0) }
    }

    /// What both a transfer and a return demand of a code segment: not 64-bit and 32-bit at once in long mode, and present.
    pub(super) fn check_code_segment(&self, d: &Descriptor) -> Exec {
        if self.mode.long && d.access() & (access::L | access::DB) == access::L | access::DB {
            return Err(Fault::gp(d.selector));
        }
        if d.is_present() { Ok(()) } else { Err(Fault::np(d.selector)) }
    }

    /// Marks the code segment accessed and makes the target at privilege level `cpl`. The offset is checked first; outside of 64-bit code it has 32 bits,
    /// whatever the operand size.
    pub(super) fn code_target(&mut self, mut d: Descriptor, rip: u64, cpl: u8) -> Exec<Target> {
        let is_long = self.mode.long && d.is_long_code();
        let rip = if is_long { rip } else { rip & 0xffff_ffff };
        self.check_entry(&d.segment(), rip)?;
        d.mark_accessed(self)?;
        let cs = Segment { selector: with_rpl(d.selector, cpl), ..d.segment() };
        Ok(Target { cs, rip })
    }

    /// A far transfer straight to a code segment: the privilege level stays.
    fn direct_target(&mut self, d: Descriptor, rip: u64) -> Exec<Target> {
        let cpl = self.mode.cpl;
        let allowed =
            if d.is_conforming() { d.dpl() <= cpl } else { d.dpl() == cpl && rpl(d.selector) <= cpl };
        if !allowed {
            return Err(Fault::gp(d.selector));
        }
        self.check_code_segment(&d)?;
        self.code_target(d, rip, cpl)
    }

    /// Checks the access to a gate or TSS descriptor.
    fn check_gate(&self, d: &Descriptor) -> Exec {
        if d.dpl() < self.mode.cpl || d.dpl() < rpl(d.selector) {
            return Err(Fault::gp(d.selector));
        }
        if d.is_present() { Ok(()) } else { Err(Fault::np(d.selector)) }
    }

    /// The code segment that a call gate leads to.
    fn gate_code(&mut self, gate: &Descriptor) -> Exec<(Descriptor, u64)> {
        self.check_gate(gate)?;
        let upper = self.fetch_upper_half(gate, Fault::gp)?;
        let selector = (gate.raw >> 16) as u16;
        let wide = gate.system_kind() == Some(kind::CALL32);
        let high = if wide { gate.raw >> 48 << 16 } else { 0 };
        let rip = gate.raw & 0xffff | high | upper << 32;
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.fetch_descriptor(selector, Fault::gp)?;
        let fits = !self.mode.long || d.access() & (access::L | access::DB) == access::L;
        if !d.is_code() || d.dpl() > self.mode.cpl || !fits {
            return Err(Fault::gp(selector));
        }
        if !d.is_present() {
            return Err(Fault::np(selector));
        }
        Ok((d, rip))
    }

    /// What a selector of a far transfer names: a code segment or a system descriptor that can be a target.
    fn transfer_descriptor(&mut self, selector: u16) -> Exec<Descriptor> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.fetch_descriptor(selector, Fault::gp)?;
        let possible = match d.system_kind() {
            None => d.is_code(),
            Some(kind::CALL32) => true,
            Some(kind::CALL16 | kind::TASK_GATE | kind::TSS16 | kind::TSS32) => !self.mode.long,
            Some(_) => false,
        };
        if possible { Ok(d) } else { Err(Fault::gp(selector)) }
    }

    /// Switches to the task that a TSS descriptor or task gate names; this one goes on at `back`.
    fn transfer_task(&mut self, d: Descriptor, how: task::How, back: u64) -> Exec<Flow> {
        self.check_gate(&d)?;
        let tss = match d.system_kind() {
            Some(kind::TASK_GATE) => self.gate_tss(&d)?,
            _ => d,
        };
        self.switch_task(tss, how, back, self.rflags)?;
        Ok(Flow::Jump)
    }

    /// The available, present TSS that a task gate names.
    pub(super) fn gate_tss(&mut self, gate: &Descriptor) -> Exec<Descriptor> {
        let selector = (gate.raw >> 16) as u16;
        if selector & 4 != 0 || is_null(selector) {
            return Err(Fault::gp(selector));
        }
        let tss = self.fetch_descriptor(selector, Fault::gp)?;
        if !matches!(tss.system_kind(), Some(kind::TSS16 | kind::TSS32)) {
            return Err(Fault::gp(selector));
        }
        if tss.is_present() { Ok(tss) } else { Err(Fault::np(selector)) }
    }
}

/// Far JMP.
pub(super) fn jmp(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let o = Operand::of(cpu, i)?;
    if !cpu.mode.protected || cpu.mode.v86 {
        return Ok(cpu.real_target(o.selector, o.offset)?.enter(cpu));
    }
    let d = cpu.transfer_descriptor(o.selector)?;
    let target = match d.system_kind() {
        None => cpu.direct_target(d, o.offset)?,
        Some(kind::CALL16 | kind::CALL32) => {
            let (code, rip) = cpu.gate_code(&d)?;
            let cpl = cpu.mode.cpl;
            if !code.is_conforming() && code.dpl() != cpl {
                return Err(Fault::gp(code.selector));
            }
            cpu.code_target(code, rip, cpl)?
        }
        Some(_) => return cpu.transfer_task(d, task::How::Jmp, cpu.next_rip(i)),
    };
    Ok(target.enter(cpu))
}

/// Far CALL.
pub(super) fn call(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let o = Operand::of(cpu, i)?;
    let back = cpu.next_rip(i);
    if !cpu.mode.protected || cpu.mode.v86 {
        let target = cpu.real_target(o.selector, o.offset)?;
        return call_same(cpu, target, back, o.bytes);
    }
    let d = cpu.transfer_descriptor(o.selector)?;
    match d.system_kind() {
        None => {
            let target = cpu.direct_target(d, o.offset)?;
            call_same(cpu, target, back, o.bytes)
        }
        Some(kind::CALL16 | kind::CALL32) => call_gate(cpu, &d, back),
        Some(_) => cpu.transfer_task(d, task::How::Call, back),
    }
}

/// A call that stays on its stack.
fn call_same(cpu: &mut Cpu, target: Target, back: u64, bytes: u32) -> Exec<Flow> {
    let mut stack = Stack::current(cpu);
    stack.push(cpu, u64::from(cpu.seg[sreg::CS].selector), bytes)?;
    stack.push(cpu, back, bytes)?;
    stack.commit(cpu);
    Ok(target.enter(cpu))
}

fn call_gate(cpu: &mut Cpu, gate: &Descriptor, back: u64) -> Exec<Flow> {
    let (code, rip) = cpu.gate_code(gate)?;
    let cpl = cpu.mode.cpl;
    let bytes = match gate.system_kind() {
        _ if cpu.mode.long => 8,
        Some(kind::CALL32) => 4,
        _ => 2,
    };
    let rip = rip & mask(bytes * 8);
    if code.is_conforming() || code.dpl() == cpl {
        let target = cpu.code_target(code, rip, cpl)?;
        return if cpu.mode.long {
            call_same_long(cpu, target, back)
        } else {
            call_same(cpu, target, back, bytes)
        };
    }
    let new = code.dpl();
    let (ss, mut stack) = if cpu.mode.long {
        let rsp = cpu.tss_rsp(new)?;
        (null_segment(u16::from(new), new), Stack::long(rsp, new))
    } else {
        cpu.tss_stack(new)?
    };
    let target = cpu.code_target(code, rip, new)?;
    let old = Stack::current(cpu);
    let rsp = cpu.gpr[RSP];
    stack.push(cpu, u64::from(cpu.seg[sreg::SS].selector), bytes)?;
    stack.push(cpu, rsp, bytes)?;
    if !cpu.mode.long {
        for n in (0..gate.raw >> 32 & 31).rev() {
            let parameter = old.peek(cpu, n * u64::from(bytes), bytes)?;
            stack.push(cpu, parameter, bytes)?;
        }
    }
    stack.push(cpu, u64::from(cpu.seg[sreg::CS].selector), bytes)?;
    stack.push(cpu, back, bytes)?;
    cpu.seg[sreg::SS] = ss;
    stack.commit(cpu);
    Ok(target.enter(cpu))
}

/// A call through a 64-bit gate at the same level: the stack may be that of compatibility mode, but is used as 64-bit code will.
fn call_same_long(cpu: &mut Cpu, target: Target, back: u64) -> Exec<Flow> {
    let mut stack = Stack::long(cpu.gpr[RSP], cpu.mode.cpl);
    stack.push(cpu, u64::from(cpu.seg[sreg::CS].selector), 8)?;
    stack.push(cpu, back, 8)?;
    stack.commit(cpu);
    Ok(target.enter(cpu))
}

/// Far RET.
pub(super) fn ret(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let bytes = match i.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let extra = match i.code() {
        Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16 => u64::from(i.immediate16()),
        _ => 0,
    };
    let mut stack = Stack::current(cpu);
    let [selector, rip] = stack.pop_all(cpu, bytes)?;
    let selector = selector as u16;
    if !cpu.mode.protected || cpu.mode.v86 {
        let target = cpu.real_target(selector, rip)?;
        stack.skip(extra);
        stack.commit(cpu);
        return Ok(target.enter(cpu));
    }
    stack.skip(extra);
    let code = cpu.return_code(selector)?;
    if rpl(selector) == cpu.mode.cpl {
        let target = cpu.code_target(code, rip, rpl(selector))?;
        stack.commit(cpu);
        return Ok(target.enter(cpu));
    }
    let [ss, sp] = stack.pop_all(cpu, bytes)?;
    let mut back = OuterReturn::check(cpu, code, rip, ss as u16)?;
    back.sp = sp.wrapping_add(extra);
    Ok(back.commit(cpu))
}

impl Cpu {
    /// Checks the code segment that a far return or IRET goes back to.
    pub(super) fn return_code(&mut self, selector: u16) -> Exec<Descriptor> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.fetch_descriptor(selector, Fault::gp)?;
        let level = rpl(selector);
        let allowed = if d.is_conforming() { d.dpl() <= level } else { d.dpl() == level };
        if !d.is_code() || level < self.mode.cpl || !allowed {
            return Err(Fault::gp(selector));
        }
        self.check_code_segment(&d)?;
        Ok(d)
    }

    /// A return to an outer level takes away the data segments that this level must not reach. Null selectors become zero; a base of FS or GS
    /// that was set without a descriptor stays.
    fn drop_inner_segments(&mut self) {
        for n in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
            let s = &mut self.seg[n];
            let conforming = s.access & (access::CODE | access::DC) == access::CODE | access::DC;
            if s.unusable {
                s.selector = 0;
            } else if !conforming && s.dpl() < self.mode.cpl {
                *s = null_segment(0, 0);
            }
        }
        self.update_mode();
    }
}

/// A return that loads SS and the stack pointer too: to an outer level, or by IRET in 64-bit mode.
#[derive(Debug, Clone, Copy)]
pub(super) struct OuterReturn {
    target: Target,
    ss: Segment,
    /// The stack pointer to load.
    pub sp: u64,
    is_outer: bool,
}

impl OuterReturn {
    /// Checks the selector of the stack and the offset in the code segment. `sp` is the caller's to set.
    pub fn check(cpu: &mut Cpu, code: Descriptor, rip: u64, ss: u16) -> Exec<Self> {
        let level = rpl(code.selector);
        let is_outer = level > cpu.mode.cpl;
        let ss = if is_null(ss) {
            let allowed = cpu.mode.long && code.is_long_code() && level < 3 && rpl(ss) < 3;
            if !allowed {
                return Err(Fault::GP0);
            }
            null_segment(ss, level)
        } else {
            cpu.stack_segment(ss, level, Fault::gp)?
        };
        let target = cpu.code_target(code, rip, level)?;
        Ok(Self { target, ss, sp: 0, is_outer })
    }

    /// Returns.
    pub fn commit(self, cpu: &mut Cpu) -> Flow {
        cpu.seg[sreg::SS] = self.ss;
        self.target.enter(cpu);
        let bits = u32::from(cpu.mode.stack);
        cpu.set_gpr(RSP, bits, self.sp);
        if self.is_outer {
            cpu.drop_inner_segments();
        }
        Flow::Jump
    }
}
