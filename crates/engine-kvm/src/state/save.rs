//! From KVM to [`CpuState`].

use std::io;

use kvm_bindings::{kvm_lapic_state, kvm_regs};
use umbra_engine::{ApicState, CpuState, EngineError, SavedCpuid, SavedSegment, SavedTable};
use umbra_x86::cpuid::feature;
use umbra_x86::msr;

use super::{events, msrs, segments, xsave};
use crate::sys;
use crate::vcpu::KvmVcpu;

/// Registers of the local APIC's page (SDM volume 3, table 12-1).
const TIMER_INITIAL_COUNT: usize = 0x380;
const TIMER_CURRENT_COUNT: usize = 0x390;

/// The processor's whole state. Nothing of an instruction may be open.
pub(crate) fn save(vcpu: &mut KvmVcpu) -> Result<CpuState, EngineError> {
    let (mut mp_state, mut lapic) = activity(vcpu)?;
    if has_expired(&lapic) {
        vcpu.collect_timer()?;
        (mp_state, lapic) = activity(vcpu)?;
    }
    let fd = &vcpu.fd;
    let regs = ask("KVM_GET_REGS", fd.get_regs())?;
    let s = ask("KVM_GET_SREGS", fd.get_sregs())?;
    let debug = ask("KVM_GET_DEBUGREGS", fd.get_debug_regs())?;
    let xcrs = ask("KVM_GET_XCRS", fd.get_xcrs())?;
    let kvm_events = ask("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?;
    let page: Vec<u8> = lapic.regs.iter().map(|b| b.cast_unsigned()).collect();
    let mut image = vec![0; vcpu.shared.xsave_len];
    sys::get_xsave(fd, &mut image).map_err(EngineError::host("KVM_GET_XSAVE"))?;
    let time = vcpu.shared.time.of(vcpu.id).map_err(EngineError::host("read the processor's time"))?;
    let mut state = CpuState {
        gpr: gpr(&regs),
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(|x| SavedSegment(segments::from_kvm(x))),
        ldtr: SavedSegment(segments::from_kvm(&s.ldt)),
        tr: SavedSegment(segments::from_kvm(&s.tr)),
        gdtr: SavedTable(segments::table_from_kvm(&s.gdt)),
        idtr: SavedTable(segments::table_from_kvm(&s.idt)),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        xcr0: xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0).map_or(1, |x| x.value),
        dr: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        xsave: xsave::to_components(&image, &vcpu.shared.xsave),
        msrs: Vec::new(),
        apic: vcpu.cpuid.has(feature::APIC).then_some(ApicState { base: s.apic_base, page }),
        events: events::from_kvm(&kvm_events),
        run_state: events::run_state_from_kvm(mp_state),
        cpuid: vcpu.cpuid.entries().iter().copied().map(SavedCpuid).collect(),
        tsc: time.tsc,
        tsc_khz: vcpu.tsc_khz,
    };
    save_msrs(vcpu, &mut state)?;
    if time.deadline != 0 {
        state.set_msr(msr::IA32_TSC_DEADLINE, time.deadline);
    }
    Ok(state)
}

/// Whether the processor executes, and its local APIC. First of all: asking makes KVM act on INIT and SIPI that wait, which changes everything else.
fn activity(vcpu: &KvmVcpu) -> Result<(u32, kvm_lapic_state), EngineError> {
    let mp_state = ask("KVM_GET_MP_STATE", vcpu.fd.get_mp_state())?.mp_state;
    Ok((mp_state, ask("KVM_GET_LAPIC", vcpu.fd.get_lapic())?))
}

/// Whether the timer was set and has counted to its end; its interrupt may have been delivered long ago, or not yet.
fn has_expired(lapic: &kvm_lapic_state) -> bool {
    let count = |at: usize| lapic.regs.get(at..at + 4).is_some_and(|bytes| bytes.iter().any(|b| *b != 0));
    count(TIMER_INITIAL_COUNT) && !count(TIMER_CURRENT_COUNT)
}

fn save_msrs(vcpu: &KvmVcpu, state: &mut CpuState) -> Result<(), EngineError> {
    let power_on = vcpu.shared.msrs.get().map_or(&[][..], Vec::as_slice);
    let numbers: Vec<u32> = power_on.iter().map(|m| m.0).collect();
    let values = msrs::read(&vcpu.fd, &numbers).map_err(EngineError::host("KVM_GET_MSRS"))?;
    if values.len() < numbers.len() {
        return Err(EngineError::Internal(format!("KVM has lost {}", msrs::name(numbers[values.len()]))));
    }
    for ((number, value), (_, power_on)) in values.into_iter().zip(power_on) {
        if msrs::is_saved(number, value, *power_on) {
            state.set_msr(number, value);
        }
    }
    Ok(())
}

fn ask<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, EngineError> {
    result.map_err(io::Error::from).map_err(EngineError::host(what))
}

fn gpr(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ]
}

/// The APIC page as KVM has it; bytes that are missing are zero.
pub(crate) fn apic_to_kvm(page: &[u8]) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    lapic.regs.iter_mut().zip(page).for_each(|(to, from)| *to = from.cast_signed());
    lapic
}
