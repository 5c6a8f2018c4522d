//! A processor in any mode, with tables in its memory, that executes one instruction at a time.
//!
//! A case is data: a mode, descriptors, registers, the bytes of an instruction, and what must be seen after it.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

use iced_x86::{Decoder, DecoderOptions};
use umbra_engine::CpuIo;
use umbra_x86::reg::gpr::RSP;
use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags};
use umbra_x86::segment::{Segment, Table, access, sreg};

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::mask;
use crate::sys::{self, TripleFault};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const LDT: u64 = 0x4000;
pub const TSS_B: u64 = 0x4800;
/// The top of the user's stack.
pub const STACK3: u64 = 0x5ff0;
/// The top of the stacks that the TSS names for levels 0, 1 and 2.
pub const STACK0: u64 = 0x6ff0;
/// The top of the kernel's stack while it runs.
pub const STACK: u64 = 0x7ff0;
pub const CODE: u64 = 0x8000;
pub const DATA: u64 = 0x9000;
const PAGES: u64 = 0x1_0000;
/// A page that is not present in 64-bit mode; below it is one that is.
pub const MISSING: u64 = 0x1f_f000;
pub const MEMORY: u64 = 0x20_0000;

/// Selectors of the GDT that every mode but the real ones starts with. Code and data of level n are at `CODE0 + 0x11 * n` and 8 above.
pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x3b;
pub const DATA3: u16 = 0x43;
pub const TSS_SEL: u16 = 0x48;
pub const LDT_SEL: u16 = 0x58;
pub const TSS_B_SEL: u16 = 0x68;
/// The first selector that is free for a case.
pub const FREE: u16 = 0x80;

/// Access bytes.
pub const CODE_R: u16 = 0x9b;
pub const DATA_W: u16 = 0x93;
/// Flags above the access byte: 32-bit, 4 KiB granularity.
pub const BIG: u16 = access::DB | access::G;
pub const LONG: u16 = access::L | access::G;

/// Access bits with a privilege level.
pub const fn at(dpl: u8, access: u16) -> u16 {
    access & !access::DPL | (dpl as u16) << 5
}

/// A descriptor of eight bytes; the limit is in bytes or pages as the granularity says.
pub fn descriptor(base: u64, limit: u64, access: u16) -> u64 {
    let (base, limit) = (base & 0xffff_ffff, limit & 0xf_ffff);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access & 0xff) << 40
        | (limit >> 16) << 48
        | u64::from(access >> 12) << 52
        | (base >> 24) << 56
}

/// A gate's lower eight bytes.
pub fn gate(selector: u16, offset: u64, kind: u16, dpl: u8, count: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(kind | 0x80 | u16::from(dpl) << 5) << 40
        | (offset >> 16 & 0xffff) << 48
}

/// Ports that remember.
#[derive(Default)]
pub struct Ports {
    pub written: Mutex<Vec<(u16, Vec<u8>)>>,
    pub values: Mutex<BTreeMap<u16, u32>>,
}

impl CpuIo for Ports {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let value = self.values.lock().unwrap().get(&port).copied().unwrap_or(u32::MAX);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.written.lock().unwrap().push((port, data.to_vec()));
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn external_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// What a processor starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Real,
    V86,
    /// Protected, 16-bit segments.
    P16,
    /// Protected, 32-bit segments.
    P32,
    /// Compatibility mode, 32-bit segments.
    Compat,
    Long,
}

/// A processor with its memory and ports.
pub struct Bench {
    pub cpu: Box<Cpu>,
    pub ports: Box<Ports>,
}

impl Bench {
    /// A processor in mode `start` at privilege level `cpl`, at [`CODE`], with its stack at [`STACK`], or [`STACK3`] at level 3.
    pub fn new(start: Start, cpl: u8) -> Self {
        let mut bench = Self { cpu: super::processor(MEMORY), ports: Box::default() };
        let ports: &dyn CpuIo = &*bench.ports;
        // SAFETY: only the lifetime changes; `ports` is boxed, and dropped with the processor.
        let ports: &'static dyn CpuIo = unsafe { std::mem::transmute(ports) };
        bench.cpu.io = Some(NonNull::from(ports));
        bench.tables(start);
        bench.enter(start, cpl);
        bench
    }

    fn tables(&mut self, start: Start) {
        let size = match start {
            Start::P16 | Start::Real | Start::V86 => 0,
            _ => BIG,
        };
        let code_size = if start == Start::Long { LONG } else { size };
        let limit = if size == 0 { 0xffff } else { 0xf_ffff };
        for level in 0..4u8 {
            let n = CODE0 + 0x10 * u16::from(level);
            // Handlers and gates of long mode need 64-bit code.
            let code_size = if start == Start::Compat && level < 3 { LONG } else { code_size };
            self.gdt(n, descriptor(0, limit, at(level, CODE_R) | code_size));
            self.gdt(n + 8, descriptor(0, limit, at(level, DATA_W) | size));
        }
        self.gdt(TSS_SEL, descriptor(TSS, 0x7ff, 0x8b));
        self.gdt(LDT_SEL, descriptor(LDT, 0x7f, 0x82));
        self.gdt(TSS_B_SEL, descriptor(TSS_B, 0x7f, 0x89));
        let long = matches!(start, Start::Long | Start::Compat);
        for level in 0..3u64 {
            let top = STACK0 - 0x100 * level;
            if long {
                self.write(TSS + 4 + 8 * level, top, 8);
            } else {
                self.write(TSS + 4 + 8 * level, top, 4);
                self.write(TSS + 8 + 8 * level, 0x10 + 0x11 * level, 4);
            }
        }
        self.write(TSS + 0x66, 0x100, 2);
        if long {
            self.page_tables();
        }
    }

    /// 4 KiB pages, one to one, all user pages that can be written, but for [`MISSING`].
    fn page_tables(&mut self) {
        for (n, at) in [(1, PAGES), (2, PAGES + 0x1000), (3, PAGES + 0x2000)] {
            self.write(at, (PAGES + 0x1000 * n) | 7, 8);
        }
        for n in 0..512 {
            let entry = if n << 12 == MISSING { 0 } else { n << 12 | 7 };
            self.write(PAGES + 0x3000 + 8 * n, entry, 8);
        }
    }

    fn enter(&mut self, start: Start, cpl: u8) {
        let cpu = &mut *self.cpu;
        cpu.gdtr = Table { base: GDT, limit: 0x7ff };
        cpu.idtr = Table { base: if start == Start::Real { 0 } else { IDT }, limit: 0xfff };
        cpu.cr0 = Cr0::ET | Cr0::NE;
        cpu.rflags = 2;
        if start != Start::Real {
            cpu.cr0 |= Cr0::PE;
            cpu.tr = Segment { base: TSS, limit: 0x7ff, selector: TSS_SEL, access: 0x8b, unusable: false };
            cpu.ldtr = Segment { base: LDT, limit: 0x7f, selector: LDT_SEL, access: 0x82, unusable: false };
        }
        if matches!(start, Start::Long | Start::Compat) {
            cpu.cr0 |= Cr0::PG | Cr0::WP;
            cpu.cr4 = Cr4::PAE;
            cpu.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
            cpu.cr3 = PAGES;
        }
        match start {
            Start::Real => cpu.seg = std::array::from_fn(|n| Segment::real(0, n == sreg::CS)),
            Start::V86 => {
                cpu.rflags |= Rflags::VM.bits();
                cpu.seg = [sys::segment::v86_segment(0); 6];
            }
            _ => {
                let data = DATA0 + 0x11 * u16::from(cpl);
                let raw = self.read(GDT + u64::from(data & !7), 8);
                let segment = Segment::from_descriptor(data, raw);
                let code = data - 8;
                let raw = self.read(GDT + u64::from(code & !7), 8);
                let mut cs = Segment::from_descriptor(code, raw);
                if start == Start::Compat {
                    cs.access = at(cpl, CODE_R) | BIG;
                }
                self.cpu.seg = [segment, cs, segment, segment, segment, segment];
            }
        }
        let cpu = &mut *self.cpu;
        cpu.rip = CODE;
        cpu.gpr = [0; 16];
        cpu.gpr[RSP] = if cpl == 3 && start != Start::Real { STACK3 } else { STACK };
        cpu.update_mode();
        cpu.paging_changed();
    }

    /// Puts a descriptor into the GDT.
    pub fn gdt(&mut self, selector: u16, raw: u64) {
        self.write(GDT + u64::from(selector & !7), raw, 8);
    }

    /// Puts a gate into the IDT, of 8 or in long mode 16 bytes.
    pub fn idt(&mut self, vector: u8, raw: u64) {
        let long = self.cpu.efer.contains(Efer::LMA);
        let size = if long { 16 } else { 8 };
        self.write(IDT + u64::from(vector) * size, raw, 8);
        if long {
            self.write(IDT + u64::from(vector) * size + 8, 0, 8);
        }
    }

    /// Writes `len` bytes of physical memory.
    pub fn write(&mut self, gpa: u64, value: u64, len: usize) {
        self.cpu.shared.memory.write(gpa, &value.to_le_bytes()[..len]).unwrap();
    }

    /// Reads `len` bytes of physical memory.
    pub fn read(&self, gpa: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.cpu.shared.memory.read(gpa, &mut data[..len]).unwrap();
        u64::from_le_bytes(data)
    }

    /// `n` values of `size` bytes from the top of the present stack.
    pub fn stack(&self, n: u64, size: u64) -> Vec<u64> {
        let ss = &self.cpu.seg[sreg::SS];
        let base = if self.cpu.mode.code == 64 { 0 } else { ss.base };
        let sp = self.cpu.gpr[RSP] & mask(u32::from(self.cpu.mode.stack));
        (0..n).map(|n| self.read(base + sp + n * size, size as usize)).collect()
    }

    /// Puts values of `size` bytes on the present stack, the last one deepest.
    pub fn push(&mut self, values: &[u64], size: u64) {
        let base = if self.cpu.mode.code == 64 { 0 } else { self.cpu.seg[sreg::SS].base };
        for value in values.iter().rev() {
            self.cpu.gpr[RSP] -= size;
            self.write(base + self.cpu.gpr[RSP], *value, size as usize);
        }
    }

    /// Executes the instruction `code`, which is put at RIP.
    pub fn step(&mut self, code: &[u8]) -> Exec<Flow> {
        let bits = u32::from(self.cpu.mode.code);
        let base = if bits == 64 { 0 } else { self.cpu.seg[sreg::CS].base };
        let at = base + self.cpu.rip;
        self.cpu.shared.memory.write(at, code).unwrap();
        let i = Decoder::with_ip(bits, code, 0, DecoderOptions::NONE).decode();
        let handler = sys::handler(i.code()).ok_or(Fault::UD)?;
        let flow = handler(&mut self.cpu, &i)?;
        if matches!(flow, Flow::Next | Flow::End | Flow::Wait) {
            self.cpu.rip = self.cpu.next_rip(&i);
        }
        Ok(flow)
    }

    /// As [`Bench::step`]; a fault must have changed nothing.
    pub fn refuse(&mut self, code: &[u8]) -> Fault {
        let before = self.snapshot();
        let fault = self.step(code).expect_err("must fault");
        assert_eq!(self.snapshot(), before, "a fault changed the processor: {fault:x?}");
        fault
    }

    /// Executes, and delivers the fault.
    pub fn fault(&mut self, code: &[u8]) -> Result<Fault, TripleFault> {
        let fault = self.step(code).expect_err("must fault");
        sys::deliver_fault(&mut self.cpu, fault).map(|()| fault)
    }

    /// What a program can see of the registers.
    pub fn snapshot(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let c = &self.cpu;
        let control = (c.cr0, c.cr2, c.cr3, c.cr4, c.efer, c.xcr0, c.dr, c.dr7);
        (c.gpr, c.rip, c.rflags, c.seg, c.ldtr, c.tr, c.gdtr, c.idtr, control)
    }

    /// CS, RIP, SS and RSP.
    pub fn place(&self) -> (u16, u64, u16, u64) {
        let c = &self.cpu;
        (c.seg[sreg::CS].selector, c.rip, c.seg[sreg::SS].selector, c.gpr[RSP])
    }
}
