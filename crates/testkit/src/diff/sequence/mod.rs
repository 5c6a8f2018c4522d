//! Sequences: short random programs with branches, loops, calls, and faults in the middle.
//!
//! A program is a list of items, each an instruction and what it needs around it: a register set before, or put back after. Some
//! registers keep their values all through ([`Pins`](super::operands::Pins)), so that most addresses are good. Every loop
//! counts down a register that nothing else writes, so that a program ends; one that does not is left alone after some seconds.
//! A program runs several times in the engine, so that translations are entered anew and lead to each other.
//!
//! | file | what |
//! |---|---|
//! | `pool` | instruction forms by how often compilers emit them |
//! | `generate`, `control` | random programs; branches, loops, calls in them |
//! | `flags` | where a status flag is dead, found anew and not from the engine |
//! | `run`, `shrink` | comparing; the smallest program that still differs |

pub mod control;
pub mod flags;
pub mod generate;
pub mod pool;
pub mod run;
pub mod shrink;

use std::fmt::Write as _;

use iced_x86::{
    Decoder, DecoderOptions, Encoder, Formatter as _, Instruction, IntelFormatter, OpKind, Register,
};

use super::generate::with_code;
use super::state::{Bits, CODE_MAX, State, Test};

/// Most instructions of a program.
pub const INSTRUCTIONS_MAX: usize = 30;

/// One instruction of a program.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The instruction.
    pub instruction: Instruction,
    /// The item whose address it branches to, or computes, or has as an immediate.
    pub label: Option<usize>,
}

impl From<Instruction> for Step {
    fn from(instruction: Instruction) -> Self {
        Self { instruction, label: None }
    }
}

/// Instructions that belong together.
#[derive(Debug, Clone, Default)]
pub struct Item {
    /// In order.
    pub steps: Vec<Step>,
}

/// A program and the state that it starts on.
#[derive(Clone)]
pub struct Program {
    /// The state.
    pub state: State,
    /// The mode.
    pub bits: Bits,
    /// The code. A label that is their number is the end.
    pub items: Vec<Item>,
}

impl Program {
    /// How many instructions it has.
    pub fn len(&self) -> usize {
        self.items.iter().map(|i| i.steps.len()).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its instructions.
    pub fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        self.items.iter().flat_map(|i| i.steps.iter().map(|s| &s.instruction))
    }

    /// It as a test; `None` if it cannot be encoded as it is.
    pub fn test(&self) -> Option<Test> {
        let mut program = self.clone();
        // Each time, a short branch that does not reach becomes a near one.
        for _ in 0..=self.len() {
            match program.encode() {
                Ok(bytes) => {
                    return (bytes.len() <= CODE_MAX).then(|| with_code(self.state, &bytes, self.bits));
                }
                Err(Some((item, step))) => {
                    program.items[item].steps[step].instruction.as_near_branch();
                }
                Err(None) => return None,
            }
        }
        None
    }

    /// Its bytes, or the branch that does not reach.
    fn encode(&self) -> Result<Vec<u8>, Option<(usize, usize)>> {
        let start = self.state.rip;
        let mut addresses = Vec::with_capacity(self.items.len() + 1);
        let mut at = start;
        for item in &self.items {
            addresses.push(at);
            for step in &item.steps {
                // No length depends on where a label is.
                let bytes = self.encode_step(step, at, at).ok_or(None)?;
                at += bytes.len() as u64;
            }
        }
        addresses.push(at);
        let mut out = Vec::new();
        for (n, item) in self.items.iter().enumerate() {
            for (k, step) in item.steps.iter().enumerate() {
                let label = step.label.and_then(|l| addresses.get(l)).copied().unwrap_or(start);
                let at = start + out.len() as u64;
                let is_short = step.instruction.is_jcc_short() || step.instruction.is_jmp_short();
                let bytes = self.encode_step(step, at, label).ok_or(is_short.then_some((n, k)))?;
                out.extend(bytes);
            }
        }
        Ok(out)
    }

    fn encode_step(&self, step: &Step, at: u64, label: u64) -> Option<Vec<u8>> {
        let mut i = step.instruction;
        if step.label.is_some() {
            set_label(&mut i, label);
        }
        let mut encoder = Encoder::new(self.bits.number());
        encoder.encode(&i, at).ok()?;
        let bytes = encoder.take_buffer();
        let decoded = Decoder::with_ip(self.bits.number(), &bytes, at, DecoderOptions::NONE).decode();
        (decoded.code() == i.code() && decoded.len() == bytes.len()).then_some(bytes)
    }
}

fn set_label(i: &mut Instruction, label: u64) {
    match i.op0_kind() {
        OpKind::NearBranch64 => i.set_near_branch64(label),
        OpKind::NearBranch32 => i.set_near_branch32(label as u32),
        _ if i.op_count() > 1 && i.op1_kind() == OpKind::Memory => {
            i.set_memory_base(if i.op0_register().is_gpr64() { Register::RIP } else { Register::None });
            i.set_memory_displ_size(if i.op0_register().is_gpr64() { 8 } else { 4 });
            i.set_memory_displacement64(label);
        }
        _ => {
            let last = i.op_count() - 1;
            match i.op_kind(last) {
                OpKind::Immediate64 => i.set_immediate64(label),
                OpKind::Immediate32to64 => i.set_immediate32to64(label as i32 as i64),
                _ => i.set_immediate32(label as u32),
            }
        }
    }
}

/// The code of a test, an instruction a line.
pub fn listing(test: &Test) -> String {
    let mut out = String::new();
    let mut formatter = IntelFormatter::new();
    let mut decoder = Decoder::with_ip(test.bits.number(), test.code(), test.state.rip, DecoderOptions::NONE);
    while decoder.can_decode() {
        let i = decoder.decode();
        let mut text = String::new();
        formatter.format(&i, &mut text);
        let from = (i.ip() - test.state.rip) as usize;
        let bytes = test.code()[from..from + i.len()].iter().fold(String::new(), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        });
        let _ = writeln!(out, "    {:x}: {bytes:<30} {text}", i.ip());
    }
    out
}

#[cfg(test)]
#[path = "sequence_test.rs"]
mod sequence_test;
