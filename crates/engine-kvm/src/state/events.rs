//! What is pending at the instruction boundary, and whether the processor executes.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};
use umbra_engine::{Event, Events, RunState};

/// KVM's view as the architecture's.
pub(crate) fn from_kvm(e: &kvm_vcpu_events) -> Events {
    let exception = (e.exception.injected != 0).then(|| Event {
        vector: e.exception.nr,
        error: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
    });
    let shadow = u32::from(e.interrupt.shadow);
    // AMD's processors have one shadow, which KVM reports as both; the one of MOV SS holds off more, and so breaks nothing.
    let mov_ss_shadow = shadow & KVM_X86_SHADOW_INT_MOV_SS != 0;
    let interrupt = (e.interrupt.injected != 0).then_some(e.interrupt.nr);
    Events {
        exception,
        interrupt,
        interrupt_soft: interrupt.is_some() && e.interrupt.soft != 0,
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0 && !mov_ss_shadow,
        mov_ss_shadow,
        nmi_pending: e.nmi.pending != 0 || e.nmi.injected != 0,
        // An NMI whose delivery was cut short begins again; until then none is being handled.
        nmi_masked: e.nmi.masked != 0 && e.nmi.injected == 0,
        // KVM has acted on INIT and SIPI by now; see `save`.
        init_pending: false,
        sipi: None,
    }
}

/// The architecture's view as KVM's.
pub(crate) fn to_kvm(events: &Events) -> kvm_vcpu_events {
    let Events {
        exception,
        interrupt,
        interrupt_soft,
        sti_shadow,
        mov_ss_shadow,
        nmi_pending,
        nmi_masked,
        init_pending,
        sipi,
    } = events;
    let mut e = kvm_vcpu_events::default();
    if let Some(Event { vector, error }) = exception {
        e.exception.injected = 1;
        e.exception.nr = *vector;
        e.exception.has_error_code = error.is_some().into();
        e.exception.error_code = error.unwrap_or(0);
    }
    if let Some(vector) = interrupt {
        e.interrupt.injected = 1;
        e.interrupt.nr = *vector;
        e.interrupt.soft = (*interrupt_soft).into();
    }
    let shadow = |on: bool, bit: u32| if on { bit as u8 } else { 0 };
    e.interrupt.shadow =
        shadow(*sti_shadow, KVM_X86_SHADOW_INT_STI) | shadow(*mov_ss_shadow, KVM_X86_SHADOW_INT_MOV_SS);
    e.nmi.pending = (*nmi_pending).into();
    e.nmi.masked = (*nmi_masked).into();
    e.sipi_vector = sipi.unwrap_or(0).into();
    e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    if *init_pending {
        // The only way to say so, although nothing here has to do with system management mode.
        e.flags |= KVM_VCPUEVENT_VALID_SMM;
        e.smi.latched_init = 1;
    }
    e
}

/// KVM's MP state as the architecture's.
pub(crate) fn run_state_from_kvm(mp_state: u32) -> RunState {
    match mp_state {
        KVM_MP_STATE_HALTED => RunState::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => RunState::WaitForSipi,
        _ => RunState::Running,
    }
}

/// The MP state that KVM shall have. An event that is to be delivered wakes a halted processor, and KVM does not see that by itself.
pub(crate) fn run_state_to_kvm(state: RunState, events: &Events) -> u32 {
    match state {
        RunState::Halted if events.interrupt.is_none() && events.exception.is_none() => KVM_MP_STATE_HALTED,
        RunState::Running | RunState::Halted => KVM_MP_STATE_RUNNABLE,
        RunState::WaitForSipi if events.sipi.is_some() => KVM_MP_STATE_SIPI_RECEIVED,
        // "Uninitialized" would ignore a SIPI that no INIT came before.
        RunState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    }
}
