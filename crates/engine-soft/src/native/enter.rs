//! Into a thunk and back.
//!
//! A thunk is entered with the state block in RDI and the address of its memory operand in RSI, and may use every register. Its
//! instruction runs with the stack pointer where it was on entry, so that, after a fault, the signal handler only has to drop the
//! return address and go on at [`fault_exit`].

use std::arch::naked_asm;

use crate::cpu::Cpu;

/// How a thunk ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Outcome {
    /// Zero, or the vector of the exception that the host raised plus one.
    pub fault: u64,
    /// After a fault: MXCSR as the host left it.
    pub mxcsr: u64,
}

/// Runs a thunk.
///
/// # Safety
/// `code` is a thunk; `cpu` points to a state block that nobody else uses; `memory` is where its memory operand may be accessed as the thunk does.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(cpu: *mut Cpu, memory: *mut u8, code: *const u8) -> Outcome {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "call rdx",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Where a thunk goes on after a fault, with the outcome in RAX and RDX: what Rust code expects of the floating-point units is
/// restored, then the caller of [`enter`] returned to.
///
/// # Safety
/// Only the signal handler goes here, with the stack as [`enter`] had it at its call.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn fault_exit() {
    naked_asm!(
        "cld",
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "pop rcx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
