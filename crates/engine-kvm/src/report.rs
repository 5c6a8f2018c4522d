//! What KVM could not go on with, in words: cause, registers and the bytes at the instruction.

use std::fmt::Write;
use std::io;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use umbra_engine::EngineError;
use umbra_memory::PAGE_SIZE;

use crate::page::Exit;
use crate::run::is_memory_fault;
use crate::vcpu::KvmVcpu;

/// What stands between cause and registers.
pub(crate) const REGISTERS_BEGIN: &str = "; rip ";

/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;

/// An exit that ends the run.
pub(crate) fn unexpected_exit(vcpu: &KvmVcpu, exit: Exit) -> EngineError {
    let mut bytes = None;
    let what = match exit {
        Exit::FailEntry(reason) => format!("the processor refuses the guest's state (reason {reason:#x})"),
        Exit::Internal { suberror, data, instruction } => {
            bytes = instruction.map(|(b, n)| b[..usize::from(n)].to_vec());
            internal(suberror, &data)
        }
        Exit::SystemEvent(kind) => format!("KVM reports system event {kind}"),
        Exit::MemoryFault { gpa, len } => {
            format!("the host cannot provide guest memory at {gpa:#x} ({len} bytes)")
        }
        other => format!("KVM left the guest unexpectedly ({other:?})"),
    };
    EngineError::Internal(format!("processor {}: {what}{}", vcpu.id, registers(vcpu, bytes)))
}

/// KVM_RUN itself failed.
pub(crate) fn run_failed(vcpu: &KvmVcpu, error: &io::Error) -> EngineError {
    match vcpu.page.exit() {
        fault @ Exit::MemoryFault { .. } if is_memory_fault(error) => unexpected_exit(vcpu, fault),
        _ => {
            EngineError::Internal(format!("processor {}: KVM_RUN: {error}{}", vcpu.id, registers(vcpu, None)))
        }
    }
}

fn internal(suberror: u32, data: &[u64; 4]) -> String {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".into(),
        KVM_INTERNAL_ERROR_SIMUL_EX => format!("KVM met an exception during another ({data:x?})"),
        KVM_INTERNAL_ERROR_DELIVERY_EV => format!("KVM could not deliver an event ({data:x?})"),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            format!("KVM did not expect its processor's exit ({data:x?})")
        }
        other => format!("KVM's internal error {other} ({data:x?})"),
    }
}

/// The registers that matter, as far as they can be had.
fn registers(vcpu: &KvmVcpu, bytes: Option<Vec<u8>>) -> String {
    let (Ok(r), Ok(s)) = (vcpu.fd.get_regs(), vcpu.fd.get_sregs()) else { return String::new() };
    let linear = s.cs.base.wrapping_add(r.rip);
    let mut text = format!(
        "{REGISTERS_BEGIN}{:x} cs {:x}:{:x} rflags {:x} cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x} rax {:x} rbx {:x} rcx {:x} rdx {:x} \
         rsi {:x} rdi {:x} rbp {:x} rsp {:x} r8 {:x} r9 {:x} r10 {:x} r11 {:x} r12 {:x} r13 {:x} r14 {:x} r15 {:x}; instruction",
        r.rip,
        s.cs.selector,
        s.cs.base,
        r.rflags,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.rsp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
    );
    let bytes = bytes.unwrap_or_else(|| instruction_bytes(vcpu, linear));
    if bytes.is_empty() {
        text.push_str(" not in memory");
    }
    for b in bytes {
        let _ = write!(text, " {b:02x}");
    }
    text
}

/// The bytes at a linear address, up to the end of its page.
fn instruction_bytes(vcpu: &KvmVcpu, linear: u64) -> Vec<u8> {
    let Ok(t) = vcpu.fd.translate_gva(linear) else { return Vec::new() };
    if t.valid == 0 {
        return Vec::new();
    }
    let left_in_page = (PAGE_SIZE - t.physical_address % PAGE_SIZE) as usize;
    let mut bytes = vec![0; INSTRUCTION_MAX.min(left_in_page)];
    match vcpu.shared.memory.read(t.physical_address, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}
