//! The timer's three modes.
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::apic_test::enabled;
use crate::reg::*;
use crate::timer::PERIOD_NS_MIN;
use crate::{Deadline, LocalApic, Now};

const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;

fn at(ns: u64) -> Now {
    Now { ns, tsc: 3 * ns }
}

/// A timer with vector 0x40 in `mode`, dividing by 1.
fn timer(mode: u32) -> LocalApic {
    let mut apic = enabled(0);
    apic.write(TDCR, 0xb, &at(0));
    apic.write(LVT_TIMER, mode | 0x40, &at(0));
    apic
}

#[test]
fn one_shot() {
    let mut apic = timer(0);
    assert_eq!(apic.next_deadline(), None);
    assert!(apic.write(TMICT, 5000, &at(100)).timer);
    assert_eq!(apic.next_deadline(), Some(Deadline::Ns(5100)));
    assert_eq!((apic.read(TMCCT, &at(100)), apic.read(TMCCT, &at(5099))), (5000, 1));
    assert!(!apic.expire(5099, 0));
    assert_eq!(apic.pending(), None);
    assert!(apic.expire(5100, 0));
    assert_eq!(apic.acknowledge(), 0x40);
    assert_eq!((apic.read(TMICT, &at(6000)), apic.read(TMCCT, &at(6000))), (5000, 0));
    assert_eq!(apic.next_deadline(), None);
    assert!(!apic.expire(9000, 0));
    apic.write(TMICT, 50, &at(9000));
    apic.write(TMICT, 0, &at(9010));
    assert_eq!(apic.next_deadline(), None, "zero stops it");
}

#[test]
fn dividers() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut apic = timer(0);
        apic.write(TDCR, code, &at(0));
        assert_eq!(apic.read(TDCR, &at(0)), code);
        apic.write(TMICT, 1000, &at(0));
        assert_eq!(apic.next_deadline(), Some(Deadline::Ns(1000 * divisor)));
        assert_eq!(apic.read(TMCCT, &at(400 * divisor)), 600);
    }
}

#[test]
fn a_divider_changed_on_the_way_keeps_the_count() {
    let mut apic = timer(0);
    apic.write(TMICT, 1000, &at(0));
    apic.write(TDCR, 0, &at(400));
    assert_eq!(apic.read(TMCCT, &at(400)), 600);
    assert_eq!(apic.next_deadline(), Some(Deadline::Ns(1600)));
}

#[test]
fn periodic() {
    let mut apic = timer(PERIODIC);
    apic.write(TMICT, 1_000_000, &at(0));
    for i in 1..5 {
        assert_eq!(apic.next_deadline(), Some(Deadline::Ns(i * 1_000_000)));
        assert!(apic.expire(i * 1_000_000 + 77, 0));
        assert_eq!(apic.acknowledge(), 0x40);
        apic.eoi();
        assert_eq!(apic.read(TMCCT, &at(i * 1_000_000 + 300_000)), 700_000);
    }
}

#[test]
fn missed_periods_are_one_interrupt_on_the_same_grid() {
    let mut apic = timer(PERIODIC);
    apic.write(TMICT, 1_000_000, &at(0));
    assert!(apic.expire(10_500_000_000_400, 0));
    assert!(!apic.expire(10_500_000_000_400, 0));
    assert_eq!(apic.next_deadline(), Some(Deadline::Ns(10_500_001_000_000)));
    assert_eq!(apic.acknowledge(), 0x40);
    assert_eq!(apic.pending(), None);
}

#[test]
fn a_period_is_never_shorter_than_the_limit() {
    let mut apic = timer(PERIODIC);
    apic.write(TMICT, 1, &at(0));
    assert!(apic.expire(1, 0));
    assert_eq!(apic.next_deadline(), Some(Deadline::Ns(1 + PERIOD_NS_MIN)));
    assert_eq!(apic.read(TMCCT, &at(2)), 1);
}

#[test]
fn tsc_deadline() {
    let mut apic = timer(TSC_DEADLINE);
    apic.write(TMICT, 1000, &at(0));
    assert_eq!(apic.read(TMICT, &at(0)), 0, "counts are out of use");
    let effects = apic.msr_write(MSR_TSC_DEADLINE, 9000, &at(100)).unwrap();
    assert!(effects.timer);
    assert_eq!(apic.next_deadline(), Some(Deadline::Tsc(9000)));
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE, &at(100)), Ok(9000));
    assert!(!apic.expire(0, 8999));
    assert!(apic.expire(0, 9000));
    assert_eq!(apic.acknowledge(), 0x40);
    apic.eoi();
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE, &at(5000)), Ok(0), "disarmed by itself");
    assert!(apic.msr_write(MSR_TSC_DEADLINE, 1, &at(5000)).is_ok());
    assert_eq!(apic.acknowledge(), 0x40, "a deadline in the past goes off at once");
    assert!(apic.msr_write(MSR_TSC_DEADLINE, 99_000, &at(5000)).is_ok());
    assert!(apic.msr_write(MSR_TSC_DEADLINE, 0, &at(5000)).is_ok());
    assert_eq!(apic.next_deadline(), None);
}

#[test]
fn a_deadline_counts_only_in_its_mode_and_a_change_of_mode_disarms() {
    let mut apic = timer(0);
    assert!(!apic.msr_write(MSR_TSC_DEADLINE, 9000, &at(0)).unwrap().timer);
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE, &at(0)), Ok(0));
    apic.write(TMICT, 1000, &at(0));
    apic.write(LVT_TIMER, PERIODIC | 0x40, &at(0));
    assert_eq!(apic.next_deadline(), Some(Deadline::Ns(1000)), "one-shot to periodic goes on");
    apic.write(LVT_TIMER, TSC_DEADLINE | 0x40, &at(0));
    assert_eq!(apic.next_deadline(), None);
    assert!(apic.msr_write(MSR_TSC_DEADLINE, 9000, &at(0)).is_ok());
    apic.write(LVT_TIMER, 0x40, &at(0));
    assert_eq!((apic.next_deadline(), apic.msr_read(MSR_TSC_DEADLINE, &at(0))), (None, Ok(0)));
    apic.write(LVT_TIMER, 3 << 17 | 0x40, &at(0));
    apic.write(TMICT, 1000, &at(0));
    assert_eq!(apic.next_deadline(), None, "the reserved mode stands");
}

#[test]
fn a_masked_timer_runs_silently() {
    let mut apic = timer(LVT_MASKED);
    apic.write(TMICT, 1000, &at(0));
    assert!(apic.expire(1000, 0));
    assert_eq!(apic.pending(), None);
}

#[test]
fn an_illegal_timer_vector_is_an_error() {
    let mut apic = timer(0);
    apic.write(LVT_TIMER, 5, &at(0));
    apic.write(TMICT, 1, &at(0));
    assert!(apic.expire(1, 0));
    apic.write(ESR, 0, &at(0));
    assert_eq!((apic.pending(), apic.read(ESR, &at(0))), (None, 1 << 6));
}
