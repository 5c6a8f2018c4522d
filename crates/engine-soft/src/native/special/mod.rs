//! Instructions done in Rust: several accesses, addresses in vector registers, formats that depend on the mode, or no 64-bit form.

mod decimal;
pub mod environment;
mod fx;
mod gather;
mod host;
mod layout;
mod mxcsr;
mod string;
mod xsave;

use iced_x86::{Code, OpCodeOperandKind};

use crate::decode::Slow;

pub use host::{mxcsr_mask, normalize_x87};

/// The handler of an instruction that is done in Rust.
pub fn special(code: Code) -> Option<Slow> {
    string::handler(code)
        .or_else(|| decimal::handler(code))
        .or_else(|| mxcsr::handler(code))
        .or_else(|| fx::handler(code))
        .or_else(|| xsave::handler(code))
        .or_else(|| environment::handler(code))
        .or_else(|| is_vector_addressed(code).then_some(gather::gather_or_scatter as Slow))
}

fn is_vector_addressed(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let vector = |k: &K| {
        matches!(
            k,
            K::mem_vsib32x
                | K::mem_vsib64x
                | K::mem_vsib32y
                | K::mem_vsib64y
                | K::mem_vsib32z
                | K::mem_vsib64z
        )
    };
    code.op_code().op_kinds().iter().any(vector)
}
