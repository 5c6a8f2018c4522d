//! Gathers and scatters: one element after the other, from the lowest; what is done when one faults stays done, and its mask
//! element is clear (SDM volume 2, VGATHERDPS, VPSCATTERDD).

use iced_x86::{EncodingKind, Instruction, OpKind, Register};

use crate::cpu::Cpu;
use crate::fault::{Exec, Flow};
use crate::native::checks;
use crate::native::plan::Unit;
use crate::operand::mask;

/// The instruction taken apart.
struct Shape {
    segment: usize,
    base: u64,
    scale: u64,
    address_bits: u32,
    write: bool,
    index: usize,
    index_size: usize,
    data: usize,
    size: usize,
    count: usize,
    mask: Mask,
}

/// What says which elements are to be done.
#[derive(Clone, Copy)]
enum Mask {
    Opmask(usize),
    /// The most significant bits of a vector register's elements.
    Vector(usize),
}

impl Shape {
    fn of(cpu: &Cpu, i: &Instruction) -> Self {
        let write = i.op0_kind() == OpKind::Memory;
        let data = if write { i.op1_register() } else { i.op0_register() };
        let mask = match i.encoding() {
            EncodingKind::VEX => Mask::Vector(i.op2_register().number()),
            _ => Mask::Opmask(i.op_mask().number()),
        };
        let index_size = if i.is_vsib64() { 8 } else { 4 };
        let size = i.memory_size().size().clamp(4, 8);
        let count = (i.memory_index().size() / index_size).min(data.size() / size);
        Self {
            segment: cpu.memory_segment_number(i),
            base: base(cpu, i),
            scale: u64::from(i.memory_index_scale()),
            address_bits: cpu.address_bits(i),
            write,
            index: i.memory_index().number(),
            index_size,
            data: data.number(),
            size,
            count,
            mask,
        }
    }

    fn address(&self, cpu: &Cpu, n: usize) -> Exec<u64> {
        let bytes = &cpu.vector.zmm[self.index][n * self.index_size..][..self.index_size];
        let mut wide = [if bytes[self.index_size - 1] & 0x80 != 0 { 0xff } else { 0 }; 8];
        wide[..self.index_size].copy_from_slice(bytes);
        let offset = self.base.wrapping_add(u64::from_le_bytes(wide).wrapping_mul(self.scale));
        cpu.linear(self.segment, offset & mask(self.address_bits), self.size as u64, self.write)
    }

    fn is_selected(&self, cpu: &Cpu, n: usize) -> bool {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[k] >> n & 1 != 0,
            Mask::Vector(v) => cpu.vector.zmm[v][n * self.size + self.size - 1] & 0x80 != 0,
        }
    }

    fn deselect(&self, cpu: &mut Cpu, n: usize) {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[k] &= !(1 << n),
            Mask::Vector(v) => cpu.vector.zmm[v][n * self.size..][..self.size].fill(0),
        }
    }

    fn element(&self, cpu: &mut Cpu, n: usize) -> Exec {
        let linear = self.address(cpu, n)?;
        let range = n * self.size..(n + 1) * self.size;
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.size];
        if self.write {
            bytes.copy_from_slice(&cpu.vector.zmm[self.data][range]);
            return cpu.store_bytes(linear, bytes);
        }
        cpu.load_bytes(linear, bytes)?;
        cpu.vector.zmm[self.data][range].copy_from_slice(bytes);
        Ok(())
    }

    /// After the last element: the mask is clear, and a loaded register above its elements.
    fn finish(&self, cpu: &mut Cpu) {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[k] = 0,
            Mask::Vector(v) => cpu.vector.zmm[v].fill(0),
        }
        if !self.write {
            cpu.vector.zmm[self.data][self.count * self.size..].fill(0);
        }
    }
}

fn base(cpu: &Cpu, i: &Instruction) -> u64 {
    let base = if i.memory_base() == Register::None { 0 } else { cpu.reg(i.memory_base()) };
    base.wrapping_add(i.memory_displacement64())
}

/// Any of them.
pub fn gather_or_scatter(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let unit = if i.encoding() == EncodingKind::VEX { Unit::Avx } else { Unit::Avx512 };
    checks::unit(cpu, unit)?;
    let shape = Shape::of(cpu, i);
    for n in 0..shape.count {
        if shape.is_selected(cpu, n) {
            shape.element(cpu, n)?;
            shape.deselect(cpu, n);
        }
    }
    shape.finish(cpu);
    Ok(Flow::Next)
}
