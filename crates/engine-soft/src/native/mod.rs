//! Instructions run by the host's processor.
//!
//! An instruction that only computes is re-encoded for 64-bit mode, its memory operand replaced by the host address of the guest's
//! bytes, and put into a *thunk* that loads the registers it uses from the state block, runs it and stores what it wrote. So it has the
//! processor's own semantics. What cannot be had this way (instructions with several accesses, whose addresses or formats depend on the mode)
//! is in [`special`], in Rust.
//!
//! | file | what |
//! |---|---|
//! | `forms` | the allow-list, and what is special about some instructions |
//! | `plan` | registers, operand and checks of one instruction |
//! | `emit`, `area`, `enter`, `signal` | making code, where it lives, running it, exceptions in it |
//! | `access` | memory operands: direct, through a buffer, masked |
//! | `checks` | CR0, CR4 and XCR0 |
//! | `features` | CPUID |
//! | `special` and its folder | gathers, strings, decimal adjustment, FXSAVE and XSAVE, x87 environments |

mod access;
mod area;
mod checks;
mod emit;
mod enter;
mod features;
mod forms;
mod plan;
mod signal;
mod special;

use std::collections::HashMap;

use iced_x86::{Instruction, InstructionInfoFactory};
use umbra_engine::EngineError;
use umbra_x86::reg::Cr4;

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::native::emit::{Prepared, Width};
use crate::native::plan::Plan;

pub use area::{Area, Pool};
pub use checks::unit as check_unit;
pub use emit::does_nothing;
pub use forms::{in_64_bit_mode, is_allowed};
pub use plan::{Operand, Registers, Unit, directions, operand};
pub use signal::prepare_thread;

#[cfg(test)]
pub use features::SERIALIZE;
pub use features::{host_features, host_is_amd, offered, offers};
pub use special::{mxcsr_mask, normalize_x87, special};

/// An instruction that has been made ready to run natively. It stays good for ever: one that has been forgotten is made anew when it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thunk {
    index: u32,
    generation: u32,
}

/// Whether the host allows thunks.
///
/// # Errors
/// It does not; the text says what to do.
pub fn check_host() -> Result<(), EngineError> {
    Area::new(Pool::Thunks).map(drop)?;
    Area::new(Pool::Blocks).map(drop)
}

/// A processor's thunks.
pub struct Local {
    area: Area,
    plans: Vec<Plan>,
    known: HashMap<Vec<u8>, u32>,
    generation: u32,
    width: Width,
    factory: InstructionInfoFactory,
}

impl Local {
    /// None yet.
    ///
    /// # Errors
    /// The host allows no executable memory.
    pub fn new() -> Result<Box<Self>, EngineError> {
        signal::install();
        Ok(Box::new(Self {
            area: Area::new(Pool::Thunks)?,
            plans: Vec::new(),
            known: HashMap::new(),
            generation: 0,
            width: Width::of_host(),
            factory: InstructionInfoFactory::new(),
        }))
    }

    /// Forgets all thunks.
    fn reset(&mut self) {
        self.area.clear();
        self.plans.clear();
        self.known.clear();
        self.generation = self.generation.wrapping_add(1);
    }

    fn thunk(&self, index: u32) -> Thunk {
        Thunk { index, generation: self.generation }
    }

    fn plan(&self, thunk: Thunk) -> Option<&Plan> {
        self.plans.get(thunk.index as usize).filter(|_| thunk.generation == self.generation)
    }

    fn compile(&mut self, i: &Instruction) -> Option<Thunk> {
        if !forms::is_allowed(i) {
            return None;
        }
        if emit::does_nothing(i.mnemonic()) {
            return self.nothing();
        }
        let prepared = Prepared::new(i, &mut self.factory)?;
        let key = prepared.key()?;
        if let Some(index) = self.known.get(&key) {
            return Some(self.thunk(*index));
        }
        let code = prepared.thunk(self.width)?;
        let entry = self.push(&code)?;
        let registers = &prepared.registers;
        let (read, write) = plan::directions(i, registers);
        let operand = plan::operand(i, registers);
        let len = match operand {
            Operand::Masked(m) => usize::from(m.element) * usize::from(m.count),
            Operand::Line => 1,
            _ => i.memory_size().size(),
        };
        let locked = i.has_lock_prefix() || i.mnemonic() == iced_x86::Mnemonic::Xchg;
        let plan = Plan {
            entry,
            unit: registers.unit(i),
            operand,
            len: u8::try_from(len).ok()?,
            align: forms::alignment(i, len),
            read,
            write,
            locked,
            x87: registers.x87,
            mxcsr: registers.mxcsr,
        };
        Some(self.add(key, plan))
    }

    fn push(&mut self, code: &[u8]) -> Option<*const u8> {
        if let Some(entry) = self.area.push(code) {
            return Some(entry);
        }
        self.reset();
        self.area.push(code)
    }

    fn add(&mut self, key: Vec<u8>, plan: Plan) -> Thunk {
        let index = self.plans.len() as u32;
        self.plans.push(plan);
        self.known.insert(key, index);
        self.thunk(index)
    }

    /// The thunk of all instructions that do nothing but check that they may.
    fn nothing(&mut self) -> Option<Thunk> {
        const RETURN: &[u8] = &[0xc3];
        if let Some(index) = self.known.get(RETURN) {
            return Some(self.thunk(*index));
        }
        let plan = Plan {
            entry: self.push(RETURN)?,
            unit: plan::Unit::General,
            operand: Operand::None,
            len: 0,
            align: 1,
            read: false,
            write: false,
            locked: false,
            x87: false,
            mxcsr: false,
        };
        Some(self.add(RETURN.to_vec(), plan))
    }
}

/// Makes `i` ready to run natively; `None` if it is not on the list of what may.
pub fn compile(cpu: &mut Cpu, i: &Instruction) -> Option<Thunk> {
    cpu.native.compile(&substitute(cpu, i))
}

/// What the guest's processor takes `i` for: LZCNT and TZCNT are BSR and BSF to one without them.
fn substitute(cpu: &Cpu, i: &Instruction) -> Instruction {
    use iced_x86::Code as C;
    use umbra_x86::cpuid::feature;
    let mut i = *i;
    let code = match i.code() {
        C::Lzcnt_r16_rm16 if !cpu.cpuid.has(feature::ABM) => C::Bsr_r16_rm16,
        C::Lzcnt_r32_rm32 if !cpu.cpuid.has(feature::ABM) => C::Bsr_r32_rm32,
        C::Lzcnt_r64_rm64 if !cpu.cpuid.has(feature::ABM) => C::Bsr_r64_rm64,
        C::Tzcnt_r16_rm16 if !cpu.cpuid.has(feature::BMI1) => C::Bsf_r16_rm16,
        C::Tzcnt_r32_rm32 if !cpu.cpuid.has(feature::BMI1) => C::Bsf_r32_rm32,
        C::Tzcnt_r64_rm64 if !cpu.cpuid.has(feature::BMI1) => C::Bsf_r64_rm64,
        code => code,
    };
    i.set_code(code);
    i
}

/// Runs `i`, for which `thunk` was made.
pub fn run(cpu: &mut Cpu, i: &Instruction, thunk: Thunk) -> Exec<Flow> {
    let plan = match cpu.native.plan(thunk) {
        Some(plan) => *plan,
        None => {
            let again = compile(cpu, i).ok_or(Fault::UD)?;
            *cpu.native.plan(again).ok_or(Fault::UD)?
        }
    };
    checks::unit(cpu, plan.unit)?;
    access::run(cpu, i, &plan)?;
    Ok(Flow::Next)
}

/// Enters the thunk with its operand at `memory`.
fn execute(cpu: &mut Cpu, i: &Instruction, plan: &Plan, memory: *mut u8) -> Exec {
    signal::prepare_thread();
    // SAFETY: the plan is one of this processor's own, so its thunk exists; `access` chose `memory` for the operand's size and direction.
    let outcome = unsafe { enter::enter(cpu, memory, plan.entry) };
    if outcome.fault != 0 {
        return Err(exception(cpu, outcome));
    }
    if plan.x87 {
        special::environment::fix_pointers(cpu, i, memory);
    }
    Ok(())
}

#[cold]
fn exception(cpu: &mut Cpu, outcome: enter::Outcome) -> Fault {
    const MXCSR: std::ops::Range<usize> = 24..28;
    if std::arch::is_x86_feature_detected!("avx") {
        clear_upper_halves();
    }
    match outcome.fault - 1 {
        0 => Fault::DE,
        6 => Fault::UD,
        16 => Fault::MF,
        17 => Fault::AC,
        19 => {
            cpu.vector.fx[MXCSR].copy_from_slice(&(outcome.mxcsr as u32).to_le_bytes());
            if cpu.cr4.contains(Cr4::OSXMMEXCPT) { Fault::XM } else { Fault::UD }
        }
        _ => Fault::GP0,
    }
}

#[target_feature(enable = "avx")]
fn zero_upper() {
    std::arch::x86_64::_mm256_zeroupper();
}

fn clear_upper_halves() {
    // SAFETY: only called where the host has AVX.
    unsafe { zero_upper() }
}

#[cfg(test)]
#[path = "native_test.rs"]
mod native_test;
#[cfg(test)]
#[path = "operand_test.rs"]
mod operand_test;
