//! The router between recorders, and between real chips.

use std::sync::Arc;

use umbra_device::{Device, DeviceError, IrqSink};
use umbra_state::Saved;

use crate::test_kit::{Log, PicBoard, ioapic};
use crate::{IrqRouter, RouterError, RouterV1};

fn router() -> (IrqRouter, Arc<Log>, Arc<Log>) {
    let (pic, ioapic) = (Arc::new(Log::default()), Arc::new(Log::default()));
    (IrqRouter::new(pic.clone(), ioapic.clone()), pic, ioapic)
}

#[test]
fn every_gsi_reaches_its_inputs() {
    let (router, pic, ioapic) = router();
    for gsi in (0..24).filter(|gsi| *gsi != 2) {
        let line = router.line(gsi).unwrap();
        line.pulse();
        let pin = if gsi == 0 { 2 } else { gsi };
        assert_eq!(ioapic.driven(), [(pin, true), (pin, false)]);
        assert_eq!(pic.driven(), if gsi < 16 { vec![(gsi, true), (gsi, false)] } else { vec![] });
    }
    for gsi in [2, 24, 1000] {
        assert!(matches!(router.line(gsi), Err(RouterError::NoSuchGsi(g)) if g == gsi));
    }
}

#[test]
fn devices_share_a_line() {
    let (router, _, ioapic) = router();
    let (a, b) = (router.line(20).unwrap(), router.line(20).unwrap());
    a.set(true);
    b.set(true);
    a.set(false);
    a.set(false);
    assert_eq!(ioapic.driven(), [(20, true)]);
    b.set(false);
    assert_eq!(ioapic.driven(), [(20, false)]);
}

#[test]
fn a_line_takes_32_devices() {
    let (router, _, ioapic) = router();
    let lines: Vec<_> = (0..32).map(|_| router.line(20).unwrap()).collect();
    assert!(matches!(router.line(20), Err(RouterError::Full(20))));
    lines.iter().for_each(|line| line.set(true));
    lines.iter().for_each(|line| line.set(false));
    assert_eq!(ioapic.driven(), [(20, true), (20, false)]);
}

#[test]
fn a_restored_router_knows_who_is_high() {
    let (one, _, _) = router();
    one.line(20).unwrap();
    one.line(20).unwrap().set(true);
    let record = one.save().unwrap();
    let (mut two, _, ioapic) = router();
    let a = two.line(20).unwrap();
    assert!(matches!(two.load(&record), Err(DeviceError::Impossible { .. })), "a source that it has not");
    let b = two.line(20).unwrap();
    assert_eq!(two.load(&record), Ok(()));
    assert_eq!(two.save().unwrap(), record);
    assert!(ioapic.driven().is_empty(), "the chips have levels of their own");
    a.set(true);
    a.set(false);
    assert!(ioapic.driven().is_empty());
    b.set(false);
    assert_eq!(ioapic.driven(), [(20, false)]);
    assert_eq!(two.load(&RouterV1 { levels: [0; 24] }.to_record("irq-router")), Ok(()));
}

#[test]
fn reset_lowers_every_line() {
    let (mut router, pic, ioapic) = router();
    router.line(4).unwrap().set(true);
    pic.driven();
    ioapic.driven();
    router.reset();
    router.reset();
    assert_eq!((pic.driven(), ioapic.driven()), (vec![(4, false)], vec![(4, false)]));
}

#[test]
fn one_line_interrupts_through_both_chips() {
    let (mut apic, log, _) = ioapic();
    let mut board = PicBoard::new();
    for (port, value) in [(0x20, 0x13), (0x21, 0x30), (0x21, 1)] {
        board.outb(port, value);
    }
    umbra_device::Mmio::mmio_write(&mut apic, 0, &[0x14]);
    umbra_device::Mmio::mmio_write(&mut apic, 0x10, &[0x44, 0, 0, 0]);
    let router = IrqRouter::new(Arc::new(board.pic.clone()), Arc::new(apic.clone()));
    router.line(0).unwrap().pulse();
    assert_eq!(log.vectors(), [0x44], "pin 2");
    assert_eq!(board.pic.acknowledge(), 0x30, "input 0");
    apic.set_level(99, true);
    board.pic.set_level(99, true);
    board.pic.set_level(2, true);
    assert!(!board.pic.intr());
}
