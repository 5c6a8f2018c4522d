//! Emits thunks.
//!
//! A thunk, with the state block in RDI and its operand's address in RSI on entry:
//! moves both where the instruction leaves room, loads x87 state, MXCSR, vector and mask registers, flags and general registers from the
//! state block, executes the instruction, and stores what it wrote. The guest's stack pointer is renamed, since the stack is the host's.
//! Only status flags are loaded; all others stay the host's.

use std::mem::offset_of;

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic as M, OpKind, Register,
};
use umbra_x86::reg::Rflags;

use crate::cpu::{Cpu, VectorState};
use crate::native::features::is_nop_without_feature;
use crate::native::forms;
use crate::native::plan::Registers;

const STATUS: i32 = Rflags::STATUS.bits() as i32;
const MXCSR_HOST: i32 = 0x1f80;
const FX_MXCSR: usize = 24;
const RSP: u8 = 4;
/// Registers that may hold the operand's address: not RSP and R12 (need a SIB byte), not RBP and R13 (need a displacement), not
/// RAX (scratch while state is loaded).
const MEMORY: [u8; 9] = [6, 3, 2, 1, 7, 8, 9, 10, 11];
/// Registers that may hold the state block.
const STATE: [u8; 13] = [7, 8, 9, 10, 11, 14, 15, 3, 5, 12, 13, 2, 1];
/// Registers that may stand for RSP; those that need no REX prefix first.
const STACK: [u8; 8] = [5, 3, 2, 1, 7, 14, 15, 9];
const RSI: u8 = 6;
const RDI: u8 = 7;

/// How wide the host's vector registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// SSE.
    Xmm,
    /// AVX.
    Ymm,
    /// AVX-512; mask registers have 64 bits if the flag is set, else 16.
    Zmm {
        /// AVX512BW.
        wide_masks: bool,
    },
}

impl Width {
    /// The host's.
    pub fn of_host() -> Self {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return Self::Zmm { wide_masks: std::arch::is_x86_feature_detected!("avx512bw") };
        }
        if std::arch::is_x86_feature_detected!("avx") { Self::Ymm } else { Self::Xmm }
    }
}

/// An instruction made ready: in 64-bit form, with its operand at a register, without RSP.
pub struct Prepared {
    /// The instruction.
    pub instruction: Instruction,
    /// Its registers; the memory operand's not among them.
    pub registers: Registers,
    memory: Option<u8>,
    state: u8,
    stack: Option<u8>,
}

fn gpr64(n: u8) -> Register {
    Register::RAX + u32::from(n)
}

/// General register `n` of the size of `like`.
fn same_size(like: Register, n: u8) -> Register {
    let n = u32::from(n);
    match like.size() {
        1 if n < 4 => Register::AL + n,
        1 => Register::SPL + (n - 4),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

fn choose(from: &[u8], taken: u16, low: bool) -> Option<u8> {
    from.iter().copied().find(|n| taken >> n & 1 == 0 && !(low && *n >= 8))
}

impl Prepared {
    /// Makes `i` ready; `None` if it cannot be.
    pub fn new(i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Self> {
        let mut n = *i;
        n.set_code(forms::in_64_bit_mode(i.code()));
        n.set_has_rep_prefix(false);
        n.set_has_repne_prefix(false);
        n.set_has_xacquire_prefix(false);
        n.set_has_xrelease_prefix(false);
        n.set_segment_prefix(Register::None);
        let has_memory = n.op_kinds().any(|k| k == OpKind::Memory);
        if has_memory {
            n.set_memory_index(Register::None);
            n.set_memory_base(Register::None);
            n.set_memory_displacement64(0);
            n.set_memory_displ_size(8);
        }
        let implicit = (0..n.op_count()).find(|o| {
            matches!(n.op_kind(*o), OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI)
        });
        if let Some(o) = implicit {
            n.set_op_kind(o, OpKind::MemorySegRDI);
        }
        let mut registers = Registers::of(&n, factory);
        if implicit.is_some() {
            registers.gpr &= !(1 << RDI);
        }
        let mut taken = registers.gpr | 1 << RSP;
        let low = registers.high_byte;
        let memory = if implicit.is_some() { RDI } else { choose(&MEMORY, taken, low)? };
        taken |= 1 << memory;
        let state = choose(&STATE, taken | 1 << RSI, false)?;
        taken |= 1 << state;
        let stack = if registers.gpr >> RSP & 1 != 0 { Some(choose(&STACK, taken, low)?) } else { None };
        if let Some(stack) = stack {
            Self::rename(&mut n, &mut registers, stack)?;
        }
        if has_memory {
            n.set_memory_base(gpr64(memory));
            n.set_memory_displ_size(0);
            n.set_memory_index_scale(1);
        }
        let memory = (has_memory || implicit.is_some()).then_some(memory);
        Some(Self { instruction: n, registers, memory, state, stack })
    }

    fn rename(n: &mut Instruction, registers: &mut Registers, stack: u8) -> Option<()> {
        let mut found = false;
        for o in 0..n.op_count() {
            let r = n.op_register(o);
            if n.op_kind(o) == OpKind::Register && r.is_gpr() && r.full_register() == Register::RSP {
                n.set_op_register(o, same_size(r, stack));
                found = true;
            }
        }
        let written = registers.gpr_written >> RSP & 1;
        registers.gpr = registers.gpr & !(1 << RSP) | 1 << stack;
        registers.gpr_written = registers.gpr_written & !(1 << RSP) | written << stack;
        found.then_some(())
    }

    /// What makes two thunks the same: the bytes of the instruction, and what stands for RSP.
    pub fn key(&self) -> Option<Vec<u8>> {
        let mut key = encode(&[self.instruction])?;
        key.push(self.stack.unwrap_or(0));
        Some(key)
    }

    fn offset(&self, n: u8) -> usize {
        let guest = if self.stack == Some(n) { RSP } else { n };
        offset_of!(Cpu, gpr) + 8 * usize::from(guest)
    }

    /// The whole thunk.
    pub fn thunk(&self, width: Width) -> Option<Vec<u8>> {
        encode(&self.list(width))
    }

    fn list(&self, width: Width) -> Vec<Instruction> {
        let mut list = Vec::with_capacity(32);
        self.load(&mut list, width);
        list.push(self.instruction);
        self.store(&mut list, width);
        list
    }

    fn field(&self, offset: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(gpr64(self.state), offset as i64)
    }

    /// Whether only the low 16 bytes of vector registers take part: legacy SSE leaves the rest alone.
    fn low_only(&self) -> bool {
        self.instruction.encoding() == iced_x86::EncodingKind::Legacy
    }

    fn load(&self, list: &mut Vec<Instruction>, width: Width) {
        let r = &self.registers;
        if self.state != RDI {
            list.push(two_registers(gpr64(self.state), Register::RDI));
        }
        if let Some(memory) = self.memory.filter(|m| *m != RSI) {
            list.push(two_registers(gpr64(memory), Register::RSI));
        }
        let vector = Register::RAX;
        if r.x87 || r.mxcsr || r.vector != 0 || r.opmask != 0 {
            list.push(load64(vector, self.field(offset_of!(Cpu, vector))));
        }
        if r.x87 {
            list.push(one(Code::Fxrstor64_m512byte, at(vector, offset_of!(VectorState, fx))));
        } else if r.mxcsr {
            list.push(one(Code::Ldmxcsr_m32, at(vector, offset_of!(VectorState, fx) + FX_MXCSR)));
        }
        for n in bits(r.vector.into()) {
            list.push(self.vector_load(n, at(vector, offset_of!(VectorState, zmm) + 64 * n as usize), width));
        }
        for n in bits(r.opmask.into()) {
            let from = at(vector, offset_of!(VectorState, k) + 8 * n as usize);
            list.push(with2(mask_codes(width).0, Register::K0 + n, from));
        }
        if r.flags {
            list.push(one(Code::Push_rm64, self.field(offset_of!(Cpu, rflags))));
            list.push(with_immediate(Code::And_rm64_imm32, at(Register::RSP, 0), STATUS));
            list.push(Instruction::with(Code::Popfq));
        }
        for n in bits(r.gpr.into()) {
            list.push(load64(Register::RAX + n, self.field(self.offset(n as u8))));
        }
    }

    fn store(&self, list: &mut Vec<Instruction>, width: Width) {
        let r = &self.registers;
        for n in bits(r.gpr_written.into()) {
            list.push(store64(self.field(self.offset(n as u8)), Register::RAX + n));
        }
        if r.flags {
            let flags = self.field(offset_of!(Cpu, rflags));
            list.push(Instruction::with(Code::Pushfq));
            list.push(one_register(Code::Pop_r64, Register::RAX));
            list.push(register_immediate(Code::And_rm32_imm32, Register::EAX, STATUS));
            list.push(with_immediate(Code::And_rm64_imm32, flags, !STATUS));
            list.push(memory_register(Code::Or_rm64_r64, flags, Register::RAX));
        }
        let vector = Register::RAX;
        if r.x87 || r.mxcsr || r.vector_written != 0 || r.opmask_written != 0 {
            list.push(load64(vector, self.field(offset_of!(Cpu, vector))));
        }
        for n in bits(r.vector_written.into()) {
            list.push(self.vector_store(
                at(vector, offset_of!(VectorState, zmm) + 64 * n as usize),
                n,
                width,
            ));
        }
        for n in bits(r.opmask_written.into()) {
            let to = at(vector, offset_of!(VectorState, k) + 8 * n as usize);
            list.push(memory_register(mask_codes(width).1, to, Register::K0 + n));
        }
        if r.x87 {
            list.push(one(Code::Fxsave64_m512byte, at(vector, offset_of!(VectorState, fx))));
            list.push(Instruction::with(Code::Fninit));
        } else if r.mxcsr {
            list.push(one(Code::Stmxcsr_m32, at(vector, offset_of!(VectorState, fx) + FX_MXCSR)));
        }
        if r.x87 || r.mxcsr {
            list.extend(Instruction::with1(Code::Pushq_imm32, MXCSR_HOST));
            list.push(one(Code::Ldmxcsr_m32, at(Register::RSP, 0)));
            list.push(one_register(Code::Pop_r64, Register::RAX));
        }
        if r.vector != 0 && !self.low_only() {
            list.push(Instruction::with(Code::VEX_Vzeroupper));
        }
        list.push(Instruction::with(Code::Retnq));
    }

    fn vector_load(&self, n: u32, from: MemoryOperand, width: Width) -> Instruction {
        match width {
            _ if self.low_only() => with2(Code::Movups_xmm_xmmm128, Register::XMM0 + n, from),
            Width::Xmm => with2(Code::Movups_xmm_xmmm128, Register::XMM0 + n, from),
            Width::Ymm => with2(Code::VEX_Vmovdqu_ymm_ymmm256, Register::YMM0 + n, from),
            Width::Zmm { .. } => with2(Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512, Register::ZMM0 + n, from),
        }
    }

    fn vector_store(&self, to: MemoryOperand, n: u32, width: Width) -> Instruction {
        match width {
            _ if self.low_only() => memory_register(Code::Movups_xmmm128_xmm, to, Register::XMM0 + n),
            Width::Xmm => memory_register(Code::Movups_xmmm128_xmm, to, Register::XMM0 + n),
            Width::Ymm => memory_register(Code::VEX_Vmovdqu_ymmm256_ymm, to, Register::YMM0 + n),
            Width::Zmm { .. } => {
                memory_register(Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm, to, Register::ZMM0 + n)
            }
        }
    }
}

fn mask_codes(width: Width) -> (Code, Code) {
    match width {
        Width::Zmm { wide_masks: true } => (Code::VEX_Kmovq_kr_km64, Code::VEX_Kmovq_m64_kr),
        _ => (Code::VEX_Kmovw_kr_km16, Code::VEX_Kmovw_m16_kr),
    }
}

fn bits(set: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |n| set >> n & 1 != 0)
}

fn at(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}

// iced checks operands against codes when it makes an instruction; those here are constants, and a mistake ends as no encoding.
fn made(i: Result<Instruction, iced_x86::IcedError>) -> Instruction {
    i.unwrap_or_default()
}

fn one(code: Code, m: MemoryOperand) -> Instruction {
    made(Instruction::with1(code, m))
}

fn one_register(code: Code, r: Register) -> Instruction {
    made(Instruction::with1(code, r))
}

fn with2(code: Code, r: Register, m: MemoryOperand) -> Instruction {
    made(Instruction::with2(code, r, m))
}

fn memory_register(code: Code, m: MemoryOperand, r: Register) -> Instruction {
    made(Instruction::with2(code, m, r))
}

fn with_immediate(code: Code, m: MemoryOperand, value: i32) -> Instruction {
    made(Instruction::with2(code, m, value))
}

fn register_immediate(code: Code, r: Register, value: i32) -> Instruction {
    made(Instruction::with2(code, r, value))
}

fn two_registers(to: Register, from: Register) -> Instruction {
    made(Instruction::with2(Code::Mov_r64_rm64, to, from))
}

fn load64(r: Register, m: MemoryOperand) -> Instruction {
    with2(Code::Mov_r64_rm64, r, m)
}

fn store64(m: MemoryOperand, r: Register) -> Instruction {
    memory_register(Code::Mov_rm64_r64, m, r)
}

fn encode(list: &[Instruction]) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    for i in list {
        encoder.encode(i, 0).ok()?;
    }
    Some(encoder.take_buffer())
}

/// Whether the instruction is a no-operation, one of [`is_nop_without_feature`], or a prefetch.
pub fn does_nothing(m: M) -> bool {
    is_nop_without_feature(m)
        || matches!(
            m,
            M::Nop
                | M::Reservednop
                | M::Prefetch
                | M::Prefetcht0
                | M::Prefetcht1
                | M::Prefetcht2
                | M::Prefetchit0
                | M::Prefetchit1
                | M::Prefetchnta
                | M::Prefetchw
                | M::Prefetchwt1
        )
}

#[cfg(test)]
#[path = "emit_test.rs"]
mod emit_test;
