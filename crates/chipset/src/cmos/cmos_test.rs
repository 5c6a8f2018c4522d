use umbra_device::{Device, PortIo};

use crate::test_support::{Board, inb, move_state, outb};
use crate::{Cmos, CmosSpec};

const S: u64 = 1_000_000_000;
/// Friday, 2024-05-31 23:59:58.25.
const FRIDAY: u64 = 1_717_199_998 * S + S / 4;
const IRQ: usize = 8;

const A: u8 = 0xa;
const B: u8 = 0xb;
const C: u8 = 0xc;

const UIE: u8 = 1 << 4;
const AIE: u8 = 1 << 5;
const PIE: u8 = 1 << 6;
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const H24: u8 = 1 << 1;

fn make(board: &Board) -> Cmos {
    let spec = CmosSpec { unix_ns: FRIDAY, ram_below_4g: 3 << 30, ram_above_4g: 5 << 30 };
    Cmos::new("cmos", spec, board.clock.clone(), board.alarm(), board.line(IRQ as u32))
}

fn get(cmos: &mut Cmos, index: u8) -> u8 {
    outb(cmos, 0, index);
    inb(cmos, 1)
}

fn put(cmos: &mut Cmos, index: u8, value: u8) {
    outb(cmos, 0, index);
    outb(cmos, 1, value);
}

/// Century, year, month, day, weekday, hour, minute, second as the registers have them.
fn time(cmos: &mut Cmos) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(cmos, index))
}

/// Linux's probe and first read: wait for no update in progress, read all, and see that no update came between.
#[test]
fn the_time_is_read_as_a_driver_reads_it() {
    let board = Board::default();
    let mut cmos = make(&board);
    assert_eq!(get(&mut cmos, 0xd), 0x80, "valid, no other bit");
    assert_eq!(get(&mut cmos, A) & 0x80, 0);
    assert_eq!(get(&mut cmos, B) & (H24 | BINARY | SET), H24);
    assert_eq!(time(&mut cmos), [0x20, 0x24, 0x05, 0x31, 6, 0x23, 0x59, 0x58]);
    board.clock.set(2 * S);
    assert_eq!(time(&mut cmos), [0x20, 0x24, 0x06, 0x01, 7, 0x00, 0x00, 0x00]);
    outb(&mut cmos, 0, 0x80);
    assert_eq!(inb(&mut cmos, 1), 0x00, "the bit that masks NMIs is no part of the index");
    assert_eq!(inb(&mut cmos, 0), 0xff);
}

#[test]
fn an_update_announces_itself() {
    let board = Board::default();
    let mut cmos = make(&board);
    let update = 3 * S / 4;
    for (now, expected) in
        [(update - 244_001, false), (update - 244_000, true), (update - 1, true), (update, false)]
    {
        board.clock.set(now);
        assert_eq!(get(&mut cmos, A) & 0x80 != 0, expected, "at {now}");
        assert_eq!(get(&mut cmos, 0), if now < update { 0x58 } else { 0x59 });
    }
    put(&mut cmos, B, SET | H24);
    board.clock.set(update + S - 1);
    assert_eq!(get(&mut cmos, A) & 0x80, 0, "never while the time stands");
}

#[test]
fn formats() {
    let board = Board::default();
    let mut cmos = make(&board);
    put(&mut cmos, B, BINARY | H24);
    assert_eq!(time(&mut cmos), [20, 24, 5, 31, 6, 23, 59, 58]);
    put(&mut cmos, B, BINARY);
    assert_eq!(get(&mut cmos, 4), 0x80 | 11);
    put(&mut cmos, B, 0);
    assert_eq!(get(&mut cmos, 4), 0x91);
    for (hours, raw) in [(1, 0x12), (2, 0x01), (13, 0x92), (14, 0x81)] {
        board.clock.set(hours * 3600 * S);
        assert_eq!(get(&mut cmos, 4), raw);
    }
}

/// Linux sets the time half a second early: SET, divider in reset, registers, then both back.
#[test]
fn setting_the_time() {
    let board = Board::default();
    let mut cmos = make(&board);
    board.clock.set(10 * S + 777);
    let (a, b) = (get(&mut cmos, A), get(&mut cmos, B));
    put(&mut cmos, B, b | SET);
    put(&mut cmos, A, a | 0x70);
    for (index, value) in
        [(9, 0x31), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59), (0x32, 0x19), (6, 3)]
    {
        put(&mut cmos, index, value);
        board.clock.set(board.clock.now() + 3 * S);
    }
    assert_eq!(time(&mut cmos), [0x19, 0x31, 0x12, 0x31, 3, 0x23, 0x59, 0x59], "it stands as written");
    put(&mut cmos, B, b);
    assert_eq!(get(&mut cmos, 0), 0x59);
    put(&mut cmos, A, a);
    let started = board.clock.now();
    board.clock.set(started + S / 2 - 1);
    assert_eq!(get(&mut cmos, 0), 0x59);
    board.clock.set(started + S / 2);
    assert_eq!(time(&mut cmos), [0x19, 0x32, 0x01, 0x01, 6, 0x00, 0x00, 0x00], "half a second later");
    board.clock.set(started + S / 2 + S);
    assert_eq!(get(&mut cmos, 0), 0x01);
}

#[test]
fn setting_a_running_clock_and_nonsense() {
    let board = Board::default();
    let mut cmos = make(&board);
    put(&mut cmos, 4, 0x07);
    board.clock.set(S);
    assert_eq!(time(&mut cmos), [0x20, 0x24, 0x05, 0x31, 6, 0x07, 0x59, 0x59]);
    for index in [0, 2, 4, 7, 8, 9, 0x32] {
        put(&mut cmos, index, 0xff);
    }
    time(&mut cmos);
    put(&mut cmos, 8, 0);
    put(&mut cmos, 7, 0);
    assert_eq!((get(&mut cmos, 8), get(&mut cmos, 7)), (1, 1));
}

#[test]
fn update_interrupts_come_every_second_and_wait_for_the_guest() {
    let board = Board::default();
    let mut cmos = make(&board);
    get(&mut cmos, C);
    put(&mut cmos, B, H24 | UIE);
    assert_eq!(board.alarm_at(), Some(3 * S / 4));
    for n in 0..3 {
        assert_eq!(board.run_to(&mut cmos, 3 * S / 4 + n * S), 1);
        assert!(board.level(IRQ));
        assert_eq!(get(&mut cmos, C) & (0x80 | UIE), 0x80 | UIE);
        assert!(!board.level(IRQ));
        assert_eq!(get(&mut cmos, C), 0, "reading clears");
    }
    assert_eq!(board.run_to(&mut cmos, 100 * S), 1, "missed updates are one");
    assert_eq!(board.edges(IRQ), 4);
    put(&mut cmos, B, H24 | UIE | SET);
    assert_eq!(get(&mut cmos, B), H24 | SET, "SET clears the enable bit");
}

#[test]
fn periodic_interrupts_have_the_asked_rate() {
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let board = Board::default();
        let mut cmos = make(&board);
        put(&mut cmos, A, 0x20 | rate);
        put(&mut cmos, B, H24 | PIE);
        let mut count = 0;
        while board.alarm_at().is_some_and(|at| at <= S) {
            assert_eq!(board.run_to(&mut cmos, board.alarm_at().unwrap()), 1);
            count += 1;
            assert_eq!(get(&mut cmos, C) & 0xc0, 0xc0);
        }
        assert_eq!(count, hz, "rate {rate}");
    }
    let board = Board::default();
    let mut cmos = make(&board);
    put(&mut cmos, B, H24 | PIE);
    put(&mut cmos, A, 0x20);
    assert_eq!(board.alarm_at(), None, "rate 0 is off");
    put(&mut cmos, A, 0x76);
    assert_eq!(board.alarm_at(), None, "a chain in reset ticks nothing");
}

/// A guest that polls instead: the flags are raised although no interrupt is enabled.
#[test]
fn flags_can_be_polled() {
    let board = Board::default();
    let mut cmos = make(&board);
    assert_eq!(get(&mut cmos, C), 0);
    board.clock.set(S / 1000);
    assert_eq!(get(&mut cmos, C), PIE, "no request without an enable bit");
    board.clock.set(S);
    assert_eq!(get(&mut cmos, C), PIE | UIE);
    assert_eq!((board.edges(IRQ), board.alarm_at()), (0, None));
}

#[test]
fn alarms() {
    // (hour, minute, second alarm, expected seconds from 23:59:58 on)
    for (hour, minute, second, expected) in [
        (0x00, 0x00, 0x00, 2),
        (0xff, 0xff, 0xff, 1),
        (0xff, 0xff, 0x30, 32),
        (0xff, 0x05, 0xc0, 302),
        (0x07, 0x30, 0x00, 2 + 7 * 3600 + 1800),
        (0x23, 0x59, 0x58, 86_400),
        (0x23, 0x59, 0x57, 86_399),
    ] {
        let board = Board::default();
        let mut cmos = make(&board);
        for (index, value) in [(5, hour), (3, minute), (1, second)] {
            put(&mut cmos, index, value);
        }
        get(&mut cmos, C);
        put(&mut cmos, B, H24 | AIE);
        assert_eq!(board.alarm_at(), Some(expected * S - S / 4), "{hour:x}:{minute:x}:{second:x}");
        assert_eq!(board.run_to(&mut cmos, expected * S - S / 4), 1);
        assert_eq!(get(&mut cmos, C) & (0x80 | AIE), 0x80 | AIE);
    }
    let board = Board::default();
    let mut cmos = make(&board);
    put(&mut cmos, 1, 0x77);
    put(&mut cmos, B, H24 | AIE);
    assert_eq!(board.alarm_at(), None, "a second that never comes");
}

#[test]
fn memory_keeps_what_is_written_and_tells_the_sizes() {
    let board = Board::default();
    let mut cmos = make(&board);
    let word = |cmos: &mut Cmos, index| u32::from(get(cmos, index)) | u32::from(get(cmos, index + 1)) << 8;
    assert_eq!(word(&mut cmos, 0x15), 640);
    assert_eq!(word(&mut cmos, 0x17), 0xffff);
    assert_eq!(word(&mut cmos, 0x30), 0xffff);
    assert_eq!(word(&mut cmos, 0x34), ((3 << 30) - (16 << 20)) >> 16);
    assert_eq!(word(&mut cmos, 0x5b), (5u32 << 14) & 0xffff);
    assert_eq!(get(&mut cmos, 0x5d), 1);
    put(&mut cmos, 0x0f, 0x0a);
    cmos.reset();
    assert_eq!(get(&mut cmos, 0x0f), 0x0a, "the shutdown code survives a reset");
}

#[test]
fn the_state_moves_with_the_time_and_the_alarm() {
    let board = Board::default();
    let mut cmos = make(&board);
    put(&mut cmos, 4, 0x05);
    put(&mut cmos, B, H24 | UIE);
    outb(&mut cmos, 0, 4);
    let mut other = make(&board);
    board.alarm().clear();
    move_state(&cmos, &mut other);
    assert_eq!(board.alarm_at(), Some(3 * S / 4));
    assert_eq!(inb(&mut other, 1), 0x05, "the index is state");
    assert_eq!(board.run_to(&mut other, 3 * S / 4), 1);
    assert!(board.level(IRQ));
    assert_eq!(time(&mut other)[5..], [0x05, 0x59, 0x59]);
    outb(&mut other, 0, C);
    let mut third = make(&board);
    move_state(&other, &mut third);
    assert_eq!(inb(&mut third, 1) & (0x80 | UIE), 0x80 | UIE);
    assert!(!board.level(IRQ), "the line that the saved machine drove is let go");
    other.reset();
    assert!(!board.level(IRQ));
    assert_eq!(get(&mut other, B), H24);
    assert_eq!(board.alarm_at(), None);
    assert_eq!(time(&mut other)[5..], [0x05, 0x59, 0x59], "a reset leaves the time");
}

#[test]
fn a_wide_access_is_two_narrow_ones() {
    let board = Board::default();
    let mut cmos = make(&board);
    cmos.port_write(0, &[0x40, 0x99]);
    assert_eq!(get(&mut cmos, 0x40), 0x99);
    let mut data = [0; 4];
    cmos.port_read(0, &mut data);
    assert_eq!(data, [0xff, 0x99, 0xff, 0xff]);
}
