//! From [`CpuState`] to KVM.
//!
//! The order matters. CPUID is set (it decides what the rest may hold). The segment and control registers come before everything that is checked
//! against modes, the APIC's base before its page, the APIC before its deadline timer, the general registers before the
//! pending events (setting them clears those), whether the processor executes last.

use std::io;

use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs, kvm_xcr, kvm_xcrs};
use umbra_engine::{CpuState, EngineError};
use umbra_x86::cpuid::{CpuidTable, feature};
use umbra_x86::msr;
use umbra_x86::reg::Efer;

use super::save::apic_to_kvm;
use super::{events, msrs, segments, xsave};
use crate::sys;
use crate::time::ProcessorTime;
use crate::vcpu::KvmVcpu;

/// How far a TSC may be off what the guest was told and count as the same, in parts per million: KVM's own tolerance.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Replaces the processor's whole state.
pub(crate) fn load(vcpu: &mut KvmVcpu, state: &CpuState) -> Result<(), EngineError> {
    check_cpuid(&vcpu.cpuid, &state.cpuid_table())?;
    load_tsc_frequency(vcpu, state)?;
    // KVM acts on INIT and SIPI that wait when it is asked for this; they must not come after what is loaded.
    refused("run state", vcpu.fd.get_mp_state())?;
    vcpu.is_page_current = false;
    vcpu.is_access_open = false;
    vcpu.acknowledged = None;
    load_system_registers(vcpu, state)?;
    load_vector_state(vcpu, state)?;
    let fd = &vcpu.fd;
    let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..kvm_debugregs::default() };
    refused("debug registers", fd.set_debug_regs(&debug))?;
    if let Some(apic) = &state.apic {
        refused("local APIC", fd.set_lapic(&apic_to_kvm(&apic.page)))?;
    }
    load_msrs(vcpu, state)?;
    let fd = &vcpu.fd;
    refused("general registers", fd.set_regs(&general_registers(state)))?;
    refused("pending events", fd.set_vcpu_events(&events::to_kvm(&state.events)))?;
    let mp_state = events::run_state_to_kvm(state.run_state, &state.events);
    refused("run state", fd.set_mp_state(kvm_bindings::kvm_mp_state { mp_state }))
}

fn refused<T>(what: &str, result: Result<T, kvm_ioctls::Error>) -> Result<T, EngineError> {
    result.map_err(|e| EngineError::State(format!("KVM refuses its {what}: {}", io::Error::from(e))))
}

fn check_cpuid(shown: &CpuidTable, saved: &CpuidTable) -> Result<(), EngineError> {
    let differs = |(a, b): &(&_, &_)| a != b;
    let first = shown.entries().iter().zip(saved.entries()).find(differs);
    if let Some((a, b)) = first {
        return Err(EngineError::State(format!("it was shown another CPUID: {b:x?}, not {a:x?}")));
    }
    if shown.entries().len() != saved.entries().len() {
        return Err(EngineError::State("it was shown another number of CPUID leaves".into()));
    }
    Ok(())
}

/// Makes the TSC count as fast as the guest was told. A host that cannot is good enough for a guest that was not told that its TSC is invariant: such a
/// guest asks KVM's clock for the time, and that knows the host's frequency.
fn load_tsc_frequency(vcpu: &mut KvmVcpu, state: &CpuState) -> Result<(), EngineError> {
    let now = vcpu.fd.get_tsc_khz().unwrap_or(0);
    let wanted = if state.tsc_khz == 0 { now } else { state.tsc_khz };
    vcpu.tsc_khz = wanted;
    let off = u64::from(now.abs_diff(wanted)) * 1_000_000;
    if off <= u64::from(now) * TSC_TOLERANCE_PPM || wanted == now {
        return Ok(());
    }
    if vcpu.shared.caps.tsc_control && vcpu.fd.set_tsc_khz(wanted).is_ok() {
        return Ok(());
    }
    if vcpu.cpuid.has(feature::INVARIANT_TSC) {
        return Err(EngineError::State(format!(
            "its time-stamp counter runs at {wanted} kHz and is promised to be invariant; this host's runs at {now} kHz and cannot be scaled; \
             use a CPU model without an invariant TSC"
        )));
    }
    Ok(())
}

fn load_system_registers(vcpu: &KvmVcpu, state: &CpuState) -> Result<(), EngineError> {
    let now = refused("system registers", vcpu.fd.get_sregs())?;
    let long_mode = state.efer & Efer::LMA.bits() != 0;
    let [es, cs, ss, ds, fs, gs] = state.segments;
    let sregs = kvm_sregs {
        es: segments::to_kvm(&es.0),
        cs: segments::code_to_kvm(&cs.0, long_mode),
        ss: segments::stack_to_kvm(&ss.0),
        ds: segments::to_kvm(&ds.0),
        fs: segments::to_kvm(&fs.0),
        gs: segments::to_kvm(&gs.0),
        tr: segments::task_to_kvm(&state.tr.0),
        ldt: segments::to_kvm(&state.ldtr.0),
        gdt: segments::table_to_kvm(&state.gdtr.0),
        idt: segments::table_to_kvm(&state.idtr.0),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic.as_ref().map_or(now.apic_base, |a| a.base),
        interrupt_bitmap: [0; 4],
    };
    refused("system registers", vcpu.fd.set_sregs(&sregs))
}

/// XCR0 and the vector registers.
fn load_vector_state(vcpu: &KvmVcpu, state: &CpuState) -> Result<(), EngineError> {
    let has_xcr0 = vcpu.cpuid.has(feature::XSAVE);
    if state.xcr0 & !vcpu.shared.xsave.mask() != 0 || (!has_xcr0 && state.xcr0 != 1) {
        return Err(EngineError::State(format!(
            "XCR0 {:#x} has bits that are not to be had here",
            state.xcr0
        )));
    }
    if has_xcr0 {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: state.xcr0 };
        refused("XCR0", vcpu.fd.set_xcrs(&xcrs))?;
    }
    let image = xsave::from_components(&state.xsave, &vcpu.shared.xsave, vcpu.shared.xsave_len);
    let image = image.map_err(EngineError::State)?;
    sys::set_xsave(&vcpu.fd, &image)
        .map_err(|e| EngineError::State(format!("KVM refuses its vector registers: {e}")))
}

fn load_msrs(vcpu: &KvmVcpu, state: &CpuState) -> Result<(), EngineError> {
    let available = vcpu.shared.msrs.get().map_or(&[][..], Vec::as_slice);
    let values = msrs::to_load(&state.msrs, available).map_err(EngineError::State)?;
    // Writing it writes guest memory, and right only once the clock is: `start_time` does.
    let (wall_clock, values): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|m| m.0 == msr::KVM_WALL_CLOCK_NEW && m.1 != 0);
    // What is there already is not written: KVM logs writes of registers that it only half has.
    let numbers: Vec<u32> = values.iter().map(|m| m.0).collect();
    let now = msrs::read(&vcpu.fd, &numbers).map_err(EngineError::host("KVM_GET_MSRS"))?;
    let values: Vec<_> = values.into_iter().filter(|m| !now.contains(m)).collect();
    let mut rest = values.as_slice();
    while let Some(at) = msrs::write(&vcpu.fd, rest).map_err(EngineError::host("KVM_SET_MSRS"))? {
        let (number, value) = rest[at];
        if value != 0 {
            let name = msrs::name(number);
            return Err(EngineError::State(format!("KVM refuses {value:#x} for {name}")));
        }
        rest = &rest[at + 1..];
    }
    let time = ProcessorTime { tsc: state.tsc, deadline: state.msr(msr::IA32_TSC_DEADLINE).unwrap_or(0) };
    let done = vcpu.shared.time.set(vcpu.id, time, wall_clock.first().map(|m| m.1));
    done.map_err(EngineError::host("set the processor's time"))
}

fn general_registers(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}
