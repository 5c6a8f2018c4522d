//! Which instruction forms are compared.
//!
//! A form is a `Code` of iced-x86. Every form that the shown CPUID offers and the mode has is to be compared; those that are
//! not are in `data/not-compared.txt`, a line each: mnemonic or code, colon, reason.

use std::collections::HashMap;
use std::sync::LazyLock;

use iced_x86::Code;

use super::list;
use super::state::Bits;

const LIST: &str = include_str!("../../data/not-compared.txt");

static REASONS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    list::lines(LIST).filter_map(|l| l.split_once(':')).map(|(name, why)| (name.trim(), why.trim())).collect()
});

/// Why a form is not compared, if it is on the list.
pub fn reason(code: Code) -> Option<&'static str> {
    let by = |name: String| REASONS.get(name.as_str()).copied();
    by(format!("{code:?}")).or_else(|| by(format!("{:?}", code.mnemonic())))
}

/// The names on the list, for the test that none is misspelt.
pub fn listed() -> impl Iterator<Item = &'static str> {
    REASONS.keys().copied()
}

/// All forms that mode `bits` has.
pub fn forms(bits: Bits) -> impl Iterator<Item = Code> {
    Code::values().filter(move |c| {
        let o = c.op_code();
        let decoded = match bits {
            Bits::SixtyFour => o.intel_decoder64(),
            Bits::ThirtyTwo => o.intel_decoder32(),
            Bits::Sixteen => o.intel_decoder16(),
        };
        o.is_instruction() && o.is_available_in_mode(bits.number()) && decoded && o.decoder_option() == 0
    })
}

#[cfg(test)]
#[path = "coverage_test.rs"]
mod coverage_test;
