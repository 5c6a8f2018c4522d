use umbra_device::{Device, MachineEvent};

use crate::I8042;
use crate::test_support::{Board, inb, move_state, outb};

const DATA: u16 = 0;
const STATUS: u16 = 4;
const COMMAND: u16 = 4;
const OBF: u8 = 1;
const IBF: u8 = 2;
const AUX: u8 = 1 << 5;
const TIMEOUT: u8 = 1 << 6;
const KEYBOARD: usize = 1;
const MOUSE: usize = 12;

fn make(board: &Board) -> I8042 {
    I8042::new("i8042", board.line(1), board.line(12), board.sink())
}

/// The status is asked once: no driver ever has to wait.
fn read(device: &mut I8042) -> u8 {
    assert_eq!(inb(device, STATUS) & OBF, OBF, "the answer is there at once");
    inb(device, DATA)
}

fn command(device: &mut I8042, value: u8) {
    assert_eq!(inb(device, STATUS) & IBF, 0, "the input buffer is always free");
    outb(device, COMMAND, value);
}

/// Linux's probe: flush, read the command byte twice, switch the keyboard's interrupt off, look for the auxiliary port.
#[test]
fn a_driver_probes_without_waiting() {
    let board = Board::default();
    let mut device = make(&board);
    assert_eq!(inb(&mut device, STATUS) & OBF, 0, "there is nothing to flush");
    assert_ne!(inb(&mut device, STATUS), 0xff, "a controller is there");

    command(&mut device, 0xaa);
    assert_eq!(read(&mut device), 0x55);
    command(&mut device, 0xab);
    assert_eq!(read(&mut device), 0);

    command(&mut device, 0x20);
    let first = read(&mut device);
    command(&mut device, 0x20);
    assert_eq!(read(&mut device), first);
    assert_eq!(first & 0x40, 0x40, "translated");
    assert_eq!(inb(&mut device, STATUS) & 0x10, 0x10, "not locked");

    let quiet = (first | 0x10) & !0x01;
    command(&mut device, 0x60);
    outb(&mut device, DATA, quiet);
    command(&mut device, 0x20);
    assert_eq!(read(&mut device), quiet);

    // The loop through the auxiliary port comes back as the keyboard's: there is none.
    command(&mut device, 0xd3);
    outb(&mut device, DATA, 0x5a);
    assert_eq!(inb(&mut device, STATUS) & (OBF | AUX), OBF);
    command(&mut device, 0xa9);
    assert!(![0, 0xfa, 0xff].contains(&read(&mut device)), "and its test fails");
    assert_eq!(inb(&mut device, STATUS) & OBF, 0);
    assert_eq!((board.edges(KEYBOARD), board.edges(MOUSE)), (4, 0), "none after it was switched off");
}

#[test]
fn a_keyboard_that_is_not_there_is_known_at_once() {
    let board = Board::default();
    let mut device = make(&board);
    outb(&mut device, DATA, 0xf2);
    assert!(board.level(KEYBOARD));
    assert_eq!(inb(&mut device, STATUS) & (OBF | AUX | TIMEOUT), OBF | TIMEOUT);
    assert_eq!(inb(&mut device, DATA), 0xfe);
    assert!(!board.level(KEYBOARD));
    assert_eq!(inb(&mut device, STATUS) & (OBF | TIMEOUT), 0);
    assert_eq!(inb(&mut device, DATA), 0xfe, "the buffer keeps its byte");

    command(&mut device, 0x60);
    outb(&mut device, DATA, 0x47);
    command(&mut device, 0xd4);
    outb(&mut device, DATA, 0xff);
    assert_eq!(inb(&mut device, STATUS) & (OBF | AUX | TIMEOUT), OBF | AUX | TIMEOUT);
    assert!(board.level(MOUSE));
    assert!(!board.level(KEYBOARD));
    assert_eq!(inb(&mut device, DATA), 0xfe);
    assert!(!board.level(MOUSE));
}

#[test]
fn resets() {
    let board = Board::default();
    let mut device = make(&board);
    command(&mut device, 0xfe);
    assert_eq!(board.events(), [MachineEvent::Reset]);
    command(&mut device, 0xff);
    assert!(board.events().is_empty(), "pulses no pin");
    command(&mut device, 0xd1);
    outb(&mut device, DATA, 0xdf);
    assert!(board.events().is_empty());
    command(&mut device, 0xd1);
    outb(&mut device, DATA, 0xde);
    assert_eq!(board.events(), [MachineEvent::Reset]);
}

#[test]
fn the_a20_gate_is_shown_as_it_was_set() {
    let board = Board::default();
    let mut device = make(&board);
    let a20 = |device: &mut I8042| {
        command(device, 0xd0);
        read(device) & 2 != 0
    };
    assert!(a20(&mut device));
    command(&mut device, 0xdd);
    assert!(!a20(&mut device));
    command(&mut device, 0xdf);
    assert!(a20(&mut device));
    command(&mut device, 0xd1);
    outb(&mut device, DATA, 0xdd);
    assert!(!a20(&mut device));
}

#[test]
fn the_state_moves_in_the_middle_of_a_command() {
    let board = Board::default();
    let mut device = make(&board);
    command(&mut device, 0x60);
    let mut other = make(&board);
    move_state(&device, &mut other);
    outb(&mut other, DATA, 0x74);
    command(&mut other, 0x20);
    assert_eq!(inb(&mut other, DATA), 0x74);

    outb(&mut device, DATA, 0x45);
    outb(&mut device, DATA, 0xed);
    assert!(board.level(KEYBOARD));
    move_state(&device, &mut other);
    assert_eq!(inb(&mut other, DATA), 0xfe);
    assert!(!board.level(KEYBOARD), "the line that the saved machine drove is let go");
    other.reset();
    command(&mut other, 0x20);
    assert_eq!(inb(&mut other, DATA), 0x65);
}

#[test]
fn the_ports_between_float() {
    let board = Board::default();
    let mut device = make(&board);
    for offset in [1, 2, 3, 5, 0xffff] {
        assert_eq!(inb(&mut device, offset), 0xff);
        outb(&mut device, offset, 0xfe);
    }
    assert!(board.events().is_empty());
}
