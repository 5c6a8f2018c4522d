//! Hostile use: random accesses, lines, times and saved states. Nothing may panic or go on without end.

use std::sync::Arc;

use umbra_device::{Alarm, Clock, Device, IrqLine, IrqSink, Mmio, PortIo, Timed};

use crate::test_kit::{Log, PicBoard, Random, ioapic};
use crate::{IrqRouter, Pit, lock};

/// Alters a few bytes of the device's saved state and loads it. From what it accepts it must come back.
fn reload(device: &mut dyn Device, random: &mut Random) {
    let mut record = device.save().unwrap();
    for _ in 0..random.below(4) {
        let at = random.below(record.bytes.len() as u64) as usize;
        record.bytes[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        record.bytes.truncate(random.below(record.bytes.len() as u64 + 1) as usize);
    }
    if device.load(&record).is_ok() {
        let accepted = device.save().unwrap();
        assert_eq!(device.load(&accepted), Ok(()));
        assert_eq!(device.save().unwrap(), accepted);
    }
}

#[test]
fn the_ioapic_stands_random_use() {
    for seed in 1..20 {
        let mut random = Random(seed);
        let (mut ioapic, log, _) = ioapic();
        let mut messages = 0;
        for _ in 0..20_000 {
            let data = random.next().to_le_bytes();
            let size = random.below(9) as usize;
            match random.below(9) {
                0 => ioapic.set_level(random.below(26) as u32, random.below(2) == 0),
                1 => ioapic.eoi(random.next() as u8),
                2 => ioapic.mmio_read(random.below(0x1000), &mut [0; 64][..size * 8]),
                3 => ioapic.mmio_write(random.below(0x1000), &data[..size]),
                4 => ioapic.mmio_write(0, &[random.below(0x42) as u8]),
                5 => ioapic.alarm(0),
                6 => reload(&mut ioapic, &mut random),
                _ => ioapic.mmio_write(0x10, &data[..size]),
            }
            messages += log.vectors().len();
            lock(&log.routes).clear();
        }
        assert!(messages <= 20_000 * 24, "at most one message a pin and access");
    }
}

#[test]
fn the_pic_stands_random_use() {
    for seed in 1..20 {
        let mut random = Random(seed);
        let mut board = PicBoard::new();
        for _ in 0..20_000 {
            let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][random.below(6) as usize];
            match random.below(8) {
                0..=2 => board.outb(port, random.next() as u8),
                3 => drop(board.inb(port)),
                4 => {
                    let before = board.pic.intr();
                    let vector = board.pic.acknowledge();
                    assert!(before || vector & 7 == 7, "without a request only the spurious vector");
                }
                5 => reload(&mut board.pic, &mut random),
                _ => board.pic.set_level(random.below(18) as u32, random.below(2) == 0),
            }
            let last = lock(&board.output).last().copied().unwrap_or(false);
            assert_eq!(board.pic.intr(), last, "every change of the output is told");
        }
    }
}

#[test]
fn the_pit_stands_random_use() {
    for seed in 1..20 {
        let mut random = Random(seed);
        let (log, clock) = (Arc::new(Log::default()), Clock::new());
        let mut pit = Pit::new(IrqLine::new(log.clone(), 0), clock.clone(), Alarm::new(log.clone(), 0));
        let (mut counters, mut port_b) = (pit.counters(), pit.port_b());
        let mut now = 0u64;
        for _ in 0..20_000 {
            now = match random.below(2000) {
                0 => random.next(),
                n => now.saturating_add(n * n),
            };
            clock.set(now);
            let data = random.next().to_le_bytes();
            let size = [1, 1, 1, 2, 4][random.below(5) as usize];
            match random.below(8) {
                0..=2 => counters.port_write(random.below(5) as u16, &data[..size]),
                3 => counters.port_read(random.below(5) as u16, &mut [0; 4][..size]),
                4 => port_b.port_write(0, &data[..size]),
                5 => port_b.port_read(0, &mut [0; 4][..size]),
                6 => pit.alarm(now),
                _ => reload(&mut pit, &mut random),
            }
            assert!(log.driven().len() <= 12, "a bounded number of edges an access");
        }
    }
}

#[test]
fn the_router_stands_random_use() {
    let mut random = Random(5);
    let log = Arc::new(Log::default());
    let mut router = IrqRouter::new(log.clone(), log.clone());
    let lines: Vec<_> = (0..200).filter_map(|_| router.line(random.below(26) as u32).ok()).collect();
    for _ in 0..50_000 {
        match random.below(20) {
            0 => reload(&mut router, &mut random),
            n => lines[random.below(lines.len() as u64) as usize].set(n.is_multiple_of(2)),
        }
        assert!(log.driven().len() <= 2);
    }
}
