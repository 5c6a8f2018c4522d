//! Random programs.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, Register as R,
};

use super::super::generate::{Setting, align, make, target};
use super::super::operands::Pins;
use super::super::random::Random;
use super::super::state::{Bits, DATA, PAGE, WINDOW};
use super::super::values;
use super::pool::Pool;
use super::{INSTRUCTIONS_MAX, Item, Program, Step};

const RSP: usize = 4;
/// Tries to make an instruction.
const TRIES: usize = 30;

/// A program in the making.
pub struct Generator<'a> {
    /// What it is made of.
    pub pool: &'a Pool,
    /// Numbers.
    pub random: &'a mut Random,
    /// What there is of it.
    pub program: Program,
    /// Registers that keep their values.
    pub pins: Pins,
    /// Instructions that it shall have.
    pub wanted: usize,
    /// In a subroutine, which must leave the stack as it is.
    pub balanced: bool,
    factory: InstructionInfoFactory,
}

/// The program of `seed`.
pub fn program(pool: &Pool, bits: Bits, seed: u64) -> Program {
    let mut random = Random::new(seed);
    let mut state = values::state(&mut random, bits);
    let pins = pins(bits, &mut random);
    for pointer in pins.pointers {
        let at = random.below(WINDOW as u64) & !15;
        state.gpr[usize::from(pointer)] = state.window + at;
    }
    state.gpr[usize::from(pins.index)] = random.below(64);
    let rounds = if random.one_in(8) { 1 + random.below(60) } else { 1 + random.below(4) };
    state.gpr[usize::from(pins.counters[1])] = 1 + random.below(4);
    state.gpr[usize::from(pins.counters[0])] = rounds;
    for n in state.zmm[usize::from(pins.vector)].chunks_mut(4) {
        n.copy_from_slice(&(random.below(64) as u32 & !7).to_le_bytes());
    }
    let wanted = 2 + random.below(INSTRUCTIONS_MAX as u64 - 1) as usize;
    let program = Program { state, bits, items: Vec::new() };
    let factory = InstructionInfoFactory::new();
    let mut g = Generator { pool, random: &mut random, program, pins, wanted, balanced: false, factory };
    g.shape();
    g.program
}

fn pins(bits: Bits, random: &mut Random) -> Pins {
    // A register for the counter of an inner loop, if there shall be one.
    let inner = random.one_in(3);
    let mut free: Vec<u8> = (0..bits.register_count() as u8).filter(|n| usize::from(*n) != RSP).collect();
    if bits != Bits::SixtyFour {
        // What instructions imply most.
        free.retain(|n| *n > 2);
        let mut take = || free.swap_remove(random.below(free.len() as u64) as usize);
        let (pointer, index, counter) = (take(), take(), take());
        let counters = [counter, if inner { take() } else { counter }];
        return Pins { pointers: [pointer; 2], index, counters, vector: 1 + random.below(7) as u8 };
    }
    let mut take = || free.swap_remove(random.below(free.len() as u64) as usize);
    let (pointers, index, counter) = ([take(), take()], take(), take());
    let counters = [counter, if inner { take() } else { counter }];
    Pins { pointers, index, counters, vector: 1 + random.below(15) as u8 }
}

impl Generator<'_> {
    /// Whether `more` instructions still fit.
    pub fn fits(&self, more: usize) -> bool {
        self.program.len() + more <= self.wanted.min(INSTRUCTIONS_MAX)
    }

    /// Adds an item; its number.
    pub fn push(&mut self, steps: Vec<Step>) -> usize {
        self.program.items.push(Item { steps });
        self.program.items.len() - 1
    }

    /// `MOV` of a value into a register.
    pub fn set(&self, n: usize, value: u64) -> Step {
        let n = n as u32;
        let i = match (self.program.bits, u32::try_from(value), i32::try_from(value as i64)) {
            (Bits::SixtyFour, Err(_), Ok(v)) => Instruction::with2(Code::Mov_rm64_imm32, R::RAX + n, v),
            (Bits::SixtyFour, Err(_), Err(_)) => Instruction::with2(Code::Mov_r64_imm64, R::RAX + n, value),
            _ => Instruction::with2(Code::Mov_r32_imm32, R::EAX + n, value as u32),
        };
        i.unwrap_or_default().into()
    }

    /// Adds an instruction that does not branch, with what it needs.
    pub fn plain(&mut self) {
        for _ in 0..TRIES {
            let code = self.pool.pick(self.random);
            if let Some(steps) = self.steps(code)
                && self.fits(steps.len())
            {
                self.push(steps);
                return;
            }
        }
    }

    fn steps(&mut self, code: Code) -> Option<Vec<Step>> {
        let state = self.program.state;
        let setting =
            Setting { state, bits: self.program.bits, target: self.target(code), pins: Some(self.pins) };
        let (instruction, after) = make(code, setting, self.random)?;
        let writes = self.writes(&instruction);
        if writes.vector & 1 << self.pins.vector != 0 && !self.random.one_in(8) {
            return None;
        }
        let set: Vec<usize> = (0..16).filter(|n| after.gpr[*n] != state.gpr[*n]).collect();
        let written = set.iter().fold(writes.general, |w, n| w | 1 << n);
        if self.pins.counters.iter().any(|n| written >> n & 1 != 0)
            || self.balanced && written >> RSP & 1 != 0
        {
            return None;
        }
        let mut steps: Vec<Step> = set.iter().map(|n| self.set(*n, after.gpr[*n])).collect();
        steps.push(instruction.into());
        let [p, q] = self.pins.pointers;
        let stack =
            instruction.is_stack_instruction() && !matches!(instruction.mnemonic(), M::Leave | M::Enter);
        let mut put_back = vec![p, q, self.pins.index];
        if !stack {
            put_back.push(RSP as u8);
        }
        put_back.dedup();
        for n in put_back.into_iter().filter(|n| written >> n & 1 != 0) {
            steps.push(self.set(n.into(), state.gpr[usize::from(n)]));
        }
        // Overflow is undefined after these, and not the same in all forms: see `data/undefined.txt`.
        if matches!(instruction.mnemonic(), M::Rol | M::Ror) && format!("{code:?}").ends_with("imm8") {
            steps.push(Instruction::with2(Code::Test_rm32_r32, R::EAX, R::EAX).ok()?.into());
        }
        self.program.state.memory = after.memory;
        Some(steps)
    }

    /// Where a memory operand shall be: mostly where the compared bytes are, sometimes where there is a fault.
    fn target(&mut self, code: Code) -> u64 {
        let r = &mut *self.random;
        let at = match r.below(48) {
            0..4 => DATA + 2 * PAGE - r.below(64),
            4 => DATA + PAGE - 1 - r.below(70),
            5 => DATA + 3 * PAGE - r.below(64),
            6 => DATA + 3 * PAGE + r.below(PAGE),
            _ => target(&self.program.state, r),
        };
        let at = align(code, at, r);
        let operation = code.op_code();
        let aligned = operation.encoding() == EncodingKind::Legacy && operation.memory_size().size() >= 16;
        if aligned && !r.one_in(12) { at & !15 } else { at }
    }

    fn writes(&mut self, i: &Instruction) -> Writes {
        let mut out = Writes::default();
        for used in self.factory.info(i).used_registers() {
            let writes = matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            let full = used.register().full_register();
            match writes {
                true if full.is_gpr() => out.general |= 1 << full.number(),
                true if full.is_vector_register() => out.vector |= 1 << full.number(),
                _ => {}
            }
        }
        out
    }
}

/// Registers that an instruction writes, by number.
#[derive(Debug, Clone, Copy, Default)]
struct Writes {
    general: u32,
    vector: u32,
}
