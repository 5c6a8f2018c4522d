//! Differential fuzzing of the software engine against the processor it runs on.
//!
//! A random user-mode instruction with random registers, flags, vector, x87 and memory state is run twice: by the host's
//! processor in a bare child process ([`oracle`]), and by the engine in a guest whose user mode looks the same ([`engine`]). Every
//! register, flag and byte, or the exception, must agree, but for what `data/undefined.txt` names.
//!
//! Both see the same linear addresses: a page of code, and a few pages of data between pages that are not there, one of them
//! read-only. An instruction is followed by INT3, so that it ends in a trap if it did not in another. Both tiers of the
//! engine are compared. [`sequence`] does the same with programs of up to 30 instructions.

pub mod compare;
pub mod coverage;
pub mod engine;
pub mod generate;
pub mod ledger;
mod list;
pub mod operands;
pub mod oracle;
pub mod random;
pub mod run;
pub mod sequence;
pub mod state;
pub mod table;
pub mod values;
