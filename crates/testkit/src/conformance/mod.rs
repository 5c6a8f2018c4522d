//! The conformance suite of the engines: small guest programs, each with what must be true after it has run.
//!
//! What is expected comes from the manuals (Intel SDM, AMD64 APM), never from what an engine does. A program knows nothing of engines:
//! it is assembled bytes, a mode to start in, and a list of expectations ([`program::Program`]); the same suite runs everything that stands behind
//! the traits of `umbra-engine`, as it is, saved and restored at each mark, and moved from one engine to the other.

// The macros of the programs switch between the assembler's two syntaxes, because each says some things that the other cannot.
#![allow(bad_asm_style)]

mod bench;
mod groups;
mod known;
mod layout;
mod model;
pub mod program;
mod recorder;
mod suite;
mod whole;
mod wild;

pub use bench::{Manner, Moves};
pub use known::{Platform, platform_of_kvm, platform_of_soft};
pub use suite::{Outcome, Report, Verdict, list, run_suite};
pub use whole::hostile_rounds;
