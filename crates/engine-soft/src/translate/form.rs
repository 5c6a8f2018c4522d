//! Which instruction is translated how: an allow-list. Whatever is not on it, the interpreter does.

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic as M, OpKind, Register};

use umbra_x86::cpuid::feature;

use super::system::System;
use crate::cpu::Cpu;
use crate::native::{self, Operand, Registers, Unit};
use crate::sys;

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// It does nothing.
    Nothing,
    /// SERIALIZE: what comes after it is looked at anew.
    Serialize,
    /// By itself, with other registers and a looked-up operand.
    Copy(Copied),
    /// LEA.
    Lea,
    /// PUSH of a register or an immediate.
    Push,
    /// PUSH of memory.
    PushMemory,
    /// POP of a register.
    Pop,
    /// LEAVE.
    Leave,
    /// CALL relative; JMP relative; Jcc relative, by its condition's number.
    Call,
    Jump,
    Branch(u8),
    /// JRCXZ or JECXZ, by the address size that goes with the mode.
    BranchIfZero,
    /// CALL, JMP to a register or through memory; RET.
    CallIndirect,
    JumpIndirect,
    Return,
    /// See there.
    System(System),
    /// By the interpreter.
    Interpret,
}

/// What is known of an instruction that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copied {
    /// Bytes of its memory operand; 0 for none.
    pub len: u8,
    pub read: bool,
    pub write: bool,
    /// A mask says which of the bytes it accesses: where not all may be accessed, the interpreter finds out whether that matters.
    pub masked: bool,
    /// The unit that must be available.
    pub unit: Unit,
    /// The host's processor may raise an exception.
    pub raises: bool,
    /// General registers that it writes, a bit each.
    pub writes: u16,
}

impl Form {
    /// Whether its translation ends a block: nothing comes after it.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::Jump | Self::Call | Self::CallIndirect | Self::JumpIndirect | Self::Return)
    }

    /// Whether it is a conditional branch, after which the block goes on.
    pub(super) fn goes_on(self) -> bool {
        matches!(self, Self::Branch(_) | Self::BranchIfZero)
    }

    /// The form of `i`, in flat code.
    pub(super) fn of(cpu: &Cpu, i: &Instruction, factory: &mut InstructionInfoFactory) -> Self {
        if let Some(form) = control(cpu, i) {
            return form;
        }
        if i.flow_control() != FlowControl::Next || !is_offered(cpu, i) {
            return Self::Interpret;
        }
        if i.code() == Code::Serialize {
            return Self::Serialize;
        }
        if native::does_nothing(i.mnemonic()) {
            return Self::Nothing;
        }
        if cpu.mode.code == 64
            && let Some(system) = System::of(i.code())
        {
            return Self::System(system);
        }
        if sys::handler(i.code()).is_some() || native::special(i.code()).is_some() {
            return match i.code() {
                // Elsewhere they reach the first eight registers only.
                Code::VEX_Vzeroupper | Code::VEX_Vzeroall if cpu.mode.code == 64 => {
                    Self::Copy(Copied::vector())
                }
                _ => Self::Interpret,
            };
        }
        if i.mnemonic() == M::Lea {
            return Self::Lea;
        }
        if !(is_mov(i) || native::is_allowed(i)) {
            return Self::Interpret;
        }
        copied(i, factory).map_or(Self::Interpret, Self::Copy)
    }
}

impl Copied {
    fn vector() -> Self {
        Self { len: 0, read: false, write: false, masked: false, unit: Unit::Avx, raises: false, writes: 0 }
    }
}

/// Whether the guest's processor has it, and takes it for what it is: LZCNT and TZCNT are BSR and BSF to one without them.
fn is_offered(cpu: &Cpu, i: &Instruction) -> bool {
    let has = match i.mnemonic() {
        M::Lzcnt => cpu.cpuid.has(feature::ABM),
        M::Tzcnt => cpu.cpuid.has(feature::BMI1),
        M::Popcnt => cpu.cpuid.has(feature::POPCNT),
        _ => true,
    };
    has && native::offered(cpu, i)
}

/// MOV between general registers, memory and immediates.
fn is_mov(i: &Instruction) -> bool {
    let general = |n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr();
    i.mnemonic() == M::Mov && general(0) && general(1)
}

fn copied(i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Copied> {
    let mut bare = *i;
    let has_memory = i.op_kinds().any(|k| k == OpKind::Memory);
    if has_memory {
        bare.set_memory_base(Register::None);
        bare.set_memory_index(Register::None);
        bare.set_memory_displacement64(0);
        bare.set_memory_displ_size(8);
        bare.set_segment_prefix(Register::None);
    }
    let is_plain = |k| {
        !matches!(
            k,
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    };
    if !i.op_kinds().all(is_plain) {
        return None;
    }
    let registers = Registers::of(&bare, factory);
    let unit = registers.unit(i);
    if registers.x87
        || registers.mmx
        || !matches!(unit, Unit::General | Unit::GeneralVex | Unit::Sse | Unit::Avx | Unit::Avx512)
    {
        return None;
    }
    let (read, write) = native::directions(i, &registers);
    let (len, masked) = match native::operand(i, &registers) {
        Operand::None => (0, false),
        Operand::Whole => (i.memory_size().size(), false),
        Operand::Masked(_) => (i.memory_size().size(), true),
        _ => return None,
    };
    let len = u8::try_from(len).ok().filter(|n| *n <= 64)?;
    if has_memory && len == 0 {
        return None;
    }
    let divides = matches!(i.mnemonic(), M::Div | M::Idiv);
    let vector = !matches!(unit, Unit::General | Unit::GeneralVex);
    let raises = divides || vector || len >= 16;
    Some(Copied { len, read, write, masked, unit, raises, writes: registers.gpr_written })
}

/// Control flow and the stack.
fn control(cpu: &Cpu, i: &Instruction) -> Option<Form> {
    use Code as C;
    let wide = cpu.mode.code == 64;
    let pick = |at: &[bool]| if wide { at[0] } else { at[1] };
    let code = i.code();
    let form = match code {
        C::Push_r64 | C::Pushq_imm32 | C::Pushq_imm8 if wide => Form::Push,
        C::Push_r32 | C::Pushd_imm32 | C::Pushd_imm8 if !wide => Form::Push,
        C::Push_rm64 if wide && i.op0_kind() == OpKind::Memory => Form::PushMemory,
        C::Push_rm32 if !wide && i.op0_kind() == OpKind::Memory => Form::PushMemory,
        C::Pop_r64 if wide => Form::Pop,
        C::Pop_r32 if !wide => Form::Pop,
        _ if pick(&[code == C::Leaveq, code == C::Leaved]) => Form::Leave,
        _ if pick(&[code == C::Call_rel32_64, code == C::Call_rel32_32]) => Form::Call,
        C::Jmp_rel8_64 | C::Jmp_rel32_64 if wide => Form::Jump,
        C::Jmp_rel8_32 | C::Jmp_rel32_32 if !wide => Form::Jump,
        _ if pick(&[code == C::Call_rm64, code == C::Call_rm32]) => Form::CallIndirect,
        _ if pick(&[code == C::Jmp_rm64, code == C::Jmp_rm32]) => Form::JumpIndirect,
        C::Retnq | C::Retnq_imm16 if wide => Form::Return,
        C::Retnd | C::Retnd_imm16 if !wide => Form::Return,
        C::Jrcxz_rel8_64 if wide => Form::BranchIfZero,
        C::Jecxz_rel8_32 if !wide => Form::BranchIfZero,
        _ if i.is_jcc_short_or_near()
            && i.op0_kind() == if wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 } =>
        {
            Form::Branch((i.condition_code() as u8).checked_sub(1)?)
        }
        _ => return None,
    };
    Some(form)
}
