//! The IOAPIC by its register page and its lines.

use umbra_device::{Device, DeviceError, IrqSink, Mmio, Msi, Timed};
use umbra_state::Saved;

use crate::ioapic_chip::STORM_COUNT;
use crate::test_kit::ioapic;
use crate::{Ioapic, IoapicV1, lock};

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

fn write(ioapic: &mut Ioapic, register: u8, value: u32) {
    ioapic.mmio_write(0, &[register]);
    ioapic.mmio_write(0x10, &value.to_le_bytes());
}

fn read(ioapic: &mut Ioapic, register: u8) -> u32 {
    ioapic.mmio_write(0, &u32::from(register).to_le_bytes());
    let mut data = [0; 4];
    ioapic.mmio_read(0x10, &mut data);
    u32::from_le_bytes(data)
}

fn entry(ioapic: &mut Ioapic, pin: u8, low: u32, destination: u8) {
    write(ioapic, 0x11 + 2 * pin, u32::from(destination) << 24);
    write(ioapic, 0x10 + 2 * pin, low);
}

#[test]
fn registers() {
    let (mut ioapic, _, _) = ioapic();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
    write(&mut ioapic, 0, 0xffff_ffff);
    assert_eq!((read(&mut ioapic, 0), read(&mut ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    assert_eq!((read(&mut ioapic, 0x10), read(&mut ioapic, 0x11)), (MASKED, 0));
    entry(&mut ioapic, 23, 0xffff_ffff, 0xfe);
    assert_eq!(read(&mut ioapic, 0x3e), 0x0001_afff, "delivery status and remote IRR are read-only");
    assert_eq!(read(&mut ioapic, 0x3f), 0xfe00_0000);
    for register in [3, 0xf, 0x40, 0xff] {
        write(&mut ioapic, register, 0xffff_ffff);
        assert_eq!(read(&mut ioapic, register), 0);
    }
    let mut wide = [0xaa; 8];
    ioapic.mmio_write(0, &[1]);
    ioapic.mmio_read(0x10, &mut wide);
    assert_eq!(wide, [0x20, 0, 0x17, 0, 0, 0, 0, 0]);
}

#[test]
fn an_edge_is_one_message_to_the_entrys_destination() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 4, 0x0931, 3);
    ioapic.set_level(4, true);
    ioapic.set_level(4, true);
    assert_eq!(*lock(&log.messages), [Msi { address: 0xfee0_3004, data: 0x131 }]);
    ioapic.set_level(4, false);
    ioapic.set_level(4, true);
    assert_eq!(lock(&log.messages).len(), 2);
    assert_eq!(read(&mut ioapic, 0x18) & REMOTE_IRR, 0);
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let (mut ioapic, log, _) = ioapic();
    ioapic.set_level(4, true);
    entry(&mut ioapic, 4, 0x31, 0);
    assert!(log.vectors().is_empty());
    ioapic.set_level(4, false);
    ioapic.set_level(4, true);
    assert_eq!(log.vectors(), [0x31]);
}

#[test]
fn a_level_is_served_until_it_is_low() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    ioapic.set_level(17, true);
    assert_eq!(*lock(&log.messages), [Msi { address: 0xfee0_1000, data: 0xc041 }]);
    assert_eq!(read(&mut ioapic, 0x32), LEVEL | REMOTE_IRR | 0x41);
    ioapic.set_level(17, false);
    ioapic.set_level(17, true);
    assert_eq!(lock(&log.messages).len(), 1, "not again before its end");
    ioapic.eoi(0x40);
    assert_eq!(lock(&log.messages).len(), 1, "the end of another");
    ioapic.eoi(0x41);
    assert_eq!(lock(&log.messages).len(), 2, "still high");
    ioapic.set_level(17, false);
    ioapic.mmio_write(0x40, &0x41u32.to_le_bytes());
    assert_eq!((lock(&log.messages).len(), read(&mut ioapic, 0x32)), (2, LEVEL | 0x41));
}

#[test]
fn a_level_that_waited_under_its_mask_is_served() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 17, MASKED | LEVEL | 0x41, 1);
    ioapic.set_level(17, true);
    assert!(log.vectors().is_empty());
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    assert_eq!(log.vectors(), [0x41]);
    entry(&mut ioapic, 17, MASKED | LEVEL | 0x41, 1);
    ioapic.eoi(0x41);
    assert!(log.vectors().is_empty());
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn switching_to_edge_and_back_clears_remote_irr() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    ioapic.set_level(17, true);
    entry(&mut ioapic, 17, MASKED | 0x41, 1);
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    assert_eq!(log.vectors(), [0x41, 0x41]);
}

#[test]
fn modes_without_levels_are_sent_once() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 5, LEVEL | 0x400, 0);
    ioapic.set_level(5, true);
    assert_eq!(*lock(&log.messages), [Msi { address: 0xfee0_0000, data: 0x400 }]);
    ioapic.eoi(0);
    assert_eq!((lock(&log.messages).len(), read(&mut ioapic, 0x1a)), (1, LEVEL | 0x400));
}

#[test]
fn pins_of_one_vector_end_together() {
    let (mut ioapic, log, _) = ioapic();
    for pin in [10, 11] {
        entry(&mut ioapic, pin, LEVEL | 0x41, 0);
        ioapic.set_level(pin.into(), true);
    }
    assert_eq!(log.vectors(), [0x41, 0x41]);
    ioapic.set_level(10, false);
    ioapic.eoi(0x41);
    assert_eq!(log.vectors(), [0x41], "pin 11");
}

#[test]
fn routes_are_told_before_a_message_and_only_when_they_change() {
    let (mut ioapic, log, _) = ioapic();
    ioapic.set_level(17, true);
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    assert_eq!(lock(&log.routes).len(), 1);
    assert_eq!(ioapic.routes()[17], Some(Msi { address: 0xfee0_1000, data: 0xc041 }));
    assert_eq!(lock(&log.routes)[0], ioapic.routes());
    write(&mut ioapic, 0x32, MASKED | LEVEL | 0x41);
    assert!(ioapic.routes()[17].is_some(), "its end is awaited");
    ioapic.eoi(0x41);
    assert_eq!(ioapic.routes(), [None; 24]);
    assert_eq!(lock(&log.routes).len(), 2);
    entry(&mut ioapic, 3, 0x33, 0);
    ioapic.reset();
    assert_eq!((ioapic.routes(), lock(&log.routes).len()), ([None; 24], 4));
}

#[test]
fn a_storm_is_held_back_and_goes_on_later() {
    let (mut ioapic, log, clock) = ioapic();
    clock.set(1000);
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    ioapic.set_level(17, true);
    for _ in 0..u32::from(STORM_COUNT) + 50 {
        ioapic.eoi(0x41);
    }
    assert_eq!(log.vectors().len(), usize::from(STORM_COUNT) + 1);
    assert_eq!(*lock(&log.alarm), Some(10_001_000));
    assert_eq!(*lock(&log.alarms_set), 1);
    ioapic.alarm(10_001_000);
    assert_eq!(log.vectors(), [0x41]);
    ioapic.eoi(0x41);
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn a_line_that_falls_ends_the_storm() {
    let (mut ioapic, log, _) = ioapic();
    entry(&mut ioapic, 17, LEVEL | 0x41, 1);
    for _ in 0..u32::from(STORM_COUNT) * 3 {
        ioapic.set_level(17, true);
        ioapic.eoi(0x41);
        ioapic.set_level(17, false);
        ioapic.eoi(0x41);
    }
    assert_eq!(log.vectors().len(), usize::from(STORM_COUNT) * 6);
    assert_eq!(*lock(&log.alarm), None);
}

#[test]
fn saved_in_the_middle_of_a_level_interrupt() {
    let (mut one, _, _) = ioapic();
    entry(&mut one, 17, LEVEL | 0x41, 1);
    entry(&mut one, 4, 0x31, 0);
    one.set_level(17, true);
    one.set_level(3, true);
    one.mmio_write(0, &[0x32]);
    let record = one.save().unwrap();
    let (mut two, log, _) = ioapic();
    two.load(&record).unwrap();
    assert_eq!(two.save().unwrap(), record);
    assert_eq!((two.routes(), lock(&log.routes).last().copied()), (one.routes(), Some(one.routes())));
    assert!(log.vectors().is_empty());
    two.eoi(0x41);
    assert_eq!(log.vectors(), [0x41]);
    two.set_level(17, false);
    two.eoi(0x41);
    two.set_level(4, true);
    assert_eq!(log.vectors(), [0x31]);
}

#[test]
fn what_a_storm_held_comes_after_loading() {
    let (mut one, _, _) = ioapic();
    entry(&mut one, 17, LEVEL | 0x41, 1);
    one.set_level(17, true);
    for _ in 0..=STORM_COUNT {
        one.eoi(0x41);
    }
    let (mut two, log, _) = ioapic();
    two.load(&one.save().unwrap()).unwrap();
    assert!(log.vectors().is_empty());
    assert!(lock(&log.alarm).is_some());
    two.alarm(0);
    assert_eq!(log.vectors(), [0x41]);
}

#[test]
fn impossible_states_are_refused() {
    let good = IoapicV1 { id: 0, select: 0, table: [0x1_0000; 24], lines: 0 };
    let (mut ioapic, _, _) = ioapic();
    let mut load = |state: IoapicV1| ioapic.load(&state.to_record("ioapic"));
    assert_eq!(load(good.clone()), Ok(()));
    let with = |i: usize, entry| {
        let mut state = good.clone();
        state.table[i] = entry;
        state
    };
    for bad in [
        IoapicV1 { id: 16, ..good.clone() },
        IoapicV1 { lines: 1 << 24, ..good.clone() },
        with(3, 1 << 20),
        with(3, u64::from(REMOTE_IRR)),
        with(23, 1 << 12),
    ] {
        assert!(matches!(load(bad), Err(DeviceError::Impossible { .. })));
    }
}

/// What Linux does at boot: finds the chip, clears all pins, then tries the timer on pin 2.
#[test]
fn linux_finds_the_timer() {
    let (mut ioapic, log, _) = ioapic();
    assert_eq!(read(&mut ioapic, 0) >> 24 & 0xf, 0);
    let pins = (read(&mut ioapic, 1) >> 16 & 0xff) + 1;
    assert_eq!(pins, 24);
    for pin in 0..pins as u8 {
        let low = read(&mut ioapic, 0x10 + 2 * pin);
        write(&mut ioapic, 0x10 + 2 * pin, low | MASKED);
        entry(&mut ioapic, pin, MASKED, 0);
    }
    entry(&mut ioapic, 2, MASKED | 0x30, 0);
    ioapic.set_level(2, true);
    ioapic.set_level(2, false);
    entry(&mut ioapic, 2, 0x30, 0);
    for _ in 0..5 {
        ioapic.set_level(2, true);
        ioapic.set_level(2, false);
    }
    assert_eq!(log.vectors(), [0x30; 5]);
}
