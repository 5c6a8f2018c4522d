//! Priorities, order and acceptance: SDM volume 3, "Handling Interrupts".
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::reg::*;
use crate::{Delivery, Effects, LocalApic, Lvt, Now};

pub(crate) const T0: Now = Now { ns: 0, tsc: 0 };

/// An APIC that the guest has enabled.
pub(crate) fn enabled(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, id == 0, 46);
    assert_eq!(apic.write(SVR, 0x1ff, &T0), Effects::default());
    apic
}

#[test]
fn an_interrupt_is_requested_served_and_ended() {
    let mut apic = enabled(0);
    assert_eq!(apic.pending(), None);
    assert!(apic.accept(0x45, false));
    assert!(!apic.accept(0x45, false), "a second request merges with the first");
    assert_eq!(apic.read(IRR + 0x20, &T0), 1 << 5);
    assert_eq!(apic.acknowledge(), 0x45);
    assert_eq!(apic.read(IRR + 0x20, &T0), 0);
    assert_eq!(apic.read(ISR + 0x20, &T0), 1 << 5);
    assert_eq!(apic.read(PPR, &T0), 0x40);
    assert!(apic.accept(0x45, false), "one more may be requested while the first is served");
    assert_eq!(apic.pending(), None, "but it waits");
    assert_eq!(apic.write(EOI, 0, &T0), Effects::default());
    assert_eq!(apic.pending(), Some(0x45));
}

#[test]
fn only_a_higher_class_interrupts_and_ends_come_highest_first() {
    let mut apic = enabled(0);
    apic.accept(0x31, false);
    assert_eq!(apic.acknowledge(), 0x31);
    apic.accept(0x3f, false);
    assert_eq!(apic.pending(), None, "the same class waits");
    apic.accept(0x52, true);
    apic.accept(0x51, false);
    assert_eq!(apic.acknowledge(), 0x52);
    assert_eq!(apic.eoi(), Some(0x52), "the highest in service, level-triggered");
    assert_eq!(apic.acknowledge(), 0x51);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.eoi(), None, "0x31, edge");
    assert_eq!(apic.acknowledge(), 0x3f);
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.eoi(), None, "nothing in service");
    assert_eq!(apic.read(PPR, &T0), 0);
}

#[test]
fn the_task_priority_holds_its_class_and_those_below() {
    let mut apic = enabled(0);
    apic.accept(0x4f, false);
    apic.set_cr8(4);
    assert_eq!((apic.cr8(), apic.read(TPR, &T0), apic.read(PPR, &T0)), (4, 0x40, 0x40));
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.acknowledge(), 0xff, "the spurious vector");
    assert_eq!(apic.read(ISR + 0x70, &T0), 0, "which is not in service");
    apic.set_cr8(3);
    assert_eq!(apic.acknowledge(), 0x4f);
    assert_eq!(apic.read(PPR, &T0), 0x40);
    apic.write(TPR, 0x4a, &T0);
    assert_eq!(apic.read(PPR, &T0), 0x4a, "equal classes: the task priority's sub-class shows");
}

#[test]
fn every_vector_goes_round_in_order_of_priority() {
    let mut apic = enabled(0);
    for vector in 16..=255 {
        assert!(apic.accept(vector, vector % 3 == 0));
    }
    for vector in (16..=255).rev() {
        assert_eq!(apic.acknowledge(), vector);
        assert_eq!(apic.eoi(), (vector % 3 == 0).then_some(vector));
    }
    assert_eq!(apic.pending(), None);
}

#[test]
fn the_trigger_mode_follows_the_latest_request() {
    let mut apic = enabled(0);
    apic.accept(0x60, true);
    assert_eq!(apic.read(TMR + 0x30, &T0), 1);
    apic.acknowledge();
    assert_eq!(apic.eoi(), Some(0x60));
    apic.accept(0x60, false);
    assert_eq!(apic.read(TMR + 0x30, &T0), 0);
    apic.acknowledge();
    assert_eq!(apic.eoi(), None);
}

#[test]
fn the_guest_may_keep_ends_of_interrupt_to_itself() {
    let mut apic = enabled(0);
    apic.write(SVR, 0x11ff, &T0);
    apic.accept(0x60, true);
    apic.acknowledge();
    assert_eq!(apic.write(EOI, 0, &T0), Effects::default());
}

#[test]
fn an_apic_disabled_by_software_accepts_no_vectors_and_masks_its_table() {
    let mut apic = LocalApic::new(3, false, 46);
    assert!(apic.is_on() && !apic.is_enabled());
    assert!(!apic.accept(0x40, false));
    apic.write(LVT_ERROR, 0x33, &T0);
    assert_eq!(apic.read(LVT_ERROR, &T0), 0x1_0033, "the mask bit cannot be cleared");
    apic.write(SVR, 0x1ff, &T0);
    apic.write(LVT_ERROR, 0x33, &T0);
    apic.accept(0x40, false);
    apic.write(SVR, 0xff, &T0);
    assert_eq!(apic.read(LVT_ERROR, &T0), 0x1_0033);
    assert_eq!(apic.pending(), Some(0x40), "what was requested before is kept");
}

#[test]
fn illegal_vectors_are_errors_and_never_delivered() {
    let mut apic = enabled(0);
    apic.write(LVT_ERROR, 0xfe, &T0);
    for vector in 0..16 {
        assert!(!apic.accept(vector, false));
    }
    assert_eq!(apic.acknowledge(), 0xfe);
    assert_eq!(apic.read(IRR, &T0), 0);
    assert_eq!(apic.read(ESR, &T0), 0, "latched by a write only");
    apic.write(ESR, 0, &T0);
    assert_eq!(apic.read(ESR, &T0), 1 << 6);
    apic.write(ESR, 0, &T0);
    assert_eq!(apic.read(ESR, &T0), 0);
}

#[test]
fn an_illegal_error_vector_does_not_raise_itself() {
    let mut apic = enabled(0);
    apic.write(LVT_ERROR, 3, &T0);
    apic.accept(1, false);
    apic.write(0x40, 0, &T0);
    apic.write(ESR, 0, &T0);
    assert_eq!(apic.read(ESR, &T0), 0xc0);
    assert_eq!(apic.pending(), None);
}

#[test]
fn the_pic_is_heard_through_lint0_or_without_an_apic() {
    let mut apic = LocalApic::new(0, true, 46);
    assert!(apic.accepts_ext_int(), "as firmware leaves it");
    apic.write(SVR, 0x1ff, &T0);
    assert!(apic.accepts_ext_int());
    apic.write(LVT_LINT0, 0x1_0700, &T0);
    assert!(!apic.accepts_ext_int(), "masked");
    apic.write(LVT_LINT0, 0x400, &T0);
    assert!(!apic.accepts_ext_int(), "NMI");
    let off = DEFAULT_ADDRESS | BASE_BSP;
    assert!(apic.msr_write(MSR_APIC_BASE, off, &T0).is_ok());
    assert!(apic.accepts_ext_int(), "a processor without an APIC");
    let mut other = LocalApic::new(1, false, 46);
    assert!(!other.accepts_ext_int());
    assert!(other.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS, &T0).is_ok());
    assert!(!other.accepts_ext_int(), "the PIC's output is at the bootstrap processor");
}

#[test]
fn local_sources() {
    let mut apic = enabled(0);
    assert_eq!(apic.raise(Lvt::Lint1), None, "masked");
    apic.write(LVT_LINT1, 0x400, &T0);
    assert_eq!(apic.raise(Lvt::Lint1), Some(Delivery::Nmi));
    apic.write(LVT_PERF, 0x55, &T0);
    assert_eq!(apic.raise(Lvt::Perf), None);
    assert_eq!(apic.acknowledge(), 0x55);
    assert_eq!(apic.read(LVT_PERF, &T0), 0x1_0055, "a performance interrupt masks itself");
    assert_eq!(apic.raise(Lvt::Perf), None);
    assert_eq!(apic.pending(), None);
}

#[test]
fn init_keeps_what_reset_does_not() {
    let mut apic = enabled(5);
    let base = 0x1234_5000 | BASE_ENABLE | BASE_X2APIC;
    assert!(apic.msr_write(MSR_APIC_BASE, base, &T0).is_ok());
    apic.accept(0x77, true);
    apic.acknowledge();
    apic.accept(0x99, true);
    apic.init();
    assert_eq!((apic.id(), apic.base(), apic.pending(), apic.eoi()), (5, base, None, None));
    assert!(!apic.is_enabled());
    apic.reset();
    assert_eq!(apic.base(), DEFAULT_ADDRESS | BASE_ENABLE);
    for (offset, value) in
        [(ID, 5 << 24), (DFR, u32::MAX), (SVR, 0xff), (LVT_TIMER, LVT_MASKED), (LVT_LINT0, LVT_MASKED)]
    {
        assert_eq!(apic.read(offset, &T0), value, "{offset:#x}");
    }
}
