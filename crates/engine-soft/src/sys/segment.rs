//! Loads of segment registers: MOV, POP, LDS and friends.
//!
//! SDM volume 2, MOV, POP, LDS/LES/LFS/LGS/LSS; volume 3, "Privilege Level Checking When Accessing Data Segments" and "Segment
//! Loading Instructions in IA-32e Mode".

use iced_x86::{Instruction, OpKind, Register};
use umbra_x86::segment::{Segment, access, sreg};

use super::cpuid::{is_amd, null_selector_clears_base};
use super::descriptor::{is_null, rpl};
use super::stack::Stack;
use crate::cpu::{Cpu, Shadow};
use crate::fault::{Exec, Fault, Flow};
use crate::operand::segment_number;

/// The segment register as virtual-8086 mode has it.
pub(super) fn v86_segment(selector: u16) -> Segment {
    let access = access::P | access::DPL | access::S | access::RW | access::ACCESSED;
    Segment { base: u64::from(selector) << 4, limit: 0xffff, selector, access, unusable: false }
}

/// A segment register with a null selector. `dpl` counts for SS alone, where it is the CPL.
pub(super) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, access: u16::from(dpl) << access::DPL_SHIFT, unusable: true, ..Segment::default() }
}

impl Cpu {
    /// Replaces a segment register and derives the mode.
    pub(super) fn set_segment(&mut self, n: usize, segment: Segment) {
        self.seg[n] = segment;
        self.update_mode();
    }

    /// A segment register as real mode loads it: base and selector only, limit and attributes stay.
    pub(super) fn real_segment(&self, n: usize, selector: u16) -> Segment {
        let old = self.seg[n];
        if old.unusable {
            return Segment::real(selector, n == sreg::CS);
        }
        Segment { selector, base: u64::from(selector) << 4, ..old }
    }

    /// Checks `selector` for data segment register `n` (or SS) and makes what the register shall hold. Sets the accessed bit; the register is
    /// unchanged.
    pub(super) fn prepare_segment(&mut self, n: usize, selector: u16) -> Exec<Segment> {
        if !self.mode.protected {
            return Ok(self.real_segment(n, selector));
        }
        if self.mode.v86 {
            return Ok(v86_segment(selector));
        }
        if n == sreg::SS {
            return self.prepare_ss(selector);
        }
        if is_null(selector) {
            let base = if null_selector_clears_base(self) { 0 } else { self.seg[n].base };
            return Ok(Segment { base, ..null_segment(selector, 0) });
        }
        let mut d = self.fetch_descriptor(selector, Fault::gp)?;
        let cpl = self.mode.cpl;
        if !d.is_readable() || !d.is_conforming() && (rpl(selector) > d.dpl() || cpl > d.dpl()) {
            return Err(Fault::gp(selector));
        }
        if !d.is_present() {
            return Err(Fault::np(selector));
        }
        d.mark_accessed(self)?;
        Ok(d.segment())
    }

    fn prepare_ss(&mut self, selector: u16) -> Exec<Segment> {
        let cpl = self.mode.cpl;
        if is_null(selector) {
            let allowed = self.mode.code == 64 && cpl < 3 && rpl(selector) == cpl;
            return if allowed { Ok(null_segment(selector, cpl)) } else { Err(Fault::GP0) };
        }
        self.stack_segment(selector, cpl, Fault::gp)
    }

    /// Checks a selector that is not null for SS at privilege level `cpl`; sets the accessed bit. What is wrong but for presence is
    /// reported by `report`.
    pub(super) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        report: fn(u16) -> Fault,
    ) -> Exec<Segment> {
        let mut d = self.fetch_descriptor(selector, report)?;
        if rpl(selector) != cpl || d.dpl() != cpl || !d.is_writable_data() {
            return Err(report(selector));
        }
        if !d.is_present() {
            return Err(Fault::ss(selector));
        }
        d.mark_accessed(self)?;
        Ok(d.segment())
    }

    /// After MOV and POP to SS: interrupts and debug traps wait for the next instruction, unless this one was waited for itself.
    fn hold_interrupts(&mut self) {
        if self.ending_shadow != Shadow::MovSs {
            self.shadow = Shadow::MovSs;
        }
    }

    /// Puts `segment` into register `n` and says how the instruction ends.
    fn finish_load(&mut self, n: usize, segment: Segment) -> Flow {
        let before = self.mode;
        self.set_segment(n, segment);
        if self.mode == before { Flow::Next } else { Flow::End }
    }
}

/// MOV to a segment register.
pub(super) fn mov_to_sreg(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = segment_number(i.op0_register()).filter(|n| *n != sreg::CS).ok_or(Fault::UD)?;
    let selector = cpu.operand::<u16>(i, 1)?;
    let segment = cpu.prepare_segment(n, selector)?;
    let flow = cpu.finish_load(n, segment);
    if n == sreg::SS {
        cpu.hold_interrupts();
        return Ok(Flow::End);
    }
    Ok(flow)
}

/// MOV from a segment register: 16 bits to memory, zero-extended to a wider register.
pub(super) fn mov_from_sreg(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let selector = cpu.reg(i.op1_register()) as u16;
    store_selector(cpu, i, selector)?;
    Ok(Flow::Next)
}

/// Writes a selector to operand 0: 16 bits to memory, zero-extended to a wider register.
pub(super) fn store_selector(cpu: &mut Cpu, i: &Instruction, selector: u16) -> Exec {
    cpu.set_operand(i, 0, selector)
}

/// The bytes that PUSH and POP of a segment register move the stack pointer by.
fn slot(i: &Instruction) -> u32 {
    i.stack_pointer_increment().unsigned_abs()
}

/// PUSH of a segment register. Intel's processors write 16 bits whatever the size of the slot, AMD's all of it.
pub(super) fn push_sreg(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let value = cpu.reg(i.op0_register());
    let slot = slot(i);
    // Intel's processors write two bytes of four, but all eight.
    let written = if is_amd(cpu) || slot == 8 { slot } else { 2 };
    let mut stack = Stack::current(cpu);
    stack.push_part(cpu, value, slot, written)?;
    stack.commit(cpu);
    Ok(Flow::Next)
}

/// POP to a segment register.
pub(super) fn pop_sreg(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let n = segment_number(i.op0_register()).filter(|n| *n != sreg::CS).ok_or(Fault::UD)?;
    let mut stack = Stack::current(cpu);
    let selector = stack.pop(cpu, slot(i))? as u16;
    let segment = cpu.prepare_segment(n, selector)?;
    stack.commit(cpu);
    let flow = cpu.finish_load(n, segment);
    if n == sreg::SS {
        cpu.hold_interrupts();
        return Ok(Flow::End);
    }
    Ok(flow)
}

/// LDS, LES, LFS, LGS, LSS.
pub(super) fn load_far_pointer(cpu: &mut Cpu, i: &Instruction, n: usize) -> Exec<Flow> {
    if i.op1_kind() != OpKind::Memory {
        return Err(Fault::UD);
    }
    let (offset, selector) = far_pointer(cpu, i)?;
    let segment = cpu.prepare_segment(n, selector)?;
    let target: Register = i.op0_register();
    let flow = cpu.finish_load(n, segment);
    cpu.set_reg(target, offset);
    Ok(flow)
}

/// The far pointer m16:16, m16:32 or m16:64 in memory: offset and selector.
pub(super) fn far_pointer(cpu: &mut Cpu, i: &Instruction) -> Exec<(u64, u16)> {
    let size = i.memory_size().size();
    let mut data = [0; 10];
    let data = data.get_mut(..size).ok_or(Fault::UD)?;
    let linear = cpu.memory_operand(i, size as u64, false)?;
    cpu.load_bytes(linear, data)?;
    let (offset, selector) = data.split_at(size - 2);
    let offset = offset.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
    Ok((offset, u16::from_le_bytes([selector[0], selector[1]])))
}

macro_rules! far_loads {
    ($($name:ident $n:ident)*) => {$(
        #[doc = concat!("Loads ", stringify!($n), " and a general register.")]
        pub(super) fn $name(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
            load_far_pointer(cpu, i, sreg::$n)
        }
    )*};
}
far_loads! { lds DS les ES lfs FS lgs GS lss SS }
