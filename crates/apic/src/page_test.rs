//! The saved page.
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::apic_test::{T0, enabled};
use crate::reg::*;
use crate::{Deadline, LocalApic, Now, PAGE_SIZE, PageError};

fn word(page: &[u8; PAGE_SIZE], offset: u32) -> u32 {
    let at = offset as usize;
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn busy() -> LocalApic {
    let mut apic = enabled(6);
    for (offset, value) in [
        (LDR, 0x4000_0000),
        (TPR, 0x21),
        (LVT_TIMER, 1 << 17 | 0x40),
        (LVT_LINT1, 0x400),
        (LVT_ERROR, 0xf1),
        (TDCR, 0xb),
        (TMICT, 1_000_000),
        (ICR_HIGH, 0x0200_0000),
        (ICR, 0x4031),
    ] {
        apic.write(offset, value, &T0);
    }
    apic.accept(0x61, true);
    apic.accept(0x95, true);
    apic.acknowledge();
    apic.accept(0xa5, false);
    apic.accept(3, false);
    apic
}

#[test]
fn registers_are_where_the_manual_has_them() {
    let mut apic = busy();
    let now = Now { ns: 400_000, tsc: 0 };
    let page = apic.to_page(now.ns);
    assert_eq!(word(&page, ESR), 1 << 6, "an error that the guest has not latched");
    for offset in (ID..=TDCR).step_by(16).filter(|o| !(0x40..0x80).contains(o) && !(0x290..0x300).contains(o))
    {
        if offset != ESR && offset < 0x3a0 {
            assert_eq!(word(&page, offset), apic.read(offset, &now), "{offset:#x}");
        }
    }
    assert_eq!(word(&page, TMCCT), 600_000);
    assert_eq!(word(&page, ISR + 0x40), 1 << 0x15);
}

#[test]
fn a_restored_apic_goes_on_where_it_was() {
    let mut apic = busy();
    let page = apic.to_page(400_000);
    let mut other = LocalApic::new(6, true, 46);
    assert_eq!(other.load_page(&page, apic.base(), 7_000_000), Ok(()));
    assert_eq!(other.next_deadline(), Some(Deadline::Ns(7_600_000)));
    assert_eq!(other.to_page(7_000_000), page);
    assert_eq!(other.base(), apic.base());
    for _ in 0..3 {
        assert_eq!(other.pending(), apic.pending());
        assert_eq!(other.acknowledge(), apic.acknowledge());
    }
    for _ in 0..4 {
        assert_eq!(other.eoi(), apic.eoi());
        assert_eq!(other.pending(), apic.pending());
    }
}

#[test]
fn a_timer_at_its_end_still_goes_off_after_a_restore() {
    let mut apic = enabled(0);
    apic.write(LVT_TIMER, 0x40, &T0);
    apic.write(TMICT, 1000, &T0);
    let page = apic.to_page(90_000);
    let mut other = enabled(0);
    assert_eq!(other.load_page(&page, apic.base(), 90_000), Ok(()));
    assert!(other.expire(100_000, 0));
    assert_eq!(other.pending(), Some(0x40));
    assert_eq!(word(&other.to_page(100_000), TMCCT), 0);
    let again = other.to_page(100_000);
    assert_eq!(other.load_page(&again, apic.base(), 0), Ok(()));
    assert_eq!(other.next_deadline(), None, "one that has gone off does not do it again");
}

#[test]
fn x2apic_ids_and_destinations_are_whole() {
    let base = DEFAULT_ADDRESS | BASE_ENABLE | BASE_X2APIC;
    let mut apic = LocalApic::new(0x123, false, 46);
    assert!(apic.msr_write(MSR_APIC_BASE, base, &T0).is_ok());
    assert!(apic.msr_write(0x830, 0xabcd_ef01_0000_4031, &T0).is_ok());
    let page = apic.to_page(0);
    assert_eq!((word(&page, ID), word(&page, LDR), word(&page, ICR_HIGH)), (0x123, 0x12_0008, 0xabcd_ef01));
    let mut other = LocalApic::new(0x123, false, 46);
    assert_eq!(other.load_page(&page, base, 0), Ok(()));
    assert_eq!(other.to_page(0), page);
}

#[test]
fn a_page_of_another_processor_is_refused() {
    let page = busy().to_page(0);
    let mut other = enabled(7);
    let before = other.to_page(0);
    let base = other.base();
    assert_eq!(other.load_page(&page, base, 0), Err(PageError::Id { expected: 7, found: 6 }));
    let base = DEFAULT_ADDRESS | BASE_X2APIC;
    assert_eq!(enabled(6).load_page(&page, base, 0), Err(PageError::Base(base)));
    assert_eq!(other.to_page(0), before);
}

#[test]
fn impossible_bits_are_dropped() {
    let mut page = [0xff; PAGE_SIZE];
    page[0x23] = 6;
    let mut apic = enabled(6);
    assert_eq!(apic.load_page(&page, DEFAULT_ADDRESS | BASE_ENABLE, 0), Ok(()));
    assert_eq!(apic.read(IRR, &T0), 0xffff_0000);
    assert_eq!(apic.read(SVR, &T0), 0x13ff);
    assert_eq!(apic.read(LVT_TIMER, &T0), 0x7_00ff);
    let once = apic.to_page(0);
    assert_eq!(apic.load_page(&once, DEFAULT_ADDRESS | BASE_ENABLE, 0), Ok(()));
    assert_eq!(apic.to_page(0), once);
}

#[test]
fn an_apic_that_is_off_has_no_state() {
    let mut apic = busy();
    let page = apic.to_page(0);
    assert_eq!(apic.load_page(&page, DEFAULT_ADDRESS, 0), Ok(()));
    assert_eq!((apic.pending(), apic.eoi(), apic.next_deadline()), (None, None, None));
}
