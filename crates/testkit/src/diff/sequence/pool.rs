//! Instruction forms, by how often compilers emit them.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature as F, EncodingKind, FlowControl, Mnemonic as M, OpCodeOperandKind as K};

use umbra_engine_soft::host_is_amd;

use super::super::coverage;
use super::super::random::Random;
use super::super::state::Bits;

/// What compilers emit most, the more often the nearer to the start.
const COMMON: &[M] = &[
    M::Mov,
    M::Lea,
    M::Add,
    M::Cmp,
    M::Test,
    M::Sub,
    M::Push,
    M::Pop,
    M::And,
    M::Xor,
    M::Or,
    M::Movzx,
    M::Shl,
    M::Shr,
    M::Sar,
    M::Imul,
    M::Movsxd,
    M::Movsx,
    M::Inc,
    M::Dec,
    M::Sete,
    M::Setne,
    M::Setb,
    M::Setg,
    M::Setle,
    M::Cmove,
    M::Cmovne,
    M::Cmovb,
    M::Cmovae,
    M::Cmovg,
    M::Cmovle,
    M::Cmovs,
    M::Neg,
    M::Not,
    M::Adc,
    M::Sbb,
    M::Mul,
    M::Div,
    M::Idiv,
    M::Cdq,
    M::Cqo,
    M::Cdqe,
    M::Cwde,
    M::Xchg,
    M::Xadd,
    M::Cmpxchg,
    M::Bt,
    M::Bts,
    M::Bsf,
    M::Bsr,
    M::Tzcnt,
    M::Lzcnt,
    M::Popcnt,
    M::Rol,
    M::Ror,
    M::Shld,
    M::Shrd,
    M::Leave,
    M::Bswap,
    M::Andn,
    M::Shlx,
    M::Sarx,
    M::Shrx,
    M::Rorx,
    M::Mulx,
    M::Blsr,
    M::Movbe,
    M::Nop,
    M::Endbr64,
    M::Stc,
    M::Clc,
    M::Cmc,
    M::Lahf,
    M::Sahf,
];

/// The forms of one mode.
pub struct Pool {
    common: Vec<Vec<Code>>,
    vector: Vec<Vec<Code>>,
    all: Vec<Code>,
    /// Conditional branches.
    pub branches: Vec<Code>,
}

impl Pool {
    /// Those that `offers` says are there.
    pub fn new(bits: Bits, offers: impl Fn(Code) -> bool) -> Self {
        let forms: Vec<Code> =
            coverage::forms(bits).filter(|c| offers(*c) && coverage::reason(*c).is_none()).collect();
        let all: Vec<Code> = forms.iter().copied().filter(|c| is_plain(*c)).collect();
        let of = |m: &M| all.iter().copied().filter(|c| c.mnemonic() == *m).collect::<Vec<_>>();
        let mut vector: BTreeMap<String, Vec<Code>> = BTreeMap::new();
        for code in all.iter().filter(|c| is_vector(**c)) {
            vector.entry(format!("{:?}", code.mnemonic())).or_default().push(*code);
        }
        Self {
            common: COMMON.iter().map(of).filter(|c| !c.is_empty()).collect(),
            vector: vector.into_values().collect(),
            branches: forms.into_iter().filter(|c| is_branch(*c, bits)).collect(),
            all,
        }
    }

    /// A form that neither branches nor is special.
    pub fn pick(&self, r: &mut Random) -> Code {
        let list = match r.below(100) {
            0..60 => {
                let n = self.common.len() as u64;
                // The smaller of two is more often a small one.
                &self.common[r.below(n).min(r.below(n)) as usize]
            }
            60..82 => &self.vector[r.below(self.vector.len() as u64) as usize],
            _ => &self.all,
        };
        r.pick(list)
    }

    /// How many forms it has that do not branch.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Not control flow, nor what has a life of its own: POPF is made with what it pops, and whether XSAVE finds a component in its initial
/// state is left to the processor (SDM volume 1, 13.6).
fn is_plain(code: Code) -> bool {
    code.flow_control() == FlowControl::Next
        && !matches!(code.mnemonic(), M::Popf | M::Popfd | M::Popfq)
        && !format!("{:?}", code.mnemonic()).starts_with("Xsave")
        && !shows_what_is_open(code)
}

/// What shows later instructions of a program, on AMD's processors, something that they have as no manual says: flags, or pointers of x87
/// instructions that raised nothing, which FXSAVE need not save there and FNSTENV tells (AMD64 APM volume 2, 11.4.4).
fn shows_what_is_open(code: Code) -> bool {
    let rotates = matches!(code.mnemonic(), M::Rcl | M::Rcr) && matches!(code.op_code().op1_kind(), K::imm8);
    let tells = matches!(
        code.mnemonic(),
        M::Aaa
            | M::Aas
            | M::Daa
            | M::Das
            | M::Fnstenv
            | M::Fnsave
            | M::Fldenv
            | M::Frstor
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
    );
    host_is_amd() && (rotates || tells)
}

fn is_vector(code: Code) -> bool {
    const SETS: &[F] = &[
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::AVX,
        F::AVX2,
        F::FMA,
        F::F16C,
        F::AES,
        F::PCLMULQDQ,
        F::SHA,
    ];
    let wide =
        |k: &K| matches!(k, K::xmm_reg | K::xmm_rm | K::xmm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_or_mem);
    code.op_code().encoding() != EncodingKind::EVEX
        && code.cpuid_features().iter().any(|f| SETS.contains(f))
        && code.op_code().op_kinds().iter().any(wide)
}

fn is_branch(code: Code, bits: Bits) -> bool {
    let kinds: &[K] = match bits {
        Bits::SixtyFour => &[K::br64_1, K::br64_4],
        _ => &[K::br32_1, K::br32_4],
    };
    code.flow_control() == FlowControl::ConditionalBranch && kinds.contains(&code.op_code().op0_kind())
}
