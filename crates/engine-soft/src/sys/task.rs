//! Task-state segments: stacks of inner levels, and task switches.
//!
//! SDM volume 3, chapter "Task Management". Both forms of TSS are 32-bit legacy; long mode knows one TSS, for its stacks alone.

use umbra_x86::reg::gpr::RSP;
use umbra_x86::reg::{Cr0, Cr4, Rflags};
use umbra_x86::segment::{Segment, access, sreg};

use super::debug::DR6_BT;
use super::descriptor::{Descriptor, is_null, kind, rpl};
use super::segment::{null_segment, v86_segment};
use super::stack::Stack;
use crate::cpu::{Cpu, Shadow};
use crate::fault::{Exec, Fault};
use crate::operand::is_canonical;

/// What causes a task switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Jmp,
    Call,
    /// An interrupt or exception, with the error code that it pushes.
    Interrupt(Option<u32>),
    Iret,
}

impl How {
    /// The new task returns to the old one.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Interrupt(_))
    }
}

/// The offsets of what a task switch saves and loads, and the width of a general register there.
struct Layout {
    width: u64,
    cr3: Option<u64>,
    eip: u64,
    eflags: u64,
    gprs: u64,
    segments: u64,
    segment_count: usize,
    ldt: u64,
    trap: Option<u64>,
    limit_min: u32,
}

const TSS16: Layout = Layout {
    width: 2,
    cr3: None,
    eip: 0xe,
    eflags: 0x10,
    gprs: 0x12,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    trap: None,
    limit_min: 0x2b,
};

const TSS32: Layout = Layout {
    width: 4,
    cr3: Some(0x1c),
    eip: 0x20,
    eflags: 0x24,
    gprs: 0x28,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    trap: Some(0x64),
    limit_min: 0x67,
};

/// The layout of a TSS by its access bits.
fn layout(access: u16) -> &'static Layout {
    if access & access::CODE != 0 { &TSS32 } else { &TSS16 }
}

/// What a TSS says of a task.
struct Task {
    cr3: Option<u64>,
    eip: u64,
    eflags: u64,
    gprs: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    fn tss_field(&mut self, tss: &Segment, offset: u64, width: u64) -> Exec<u64> {
        let address = self.system_address(tss.base, offset);
        if width == 2 {
            self.load_system::<u16>(address).map(u64::from)
        } else {
            self.load_system::<u32>(address).map(u64::from)
        }
    }

    fn set_tss_field(&mut self, tss: &Segment, offset: u64, width: u64, value: u64) -> Exec {
        let address = self.system_address(tss.base, offset);
        if width == 2 {
            self.store_system(address, value as u16)
        } else {
            self.store_system(address, value as u32)
        }
    }

    /// The stack of inner level `cpl` that the TSS names, outside of long mode, and what SS shall hold.
    pub(super) fn tss_stack(&mut self, cpl: u8) -> Exec<(Segment, Stack)> {
        let tss = self.tr;
        let width = layout(tss.access).width;
        let at = width + u64::from(cpl) * 2 * width;
        if tss.unusable || at + width + 1 > u64::from(tss.limit) {
            return Err(Fault::ts(tss.selector));
        }
        let sp = self.tss_field(&tss, at, width)?;
        let selector = self.tss_field(&tss, at + width, 2)? as u16;
        if is_null(selector) {
            return Err(Fault::ts(selector));
        }
        let ss = self.stack_segment(selector, cpl, Fault::ts)?;
        Ok((ss, Stack::inner(ss, sp, cpl)))
    }

    /// A 64-bit stack pointer of the TSS of long mode: that of level `cpl`.
    pub(super) fn tss_rsp(&mut self, cpl: u8) -> Exec<u64> {
        self.tss_pointer(4 + u64::from(cpl) * 8)
    }

    /// An entry of the interrupt stack table, 1 to 7.
    pub(super) fn tss_ist(&mut self, n: u8) -> Exec<u64> {
        self.tss_pointer(0x1c + u64::from(n) * 8)
    }

    fn tss_pointer(&mut self, offset: u64) -> Exec<u64> {
        if self.tr.unusable || offset + 7 > u64::from(self.tr.limit) {
            return Err(Fault::ts(self.tr.selector));
        }
        let rsp = self.load_system(self.tr.base.wrapping_add(offset))?;
        if is_canonical(rsp) { Ok(rsp) } else { Err(Fault::SS0) }
    }

    /// Switches to the task of `tss`, a checked descriptor; the old task goes on at `back` with `flags`. A fault before the new task's state is in place leaves everything
    /// as it was; a later one is the new task's, with RIP at its first instruction.
    pub(super) fn switch_task(&mut self, mut tss: Descriptor, how: How, back: u64, flags: u64) -> Exec {
        let new = tss.segment();
        let layout = layout(new.access);
        if new.limit < layout.limit_min {
            return Err(Fault::ts(tss.selector));
        }
        let task = self.read_task(&new, layout)?;
        let old = self.tr;
        self.probe_tss(&old, &new, how)?;
        if let (Some(cr3), true) = (task.cr3, self.pages_with_pae()) {
            self.load_pdptes(cr3)?;
        }
        self.save_task(how, back, flags)?;
        if !how.nests() {
            self.fetch_descriptor(old.selector, Fault::ts)?.mark_busy(self, false)?;
        } else {
            self.set_tss_field(&new, 0, 2, u64::from(old.selector))?;
        }
        if how != How::Iret {
            tss.mark_busy(self, true)?;
        }
        self.enter_task(&task, Segment { access: new.access | kind::BUSY, ..new }, how);
        self.load_task_segments(&task)?;
        if let How::Interrupt(Some(error)) = how {
            let mut stack = Stack::current(self);
            stack.push(self, u64::from(error), layout.width as u32)?;
            stack.commit(self);
        }
        if task.trap {
            self.dr6 |= DR6_BT;
            return Err(Fault::DB);
        }
        Ok(())
    }

    fn pages_with_pae(&self) -> bool {
        self.cr0.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE)
    }

    fn read_task(&mut self, tss: &Segment, l: &Layout) -> Exec<Task> {
        let cr3 = match l.cr3 {
            Some(at) if self.cr0.contains(Cr0::PG) => Some(self.tss_field(tss, at, 4)?),
            _ => None,
        };
        let mut gprs = [0; 8];
        for (at, r) in (l.gprs..).step_by(l.width as usize).zip(&mut gprs) {
            *r = self.tss_field(tss, at, l.width)?;
        }
        let mut selectors = [0; 6];
        for (at, s) in (l.segments..).step_by(l.width as usize).zip(&mut selectors).take(l.segment_count) {
            *s = self.tss_field(tss, at, 2)? as u16;
        }
        let trap = match l.trap {
            Some(at) => self.tss_field(tss, at, 2)? & 1 != 0,
            None => false,
        };
        Ok(Task {
            cr3,
            eip: self.tss_field(tss, l.eip, l.width)?,
            eflags: self.tss_field(tss, l.eflags, l.width)?,
            gprs,
            selectors,
            ldt: self.tss_field(tss, l.ldt, 2)? as u16,
            trap,
        })
    }

    /// Faults now if a store to either TSS would.
    fn probe_tss(&mut self, old: &Segment, new: &Segment, how: How) -> Exec {
        let l = layout(old.access);
        let saved = self.system_address(old.base, l.eip);
        let link = self.system_address(new.base, 0);
        self.at_cpl(0, |cpu| {
            cpu.host(saved, l.segments + l.segment_count as u64 * l.width - l.eip, true)?;
            if how.nests() {
                cpu.host(link, 2, true)?;
            }
            Ok(())
        })
    }

    /// Saves the running task in its TSS.
    fn save_task(&mut self, how: How, back: u64, flags: u64) -> Exec {
        let tss = self.tr;
        let l = layout(tss.access);
        let nested = if how == How::Iret { Rflags::NT.bits() } else { 0 };
        self.set_tss_field(&tss, l.eip, l.width, back)?;
        self.set_tss_field(&tss, l.eflags, l.width, flags & !nested)?;
        for (n, at) in (l.gprs..).step_by(l.width as usize).take(8).enumerate() {
            self.set_tss_field(&tss, at, l.width, self.gpr[n])?;
        }
        for (n, at) in (l.segments..).step_by(l.width as usize).take(l.segment_count).enumerate() {
            self.set_tss_field(&tss, at, 2, u64::from(self.seg[n].selector))?;
        }
        Ok(())
    }

    /// Puts all of the new task in place but the segments' hidden parts; from here on faults are its own.
    fn enter_task(&mut self, task: &Task, tr: Segment, how: How) {
        self.tr = tr;
        self.cr0.insert(Cr0::TS);
        // The local breakpoints belong to the old task.
        self.dr7 &= !0x155;
        self.rip = task.eip;
        let nested = if how.nests() { Rflags::NT.bits() } else { 0 };
        self.rflags = task.eflags & super::flags::WRITABLE | Rflags::FIXED.bits() | nested;
        self.gpr[..8].copy_from_slice(&task.gprs);
        self.shadow = Shadow::None;
        self.debug_pending = 0;
        for (segment, selector) in self.seg.iter_mut().zip(task.selectors) {
            *segment = null_segment(selector, 0);
        }
        // Until SS is loaded its privilege level, which is the processor's, is that which CS asks for.
        let cpl = rpl(task.selectors[sreg::CS]);
        self.seg[sreg::SS] = null_segment(task.selectors[sreg::SS], cpl);
        self.ldtr = Segment { selector: task.ldt, unusable: true, ..Segment::default() };
        self.update_mode();
        if let Some(cr3) = task.cr3 {
            self.cr3 = cr3;
            self.cr3_written(false);
        }
    }

    /// Loads the hidden parts of LDTR and the segment registers (volume 3, table "Exception Conditions Checked During a Task Switch").
    fn load_task_segments(&mut self, task: &Task) -> Exec {
        self.load_task_ldt(task.ldt)?;
        if task.eflags & Rflags::VM.bits() != 0 {
            self.seg = task.selectors.map(v86_segment);
            self.update_mode();
            return self.check_entry(&self.seg[sreg::CS], task.eip);
        }
        let cs = task.selectors[sreg::CS];
        let cpl = rpl(cs);
        if is_null(cs) {
            return Err(Fault::ts(cs));
        }
        let mut d = self.fetch_descriptor(cs, Fault::ts)?;
        let level_fits = if d.is_conforming() { d.dpl() <= cpl } else { d.dpl() == cpl };
        if !d.is_code() || !level_fits {
            return Err(Fault::ts(cs));
        }
        if !d.is_present() {
            return Err(Fault::np(cs));
        }
        let ss = task.selectors[sreg::SS];
        if is_null(ss) {
            return Err(Fault::ts(ss));
        }
        let segment = self.stack_segment(ss, cpl, Fault::ts)?;
        self.set_segment(sreg::SS, segment);
        d.mark_accessed(self)?;
        self.set_segment(sreg::CS, d.segment());
        for n in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
            let selector = task.selectors[n];
            let segment = self.prepare_segment(n, selector).map_err(|f| match f.vector {
                13 => Fault { vector: 10, ..f },
                _ => f,
            })?;
            self.set_segment(n, segment);
        }
        self.check_entry(&self.seg[sreg::CS], task.eip)
    }

    fn load_task_ldt(&mut self, selector: u16) -> Exec {
        if is_null(selector) {
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(Fault::ts(selector));
        }
        let d = self.fetch_descriptor(selector, Fault::ts)?;
        if d.system_kind() != Some(kind::LDT) || !d.is_present() {
            return Err(Fault::ts(selector));
        }
        self.ldtr = d.segment();
        Ok(())
    }

    /// IRET with NT set: goes back to the task that the link field names.
    pub(super) fn return_to_task(&mut self, back: u64) -> Exec {
        let tr = self.tr;
        let selector = self.tss_field(&tr, 0, 2)? as u16;
        if selector & 4 != 0 || is_null(selector) {
            return Err(Fault::ts(selector));
        }
        let d = self.fetch_descriptor(selector, Fault::ts)?;
        if !matches!(d.system_kind(), Some(kind::TSS16_BUSY | kind::TSS32_BUSY)) {
            return Err(Fault::ts(selector));
        }
        if !d.is_present() {
            return Err(Fault::np(selector));
        }
        self.switch_task(d, How::Iret, back, self.rflags)
    }

    /// The stack pointer register, whole, as frames hold it.
    pub(super) fn rsp(&self) -> u64 {
        self.gpr[RSP]
    }
}
