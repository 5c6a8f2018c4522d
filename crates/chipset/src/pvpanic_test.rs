use umbra_device::{Device, MachineEvent};

use crate::PvPanic;
use crate::test_support::{Board, inb, move_state, outb};

#[test]
fn says_what_it_understands() {
    let board = Board::default();
    assert_eq!(inb(&mut PvPanic::new("pvpanic", board.sink()), 0), 3);
}

#[test]
fn each_kind_is_reported_once() {
    let board = Board::default();
    let mut device = PvPanic::new("pvpanic", board.sink());
    outb(&mut device, 0, 2);
    outb(&mut device, 0, 2);
    assert_eq!(board.events(), [MachineEvent::CrashLoaded]);
    outb(&mut device, 0, 1);
    outb(&mut device, 0, 3);
    assert_eq!(board.events(), [MachineEvent::Panicked]);

    let mut other = PvPanic::new("pvpanic", board.sink());
    move_state(&device, &mut other);
    outb(&mut other, 0, 1);
    assert!(board.events().is_empty(), "a restored machine has reported it before");
    other.reset();
    outb(&mut other, 0, 3);
    assert_eq!(board.events(), [MachineEvent::Panicked], "a panic outweighs the crash kernel");
    outb(&mut other, 0, 0xfc);
    assert!(board.events().is_empty());
}
