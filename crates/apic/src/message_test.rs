//! Who a message is for.
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::apic_test::{T0, enabled};
use crate::reg::*;
use crate::{Delivery, Destination, LocalApic, Message, arbitrate};

fn message(destination: Destination, delivery: Delivery, vector: u8) -> Message {
    Message { destination, delivery, vector, level: false }
}

#[test]
fn interrupt_commands() {
    use Delivery::*;
    use Destination::*;
    let x = |icr| Message::from_icr(icr, false);
    let x2 = |icr| Message::from_icr(icr, true);
    assert_eq!(x(0x0300_0000_0000_4031), Some(message(Physical(3), Fixed, 0x31)));
    assert_eq!(x(0x0300_0000_0000_4931), Some(message(Logical(3), LowestPriority, 0x31)));
    assert_eq!(x(0xff00_0000_0000_4031), Some(message(All, Fixed, 0x31)));
    assert_eq!(x2(0x0000_00ff_0000_4031), Some(message(Physical(255), Fixed, 0x31)));
    assert_eq!(x2(0xffff_ffff_0000_4831), Some(message(All, Fixed, 0x31)));
    assert_eq!(x2(0x0001_0004_0000_0831), Some(message(Logical(0x1_0004), Fixed, 0x31)));
    assert_eq!(x(0x4_4031), Some(message(SelfOnly, Fixed, 0x31)));
    assert_eq!(x(0x8_4031), Some(message(All, Fixed, 0x31)));
    assert_eq!(x(0xc_4431), Some(message(AllButSelf, Nmi, 0x31)));
    assert_eq!(x(0x0100_0000_0000_c500), Some(message(Physical(1), Init, 0)));
    assert_eq!(x(0x0100_0000_0000_8500), None, "INIT level de-assert");
    assert_eq!(x(0x0100_0000_0000_4699), Some(message(Physical(1), Startup, 0x99)));
    assert_eq!(x(0x4331), None, "a reserved mode");
    assert_eq!(x(0x4731), None, "ExtINT cannot be sent");
}

#[test]
fn message_signalled_interrupts() {
    use Delivery::*;
    use Destination::*;
    let msi = Message::from_msi;
    assert_eq!(msi(0xfee0_2000, 0x41), Some(message(Physical(2), Fixed, 0x41)));
    assert_eq!(msi(0xfee0_2004, 0x141), Some(message(Logical(2), LowestPriority, 0x41)));
    assert_eq!(msi(0xfee0_200c, 0x41), Some(message(Logical(2), LowestPriority, 0x41)), "redirection hint");
    assert_eq!(
        msi(0xfee0_2008, 0x41),
        Some(message(Physical(2), Fixed, 0x41)),
        "one processor needs no arbitration"
    );
    assert_eq!(msi(0xfeef_f000, 0x41), Some(message(All, Fixed, 0x41)));
    assert_eq!(msi(0xfee0_2020, 0x41), Some(message(Physical(0x102), Fixed, 0x41)), "extended destination");
    assert_eq!(msi(0xfee0_2000, 0xc041), Some(Message { level: true, ..message(Physical(2), Fixed, 0x41) }));
    assert_eq!(msi(0xfee0_2000, 0x8041), None, "a level goes away");
    assert_eq!(msi(0xfee0_2000, 0x441), Some(message(Physical(2), Nmi, 0x41)));
    assert_eq!(msi(0xfee0_2000, 0x641), None);
    assert_eq!(msi(0xfee0_2000, 0x341), None);
    assert_eq!(msi(0xfed0_2000, 0x41), None);
    assert_eq!(msi(0x1_fee0_2000, 0x41), None);
}

#[test]
fn logical_destinations_in_xapic_mode() {
    let mut apic = enabled(7);
    let hit = |apic: &LocalApic, address| apic.matches_destination(Destination::Logical(address), false);
    assert!(!hit(&apic, 0x80), "no logical ID yet");
    apic.write(LDR, 0x2400_0000, &T0);
    assert!(hit(&apic, 0x04) && hit(&apic, 0x20) && hit(&apic, 0x3f) && !hit(&apic, 0xdb));
    apic.write(DFR, 0x0fff_ffff, &T0);
    assert!(hit(&apic, 0x24) && hit(&apic, 0x2f));
    assert!(!hit(&apic, 0x34), "another cluster");
    assert!(!hit(&apic, 0x23), "another member");
    apic.write(DFR, 0x5fff_ffff, &T0);
    assert!(!hit(&apic, 0x24), "an undefined model");
}

#[test]
fn logical_destinations_in_x2apic_mode() {
    let mut apic = enabled(0x2b);
    assert!(apic.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS | BASE_ENABLE | BASE_X2APIC, &T0).is_ok());
    assert_eq!(apic.msr_read(0x80d, &T0), Ok(0x2_0800));
    let hit = |address| apic.matches_destination(Destination::Logical(address), false);
    assert!(hit(0x2_0800) && hit(0x2_ffff) && !hit(0x2_f7ff) && !hit(0x3_0800) && !hit(0x800));
}

#[test]
fn physical_destinations_broadcasts_and_shorthands() {
    let apic = enabled(4);
    for (destination, by_other, by_self) in [
        (Destination::Physical(4), true, true),
        (Destination::Physical(5), false, false),
        (Destination::Physical(0x104), false, false),
        (Destination::All, true, true),
        (Destination::AllButSelf, true, false),
        (Destination::SelfOnly, false, true),
    ] {
        assert_eq!(apic.matches_destination(destination, false), by_other, "{destination:?}");
        assert_eq!(apic.matches_destination(destination, true), by_self, "{destination:?}");
    }
    let mut off = enabled(4);
    assert!(off.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS, &T0).is_ok());
    assert!(!off.matches_destination(Destination::All, false));
    let asleep = LocalApic::new(4, false, 46);
    assert!(
        asleep.matches_destination(Destination::Physical(4), false),
        "INIT wakes one that never was enabled"
    );
}

#[test]
fn arbitration_takes_the_least_busy_and_spreads_vectors() {
    assert_eq!(arbitrate::<u8>(0x31, &[]), None);
    assert_eq!(arbitrate(0x31, &[('a', 0x40), ('b', 0x20), ('c', 0x30)]), Some('b'));
    let equal = [('a', 0), ('b', 0x10), ('c', 0)];
    assert_eq!(arbitrate(0x30, &equal), Some('a'));
    assert_eq!(arbitrate(0x31, &equal), Some('c'));
}

#[test]
fn arbitration_priority_counts_what_is_served_requested_and_set() {
    let mut apic = enabled(0);
    assert_eq!(apic.arbitration_priority(), 0);
    apic.write(TPR, 0x25, &T0);
    assert_eq!(apic.arbitration_priority(), 0x25);
    apic.accept(0x31, false);
    assert_eq!(apic.arbitration_priority(), 0x30);
    apic.accept(0x92, false);
    apic.acknowledge();
    assert_eq!(apic.arbitration_priority(), 0x90);
}
