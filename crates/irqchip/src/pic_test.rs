//! The PIC by its ports and lines.

use umbra_device::{Device, DeviceError, IrqSink, PortIo};
use umbra_state::Saved;

use crate::test_kit::PicBoard;
use crate::{PicRange, PicV1, lock};

/// As Linux initializes it: vectors 0x30 to 0x3f, everything masked but the cascade.
fn linux(board: &mut PicBoard, icw4: u8) {
    for (port, value) in [
        (0x21, 0xff),
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, icw4),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0xfb),
        (0xa1, 0xff),
    ] {
        board.outb(port, value);
    }
}

/// Initialized, nothing masked.
fn open() -> PicBoard {
    let mut board = PicBoard::new();
    linux(&mut board, 1);
    board.outb(0x21, 0);
    board.outb(0xa1, 0);
    board
}

fn pulse(board: &PicBoard, irq: u32) {
    board.pic.set_level(irq, true);
    board.pic.set_level(irq, false);
}

fn in_service(board: &mut PicBoard) -> (u8, u8) {
    board.outb(0x20, 0x0b);
    board.outb(0xa0, 0x0b);
    (board.inb(0x20), board.inb(0xa0))
}

fn requested(board: &mut PicBoard) -> (u8, u8) {
    board.outb(0x20, 0x0a);
    board.outb(0xa0, 0x0a);
    (board.inb(0x20), board.inb(0xa0))
}

#[test]
fn linux_finds_the_chip_by_its_mask() {
    let mut board = PicBoard::new();
    board.outb(0xa1, 0xff);
    board.outb(0x21, 0xfb);
    assert_eq!(board.inb(0x21), 0xfb);
    linux(&mut board, 1);
    assert_eq!((board.inb(0x21), board.inb(0xa1)), (0xfb, 0xff));
    assert!(lock(&board.output).is_empty());
}

#[test]
fn nothing_comes_before_initialization() {
    let board = PicBoard::new();
    pulse(&board, 0);
    assert!(!board.pic.intr());
}

#[test]
fn an_interrupt_is_requested_acknowledged_and_ended() {
    let mut board = open();
    pulse(&board, 4);
    assert!(board.pic.intr());
    assert_eq!(requested(&mut board), (0x10, 0));
    assert_eq!(board.pic.acknowledge(), 0x34);
    assert!(!board.pic.intr());
    assert_eq!((requested(&mut board), in_service(&mut board)), ((0, 0), (0x10, 0)));
    pulse(&board, 4);
    assert!(!board.pic.intr(), "its own priority waits");
    pulse(&board, 1);
    assert_eq!(board.pic.acknowledge(), 0x31, "a higher one does not");
    board.outb(0x20, 0x20);
    assert_eq!(in_service(&mut board), (0x10, 0), "the end is of the most urgent");
    board.outb(0x20, 0x64);
    assert_eq!(board.pic.acknowledge(), 0x34);
    assert_eq!(*lock(&board.output), [true, false, true, false, true, false]);
}

#[test]
fn the_second_chip_comes_through_the_first() {
    let mut board = open();
    pulse(&board, 12);
    assert_eq!(requested(&mut board), (0x04, 0x10));
    assert_eq!(board.pic.acknowledge(), 0x3c);
    assert_eq!(in_service(&mut board), (0x04, 0x10));
    pulse(&board, 8);
    assert!(!board.pic.intr(), "fully nested: input 2 of the first is in service");
    pulse(&board, 1);
    assert_eq!(board.pic.acknowledge(), 0x31);
    board.outb(0x20, 0x61);
    board.outb(0xa0, 0x64);
    board.outb(0x20, 0x62);
    assert_eq!(board.pic.acknowledge(), 0x38);
}

#[test]
fn special_fully_nested_lets_the_second_chips_higher_ones_through() {
    let mut board = PicBoard::new();
    linux(&mut board, 0x11);
    board.outb(0x21, 0);
    board.outb(0xa1, 0);
    pulse(&board, 12);
    assert_eq!(board.pic.acknowledge(), 0x3c);
    pulse(&board, 8);
    assert_eq!(board.pic.acknowledge(), 0x38);
    pulse(&board, 14);
    assert!(!board.pic.intr());
}

#[test]
fn a_request_that_is_gone_is_spurious() {
    let mut board = open();
    pulse(&board, 5);
    board.outb(0x21, 0x20);
    assert!(!board.pic.intr());
    assert_eq!(board.pic.acknowledge(), 0x37);
    assert_eq!(in_service(&mut board), (0, 0), "nothing in service, by which a guest tells it");
    board.outb(0x21, 0);
    assert_eq!(board.pic.acknowledge(), 0x35, "an edge is remembered under the mask");
}

#[test]
fn levels_ask_for_as_long_as_they_are_high() {
    let mut board = open();
    board.outb(0x4d0, 0xff);
    board.outb(0x4d1, 0xff);
    assert_eq!((board.inb(0x4d0), board.inb(0x4d1)), (0xf8, 0xde), "some are edges for ever");
    board.pic.set_level(11, true);
    assert_eq!(board.pic.acknowledge(), 0x3b);
    board.outb(0xa0, 0x20);
    board.outb(0x20, 0x20);
    assert_eq!(board.pic.acknowledge(), 0x3b, "again");
    board.pic.set_level(11, false);
    board.outb(0xa0, 0x20);
    board.outb(0x20, 0x20);
    assert!(!board.pic.intr());
    board.pic.set_level(11, true);
    board.pic.set_level(11, false);
    assert!(!board.pic.intr(), "a level is not remembered");
}

#[test]
fn an_input_that_becomes_a_level_asks_as_its_line_stands() {
    let mut board = open();
    board.pic.set_level(5, true);
    assert_eq!(board.pic.acknowledge(), 0x35);
    board.outb(0x20, 0x20);
    pulse(&board, 6);
    assert_eq!(requested(&mut board).0, 0x40);
    board.outb(0x4d0, 0x60);
    assert_eq!(requested(&mut board).0, 0x20, "5 is high, 6 is not");
}

#[test]
fn automatic_end_and_rotation() {
    let mut board = PicBoard::new();
    linux(&mut board, 0x03);
    board.outb(0x21, 0);
    pulse(&board, 3);
    assert_eq!(board.pic.acknowledge(), 0x33);
    assert_eq!(in_service(&mut board).0, 0);
    board.outb(0x20, 0x80);
    pulse(&board, 3);
    assert_eq!(board.pic.acknowledge(), 0x33);
    pulse(&board, 3);
    pulse(&board, 5);
    assert_eq!(board.pic.acknowledge(), 0x35, "3 has the lowest priority now");
    board.outb(0x20, 0x00);
    assert_eq!(board.pic.acknowledge(), 0x33);
    pulse(&board, 3);
    pulse(&board, 6);
    assert_eq!(board.pic.acknowledge(), 0x36, "6 follows 5, and no longer rotates");
    pulse(&board, 6);
    assert_eq!(board.pic.acknowledge(), 0x36);
}

#[test]
fn rotation_by_command() {
    let mut board = open();
    board.outb(0x20, 0xc4);
    pulse(&board, 4);
    pulse(&board, 5);
    assert_eq!(board.pic.acknowledge(), 0x35, "4 was set to the lowest");
    board.outb(0x20, 0xa0);
    pulse(&board, 5);
    assert_eq!(board.pic.acknowledge(), 0x34, "rotated at the end of 5");
    board.outb(0x20, 0xe4);
    assert_eq!(in_service(&mut board), (0, 0));
    pulse(&board, 4);
    assert_eq!(board.pic.acknowledge(), 0x35, "and at the specific end of 4");
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let mut board = open();
    pulse(&board, 3);
    assert_eq!(board.pic.acknowledge(), 0x33);
    board.outb(0x21, 0x08);
    pulse(&board, 6);
    assert!(!board.pic.intr());
    board.outb(0x20, 0x68);
    assert_eq!(board.pic.acknowledge(), 0x36);
    board.outb(0x20, 0x20);
    assert_eq!(in_service(&mut board).0, 0x08, "an end does not touch the masked");
    board.outb(0x20, 0x48);
    pulse(&board, 7);
    assert!(!board.pic.intr());
}

#[test]
fn poll_mode_takes_the_place_of_acknowledge() {
    let mut board = open();
    board.outb(0x20, 0x0c);
    assert_eq!(board.inb(0x20), 0, "nothing");
    pulse(&board, 9);
    board.outb(0x20, 0x0c);
    assert_eq!(board.inb(0x20), 0x82);
    board.outb(0xa0, 0x0c);
    assert_eq!(board.inb(0xa1), 0x81);
    assert_eq!(in_service(&mut board), (0x04, 0x02));
    assert!(!board.pic.intr());
}

#[test]
fn initialization_forgets_edges_and_masks() {
    let mut board = open();
    pulse(&board, 3);
    board.pic.set_level(4, true);
    board.outb(0x20, 0x13);
    board.outb(0x21, 0x48);
    board.outb(0x21, 0x01);
    assert_eq!((board.inb(0x21), requested(&mut board).0), (0, 0), "single: no third word");
    board.pic.set_level(4, true);
    assert!(!board.pic.intr(), "it did not rise");
    board.pic.set_level(4, false);
    board.pic.set_level(4, true);
    assert_eq!(board.pic.acknowledge(), 0x4c);
}

#[test]
fn wide_accesses_are_bytes() {
    let mut board = open();
    let mut ports = board.pic.ports(PicRange::Elcr);
    ports.port_write(0, &[0xf0, 0x08, 0xff, 0xff]);
    let mut data = [0; 4];
    ports.port_read(0, &mut data);
    assert_eq!(data, [0xf0, 0x08, 0xff, 0xff]);
    ports.port_read(1, &mut data);
    assert_eq!(data, [0x08, 0xff, 0xff, 0xff]);
    assert_eq!(board.inb(0x4d1), 0x08);
}

#[test]
fn saved_in_the_middle() {
    let mut one = open();
    one.outb(0x4d1, 0x08);
    pulse(&one, 3);
    assert_eq!(one.pic.acknowledge(), 0x33);
    one.pic.set_level(11, true);
    pulse(&one, 1);
    one.outb(0xa0, 0x11);
    one.outb(0xa1, 0x38);
    let record = one.pic.save().unwrap();
    let mut two = PicBoard::new();
    two.pic.load(&record).unwrap();
    assert_eq!(two.pic.save().unwrap(), record);
    assert_eq!(*lock(&two.output), [true], "the engine learns of the output");
    two.outb(0xa1, 0x02);
    two.outb(0xa1, 0x01);
    assert_eq!(two.pic.acknowledge(), 0x31);
    two.outb(0x20, 0x61);
    assert_eq!(two.pic.acknowledge(), 0x3b);
    two.pic.reset();
    assert!(!two.pic.intr());
}

#[test]
fn impossible_states_are_refused() {
    let mut board = open();
    let good = PicV1::from_record(&board.pic.save().unwrap()).unwrap();
    for bad in [
        PicV1 { elcr: [1, 0], ..good.clone() },
        PicV1 { lines: [4, 0], ..good.clone() },
        PicV1 { irr: [4, 0], ..good.clone() },
        PicV1 { elcr: [8, 0], irr: [8, 0], ..good.clone() },
        PicV1 { base: [1, 0], ..good.clone() },
        PicV1 { first: [0, 8], ..good.clone() },
        PicV1 { step: [5, 0], ..good.clone() },
    ] {
        assert!(matches!(board.pic.load(&bad.to_record("pic")), Err(DeviceError::Impossible { .. })));
    }
    assert_eq!(board.pic.load(&good.to_record("pic")), Ok(()));
}
