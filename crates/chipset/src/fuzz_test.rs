//! Random register accesses to every device: no panic, no unbounded growth, and a state that can always be saved
//! and loaded again.

use std::sync::{Arc, Mutex};

use umbra_device::{Device, PortIo, Timed};

use crate::test_support::{Board, Random, load_altered, move_state};
use crate::{AcpiPm, BACKLOG_MAX, Cmos, CmosSpec, I8042, PvPanic, ResetRegister, Serial};

const ROUNDS: usize = 200_000;

/// Writes and reads at random; after each access `between` does what the outside does.
fn storm<D: Device + PortIo>(
    board: &Board,
    seed: u64,
    make: impl Fn() -> D,
    mut between: impl FnMut(&mut D, &mut Random),
) {
    let mut random = Random(seed);
    let mut device = make();
    for round in 0..ROUNDS {
        let len = [1, 2, 4][random.below(3) as usize];
        let offset = if random.below(50) == 0 { random.next() as u16 } else { random.below(14) as u16 };
        let mut data = random.next().to_le_bytes();
        if random.below(2) == 0 {
            device.port_write(offset, &data[..len]);
        } else {
            device.port_read(offset, &mut data[..len]);
        }
        // Mostly small steps, sometimes minutes, now and then years.
        let step = 1 << random.below(if round % 100 == 0 { 58 } else { 36 });
        let now = board.clock.now();
        board.clock.set(now.checked_add(random.below(step)).unwrap_or(1));
        between(&mut device, &mut random);
        if round % 1000 == 0 {
            let mut other = make();
            move_state(&device, &mut other);
            device = other;
        }
        if random.below(5000) == 0 {
            device.reset();
        }
    }
    load_altered(&device, &mut make());
}

#[test]
fn serial() {
    let board = Board::default();
    let sent = Arc::new(Mutex::new(0usize));
    let make = || {
        let sent = sent.clone();
        Serial::new("com1", board.line(4), move |bytes: &[u8]| *sent.lock().unwrap() += bytes.len())
    };
    storm(&board, 1, make, |serial, random| {
        let bytes = vec![7; random.below(300) as usize];
        let free = serial.free_space();
        assert!(free <= BACKLOG_MAX);
        assert_eq!(serial.receive(&bytes), bytes.len().min(free));
    });
    assert!(*sent.lock().unwrap() <= ROUNDS * 4);
}

#[test]
fn cmos() {
    let board = Board::default();
    let spec = CmosSpec { unix_ns: 1_700_000_000_123_456_789, ram_below_4g: 1 << 30, ram_above_4g: 1 << 32 };
    let make = || Cmos::new("cmos", spec, board.clock.clone(), board.alarm(), board.line(8));
    storm(&board, 2, make, |cmos, _| {
        let now = board.clock.now();
        if board.alarm_at().is_some_and(|at| at <= now) {
            board.alarm().clear();
            cmos.alarm(now);
            assert!(board.alarm_at().is_none_or(|at| at > now), "an alarm for the past would never end");
        }
    });
}

#[test]
fn i8042() {
    let board = Board::default();
    storm(
        &board,
        3,
        || I8042::new("i8042", board.line(1), board.line(12), board.sink()),
        |_, _| assert!(board.events().len() <= 4),
    );
}

#[test]
fn acpi_pm() {
    let board = Board::default();
    let make = || AcpiPm::new("pm", board.clock.clone(), board.alarm(), board.line(9), board.sink());
    storm(&board, 4, make, |pm, random| {
        let now = board.clock.now();
        if board.alarm_at().is_some_and(|at| at <= now) {
            board.alarm().clear();
            pm.alarm(now);
            assert!(board.alarm_at().is_none_or(|at| at > now), "an alarm for the past would never end");
        }
        if random.below(100) == 0 {
            pm.press_power_button();
        }
        assert!(board.events().len() <= 1);
    });
}

#[test]
fn reset_register_and_pvpanic() {
    let board = Board::default();
    storm(&board, 5, || ResetRegister::new("reset", board.sink()), |_, _| assert!(board.events().len() <= 1));
    storm(&board, 6, || PvPanic::new("pvpanic", board.sink()), |_, _| assert!(board.events().len() <= 1));
}
