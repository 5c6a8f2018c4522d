use umbra_device::{Device, MachineEvent};

use crate::ResetRegister;
use crate::test_support::{Board, inb, inl, move_state, outb};

/// What a kernel does for `reboot=pci`.
#[test]
fn asks_then_resets() {
    let board = Board::default();
    let mut register = ResetRegister::new("reset", board.sink());
    let code = 0x0e;
    let cf9 = inb(&mut register, 0) & !code;
    outb(&mut register, 0, cf9 | 2);
    assert!(board.events().is_empty(), "asking for a hard reset is no reset yet");
    assert_eq!(inb(&mut register, 0), 2);
    outb(&mut register, 0, cf9 | code);
    assert_eq!(board.events(), [MachineEvent::Reset]);
    assert_eq!(inb(&mut register, 0), 0x0a, "the bit that resets reads as zero");

    let mut other = ResetRegister::new("reset", board.sink());
    move_state(&register, &mut other);
    assert_eq!(inl(&mut other, 0), 0xffff_ff0a);
    other.reset();
    assert_eq!(inb(&mut other, 0), 0);
}
