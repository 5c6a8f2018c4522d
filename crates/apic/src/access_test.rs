//! Register accesses in both modes, and the way between the modes.
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::apic_test::{T0, enabled};
use crate::reg::*;
use crate::{Delivery, Destination, Effects, Gp, LocalApic, Message};

const ON: u64 = DEFAULT_ADDRESS | BASE_ENABLE;

fn x2apic(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, false, 46);
    assert!(apic.msr_write(MSR_APIC_BASE, ON | BASE_X2APIC, &T0).is_ok());
    assert!(apic.msr_write(0x80f, 0x1ff, &T0).is_ok());
    apic
}

fn ipi(destination: Destination, delivery: Delivery, vector: u8) -> Effects {
    Effects { ipi: Some(Message { destination, delivery, vector, level: false }), ..Effects::default() }
}

#[test]
fn xapic_commands_are_sent_by_the_low_half() {
    let mut apic = enabled(0);
    assert_eq!(apic.write(ICR_HIGH, 0x0200_0000, &T0), Effects::default());
    assert_eq!(apic.write(ICR, 0x5031, &T0), ipi(Destination::Physical(2), Delivery::Fixed, 0x31));
    assert_eq!(apic.read(ICR, &T0), 0x4031, "the delivery status is idle");
    assert_eq!(apic.write(ICR, 0xc4500, &T0), ipi(Destination::AllButSelf, Delivery::Init, 0));
    assert_eq!(apic.write(ICR, 0xc4699, &T0), ipi(Destination::AllButSelf, Delivery::Startup, 0x99));
}

#[test]
fn a_command_to_oneself_arrives_at_once() {
    let mut apic = enabled(0);
    assert_eq!(apic.write(ICR, 0x4_4031, &T0), Effects::default());
    assert_eq!(apic.pending(), Some(0x31));
    assert_eq!(apic.write(ICR, 0x4_4402, &T0), ipi(Destination::SelfOnly, Delivery::Nmi, 2));
    assert_eq!(apic.write(ICR, 0x4_4500, &T0), Effects::default(), "no INIT to oneself");
}

#[test]
fn an_illegal_vector_is_not_sent() {
    let mut apic = enabled(0);
    apic.write(LVT_ERROR, 0xf0, &T0);
    assert_eq!(apic.write(ICR, 0x400f, &T0), Effects::default());
    assert_eq!(apic.acknowledge(), 0xf0);
    apic.write(ESR, 0, &T0);
    assert_eq!(apic.read(ESR, &T0), 1 << 5);
}

#[test]
fn page_accesses_of_other_sizes() {
    let mut apic = enabled(0x12);
    let mut byte = [0xaa];
    apic.mmio_read(0x23, &mut byte, &T0);
    assert_eq!(byte, [0x12]);
    let mut word = [0xaa; 4];
    apic.mmio_read(0x30, &mut word, &T0);
    assert_eq!(u32::from_le_bytes(word), 0x0105_0014);
    let mut long = [0xaa; 8];
    apic.mmio_read(0x20, &mut long, &T0);
    assert_eq!(long, [0; 8], "an access across registers reads nothing");
    for data in [&[0x50][..], &[0x50, 0], &[0x50, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(apic.mmio_write(0x80, data, &T0), Effects::default());
    }
    assert_eq!(apic.mmio_write(0x84, &[0x50, 0, 0, 0], &T0), Effects::default());
    assert_eq!(apic.cr8(), 0);
    assert_eq!(apic.mmio_write(0x80, &[0x50, 0, 0, 0], &T0), Effects::default());
    assert_eq!(apic.cr8(), 5);
}

#[test]
fn registers_that_do_not_exist_are_errors_and_read_only_ones_are_not() {
    let mut apic = enabled(1);
    for offset in [ID, VERSION, APR, PPR, RRD, ISR, TMR + 0x70, IRR + 0x10, TMCCT] {
        apic.read(offset, &T0);
        assert_eq!(apic.write(offset, u32::MAX, &T0), Effects::default());
    }
    apic.write(ESR, 0, &T0);
    assert_eq!((apic.read(ESR, &T0), apic.read(ID, &T0), apic.pending()), (0, 1 << 24, None));
    apic.read(0x3f0, &T0);
    apic.write(ESR, 0, &T0);
    assert_eq!(apic.read(ESR, &T0), 1 << 7);
    for offset in (0..0x1000).step_by(16) {
        apic.write(offset, u32::MAX, &T0);
        apic.read(offset, &T0);
    }
}

#[test]
fn reserved_bits_do_not_stick() {
    let mut apic = enabled(1);
    for (offset, value) in [
        (TPR, 0xff),
        (LDR, 0xff00_0000),
        (SVR, 0x13ff),
        (LVT_TIMER, 0x7_00ff),
        (LVT_THERMAL, 0x1_07ff),
        (LVT_PERF, 0x1_07ff),
        (LVT_LINT0, 0x1_a7ff),
        (LVT_LINT1, 0x1_a7ff),
        (LVT_ERROR, 0x1_00ff),
        (TDCR, 0xb),
        (ICR_HIGH, 0xff00_0000),
    ] {
        apic.write(offset, u32::MAX, &T0);
        assert_eq!(apic.read(offset, &T0), value, "{offset:#x}");
    }
}

#[test]
fn modes_change_only_along_the_arrows() {
    let (off, x, x2, bad) = (0, BASE_ENABLE, BASE_ENABLE | BASE_X2APIC, BASE_X2APIC);
    for (from, path) in [(off, vec![off]), (x, vec![x]), (x2, vec![x, x2])] {
        for (to, allowed) in [(off, true), (x, from != x2), (x2, from != off), (bad, false)] {
            let mut apic = LocalApic::new(0, false, 46);
            for step in &path {
                assert!(apic.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS | step, &T0).is_ok());
            }
            let before = apic.base();
            let result = apic.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS | to, &T0);
            assert_eq!(result.is_ok(), allowed, "{from:#x} to {to:#x}");
            assert_eq!(apic.base(), if allowed { DEFAULT_ADDRESS | to } else { before });
        }
    }
}

#[test]
fn the_base_has_reserved_bits_and_an_address() {
    let mut apic = LocalApic::new(0, true, 40);
    for bit in [0, 1, 7, 9, 40, 46, 52, 63] {
        assert_eq!(apic.msr_write(MSR_APIC_BASE, ON | 1 << bit, &T0), Err(Gp), "bit {bit}");
    }
    assert!(apic.msr_write(MSR_APIC_BASE, 0x80_1234_5000 | BASE_ENABLE | BASE_BSP, &T0).is_ok());
    assert_eq!(apic.mmio_base(), Some(0x80_1234_5000));
    assert!(apic.msr_write(MSR_APIC_BASE, ON | BASE_X2APIC, &T0).is_ok());
    assert_eq!(apic.mmio_base(), None);
}

#[test]
fn switching_off_forgets() {
    let mut apic = enabled(0);
    apic.accept(0x80, false);
    assert!(apic.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS, &T0).is_ok());
    assert_eq!((apic.pending(), apic.mmio_base(), apic.is_enabled()), (None, None, false));
    assert!(apic.msr_write(MSR_APIC_BASE, ON, &T0).is_ok());
    assert_eq!((apic.read(SVR, &T0), apic.pending()), (0xff, None));
}

#[test]
fn x2apic_registers_exist_only_in_that_mode() {
    let mut apic = enabled(0);
    for msr in MSR_X2APIC..=MSR_X2APIC_LAST {
        assert_eq!(apic.msr_read(msr, &T0), Err(Gp));
        assert_eq!(apic.msr_write(msr, 0, &T0), Err(Gp));
    }
    assert_eq!(apic.msr_read(0x10, &T0), Err(Gp), "not one of the APIC's");
}

#[test]
fn x2apic_registers_can_be_read_and_written_as_the_table_says() {
    let readable = |msr| matches!(msr, 0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f | 0x810..=0x828 | 0x830 | 0x832..=0x839 | 0x83e);
    let writable = |msr| matches!(msr, 0x808 | 0x80b | 0x80f | 0x828 | 0x830 | 0x832..=0x838 | 0x83e | 0x83f);
    for msr in MSR_X2APIC..=MSR_X2APIC_LAST {
        let mut apic = x2apic(9);
        assert_eq!(apic.msr_read(msr, &T0).is_ok(), readable(msr), "read {msr:#x}");
        assert_eq!(apic.msr_write(msr, 0, &T0).is_ok(), writable(msr), "write {msr:#x}");
        assert_eq!(apic.msr_write(msr, 1 << 63 | 1 << 31, &T0), Err(Gp), "reserved bits of {msr:#x}");
    }
}

#[test]
fn x2apic_reserved_bits() {
    let mut apic = x2apic(9);
    for (msr, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x828, 1),
        (0x80f, 0x400),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 8),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(apic.msr_write(msr, value, &T0), Err(Gp), "{msr:#x}");
    }
    assert!(apic.msr_write(0x835, 0x1_5700, &T0).is_ok(), "read-only bits may be written back");
    assert_eq!(apic.msr_read(0x835, &T0), Ok(0x1_0700));
}

#[test]
fn x2apic_commands() {
    let mut apic = x2apic(0x123);
    assert_eq!(apic.msr_read(0x802, &T0), Ok(0x123));
    let sent = apic.msr_write(0x830, 0x0000_0145_0000_4031, &T0);
    assert_eq!(sent, Ok(ipi(Destination::Physical(0x145), Delivery::Fixed, 0x31)));
    assert_eq!(apic.msr_read(0x830, &T0), Ok(0x0000_0145_0000_4031));
    assert_eq!(apic.msr_write(0x83f, 0x42, &T0), Ok(Effects::default()));
    assert_eq!(apic.acknowledge(), 0x42);
    assert_eq!(apic.msr_write(0x80b, 0, &T0), Ok(Effects::default()));
    apic.accept(0x50, true);
    apic.acknowledge();
    assert_eq!(apic.msr_write(0x80b, 0, &T0), Ok(Effects { eoi: Some(0x50), ..Effects::default() }));
    assert_eq!(apic.msr_write(0x83f, 0x0f, &T0), Ok(Effects::default()));
    assert!(apic.msr_write(0x828, 0, &T0).is_ok());
    assert_eq!(apic.msr_read(0x828, &T0), Ok(1 << 5));
}
