//! Delivery of exceptions and interrupts.
//!
//! SDM volume 3, chapter "Interrupt and Exception Handling"; volume 2, INT n; for virtual-8086 mode volume 3, "Interrupt and Exception Handling in
//! Virtual-8086 Mode". Nothing of the processor changes before all of a frame is on its stack.

use iced_x86::{Code, Instruction};
use umbra_engine::RunState;
use umbra_x86::reg::Rflags;
use umbra_x86::segment::{Segment, access, sreg};

use super::debug::DR7_GD;
use super::descriptor::{Descriptor, is_null, kind};
use super::segment::null_segment;
use super::stack::Stack;
use super::{TripleFault, task};
use crate::cpu::{Cpu, Shadow};
use crate::fault::{Exec, Fault, Flow};
use crate::operand::mask;

const NMI: u8 = 2;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;

/// What is delivered.
#[derive(Debug, Clone, Copy)]
struct Event {
    vector: u8,
    error: Option<u32>,
    /// INT n, INT3 or INTO: checked against the gate's privilege level, and not external to the program.
    is_software: bool,
    /// Where the handler returns to.
    back: u64,
    /// The flags that the handler finds on its stack.
    flags: u64,
}

/// A gate of the IDT.
#[derive(Debug, Clone, Copy)]
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    /// Interrupts stay enabled.
    is_trap: bool,
    /// Width of what is pushed.
    bytes: u32,
}

/// The error code that names a gate of the IDT.
fn idt_error(vector: u8) -> u32 {
    u32::from(vector) * 8 + 2
}

fn idt_fault(fault: fn(u16) -> Fault, vector: u8) -> Fault {
    Fault { error: idt_error(vector), ..fault(0) }
}

/// Exceptions that make a double fault of one another (volume 3, table "Interrupt and Exception Classes").
fn is_contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13 | 21)
}

/// What comes of fault `second` in the delivery of fault `first`: `None` is the end.
fn combine(first: u8, second: Fault) -> Option<Fault> {
    let serious = is_contributory(second.vector) || second.vector == PAGE_FAULT;
    match first {
        DOUBLE_FAULT if serious => None,
        PAGE_FAULT if serious => Some(DOUBLE),
        _ if is_contributory(first) && is_contributory(second.vector) => Some(DOUBLE),
        _ => Some(second),
    }
}

const DOUBLE: Fault = Fault { vector: DOUBLE_FAULT, has_error: true, error: 0 };

/// Delivers an exception that the instruction at RIP raised, or a debug trap before it. What happens on the way is delivered instead or becomes a double
/// fault.
///
/// # Errors
/// A triple fault: the processor shuts down.
pub fn deliver_fault(cpu: &mut Cpu, fault: Fault) -> Result<(), TripleFault> {
    let mut fault = fault;
    // A trap after HLT ends it.
    cpu.run_state = RunState::Running;
    cpu.ending_shadow = Shadow::None;
    // A benign exception may be followed by one of each class before a double and a triple fault.
    for _ in 0..8 {
        let mut flags = cpu.rflags;
        if fault.vector == PAGE_FAULT {
            cpu.cr2 = cpu.fault_address;
        }
        if fault.vector != Fault::DB.vector {
            flags |= Rflags::RF.bits();
        }
        let error = fault.has_error.then_some(fault.error);
        let event = Event { vector: fault.vector, error, is_software: false, back: cpu.rip, flags };
        let Err(second) = cpu.deliver(event) else { return Ok(()) };
        if second.vector == PAGE_FAULT {
            cpu.cr2 = cpu.fault_address;
        }
        fault = combine(fault.vector, second).ok_or(TripleFault)?;
    }
    Err(TripleFault)
}

/// Delivers a maskable interrupt. The caller has seen to RFLAGS.IF and the shadow.
///
/// # Errors
/// A triple fault on the way.
pub fn deliver_interrupt(cpu: &mut Cpu, vector: u8) -> Result<(), TripleFault> {
    let event = Event { vector, error: None, is_software: false, back: cpu.rip, flags: cpu.rflags };
    match cpu.deliver(event) {
        Ok(()) => Ok(()),
        Err(fault) => deliver_fault(cpu, fault),
    }
}

/// Delivers an NMI and holds off others until IRET. The caller has seen to both that and the shadow.
///
/// # Errors
/// A triple fault on the way.
pub fn deliver_nmi(cpu: &mut Cpu) -> Result<(), TripleFault> {
    cpu.nmi_masked = true;
    deliver_interrupt(cpu, NMI)
}

/// INT n, INT3 and INTO: `next_rip` is where the handler returns to. Sets RIP. What the delivery raises is raised by the instruction.
fn software_interrupt(cpu: &mut Cpu, vector: u8, next_rip: u64) -> Exec {
    cpu.deliver(Event { vector, error: None, is_software: true, back: next_rip, flags: cpu.rflags })
}

impl Cpu {
    fn deliver(&mut self, event: Event) -> Exec {
        let delivered =
            if self.mode.protected { self.deliver_protected(event) } else { self.deliver_real(event) };
        // The EXT bit says that the program did not ask for what went wrong. It is part of the codes with a selector only.
        delivered.map_err(|f| match f.vector {
            10..=13 if !event.is_software => Fault { error: f.error | 1, ..f },
            _ => f,
        })
    }

    /// What every delivery ends with.
    fn begin_handler(&mut self, event: Event, clear: Rflags) {
        let clear = clear | Rflags::TF | Rflags::RF;
        self.rflags &= !clear.bits();
        self.shadow = Shadow::None;
        self.debug_pending = 0;
        if event.vector == Fault::DB.vector && !event.is_software {
            self.dr7 &= !DR7_GD;
        }
        self.update_mode();
    }

    fn deliver_real(&mut self, event: Event) -> Exec {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(Fault::GP0);
        }
        let entry: u32 = self.load_system(self.system_address(self.idtr.base, at))?;
        let mut stack = Stack::current(self);
        stack.push(self, event.flags, 2)?;
        stack.push(self, u64::from(self.seg[sreg::CS].selector), 2)?;
        stack.push(self, event.back, 2)?;
        stack.commit(self);
        self.seg[sreg::CS] = self.real_segment(sreg::CS, (entry >> 16) as u16);
        self.rip = u64::from(entry & 0xffff);
        self.begin_handler(event, Rflags::IF | Rflags::AC);
        Ok(())
    }

    fn deliver_protected(&mut self, event: Event) -> Exec {
        let (d, upper) = self.idt_entry(event.vector)?;
        let gate_kind = d.system_kind().unwrap_or(0);
        let possible = match gate_kind {
            kind::INTERRUPT32 | kind::TRAP32 => true,
            kind::TASK_GATE | kind::INTERRUPT16 | kind::TRAP16 => !self.mode.long,
            _ => false,
        };
        if !possible || event.is_software && d.dpl() < self.mode.cpl {
            return Err(idt_fault(Fault::gp, event.vector));
        }
        if !d.is_present() {
            return Err(idt_fault(Fault::np, event.vector));
        }
        if gate_kind == kind::TASK_GATE {
            let tss = self.gate_tss(&d)?;
            return self.switch_task(tss, task::How::Interrupt(event.error), event.back, event.flags);
        }
        let wide = matches!(gate_kind, kind::INTERRUPT32 | kind::TRAP32);
        let high = if wide { d.raw >> 48 << 16 } else { 0 };
        let gate = Gate {
            selector: (d.raw >> 16) as u16,
            offset: d.raw & 0xffff | high | upper << 32,
            ist: if self.mode.long { (d.raw >> 32 & 7) as u8 } else { 0 },
            is_trap: matches!(gate_kind, kind::TRAP16 | kind::TRAP32),
            bytes: if self.mode.long {
                8
            } else if wide {
                4
            } else {
                2
            },
        };
        self.enter_gate(event, gate)
    }

    /// The entry of the IDT, and in long mode the upper half of its offset.
    fn idt_entry(&mut self, vector: u8) -> Exec<(Descriptor, u64)> {
        let size = if self.mode.long { 16 } else { 8 };
        let at = u64::from(vector) * size;
        if at + size - 1 > u64::from(self.idtr.limit) {
            return Err(idt_fault(Fault::gp, vector));
        }
        let address = self.system_address(self.idtr.base, at);
        let raw = self.load_system(address)?;
        let upper: u32 = if size == 16 { self.load_system(address.wrapping_add(8))? } else { 0 };
        Ok((Descriptor { raw, address, selector: 0 }, u64::from(upper)))
    }

    /// The code segment of a gate; it must not be of an outer level.
    fn handler_code(&mut self, selector: u16) -> Exec<Descriptor> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.fetch_descriptor(selector, Fault::gp)?;
        let fits = !self.mode.long || d.access() & (access::L | access::DB) == access::L;
        if !d.is_code() || d.dpl() > self.mode.cpl || !fits {
            return Err(Fault::gp(selector));
        }
        if d.is_present() { Ok(d) } else { Err(Fault::np(selector)) }
    }

    fn enter_gate(&mut self, event: Event, gate: Gate) -> Exec {
        let code = self.handler_code(gate.selector)?;
        let cpl = self.mode.cpl;
        let inner = !code.is_conforming() && code.dpl() < cpl;
        // From virtual-8086 mode the only way leads to level 0.
        if self.mode.v86 && (!inner || code.dpl() != 0) {
            return Err(Fault::gp(gate.selector));
        }
        let new = if inner { code.dpl() } else { cpl };
        let (ss, mut stack) = self.handler_stack(gate, inner, new)?;
        let target = self.code_target(code, gate.offset, new)?;
        self.push_frame(event, gate, inner, &mut stack)?;
        if self.mode.v86 {
            for n in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
                self.seg[n] = null_segment(0, 0);
            }
        }
        self.seg[sreg::SS] = ss;
        self.seg[sreg::CS] = target.cs;
        self.rip = target.rip;
        let disable = if gate.is_trap { Rflags::empty() } else { Rflags::IF };
        self.begin_handler(event, Rflags::NT | Rflags::VM | disable);
        stack.commit(self);
        Ok(())
    }

    /// The stack that a handler at level `cpl` runs on, and what SS shall hold.
    fn handler_stack(&mut self, gate: Gate, inner: bool, cpl: u8) -> Exec<(Segment, Stack)> {
        if !self.mode.long {
            return if inner { self.tss_stack(cpl) } else { Ok((self.seg[sreg::SS], Stack::current(self))) };
        }
        let rsp = match gate.ist {
            0 if inner => self.tss_rsp(cpl)?,
            0 => self.rsp(),
            n => self.tss_ist(n)?,
        };
        let ss = if inner { null_segment(u16::from(cpl), cpl) } else { self.seg[sreg::SS] };
        Ok((ss, Stack::long(rsp & !0xf, cpl)))
    }

    fn push_frame(&mut self, event: Event, gate: Gate, inner: bool, stack: &mut Stack) -> Exec {
        let bytes = gate.bytes;
        if self.mode.v86 {
            for n in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                stack.push(self, u64::from(self.seg[n].selector), bytes)?;
            }
        }
        if inner || self.mode.long {
            stack.push(self, u64::from(self.seg[sreg::SS].selector), bytes)?;
            stack.push(self, self.rsp(), bytes)?;
        }
        stack.push(self, event.flags, bytes)?;
        stack.push(self, u64::from(self.seg[sreg::CS].selector), bytes)?;
        stack.push(self, event.back & mask(bytes * 8), bytes)?;
        match event.error {
            Some(error) => stack.push(self, u64::from(error), bytes),
            None => Ok(()),
        }
    }
}

/// INT n. In virtual-8086 mode it needs IOPL 3 (virtual-mode extensions are not offered).
pub(super) fn int_n(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if cpu.mode.v86 && cpu.iopl() < 3 {
        return Err(Fault::GP0);
    }
    soft(cpu, i, i.immediate8())
}

/// INT3.
pub(super) fn int3(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    soft(cpu, i, 3)
}

/// INTO.
pub(super) fn into(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if !cpu.flag(Rflags::OF) {
        return Ok(Flow::Next);
    }
    soft(cpu, i, 4)
}

fn soft(cpu: &mut Cpu, i: &Instruction, vector: u8) -> Exec<Flow> {
    software_interrupt(cpu, vector, cpu.next_rip(i))?;
    Ok(Flow::Jump)
}

/// INT1: a debug exception that no privilege check stops, and that is external to the program.
pub(super) fn int1(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let event =
        Event { vector: 1, error: None, is_software: false, back: cpu.next_rip(i), flags: cpu.rflags };
    cpu.deliver(event)?;
    Ok(Flow::Jump)
}

/// BOUND.
pub(super) fn bound(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let index = cpu.reg(i.op0_register());
    let inside = if i.code() == Code::Bound_r16_m1616 {
        let pair = cpu.operand::<u32>(i, 1)?;
        (i32::from(pair as i16)..=i32::from((pair >> 16) as i16)).contains(&i32::from(index as i16))
    } else {
        let pair = cpu.operand::<u64>(i, 1)?;
        (pair as i32..=(pair >> 32) as i32).contains(&(index as i32))
    };
    if inside { Ok(Flow::Next) } else { Err(Fault::BR) }
}
