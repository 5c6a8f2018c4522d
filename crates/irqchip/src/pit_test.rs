//! The PIT by its ports, on a clock that is set by hand.

use std::sync::Arc;

use umbra_device::{Alarm, Clock, Device, DeviceError, IrqLine, PortIo, Timed};
use umbra_state::Saved;

use crate::pit_chip::{ns_of, ticks};
use crate::test_kit::Log;
use crate::{Pit, PitCounters, PitV1, PortB, lock};

struct Board {
    pit: Pit,
    counters: PitCounters,
    port_b: PortB,
    log: Arc<Log>,
    clock: Clock,
    tick: u64,
}

impl Board {
    fn new() -> Self {
        let (log, clock) = (Arc::new(Log::default()), Clock::new());
        let pit = Pit::new(IrqLine::new(log.clone(), 0), clock.clone(), Alarm::new(log.clone(), 0));
        let (counters, port_b) = (pit.counters(), pit.port_b());
        let mut board = Self { pit, counters, port_b, log, clock, tick: 0 };
        board.go_to(1000);
        board
    }

    fn go_to(&mut self, tick: u64) {
        self.tick = tick;
        self.clock.set(ns_of(tick));
    }

    fn pass(&mut self, ticks: u64) {
        self.go_to(self.tick + ticks);
    }

    fn outb(&mut self, port: u16, value: u8) {
        match port {
            0x61 => self.port_b.port_write(0, &[value]),
            _ => self.counters.port_write(port - 0x40, &[value]),
        }
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut byte = [0];
        match port {
            0x61 => self.port_b.port_read(0, &mut byte),
            _ => self.counters.port_read(port - 0x40, &mut byte),
        }
        byte[0]
    }

    /// Sets counter `i` to `mode`, both bytes, with `count`.
    fn program(&mut self, i: u16, mode: u8, count: u16) {
        self.outb(0x43, (i as u8) << 6 | 0x30 | mode << 1);
        self.count(i, count);
    }

    fn count(&mut self, i: u16, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.outb(0x40 + i, low);
        self.outb(0x40 + i, high);
    }

    fn value(&mut self, i: u16) -> u16 {
        self.outb(0x43, (i as u8) << 6);
        u16::from_le_bytes([self.inb(0x40 + i), self.inb(0x40 + i)])
    }

    fn status(&mut self, i: u16) -> u8 {
        self.outb(0x43, 0xe0 | 2 << i);
        self.inb(0x40 + i)
    }

    fn out(&mut self, i: u16) -> bool {
        self.status(i) & 0x80 != 0
    }

    /// The output of counter 2 over the next `n` ticks.
    fn wave(&mut self, n: usize) -> String {
        (0..n)
            .map(|_| {
                self.pass(1);
                if self.out(2) { '^' } else { '_' }
            })
            .collect()
    }

    /// The tick that the alarm is set to.
    fn alarm_tick(&self) -> Option<u64> {
        lock(&self.log.alarm).map(ticks)
    }
}

#[test]
fn ticks_and_nanoseconds() {
    for tick in [0, 1, 2, 1193, 1_193_182, 1 << 40] {
        assert_eq!(ticks(ns_of(tick)), tick);
        assert!(tick == 0 || ticks(ns_of(tick) - 1) == tick - 1);
    }
    assert_eq!(ticks(1_000_000_000), 1_193_182);
    assert_eq!(ns_of(u64::MAX), u64::MAX);
    assert!(ticks(u64::MAX) > 0);
}

#[test]
fn waves_of_all_modes() {
    for (mode, wave) in [
        (0, "_____^^^^^^^^^^^^"),
        (1, "^^^^^^^^^^^^^^^^^"),
        (2, "^^^^_^^^^_^^^^_^^"),
        (3, "^^^__^^^__^^^__^^"),
        (4, "^^^^^_^^^^^^^^^^^"),
        (5, "^^^^^^^^^^^^^^^^^"),
    ] {
        let mut board = Board::new();
        board.outb(0x61, 1);
        board.program(2, mode, 5);
        assert_eq!(board.wave(17), wave, "mode {mode}");
    }
}

#[test]
fn the_gate_triggers_modes_1_and_5() {
    for (mode, wave) in [(1, "_____^^^"), (5, "^^^^^_^^")] {
        let mut board = Board::new();
        board.program(2, mode, 5);
        board.pass(50);
        assert!(board.out(2));
        board.outb(0x61, 1);
        assert_eq!(board.wave(8), wave, "mode {mode}");
        board.outb(0x61, 0);
        board.pass(3);
        board.count(2, 3);
        board.outb(0x61, 1);
        assert_eq!(
            board.wave(4),
            if mode == 1 { "___^" } else { "^^^_" },
            "a new count from the next trigger"
        );
        board.outb(0x61, 0);
        board.outb(0x61, 1);
        board.pass(2);
        board.outb(0x61, 0);
        board.outb(0x61, 1);
        assert_eq!(board.wave(4), if mode == 1 { "___^" } else { "^^^_" }, "triggered again on the way");
    }
}

#[test]
fn the_gate_stops_the_others() {
    for mode in [0, 4] {
        let mut board = Board::new();
        board.outb(0x61, 1);
        board.program(2, mode, 100);
        board.pass(41);
        board.outb(0x61, 0);
        board.pass(1000);
        assert_eq!(board.value(2), 60);
        board.outb(0x61, 1);
        board.pass(31);
        assert_eq!(board.value(2), 30);
    }
    for mode in [2, 3] {
        let mut board = Board::new();
        board.outb(0x61, 1);
        board.program(2, mode, 100);
        board.pass(100);
        assert!(!board.out(2));
        board.outb(0x61, 0);
        assert!(board.out(2), "high at once");
        board.pass(1000);
        board.outb(0x61, 1);
        board.pass(1);
        assert_eq!(board.value(2), 100, "starts anew");
    }
}

#[test]
fn counts_run_down_and_wrap() {
    let mut board = Board::new();
    board.program(0, 0, 1000);
    board.pass(1);
    assert_eq!(board.value(0), 1000);
    board.pass(400);
    assert_eq!(board.value(0), 600);
    board.pass(601);
    assert_eq!(board.value(0), 0xffff, "goes on below zero");
    board.program(0, 2, 0);
    board.pass(1);
    assert_eq!(board.value(0), 0, "65536");
    board.pass(1);
    assert_eq!(board.value(0), 0xffff);
    board.program(0, 3, 10);
    let values: Vec<u16> = (0..11)
        .map(|_| {
            board.pass(1);
            board.value(0)
        })
        .collect();
    assert_eq!(values, [10, 8, 6, 4, 2, 10, 8, 6, 4, 2, 10], "by two in mode 3");
    board.program(0, 3, 5);
    let values: Vec<u16> = (0..6)
        .map(|_| {
            board.pass(1);
            board.value(0)
        })
        .collect();
    assert_eq!(values, [4, 2, 0, 4, 2, 4], "of an odd count one less, and the high phase one tick longer");
}

#[test]
fn decimals() {
    let mut board = Board::new();
    board.outb(0x43, 0x31);
    board.count(0, 0x1234);
    board.pass(1 + 235);
    assert_eq!(board.value(0), 0x0999);
    board.pass(1000);
    assert_eq!(board.value(0), 0x9999, "wraps as decimals");
    board.count(0, 0);
    board.pass(2);
    assert_eq!(board.value(0), 0x9999, "zero is ten thousand");
    board.count(0, 0xffff);
    board.pass(5);
    board.value(0);
}

#[test]
fn one_byte_access() {
    let mut board = Board::new();
    board.outb(0x43, 0x10);
    board.outb(0x40, 200);
    board.pass(51);
    assert_eq!((board.inb(0x40), board.inb(0x40)), (150, 150));
    board.outb(0x43, 0x20);
    board.outb(0x40, 2);
    board.pass(2);
    assert_eq!((board.inb(0x40), board.inb(0x40)), (1, 1));
    assert_eq!(board.inb(0x43), 0xff, "the control word cannot be read");
}

#[test]
fn latches_stand_until_they_are_read() {
    let mut board = Board::new();
    board.program(0, 2, 1000);
    board.pass(101);
    board.outb(0x43, 0xc2);
    board.pass(100);
    board.outb(0x43, 0x00);
    assert_eq!(board.inb(0x40), 0xb4, "status first: output, both bytes, mode 2");
    assert_eq!(u16::from_le_bytes([board.inb(0x40), board.inb(0x40)]), 900, "the count of the first latch");
    assert_eq!(u16::from_le_bytes([board.inb(0x40), board.inb(0x40)]), 800, "and live after it");
}

#[test]
fn a_read_back_takes_several_counters() {
    let mut board = Board::new();
    board.program(0, 2, 1000);
    board.program(1, 2, 500);
    board.pass(101);
    board.outb(0x43, 0xd6);
    board.pass(50);
    for (port, count) in [(0x40, 900), (0x41, 400)] {
        assert_eq!(u16::from_le_bytes([board.inb(port), board.inb(port)]), count);
    }
}

#[test]
fn the_status_says_whether_a_count_waits() {
    let mut board = Board::new();
    board.outb(0x43, 0x34);
    assert_eq!(board.status(0), 0xf4);
    board.count(0, 100);
    assert_eq!(board.status(0), 0xf4, "loaded with the next tick");
    board.pass(1);
    assert_eq!(board.status(0), 0xb4);
    board.count(0, 50);
    assert_eq!(board.status(0), 0xf4);
    board.pass(100);
    assert_eq!((board.status(0), board.value(0)), (0xb4, 50));
}

#[test]
fn a_new_count_of_a_periodic_mode_waits_for_the_end() {
    let mut board = Board::new();
    board.outb(0x61, 1);
    board.program(2, 2, 6);
    board.pass(2);
    board.count(2, 3);
    assert_eq!(board.wave(11), "^^^_^^_^^_^");
    board.program(2, 3, 8);
    board.pass(2);
    board.count(2, 4);
    assert_eq!(board.wave(12), "^^__^^__^^__", "in mode 3 for the half");
    board.program(2, 3, 8);
    board.pass(6);
    board.count(2, 4);
    assert_eq!(board.wave(9), "__^^__^^_");
}

#[test]
fn half_a_count_stops_mode_0() {
    let mut board = Board::new();
    board.program(0, 0, 10);
    board.outb(0x40, 5);
    board.pass(1000);
    assert!(!board.out(0));
    assert_eq!(board.alarm_tick(), None);
    board.outb(0x40, 0);
    assert_eq!(board.alarm_tick(), Some(2006));
}

#[test]
fn the_timer_interrupt_in_mode_0() {
    let mut board = Board::new();
    board.program(0, 0, 1193);
    assert_eq!(board.alarm_tick(), Some(1000 + 1 + 1193));
    board.go_to(2194);
    board.log.driven();
    board.pit.alarm(ns_of(2194));
    assert_eq!(board.log.driven(), [(0, false), (0, true)]);
    assert_eq!(board.alarm_tick(), Some(2194), "not set again");
    board.pit.alarm(ns_of(2194));
    assert_eq!(board.log.driven(), []);
    board.program(0, 0, 50);
    assert_eq!(board.log.driven().first(), Some(&(0, false)), "low again with the control word");
}

#[test]
fn the_timer_interrupt_is_periodic_in_modes_2_and_3() {
    for mode in [2, 3] {
        let mut board = Board::new();
        board.program(0, mode, 1193);
        board.log.driven();
        for i in 1..20 {
            assert_eq!(board.alarm_tick(), Some(1001 + 1193 * i));
            board.go_to(1001 + 1193 * i + 17);
            board.pit.alarm(0);
            assert_eq!(board.log.driven(), [(0, false), (0, true)]);
        }
        board.go_to(1001 + 1193 * 5000);
        board.pit.alarm(0);
        assert_eq!(board.log.driven(), [(0, false), (0, true)], "missed edges are one");
        assert_eq!(board.alarm_tick(), Some(1001 + 1193 * 5001), "and the grid stays");
    }
}

#[test]
fn an_edge_that_an_access_finds_first_is_not_lost() {
    let mut board = Board::new();
    board.program(0, 2, 1193);
    board.log.driven();
    board.pass(1300);
    board.inb(0x61);
    assert_eq!(board.log.driven(), [(0, false), (0, true)]);
    board.pit.alarm(0);
    assert_eq!(board.log.driven(), []);
    assert_eq!(board.alarm_tick(), Some(1001 + 2 * 1193));
}

#[test]
fn alarms_are_never_closer_than_the_limit() {
    let mut board = Board::new();
    board.program(0, 2, 2);
    for _ in 0..100 {
        let at = board.alarm_tick().unwrap();
        assert!(at >= board.tick + 119, "{at} after {}", board.tick);
        board.go_to(at);
        board.pit.alarm(0);
    }
    board.program(0, 2, 1);
    assert_eq!(board.alarm_tick(), None, "a count of 1 never rises");
}

#[test]
fn a_count_that_waits_moves_the_next_edge_but_one() {
    let mut board = Board::new();
    board.program(0, 2, 1000);
    board.pass(500);
    board.count(0, 2000);
    assert_eq!(board.alarm_tick(), Some(2001));
    board.go_to(2001);
    board.pit.alarm(0);
    assert_eq!(board.alarm_tick(), Some(4001));
    board.program(0, 3, 1000);
    board.pass(200);
    board.count(0, 2000);
    assert_eq!(board.alarm_tick(), Some(2002 + 500 + 1000), "halfway, then a low phase of the new count");
    board.go_to(3502);
    board.pit.alarm(0);
    assert_eq!(board.alarm_tick(), Some(5502));
}

/// How Linux measures the TSC with counter 2 in mode 0: by the high byte, then by the output at port 0x61.
#[test]
fn linux_calibrates_by_counter_2() {
    let mut board = Board::new();
    let port = board.inb(0x61);
    board.outb(0x61, port & !2 | 1);
    board.program(2, 0, 0xffff);
    board.pass(1);
    for msb in (0xf0..=0xff).rev() {
        let (_, high) = (board.inb(0x42), board.inb(0x42));
        assert_eq!(high, msb);
        board.pass(256);
    }
    board.outb(0x43, 0xb0);
    let latch = 11_931u16;
    board.count(2, latch);
    let mut loops = 0;
    while board.inb(0x61) & 0x20 == 0 {
        board.pass(100);
        loops += 1;
        assert!(loops < 1000);
    }
    assert_eq!(loops, 120);
}

#[test]
fn port_61() {
    let mut board = Board::new();
    board.outb(0x61, 0xff);
    assert_eq!(board.inb(0x61) & !0x10, 0x0f, "output low: mode 0, no count");
    let first = board.inb(0x61) & 0x10;
    board.pass(18);
    assert_ne!(board.inb(0x61) & 0x10, first, "refresh toggles");
    board.outb(0x43, 0xb6);
    assert_eq!(board.inb(0x61) & 0x2f, 0x2f, "mode 3 starts high");
}

#[test]
fn saved_in_the_middle() {
    let mut one = Board::new();
    one.outb(0x61, 1);
    one.program(0, 2, 1000);
    one.program(2, 3, 500);
    one.pass(300);
    one.count(2, 700);
    one.outb(0x43, 0xc4);
    one.outb(0x40, 0x12);
    one.inb(0x40);
    let record = one.pit.save().unwrap();
    let mut two = Board::new();
    two.go_to(one.tick);
    two.pit.load(&record).unwrap();
    assert_eq!(two.pit.save().unwrap(), record);
    assert_eq!((two.alarm_tick(), two.log.driven().len()), (one.alarm_tick(), 0));
    for board in [&mut one, &mut two] {
        board.outb(0x40, 0x03);
        board.pass(777);
        board.pit.alarm(0);
    }
    for port in [0x40, 0x40, 0x42, 0x42, 0x42, 0x61] {
        assert_eq!(one.inb(port), two.inb(port), "{port:#x}");
    }
    assert_eq!(one.pit.save().unwrap(), two.pit.save().unwrap());
    two.pit.reset();
    assert_eq!(two.alarm_tick(), None);
    assert_eq!(two.log.driven().last(), Some(&(0, false)));
}

#[test]
fn an_edge_that_was_due_comes_after_a_restore() {
    let mut one = Board::new();
    one.program(0, 0, 100);
    one.pass(5000);
    let record = one.pit.save().unwrap();
    let mut two = Board::new();
    two.go_to(one.tick);
    two.pit.load(&record).unwrap();
    assert_eq!(two.alarm_tick(), Some(1101));
    two.pit.alarm(0);
    assert_eq!(two.log.driven(), [(0, false), (0, true)]);
    *lock(&one.log.alarm) = None;
    one.pit.load(&record).unwrap();
    assert_eq!(one.alarm_tick(), Some(1101), "the alarm is set again, even to the same time");
}

#[test]
fn impossible_states_are_refused() {
    let mut board = Board::new();
    let good = PitV1::from_record(&board.pit.save().unwrap()).unwrap();
    for bad in [
        PitV1 { mode: [0, 6, 0], ..good.clone() },
        PitV1 { access: [0, 3, 3], ..good.clone() },
        PitV1 { access: [3, 3, 4], ..good.clone() },
        PitV1 { count: [0, 1, 1], ..good.clone() },
        PitV1 { count: [1, 1, 0x1_0001], ..good.clone() },
        PitV1 { next: [Some((0, 7)), None, None], ..good.clone() },
        PitV1 { port_b: 0x10, ..good.clone() },
        PitV1 { port_b: 1, ..good.clone() },
        PitV1 { gate: [false, true, false], ..good.clone() },
    ] {
        assert!(matches!(board.pit.load(&bad.to_record("pit")), Err(DeviceError::Impossible { .. })));
    }
    assert_eq!(board.pit.load(&good.to_record("pit")), Ok(()));
}
