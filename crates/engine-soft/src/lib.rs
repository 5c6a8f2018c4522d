//! The software engine: unmodified x86-64 guests without VT-x or SVM.
//!
//! Tier 0, the interpreter, executes everything. It decodes with `iced-x86`, keeps decoded blocks by physical address,
//! computes addresses, control flow and system instructions in Rust, runs the common integer instructions in small
//! handlers, and every other instruction natively on loaded state through a thunk (`native`), so that
//! it shares its semantics with the processor it runs on.
//!
//! | folder | what |
//! |---|---|
//! | `cpu`, `fault`, `operand` | the state block, exceptions, operands of a decoded instruction |
//! | `mmu` | the software TLB, the page walk, every access to guest memory |
//! | `decode` | instructions to operations, the cache of blocks, code that changes |
//! | `exec` | handlers of the common instructions, the run loop |
//! | `native` | thunks: one instruction run by the host's processor |
//! | `translate` | tier 1: hot blocks as code of the host |
//! | `sys` | segments, interrupts, tasks, control registers, MSRs, CPUID |
//! | `vm` | the machine: processors, local APICs, time |
//! | `engine`, `vcpu`, `state` | what `umbra-engine` asks for; saved state |

mod cpu;
mod decode;
mod engine;
mod exec;
mod fault;
mod mmu;
mod native;
mod operand;
mod state;
mod sys;
mod translate;
mod vcpu;
mod vm;

#[cfg(test)]
mod fixture;

pub use engine::SoftEngine;
pub use native::{host_is_amd, offers};
