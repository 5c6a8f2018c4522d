//! Programs of a few bytes, run by the interpreter in flat memory.

mod block_test;
mod fault_test;
mod flags_test;
pub(crate) mod guest;
mod instruction_test;
mod legacy_test;
mod speed_test;
mod world_test;
