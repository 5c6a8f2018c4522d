//! Random instructions of a given code.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic as M, OpKind, Register,
    RoundingControl,
};

use super::operands::{Builder, Pins};
use super::random::Random;
use super::state::{Bits, CODE, CODE_MAX, CODE_OFFSET, State, Test, WINDOW};
use super::values;

/// A test of `code` in mode `bits`; `None` if this try came to nothing.
pub fn test(code: Code, bits: Bits, random: &mut Random) -> Option<Test> {
    let state = values::state(random, bits);
    let target = align(code, target(&state, random), random);
    let (instruction, state) = make(code, Setting { state, bits, target, pins: None }, random)?;
    let mut encoder = Encoder::new(bits.number());
    encoder.encode(&instruction, state.rip).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = Decoder::with_ip(bits.number(), &bytes, state.rip, DecoderOptions::NONE).decode();
    if decoded.code() != code || decoded.len() != bytes.len() {
        return None;
    }
    Some(with_code(state, &bytes, bits))
}

/// What an instruction is made for.
#[derive(Clone, Copy)]
pub struct Setting {
    /// The state that it shall run on.
    pub state: State,
    /// The mode.
    pub bits: Bits,
    /// The linear address that a memory operand shall have.
    pub target: u64,
    /// Registers that hold what they held at the start, in a sequence.
    pub pins: Option<Pins>,
}

/// A random instruction, and the state that it shall run on: that of the setting, but for what makes the operands meaningful.
pub fn make(code: Code, setting: Setting, random: &mut Random) -> Option<(Instruction, State)> {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let Setting { state, bits, target, pins } = setting;
    let mut b = Builder { instruction, state, bits, random, target, pins };
    let operation = code.op_code();
    for n in 0..operation.op_count() {
        b.operand(n, operation.op_kind(n))?;
    }
    evex(&mut b);
    prefixes(&mut b);
    adjust(&mut b);
    Some((b.instruction, b.state))
}

/// A test of `bytes`, of which there are no more than fit.
pub fn with_code(state: State, bytes: &[u8], bits: Bits) -> Test {
    let mut test = Test { state, code: [0xcc; CODE_MAX], code_len: bytes.len() as u32, bits };
    test.code[..bytes.len()].copy_from_slice(bytes);
    test
}

/// Where a memory operand shall be: mostly inside the compared bytes, often at their edges.
pub fn target(s: &State, random: &mut Random) -> u64 {
    let at = match random.below(8) {
        0 => random.below(64).wrapping_sub(48),
        1 => WINDOW as u64 - random.below(64),
        2 => WINDOW as u64 / 2 - random.below(64),
        3 | 4 => random.below(WINDOW as u64 - 512) & !63,
        5 => random.below(WINDOW as u64 - 512) & !15,
        _ => random.below(WINDOW as u64 - 128),
    };
    s.window.wrapping_add(at)
}

/// Aligns the operand, mostly, where the instruction wants that.
pub fn align(code: Code, target: u64, random: &mut Random) -> u64 {
    let name = format!("{:?}", code.mnemonic());
    let starts = |list: &[&str]| list.iter().any(|p| name.starts_with(p));
    let mask = match () {
        () if starts(&["Xsave", "Xrstor"]) => 63,
        () if starts(&["Vmovap", "Vmovdqa", "Vmovnt"]) => 63,
        () if starts(&["Fxsave", "Fxrstor", "Cmpxchg16b"]) => 15,
        () => return target,
    };
    if random.one_in(8) {
        return target;
    }
    // The images are large: let most of them fit.
    let target = if starts(&["X", "Fx"]) { target - target % WINDOW as u64 / 2 } else { target };
    target & !mask
}

/// Masks, zeroing, broadcast, rounding.
fn evex(b: &mut Builder<'_>) {
    if b.instruction.encoding() != EncodingKind::EVEX {
        return;
    }
    let operation = b.instruction.code().op_code();
    let memory = b.instruction.op_kinds().any(|k| k == OpKind::Memory);
    if operation.can_use_op_mask_register() && (operation.require_op_mask_register() || b.random.one_in(2)) {
        b.instruction.set_op_mask(Register::K1 + b.random.below(7) as u32);
        let to_memory = b.instruction.op0_kind() == OpKind::Memory;
        if operation.can_use_zeroing_masking() && !to_memory && b.random.one_in(2) {
            b.instruction.set_zeroing_masking(true);
        }
    }
    if memory && operation.can_broadcast() && b.random.one_in(2) {
        b.instruction.set_is_broadcast(true);
    }
    if !memory && operation.can_use_rounding_control() && b.random.one_in(2) {
        let mode = b.random.pick(&[
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ]);
        b.instruction.set_rounding_control(mode);
    } else if !memory && operation.can_suppress_all_exceptions() && b.random.one_in(2) {
        b.instruction.set_suppress_all_exceptions(true);
    }
}

fn prefixes(b: &mut Builder<'_>) {
    let operation = b.instruction.code().op_code();
    let memory = b.instruction.op0_kind() == OpKind::Memory;
    if memory && operation.can_use_lock_prefix() && b.random.one_in(3) {
        b.instruction.set_has_lock_prefix(true);
    }
    if b.instruction.is_string_instruction() && operation.can_use_rep_prefix() && b.random.one_in(2) {
        if operation.can_use_repne_prefix() && b.random.one_in(2) {
            b.instruction.set_has_repne_prefix(true);
        } else {
            b.instruction.set_has_rep_prefix(true);
        }
    }
}

/// What makes random operands meaningful for some instructions.
fn adjust(b: &mut Builder<'_>) {
    let code = b.instruction.code();
    match b.instruction.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc
            if b.instruction.op1_kind() == OpKind::Register && b.random.one_in(2) =>
        {
            let r = b.instruction.op1_register();
            let used = b.instruction.memory_base().full_register() == r.full_register()
                || b.instruction.memory_index().full_register() == r.full_register();
            if b.instruction.op0_kind() == OpKind::Memory && !used {
                let value = b.random.below(4096) as i64 - 2048;
                b.set(r.full_register().number(), b.bits.number().max(32), value as u64);
            }
        }
        M::Enter => {
            let (size, level) = (b.random.below(64), b.random.below(4));
            b.instruction.set_immediate16(size as u16);
            b.instruction.set_immediate8_2nd(level as u8);
            let frame = b.state.gpr[4];
            b.state.gpr[5] = frame.wrapping_add(16 * b.random.below(8));
        }
        // Linux lets user mode call this one, and the breakpoint and overflow gates.
        M::Int if matches!(b.instruction.immediate8(), 3 | 4 | 0x80) => b.instruction.set_immediate8(0x81),
        M::Leave => b.state.gpr[5] = b.state.gpr[4].wrapping_add(8 * b.random.below(16)),
        M::Popf | M::Popfd | M::Popfq => {
            // No trap flag, alignment check, nested task or ID: the kernel treats them its own way, or keeps them.
            let at = b.state.gpr[4].wrapping_add(b.bits.data_base());
            let value = b.random.bits() & 0x0cd5;
            b.set_memory(at, value);
        }
        M::Ret | M::Jmp | M::Call => {
            let to = b.code_target(false);
            let stack = b.state.gpr[4].wrapping_add(b.bits.data_base());
            let at = if b.instruction.mnemonic() == M::Ret { stack } else { b.target };
            if !b.random.one_in(6) {
                b.set_memory(at, to);
                if b.instruction.op_count() > 0 && b.instruction.op0_kind() == OpKind::Register {
                    let r = b.instruction.op0_register();
                    if r.full_register() != Register::RSP {
                        b.set(r.number(), r.size() as u32 * 8, to);
                    }
                }
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if b.random.one_in(2) => equal_accumulator(b),
        M::Div | M::Idiv if !b.random.one_in(4) => {
            b.state.gpr[2] = 0;
            b.state.gpr[0] &= 0x7fff_ffff;
        }
        M::Fxrstor | M::Fxrstor64 => clean_image(b, 24, 0xffff),
        M::Xrstor | M::Xrstor64 | M::Xrstors => clean_image(b, 24, 0xffff),
        M::Ldmxcsr | M::Vldmxcsr if !b.random.one_in(4) => clean_image(b, 0, 0xffff),
        _ => {}
    }
    if is_xsave(code) {
        xsave_image(b);
    }
}

/// Makes the accumulator equal what memory holds, so that a compare-and-exchange succeeds.
fn equal_accumulator(b: &mut Builder<'_>) {
    let at = b.target.wrapping_sub(b.state.window) as usize;
    let Some(bytes) = b.state.memory.get(at..).and_then(|m| m.get(..16)) else { return };
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[n * 8 + k]));
    let (low, high) = (word(0), word(1));
    let wide = b.bits == Bits::SixtyFour;
    let used = [b.instruction.memory_base(), b.instruction.memory_index()];
    if used
        .iter()
        .any(|r| *r != Register::None && *r != Register::RIP && matches!(r.full_register().number(), 0 | 2))
    {
        return;
    }
    b.state.gpr[0] = if wide { low } else { low & 0xffff_ffff };
    b.state.gpr[2] = if wide && b.instruction.mnemonic() == M::Cmpxchg16b { high } else { low >> 32 };
}

/// Keeps reserved bits of MXCSR in an image clear.
fn clean_image(b: &mut Builder<'_>, offset: u64, keep: u32) {
    let at = (b.target - b.target % 16).wrapping_add(offset).wrapping_sub(b.state.window) as usize;
    let Some(bytes) = b.state.memory.get_mut(at..).and_then(|m| m.get_mut(..4)) else { return };
    let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & keep;
    bytes.copy_from_slice(&value.to_le_bytes());
}

fn is_xsave(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
    )
}

/// Components that fit into the compared bytes, and a header that is mostly valid.
fn xsave_image(b: &mut Builder<'_>) {
    let compacted = b.random.one_in(2);
    let mask = if b.random.one_in(4) { 0xe7 } else { 7 };
    let used = [b.instruction.memory_base(), b.instruction.memory_index()];
    let fixed = |n: usize| {
        used.iter().any(|r| *r != Register::None && *r != Register::RIP && r.full_register().number() == n)
    };
    if !fixed(0) {
        b.state.gpr[0] = b.random.bits() & mask;
    }
    if !fixed(2) {
        b.state.gpr[2] = 0;
    }
    let at = b.target.wrapping_add(512).wrapping_sub(b.state.window) as usize;
    let present = b.random.bits() & mask;
    let format = if compacted { 1 << 63 | b.random.bits() & mask | present } else { 0 };
    let noise = b.random.one_in(8);
    let Some(header) = b.state.memory.get_mut(at..).and_then(|m| m.get_mut(..64)) else { return };
    if !noise {
        header.fill(0);
    }
    header[..8].copy_from_slice(&present.to_le_bytes());
    header[8..16].copy_from_slice(&format.to_le_bytes());
}

/// The instruction of a test, for reports.
pub fn instruction(test: &Test) -> Instruction {
    let ip = CODE + CODE_OFFSET - test.bits.code_base();
    Decoder::with_ip(test.bits.number(), test.code(), ip, DecoderOptions::NONE).decode()
}
