//! Which handler an instruction gets.
//!
//! First the fast ones here, by mnemonic and kinds of operands; then those of system instructions, of special ones, and the
//! host's processor. What none of them takes, and what CPUID does not show, is undefined.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use umbra_x86::cpuid::feature;

use super::Slow;
use super::address::{memory, register, width};
use super::table::{self, Form};
use crate::cpu::Cpu;
use crate::exec::{self, Handler, Op, op_flag};
use crate::native;
use crate::sys;

/// What became of an instruction.
pub(super) struct Selected {
    pub op: Op,
    /// The whole instruction is needed.
    pub keep: bool,
    /// The handler leaves the block whatever happens.
    pub closes: bool,
    /// The operation takes the place of the one before it as well.
    pub fused: bool,
}

/// What the instruction before was, if it can be one operation with a conditional jump.
#[derive(Default)]
pub(super) struct Previous {
    op: Option<(Op, table::Fusable)>,
}

impl Selected {
    fn new(op: Op) -> Self {
        let keep = op.flags & op_flag::GENERAL != 0;
        Self { op, keep, closes: false, fused: false }
    }

    fn closing(op: Op) -> Self {
        Self { closes: true, ..Self::new(op) }
    }

    fn slow(f: Slow) -> Self {
        let op = Op { imm: f as usize as u64, ..Op::new(exec::call_slow) };
        Self { op, keep: true, closes: false, fused: false }
    }

    /// An instruction that is none; one that is too long raises #GP.
    pub(super) fn undefined(too_long: bool) -> Self {
        Self::closing(Op::new(if too_long { exec::too_long } else { exec::undefined }))
    }
}

impl Cpu {
    /// The operation of `i`, which starts `offset` bytes into the block.
    pub(super) fn select(&mut self, i: &Instruction, offset: usize, previous: &mut Previous) -> Selected {
        let before = previous.op.take();
        if let Some(mut selected) = self.select_branch(i, offset, before) {
            selected.keep |= selected.op.flags & op_flag::GENERAL != 0;
            return selected;
        }
        if let Some(op) = self.select_fast(i, offset) {
            previous.op = table::fusable(i).filter(|_| op.flags & op_flag::GENERAL == 0).map(|f| (op, f));
            return Selected::new(op);
        }
        if let Some(f) = legacy(i) {
            return Selected::slow(f);
        }
        if !native::offered(self, i) {
            return Selected::undefined(false);
        }
        if let Some(f) = sys::handler(i.code()).or_else(|| native::special(i.code())) {
            return Selected::slow(f);
        }
        let Some(thunk) = native::compile(self, i) else { return Selected::undefined(false) };
        let op = Op { imm: exec::thunk_bits(thunk), ..Op::new(exec::call_native) };
        Selected { op, keep: true, closes: false, fused: false }
    }

    /// Whether the fast stack handlers serve: 64-bit or flat 32-bit, with operands of that size (`bytes`).
    fn plain_stack(&self, bytes: u32) -> Option<usize> {
        let bits = self.mode.code;
        let plain = self.mode.flat && bits != 16 && self.mode.stack == bits && bytes * 8 == u32::from(bits);
        plain.then_some(if bits == 64 { 1 } else { 0 })
    }

    /// Near branches, and conditional ones together with what is before them.
    fn select_branch(
        &mut self,
        i: &Instruction,
        offset: usize,
        before: Option<(Op, table::Fusable)>,
    ) -> Option<Selected> {
        let bytes = i.stack_pointer_increment().unsigned_abs();
        match i.mnemonic() {
            M::Ret => {
                let drop = if i.op_count() > 0 { u32::from(i.immediate16()) } else { 0 };
                let wide = self.plain_stack(bytes - drop)?;
                let op = Op { imm: u64::from(bytes), flags: op_flag::STACK, ..Op::new(table::RET[wide]) };
                Some(Selected::closing(op))
            }
            M::Call | M::Jmp if matches!(i.op0_kind(), OpKind::Register | OpKind::Memory) => {
                self.select_indirect(i, offset, bytes)
            }
            _ => {
                let to = self.near_target(i)?.wrapping_add(offset as u64);
                if i.mnemonic() == M::Call {
                    let wide = self.plain_stack(bytes)?;
                    let op = Op { imm: to, flags: op_flag::STACK, ..Op::new(table::CALL_NEAR[wide]) };
                    return Some(Selected::closing(op));
                }
                if i.mnemonic() == M::Jmp {
                    return Some(Selected::closing(Op { imm: to, ..Op::new(exec::jmp_near) }));
                }
                let condition =
                    (i.condition_code() as usize).checked_sub(1).filter(|_| i.is_jcc_short_or_near())?;
                if let (Some((op, fusable)), Ok(disp)) = (before, i32::try_from(to as i64)) {
                    let run = fusable.with_jump(condition);
                    return Some(Selected { fused: true, ..Selected::closing(Op { run, disp, ..op }) });
                }
                Some(Selected::closing(Op { imm: to, ..Op::new(table::JCC[condition]) }))
            }
        }
    }

    /// Where a relative branch goes, from its own start, if its operand size is that of the code.
    fn near_target(&self, i: &Instruction) -> Option<u64> {
        let bits = match i.op0_kind() {
            OpKind::NearBranch16 => 16,
            OpKind::NearBranch32 => 32,
            OpKind::NearBranch64 => 64,
            _ => return None,
        };
        (bits == self.mode.code).then(|| i.near_branch_target())
    }

    fn select_indirect(&mut self, i: &Instruction, offset: usize, bytes: u32) -> Option<Selected> {
        let near = matches!(
            i.code(),
            Code::Jmp_rm16
                | Code::Jmp_rm32
                | Code::Jmp_rm64
                | Code::Call_rm16
                | Code::Call_rm32
                | Code::Call_rm64
        );
        let call = i.mnemonic() == M::Call;
        let size = 1 << width(i, 0).filter(|_| near)?;
        let wide = self.plain_stack(if call { bytes } else { size })?;
        if size != bytes && call {
            return None;
        }
        let mut op = Op::new(exec::undefined);
        if i.op0_kind() == OpKind::Register {
            op.a = register(i.op0_register());
            op.run = if call { table::CALL_R[wide] } else { table::JMP_R[wide] };
            return Some(Selected::closing(op));
        }
        memory(&self.mode, i, offset, &mut op);
        op.run = if call { table::CALL_M[wide] } else { table::JMP_M[wide] };
        Some(Selected::closing(op))
    }

    /// Everything else that has a fast handler.
    fn select_fast(&mut self, i: &Instruction, offset: usize) -> Option<Op> {
        let mut op = Op::new(exec::nop);
        if let Some(run) = table::without_operands(i.code()) {
            return Some(Op { run, ..op });
        }
        if let Some(op) = self.select_stack(i, offset) {
            return Some(op);
        }
        if matches!(i.mnemonic(), M::Lahf | M::Sahf) {
            let run: Handler = if i.mnemonic() == M::Lahf { exec::lahf } else { exec::sahf };
            return native::offered(self, i).then_some(Op { run, ..op });
        }
        let form = self.form(i, offset, &mut op)?;
        let lock = i.has_lock_prefix();
        op.run = match i.mnemonic() {
            M::Lzcnt if !self.cpuid.has(feature::ABM) => table::scan(M::Bsr, &form)?,
            M::Tzcnt if !self.cpuid.has(feature::BMI1) => table::scan(M::Bsf, &form)?,
            M::Popcnt if !self.cpuid.has(feature::POPCNT) => return None,
            M::Lea if op.flags & op_flag::GENERAL != 0 => *table::LEA_GENERAL.get(form.width)?,
            mnemonic if lock => table::locked(mnemonic, &form)?,
            mnemonic => table::plain(i, mnemonic, &form)?,
        };
        Some(op)
    }

    /// PUSH, POP and LEAVE in plain code.
    fn select_stack(&self, i: &Instruction, offset: usize) -> Option<Op> {
        let mut op = Op { flags: op_flag::STACK, ..Op::new(exec::nop) };
        if i.mnemonic() == M::Leave {
            let size = match i.code() {
                Code::Leaveq => 8,
                Code::Leaved => 4,
                _ => return None,
            };
            return self.plain_stack(size).map(|wide| Op { run: table::LEAVE[wide], ..op });
        }
        if !matches!(i.mnemonic(), M::Push | M::Pop) {
            return None;
        }
        let wide = self.plain_stack(i.stack_pointer_increment().unsigned_abs())?;
        match (i.mnemonic(), i.op0_kind()) {
            (_, OpKind::Register) if !i.op0_register().is_gpr() => return None,
            (M::Push, OpKind::Register) => {
                op.a = register(i.op0_register());
                op.run = table::PUSH_R[wide];
            }
            (M::Pop, OpKind::Register) => {
                op.a = register(i.op0_register());
                op.run = table::POP_R[wide];
            }
            (M::Push, OpKind::Memory) => {
                op.flags = 0;
                memory(&self.mode, i, offset, &mut op);
                op.run = table::PUSH_M[wide];
            }
            (M::Push, _) => {
                op.imm = i.immediate(0);
                op.run = table::PUSH_I[wide];
            }
            _ => return None,
        }
        Some(op)
    }

    /// Operands into `op`, and their kinds and width; `None` if they are not of an ordinary instruction.
    fn form(&self, i: &Instruction, offset: usize, op: &mut Op) -> Option<Form> {
        use OpKind::{Memory, Register};
        let count = i.op_count();
        if count == 0 || count > 3 {
            return None;
        }
        let is_immediate = |n| i.op_kind(n) != Register && i.op_kind(n) != Memory;
        let width = width(i, 0)?;
        let mut near = false;
        let mut kinds = [None; 3];
        for n in 0..count {
            let kind = match i.op_kind(n) {
                Register if !i.op_register(n).is_gpr() => return None,
                Register => {
                    let place = if n == 0 { &mut op.a } else { &mut op.b };
                    *place = register(i.op_register(n));
                    table::Kind::R
                }
                Memory => {
                    near = memory(&self.mode, i, offset, op);
                    table::Kind::M
                }
                _ if is_immediate(n) && n > 0 && !is_branch(i.op_kind(n)) => {
                    op.imm = i.immediate(n);
                    table::Kind::I
                }
                _ => return None,
            };
            kinds[n as usize] = Some(kind);
        }
        Some(Form { kinds, width, near })
    }
}

fn is_branch(kind: OpKind) -> bool {
    use OpKind as K;
    !matches!(
        kind,
        K::Immediate8
            | K::Immediate16
            | K::Immediate32
            | K::Immediate64
            | K::Immediate8to16
            | K::Immediate8to32
            | K::Immediate8to64
            | K::Immediate32to64
    )
}

/// Handlers of stack and branch instructions where no fast one serves.
fn legacy(i: &Instruction) -> Option<Slow> {
    use Code as C;
    let is_near =
        |n: u32| matches!(i.op_kind(n), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    Some(match i.code() {
        C::Push_r16 | C::Push_r32 | C::Push_r64 | C::Push_rm16 | C::Push_rm32 | C::Push_rm64 => {
            exec::legacy::push
        }
        C::Push_imm16 | C::Pushd_imm32 | C::Pushq_imm32 | C::Pushw_imm8 | C::Pushd_imm8 | C::Pushq_imm8 => {
            exec::legacy::push
        }
        C::Pop_r16 | C::Pop_r32 | C::Pop_r64 | C::Pop_rm16 | C::Pop_rm32 | C::Pop_rm64 => exec::legacy::pop,
        C::Jmp_rm16 | C::Jmp_rm32 | C::Jmp_rm64 => exec::legacy::jmp,
        C::Call_rm16 | C::Call_rm32 | C::Call_rm64 => exec::legacy::call,
        C::Retnw | C::Retnd | C::Retnq | C::Retnw_imm16 | C::Retnd_imm16 | C::Retnq_imm16 => {
            exec::legacy::ret
        }
        C::Pushaw | C::Pushad => exec::legacy::pusha,
        C::Popaw | C::Popad => exec::legacy::popa,
        _ if i.op_count() == 1 && is_near(0) => match i.mnemonic() {
            M::Loop | M::Loope | M::Loopne => exec::legacy::loop_,
            M::Jcxz | M::Jecxz | M::Jrcxz => exec::legacy::jcxz,
            M::Jmp => exec::legacy::jmp,
            M::Call => exec::legacy::call,
            _ if i.is_jcc_short_or_near() => exec::legacy::jcc_sized,
            _ => return None,
        },
        _ => return None,
    })
}
