//! Handlers by mnemonic, kinds of operands, width and address.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};

use super::address::width;
use crate::exec::*;

/// What an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A general register.
    R,
    /// Memory.
    M,
    /// An immediate.
    I,
}

/// Kinds of operands, width of the first (0 to 3 for 8 to 64 bits), and whether the address of memory is near.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub kinds: [Option<Kind>; 3],
    pub width: usize,
    pub near: bool,
}

use Kind::{I, M as Mem, R};

impl Form {
    fn is(&self, a: Kind, b: Kind) -> bool {
        self.kinds == [Some(a), Some(b), None]
    }

    fn is_one(&self, a: Kind) -> bool {
        self.kinds == [Some(a), None, None]
    }
}

/// One handler of each width.
macro_rules! widths {
    ($f:ident $(, $($g:tt)+)?) => {
        [$f::<u8 $(, $($g)+)?> as Handler, $f::<u16 $(, $($g)+)?>, $f::<u32 $(, $($g)+)?>, $f::<u64 $(, $($g)+)?>]
    };
}

/// One handler of each width but the first, which has none.
macro_rules! wides {
    ($f:ident $(, $($g:tt)+)?) => {
        [undefined as Handler, $f::<u16 $(, $($g)+)?>, $f::<u32 $(, $($g)+)?>, $f::<u64 $(, $($g)+)?>]
    };
}

/// One handler of each width, for near addresses and for others.
macro_rules! addressed {
    ($near:expr; $f:ident $(, $($g:tt)+)?) => {
        if $near { widths!($f $(, $($g)+)?, Near) } else { widths!($f $(, $($g)+)?, Any) }
    };
}

/// One handler of each condition.
macro_rules! conditions {
    ($f:ident $(, $g:ty)*) => {
        [
            $f::<$($g,)* 0> as Handler, $f::<$($g,)* 1>, $f::<$($g,)* 2>, $f::<$($g,)* 3>, $f::<$($g,)* 4>, $f::<$($g,)* 5>,
            $f::<$($g,)* 6>, $f::<$($g,)* 7>, $f::<$($g,)* 8>, $f::<$($g,)* 9>, $f::<$($g,)* 10>, $f::<$($g,)* 11>,
            $f::<$($g,)* 12>, $f::<$($g,)* 13>, $f::<$($g,)* 14>, $f::<$($g,)* 15>,
        ]
    };
}

/// Stack and branch handlers: for 32-bit and for 64-bit code.
pub(super) const RET: [Handler; 2] = [ret::<u32>, ret::<u64>];
pub(super) const CALL_NEAR: [Handler; 2] = [call_near::<u32>, call_near::<u64>];
pub(super) const CALL_R: [Handler; 2] = [call_r::<u32>, call_r::<u64>];
pub(super) const CALL_M: [Handler; 2] = [call_m::<u32, Any>, call_m::<u64, Any>];
pub(super) const JMP_R: [Handler; 2] = [jmp_r::<u32>, jmp_r::<u64>];
pub(super) const JMP_M: [Handler; 2] = [jmp_m::<u32, Any>, jmp_m::<u64, Any>];
pub(super) const LEAVE: [Handler; 2] = [leave::<u32>, leave::<u64>];
pub(super) const PUSH_R: [Handler; 2] = [push_r::<u32>, push_r::<u64>];
pub(super) const PUSH_I: [Handler; 2] = [push_i::<u32>, push_i::<u64>];
pub(super) const PUSH_M: [Handler; 2] = [push_m::<u32, Any>, push_m::<u64, Any>];
pub(super) const POP_R: [Handler; 2] = [pop_r::<u32>, pop_r::<u64>];
pub(super) const JCC: [Handler; 16] = conditions!(jcc);
pub(super) const LEA_GENERAL: [Handler; 4] = wides!(lea_general);

/// Instructions without operands.
pub(super) fn without_operands(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Nopw | Code::Nopd | Code::Nopq | Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 => nop,
        Code::Prefetchnta_m8 | Code::Prefetcht0_m8 | Code::Prefetcht1_m8 | Code::Prefetcht2_m8 => nop,
        Code::Clc => clc,
        Code::Stc => stc,
        Code::Cmc => cmc,
        Code::Cld => cld,
        Code::Std => std,
        Code::Cbw => extend_a::<u16>,
        Code::Cwde => extend_a::<u32>,
        Code::Cdqe => extend_a::<u64>,
        Code::Cwd => extend_d::<u16>,
        Code::Cdq => extend_d::<u32>,
        Code::Cqo => extend_d::<u64>,
        _ => return None,
    })
}

fn alu<K: Alu>(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(R, R) => widths!(alu_rr, K),
        _ if form.is(R, I) => widths!(alu_ri, K),
        _ if form.is(R, Mem) => addressed!(form.near; alu_rm, K),
        _ if form.is(Mem, R) => addressed!(form.near; alu_mr, K),
        _ if form.is(Mem, I) => addressed!(form.near; alu_mi, K),
        _ => return None,
    })
}

fn lock_alu<K: Alu>(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(Mem, R) => widths!(lock_alu_mr, K),
        _ if form.is(Mem, I) => widths!(lock_alu_mi, K),
        _ => return None,
    })
}

fn unary<K: UnaryOp>(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is_one(R) => widths!(unary_r, K),
        _ if form.is_one(Mem) => addressed!(form.near; unary_m, K),
        _ => return None,
    })
}

fn shift<const KIND: u8>(i: &Instruction, form: &Form) -> Option<[Handler; 4]> {
    // The count in CL is no general register operand of the operation's: it is always there.
    let by_cl = i.op1_kind() == OpKind::Register;
    Some(match (form.kinds[0]?, by_cl) {
        (R, true) => widths!(shift_r, KIND, true),
        (R, false) => widths!(shift_r, KIND, false),
        (_, true) => widths!(shift_m, KIND, true),
        (_, false) => widths!(shift_m, KIND, false),
    })
}

fn bit<const KIND: u8>(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(R, R) => wides!(bit_r, KIND, false),
        _ if form.is(R, I) => wides!(bit_r, KIND, true),
        // With segments each access of a register's bit offset needs its own check of the limit.
        _ if form.is(Mem, I) => wides!(bit_m, KIND, false),
        _ if form.is(Mem, R) => wides!(bit_m, KIND, true),
        _ => return None,
    })
}

fn scans<K: Scan>(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(R, R) => wides!(scan_rr, K),
        _ if form.is(R, Mem) => wides!(scan_rm, K),
        _ => return None,
    })
}

/// BSF, BSR and their kin.
pub(super) fn scan(mnemonic: M, form: &Form) -> Option<Handler> {
    let handlers = match mnemonic {
        M::Bsf => scans::<Bsf>(form),
        M::Bsr => scans::<Bsr>(form),
        M::Tzcnt => scans::<Tzcnt>(form),
        M::Lzcnt => scans::<Lzcnt>(form),
        _ => scans::<Popcnt>(form),
    };
    pick(handlers, form)
}

fn pick(handlers: Option<[Handler; 4]>, form: &Form) -> Option<Handler> {
    let handler = *handlers?.get(form.width)?;
    (handler as usize != undefined as Handler as usize).then_some(handler)
}

/// Handlers of locked forms.
pub(super) fn locked(mnemonic: M, form: &Form) -> Option<Handler> {
    let handlers = match mnemonic {
        M::Add => lock_alu::<Add>(form),
        M::Or => lock_alu::<Or>(form),
        M::Adc => lock_alu::<Adc>(form),
        M::Sbb => lock_alu::<Sbb>(form),
        M::And => lock_alu::<And>(form),
        M::Sub => lock_alu::<Sub>(form),
        M::Xor => lock_alu::<Xor>(form),
        M::Inc if form.is_one(Mem) => Some(widths!(lock_unary_m, Inc)),
        M::Dec if form.is_one(Mem) => Some(widths!(lock_unary_m, Dec)),
        M::Neg if form.is_one(Mem) => Some(widths!(lock_unary_m, Neg)),
        M::Not if form.is_one(Mem) => Some(widths!(lock_unary_m, Not)),
        M::Xchg => exchange(form),
        M::Xadd if form.is(Mem, R) => Some(widths!(xadd_m)),
        M::Cmpxchg if form.is(Mem, R) => Some(widths!(cmpxchg_m)),
        M::Bts if form.kinds[0] == Some(Mem) => bit::<1>(form),
        M::Btr if form.kinds[0] == Some(Mem) => bit::<2>(form),
        M::Btc if form.kinds[0] == Some(Mem) => bit::<3>(form),
        _ => None,
    };
    pick(handlers, form)
}

fn exchange(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(R, R) => widths!(xchg_rr),
        _ if form.is(Mem, R) => widths!(xchg_m),
        _ => return None,
    })
}

fn mov(form: &Form) -> Option<[Handler; 4]> {
    Some(match form.kinds {
        _ if form.is(R, R) => widths!(mov_rr),
        _ if form.is(R, I) => widths!(mov_ri),
        _ if form.is(R, Mem) => addressed!(form.near; mov_rm),
        _ if form.is(Mem, R) => addressed!(form.near; mov_mr),
        _ if form.is(Mem, I) => addressed!(form.near; mov_mi),
        _ => return None,
    })
}

fn multiply(mnemonic: M, form: &Form) -> Option<[Handler; 4]> {
    let one = form.kinds[1].is_none();
    let register = form.kinds[0] == Some(R);
    Some(match (mnemonic, register) {
        (M::Mul, true) => widths!(mul_r, false),
        (M::Mul, _) => widths!(mul_m, false),
        (M::Div, true) => widths!(div_r, false),
        (M::Div, _) => widths!(div_m, false),
        (M::Idiv, true) => widths!(div_r, true),
        (M::Idiv, _) => widths!(div_m, true),
        (_, true) if one => widths!(mul_r, true),
        (_, _) if one => widths!(mul_m, true),
        _ if form.is(R, R) => wides!(imul_rr),
        _ if form.is(R, Mem) => wides!(imul_rm),
        _ if form.kinds == [Some(R), Some(R), Some(I)] => wides!(imul_rri),
        _ if form.kinds == [Some(R), Some(Mem), Some(I)] => wides!(imul_rmi),
        _ => return None,
    })
}

/// MOVZX and MOVSX, by the width of the source.
fn extend(i: &Instruction, form: &Form) -> Option<Handler> {
    macro_rules! kinds {
        ($kind:ident, $s:ty, $d:ty) => {
            match (form.kinds[1]?, form.near) {
                (R, _) => extend_rr::<$kind<$s, $d>>,
                (_, true) => extend_rm::<$kind<$s, $d>, Near>,
                _ => extend_rm::<$kind<$s, $d>, Any>,
            }
        };
    }
    let zero = i.mnemonic() == M::Movzx;
    Some(match (zero, width(i, 1)?, form.width) {
        (true, 0, 1) => kinds!(Zero, u8, u16),
        (true, 0, 2) => kinds!(Zero, u8, u32),
        (true, 0, 3) => kinds!(Zero, u8, u64),
        (true, 1, 2) => kinds!(Zero, u16, u32),
        (true, 1, 3) => kinds!(Zero, u16, u64),
        (false, 0, 1) => kinds!(Sign, u8, u16),
        (false, 0, 2) => kinds!(Sign, u8, u32),
        (false, 0, 3) => kinds!(Sign, u8, u64),
        (false, 1, 2) => kinds!(Sign, u16, u32),
        (false, 1, 3) => kinds!(Sign, u16, u64),
        (false, 2, 3) => kinds!(Sign, u32, u64),
        _ => return None,
    })
}

fn conditional(i: &Instruction, form: &Form) -> Option<Handler> {
    let condition = (i.condition_code() as usize).checked_sub(1)?;
    if form.is_one(R) {
        const SET: [Handler; 16] = conditions!(setcc_r);
        return (form.width == 0).then_some(SET[condition]);
    }
    if form.is_one(Mem) {
        const SET: [Handler; 16] = conditions!(setcc_m, Any);
        return (form.width == 0).then_some(SET[condition]);
    }
    const RR: [[Handler; 16]; 3] =
        [conditions!(cmov_rr, u16), conditions!(cmov_rr, u32), conditions!(cmov_rr, u64)];
    const RM: [[Handler; 16]; 3] =
        [conditions!(cmov_rm, u16, Any), conditions!(cmov_rm, u32, Any), conditions!(cmov_rm, u64, Any)];
    let handlers = if form.is(R, R) { &RR } else { &RM };
    handlers.get(form.width.checked_sub(1)?).map(|of_width| of_width[condition])
}

/// Handlers of forms without LOCK.
pub(super) fn plain(i: &Instruction, mnemonic: M, form: &Form) -> Option<Handler> {
    let handlers = match mnemonic {
        M::Mov => mov(form),
        M::Add => alu::<Add>(form),
        M::Or => alu::<Or>(form),
        M::Adc => alu::<Adc>(form),
        M::Sbb => alu::<Sbb>(form),
        M::And => alu::<And>(form),
        M::Sub => alu::<Sub>(form),
        M::Xor => alu::<Xor>(form),
        M::Cmp => alu::<Cmp>(form),
        M::Test => alu::<Test>(form),
        M::Inc => unary::<Inc>(form),
        M::Dec => unary::<Dec>(form),
        M::Neg => unary::<Neg>(form),
        M::Not => unary::<Not>(form),
        M::Lea if form.is(R, Mem) => match form.near {
            true => Some(wides!(lea, Near)),
            false => Some(wides!(lea, Any)),
        },
        M::Rol => shift::<0>(i, form),
        M::Ror => shift::<1>(i, form),
        M::Rcl => shift::<2>(i, form),
        M::Rcr => shift::<3>(i, form),
        M::Shl | M::Sal => shift::<4>(i, form),
        M::Shr => shift::<5>(i, form),
        M::Sar => shift::<7>(i, form),
        M::Mul | M::Imul | M::Div | M::Idiv => multiply(mnemonic, form),
        _ => return other(i, mnemonic, form),
    };
    pick(handlers, form)
}

fn other(i: &Instruction, mnemonic: M, form: &Form) -> Option<Handler> {
    let handlers = match mnemonic {
        M::Movzx | M::Movsx | M::Movsxd => return extend(i, form),
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => return scan(mnemonic, form),
        M::Xchg => exchange(form),
        M::Xadd if form.is(R, R) => Some(widths!(xadd_rr)),
        M::Xadd => Some(widths!(xadd_m)),
        M::Cmpxchg if form.is(R, R) => Some(widths!(cmpxchg_rr)),
        M::Cmpxchg => Some(widths!(cmpxchg_m)),
        M::Bt => bit::<0>(form),
        M::Bts => bit::<1>(form),
        M::Btr => bit::<2>(form),
        M::Btc => bit::<3>(form),
        M::Bswap => Some(wides!(bswap)),
        _ if form.kinds[2].is_none() => return conditional(i, form),
        _ => None,
    };
    pick(handlers, form)
}

/// An instruction that can be one operation with the conditional jump after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fusable {
    mnemonic: M,
    width: usize,
    immediate: bool,
}

/// Whether `i` can be one operation with a conditional jump: it has no memory operand, so that no fault comes between.
pub(super) fn fusable(i: &Instruction) -> Option<Fusable> {
    let width = width(i, 0)?;
    let register = |n| i.op_kind(n) == OpKind::Register;
    let suits = match i.mnemonic() {
        M::Cmp | M::Test => true,
        M::Sub | M::Add | M::And => width >= 2,
        M::Dec => width >= 2,
        _ => false,
    };
    let immediate = i.op_count() > 1 && !register(1);
    let in_registers = register(0) && !(immediate && i.op1_kind() == OpKind::Memory);
    (suits && in_registers && width != 1).then_some(Fusable { mnemonic: i.mnemonic(), width, immediate })
}

impl Fusable {
    /// The handler of both.
    pub(super) fn with_jump(self, condition: usize) -> Handler {
        macro_rules! of {
            ($k:ty) => {{
                const RR: [[Handler; 16]; 3] = [
                    conditions!(alu_rr_jcc, u8, $k),
                    conditions!(alu_rr_jcc, u32, $k),
                    conditions!(alu_rr_jcc, u64, $k),
                ];
                const RI: [[Handler; 16]; 3] = [
                    conditions!(alu_ri_jcc, u8, $k),
                    conditions!(alu_ri_jcc, u32, $k),
                    conditions!(alu_ri_jcc, u64, $k),
                ];
                let handlers = if self.immediate { &RI } else { &RR };
                handlers[self.width.saturating_sub(1)][condition]
            }};
        }
        const DEC: [[Handler; 16]; 2] = [conditions!(dec_r_jcc, u32), conditions!(dec_r_jcc, u64)];
        match self.mnemonic {
            M::Cmp => of!(Cmp),
            M::Test => of!(Test),
            M::Sub => of!(Sub),
            M::Add => of!(Add),
            M::And => of!(And),
            _ => DEC[self.width & 1][condition],
        }
    }
}
