//! Random operands for an instruction of a given code.

use iced_x86::{Instruction, OpCodeOperandKind as K, OpKind, Register as R};

use super::random::Random;
use super::state::{Bits, CODE, CODE_OFFSET, CODE_SIZE, GS_BASE, State, WINDOW};
use super::values;

/// An instruction in the making, with the state it will run on.
pub struct Builder<'a> {
    /// The instruction.
    pub instruction: Instruction,
    /// The state.
    pub state: State,
    /// The mode.
    pub bits: Bits,
    /// Numbers.
    pub random: &'a mut Random,
    /// The linear address that the memory operand shall have.
    pub target: u64,
    /// Registers for addresses, in a sequence; elsewhere, any register is set to what it shall be.
    pub pins: Option<Pins>,
}

/// Registers that keep their values all through a sequence, so that addresses can be made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pins {
    /// They point into the data.
    pub pointers: [u8; 2],
    /// It holds a small number.
    pub index: u8,
    /// Counts rounds of the whole sequence, and of a loop in it.
    pub counters: [u8; 2],
    /// A vector register of small numbers.
    pub vector: u8,
}

impl Builder<'_> {
    /// Sets operand `n` of `kind`; `None` if this generator has nothing of that kind.
    pub fn operand(&mut self, n: u32, kind: K) -> Option<()> {
        match kind {
            K::mem | K::mem_mib | K::sibmem => self.memory(n),
            K::mem_offs => self.absolute(n),
            K::mem_vsib32x | K::mem_vsib64x => self.vector_memory(n, R::XMM0),
            K::mem_vsib32y | K::mem_vsib64y => self.vector_memory(n, R::YMM0),
            K::mem_vsib32z | K::mem_vsib64z => self.vector_memory(n, R::ZMM0),
            K::seg_rSI => {
                self.implicit(n, [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI], 6)
            }
            K::es_rDI => self.implicit(n, [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI], 7),
            K::seg_rDI => {
                self.implicit(n, [OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI], 7)
            }
            K::seg_rBX_al => self.table(n),
            _ => match self.register(kind) {
                Some(r) => self.set_register(n, r),
                None => self.immediate(n, kind)?,
            },
        }
        Some(())
    }

    fn set_register(&mut self, n: u32, r: R) {
        self.instruction.set_op_kind(n, OpKind::Register);
        self.instruction.set_op_register(n, r);
    }

    fn number(&mut self) -> u32 {
        self.random.below(self.bits.register_count() as u64) as u32
    }

    fn vector(&mut self, first: R) -> R {
        let evex =
            self.instruction.encoding() == iced_x86::EncodingKind::EVEX && self.bits == Bits::SixtyFour;
        let n = if evex { self.random.below(32) as u32 } else { self.number() };
        first + n
    }

    /// A register of a kind that is one, or is one this time.
    fn register(&mut self, kind: K) -> Option<R> {
        if is_register_or_memory(kind) && self.random.one_in(2) {
            return None;
        }
        Some(match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.byte_register(),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => R::AX + self.number(),
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                R::EAX + self.number()
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                R::RAX + self.number()
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => R::MM0 + self.random.below(8) as u32,
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
                self.vector(R::XMM0)
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                self.vector(R::YMM0)
            }
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => self.vector(R::ZMM0),
            K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => R::K0 + self.random.below(8) as u32,
            K::cr_reg => self.random.pick(&[R::CR0, R::CR2, R::CR3, R::CR4]),
            K::dr_reg => R::DR0 + self.random.below(8) as u32,
            K::seg_reg => R::ES + self.random.below(6) as u32,
            K::es => R::ES,
            K::cs => R::CS,
            K::ss => R::SS,
            K::ds => R::DS,
            K::fs => R::FS,
            K::gs => R::GS,
            K::al => R::AL,
            K::cl => R::CL,
            K::ax => R::AX,
            K::dx => R::DX,
            K::eax => R::EAX,
            K::rax => R::RAX,
            K::st0 => R::ST0,
            K::sti_opcode => R::ST0 + self.random.below(8) as u32,
            _ => return None,
        })
    }

    fn byte_register(&mut self) -> R {
        match self.bits {
            Bits::SixtyFour if self.random.one_in(2) => R::SPL + self.random.below(12) as u32,
            Bits::SixtyFour if self.random.one_in(2) => R::AL + self.random.below(4) as u32,
            _ => R::AL + self.random.below(8) as u32,
        }
    }

    fn immediate(&mut self, n: u32, kind: K) -> Option<()> {
        let value = values::integer(self.random);
        let i = &mut self.instruction;
        match kind {
            K::imm8 | K::imm4_m2z => {
                i.set_op_kind(
                    n,
                    if n > 0 && matches!(i.op_kind(n - 1), OpKind::Immediate8 | OpKind::Immediate16) {
                        OpKind::Immediate8_2nd
                    } else {
                        OpKind::Immediate8
                    },
                );
                let value = if kind == K::imm4_m2z { value & 3 } else { value & 0xff };
                if i.op_kind(n) == OpKind::Immediate8_2nd {
                    i.set_immediate8_2nd(value as u8);
                } else {
                    i.set_immediate8(value as u8);
                }
            }
            K::imm8_const_1 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(1);
            }
            K::imm8sex16 => {
                i.set_op_kind(n, OpKind::Immediate8to16);
                i.set_immediate8to16(value as i8 as i16);
            }
            K::imm8sex32 => {
                i.set_op_kind(n, OpKind::Immediate8to32);
                i.set_immediate8to32(value as i8 as i32);
            }
            K::imm8sex64 => {
                i.set_op_kind(n, OpKind::Immediate8to64);
                i.set_immediate8to64(value as i8 as i64);
            }
            K::imm16 => {
                i.set_op_kind(n, OpKind::Immediate16);
                i.set_immediate16(value as u16);
            }
            K::imm32 => {
                i.set_op_kind(n, OpKind::Immediate32);
                i.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                i.set_op_kind(n, OpKind::Immediate32to64);
                i.set_immediate32to64(value as i32 as i64);
            }
            K::imm64 => {
                i.set_op_kind(n, OpKind::Immediate64);
                i.set_immediate64(value);
            }
            K::br16_1 | K::br16_2 | K::br32_1 | K::br32_4 | K::br64_1 | K::br64_4 => self.branch(n, kind),
            _ => return self.memory_of_either(n, kind),
        }
        Some(())
    }

    fn memory_of_either(&mut self, n: u32, kind: K) -> Option<()> {
        let either = matches!(
            kind,
            K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::mm_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::zmm_or_mem
                | K::k_or_mem
        );
        either.then(|| self.memory(n))
    }

    /// An offset in the code segment, outside of the instruction itself.
    pub fn code_target(&mut self, near: bool) -> u64 {
        let here = CODE + CODE_OFFSET;
        let target = loop {
            let t = if near {
                here - 100 + self.random.below(200)
            } else {
                CODE + 16 + self.random.below(CODE_SIZE - 32)
            };
            if !(here..here + 16).contains(&t) {
                break t;
            }
        };
        target - self.bits.code_base()
    }

    fn branch(&mut self, n: u32, kind: K) {
        let near = matches!(kind, K::br16_1 | K::br32_1 | K::br64_1);
        let target = self.code_target(near);
        let i = &mut self.instruction;
        match kind {
            K::br16_1 | K::br16_2 => {
                i.set_op_kind(n, OpKind::NearBranch16);
                i.set_near_branch16(target as u16);
            }
            K::br32_1 | K::br32_4 => {
                i.set_op_kind(n, OpKind::NearBranch32);
                i.set_near_branch32(target as u32);
            }
            _ => {
                i.set_op_kind(n, OpKind::NearBranch64);
                i.set_near_branch64(target);
            }
        }
    }

    /// Sets the low `bits` bits of register `n`.
    pub fn set(&mut self, n: usize, bits: u32, value: u64) {
        let mask = u64::MAX >> (64 - bits);
        let g = &mut self.state.gpr[n];
        *g = if bits == 16 { *g & !mask | value & mask } else { value & mask };
    }

    fn offset(&self) -> u64 {
        let is_gs = self.instruction.segment_prefix() == R::GS;
        self.target.wrapping_sub(if is_gs { GS_BASE } else { self.bits.data_base() })
    }

    fn address_bits(&mut self) -> u32 {
        let usual = self.bits.number();
        let other = if usual == 32 { 16 } else { 32 };
        if self.pins.is_some() && (usual == 32 || !self.random.one_in(4)) {
            return usual;
        }
        if self.random.one_in(if usual == 32 { 40 } else { 8 }) { other } else { usual }
    }

    fn memory(&mut self, n: u32) {
        self.instruction.set_op_kind(n, OpKind::Memory);
        if self.random.one_in(10) {
            let segment = self.random.pick(&[R::ES, R::SS, R::DS, R::CS, R::GS]);
            if segment != R::GS || self.bits == Bits::SixtyFour {
                self.instruction.set_segment_prefix(segment);
            }
        }
        match (self.address_bits(), self.pins) {
            (16, _) => self.memory16(),
            (bits, None) => self.memory_wide(bits),
            (bits, Some(pins)) => self.memory_pinned(bits, pins),
        }
    }

    fn memory16(&mut self) {
        let forms = [
            (R::BX, R::SI),
            (R::BX, R::DI),
            (R::BP, R::SI),
            (R::BP, R::DI),
            (R::SI, R::None),
            (R::DI, R::None),
            (R::BP, R::None),
            (R::BX, R::None),
            (R::None, R::None),
        ];
        let (base, index) = self.random.pick(&forms);
        let i = &mut self.instruction;
        i.set_memory_base(base);
        i.set_memory_index(index);
        i.set_memory_index_scale(1);
        let displacement = if base == R::None { self.target & 0xffff } else { self.random.bits() & 0xffff };
        let size = if base == R::None || self.random.one_in(2) { 2 } else { 0 };
        self.instruction.set_memory_displ_size(size);
        let displacement = if size == 0 { 0 } else { displacement };
        self.instruction.set_memory_displacement64(displacement);
        if base != R::None {
            let index_value = if index == R::None { 0 } else { self.state.gpr[index.number()] };
            let value = self.offset().wrapping_sub(index_value).wrapping_sub(displacement);
            self.set(base.number(), 16, value);
        }
    }

    /// An address relative to the instruction.
    fn memory_relative(&mut self) {
        let target = self.offset();
        self.instruction.set_memory_base(R::RIP);
        self.instruction.set_memory_displ_size(8);
        self.instruction.set_memory_displacement64(target);
    }

    fn memory_wide(&mut self, bits: u32) {
        if bits == 64 && self.random.one_in(8) {
            return self.memory_relative();
        }
        let first = if bits == 64 { R::RAX } else { R::EAX };
        let base = self.number();
        let has_index = self.random.one_in(2);
        let index = self.number();
        let scale = 1u32 << self.random.below(4);
        let displacement = match self.random.below(3) {
            0 => 0,
            1 => (self.random.bits() as i8) as i64 as u64,
            _ => (self.random.bits() as i32 / 8) as i64 as u64,
        };
        let i = &mut self.instruction;
        i.set_memory_base(first + base);
        i.set_memory_displ_size(if displacement == 0 { 0 } else { bits / 8 });
        i.set_memory_displacement64(displacement);
        let mut sum = displacement;
        if has_index && index != 4 && index != base {
            i.set_memory_index(first + index);
            i.set_memory_index_scale(scale);
            let value =
                if self.random.one_in(2) { self.random.below(64) } else { self.state.gpr[index as usize] };
            self.set(index as usize, bits, value);
            sum = sum.wrapping_add(self.state.gpr[index as usize].wrapping_mul(u64::from(scale)));
        }
        let wild = self.random.one_in(40);
        let value = if wild { self.random.bits() } else { self.offset().wrapping_sub(sum) };
        self.set(base as usize, bits, value);
    }

    /// An address made of registers that keep their values.
    fn memory_pinned(&mut self, bits: u32, pins: Pins) {
        if self.random.one_in(40) {
            return self.memory_wild(bits);
        }
        if bits == 64 && self.random.one_in(8) {
            return self.memory_relative();
        }
        let first = if bits == 64 { R::RAX } else { R::EAX };
        let mut sum = 0u64;
        if self.random.one_in(10) {
            // Near the stack pointer, which moves as the program runs.
            self.instruction.set_memory_base(first + 4);
            sum = self.offset().wrapping_sub(self.random.below(256)).wrapping_add(128);
        } else if !self.random.one_in(12) {
            let base = self.random.pick(&pins.pointers);
            self.instruction.set_memory_base(first + u32::from(base));
            sum = self.state.gpr[usize::from(base)];
        }
        if self.random.one_in(3) {
            let scale = 1u32 << self.random.below(4);
            self.instruction.set_memory_index(first + u32::from(pins.index));
            self.instruction.set_memory_index_scale(scale);
            sum = sum.wrapping_add(self.state.gpr[usize::from(pins.index)] * u64::from(scale));
        }
        let displacement = self.offset().wrapping_sub(sum);
        let short = i8::try_from(displacement as i64).is_ok() && self.instruction.memory_base() != R::None;
        let size = if short { 1 } else { bits / 8 };
        self.instruction.set_memory_displ_size(size);
        self.instruction.set_memory_displacement64(displacement);
    }

    /// An address that is hardly one: not canonical, or whatever a register holds.
    fn memory_wild(&mut self, bits: u32) {
        let first = if bits == 64 { R::RAX } else { R::EAX };
        let base = self.number();
        self.instruction.set_memory_base(first + base);
        self.instruction.set_memory_displ_size(0);
        if self.random.one_in(2) && base != 4 {
            let value = match self.random.below(3) {
                0 => (1 << 47) - self.random.below(64),
                1 => self.random.below(64).wrapping_sub(32),
                _ => self.random.bits(),
            };
            self.set(base as usize, bits, value);
        }
    }

    fn absolute(&mut self, n: u32) {
        let bits = self.bits.number();
        let offset = self.offset();
        let i = &mut self.instruction;
        i.set_op_kind(n, OpKind::Memory);
        i.set_memory_displ_size(bits / 8);
        i.set_memory_displacement64(offset);
    }

    /// A memory operand whose index is a vector register.
    fn vector_memory(&mut self, n: u32, first: R) {
        let bits = if self.bits == Bits::SixtyFour { 64 } else { 32 };
        let (index, base) = match self.pins {
            Some(pins) => (first + u32::from(pins.vector), pins.pointers[0].into()),
            None => (self.vector(first), self.number()),
        };
        let scale = 1u32 << self.random.below(4);
        let i = &mut self.instruction;
        i.set_op_kind(n, OpKind::Memory);
        i.set_memory_base(if bits == 64 { R::RAX } else { R::EAX } + base);
        i.set_memory_index(index);
        i.set_memory_index_scale(scale);
        i.set_memory_displ_size(0);
        let target = self.offset();
        if self.pins.is_some() {
            let displacement = target.wrapping_sub(self.state.gpr[base as usize]);
            self.instruction.set_memory_displ_size(bits / 8);
            self.instruction.set_memory_displacement64(displacement);
            return;
        }
        self.set(base as usize, bits, target);
        let step = if self.instruction.is_vsib64() { 8 } else { 4 };
        let spread = if self.random.one_in(3) { 4096 } else { 64 };
        let z = &mut self.state.zmm[index.number()];
        for chunk in z.chunks_mut(step) {
            let value = self.random.below(2 * spread) as i64 - spread as i64;
            let value =
                if self.random.one_in(60) { self.random.bits() as i64 } else { value / i64::from(scale) };
            chunk.copy_from_slice(&value.to_le_bytes()[..step]);
        }
    }

    /// An operand at rSI or rDI.
    fn implicit(&mut self, n: u32, kinds: [OpKind; 3], register: usize) {
        // Both operands of a string instruction have one address size.
        let before = (0..n).find_map(|o| address_size(self.instruction.op_kind(o)));
        let bits = match before {
            Some(bits) => bits,
            None => self.address_bits(),
        };
        let kind = match bits {
            16 => kinds[0],
            32 => kinds[1],
            _ => kinds[2],
        };
        self.instruction.set_op_kind(n, kind);
        let near = self.offset().wrapping_add(self.random.below(64)).wrapping_sub(if self.random.one_in(2) {
            32
        } else {
            0
        });
        self.set(register, bits, near);
        if self.random.one_in(2) {
            let count = self.random.below(48);
            self.set(1, bits, count);
        } else {
            let count = self.random.below(4);
            self.set(1, bits, count);
        }
    }

    /// XLAT's operand: rBX and AL.
    fn table(&mut self, n: u32) {
        let bits = self.address_bits();
        let base = match bits {
            16 => R::BX,
            32 => R::EBX,
            _ => R::RBX,
        };
        let i = &mut self.instruction;
        i.set_op_kind(n, OpKind::Memory);
        i.set_memory_base(base);
        i.set_memory_index(R::AL);
        i.set_memory_index_scale(1);
        let value = self.offset().wrapping_sub(self.state.gpr[0] & 0xff);
        self.set(3, bits, value);
    }

    /// Puts `value` where the memory operand is, if that is in the window.
    pub fn set_memory(&mut self, at: u64, value: u64) {
        let offset = at.wrapping_sub(self.state.window);
        if offset <= WINDOW as u64 - 8 {
            self.state.memory[offset as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
    }
}

fn address_size(kind: OpKind) -> Option<u32> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(16),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(64),
        _ => None,
    }
}

/// Whether an operand of this kind is a register or memory, as its encoding says.
pub(super) fn is_register_or_memory(kind: K) -> bool {
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
    )
}
