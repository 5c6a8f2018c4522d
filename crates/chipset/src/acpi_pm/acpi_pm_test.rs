use umbra_device::{Device, MachineEvent};

use crate::test_support::{Board, inb, inl, inw, move_state, outb, outw};
use crate::{AcpiPm, SLP_TYP_S5};

const STS: u16 = 0;
const EN: u16 = 2;
const CNT: u16 = 4;
const TMR: u16 = 8;
const SCI: usize = 9;

const PWRBTN: u16 = 1 << 8;
const SLP_EN: u16 = 1 << 13;
/// 2^31 ticks of 3.579545 MHz in nanoseconds, rounded up.
const HALF_TURN: u64 = 599_932_015_941;

fn make(board: &Board) -> AcpiPm {
    AcpiPm::new("pm", board.clock.clone(), board.alarm(), board.line(SCI as u32), board.sink())
}

/// What ACPICA does when it takes the hardware over: look for ACPI mode, enable and clear the fixed events.
#[test]
fn acpi_is_on_and_the_power_button_interrupts() {
    let board = Board::default();
    let mut pm = make(&board);
    assert_eq!(inw(&mut pm, CNT) & 1, 1, "SCI_EN");
    outw(&mut pm, EN, 0);
    outw(&mut pm, STS, 0xffff);
    outw(&mut pm, EN, PWRBTN);
    assert_eq!(inw(&mut pm, EN), PWRBTN);
    assert!(!board.level(SCI));

    pm.press_power_button();
    assert!(board.level(SCI), "the line is a level");
    assert_eq!(inw(&mut pm, STS), PWRBTN);
    assert_eq!(inl(&mut pm, STS), u32::from(PWRBTN) | u32::from(PWRBTN) << 16, "both halves in one access");
    outw(&mut pm, STS, !PWRBTN);
    assert!(board.level(SCI), "zeros clear nothing");
    outw(&mut pm, STS, PWRBTN);
    assert!(!board.level(SCI));
    assert_eq!(inw(&mut pm, STS), 0);
}

#[test]
fn a_button_nobody_listens_to_waits() {
    let board = Board::default();
    let mut pm = make(&board);
    pm.press_power_button();
    assert!(!board.level(SCI));
    outb(&mut pm, EN + 1, 1);
    assert!(board.level(SCI), "enabled by a byte access, and the press is still there");
    outb(&mut pm, STS + 1, 1);
    assert!(!board.level(SCI));
}

/// ACPICA writes SLP_TYP first, then the same with SLP_EN.
#[test]
fn s5_switches_the_power_off() {
    let board = Board::default();
    let mut pm = make(&board);
    let typ = u16::from(SLP_TYP_S5) << 10;
    let control = inw(&mut pm, CNT);
    outw(&mut pm, CNT, control | typ);
    assert!(board.events().is_empty());
    assert_eq!(inw(&mut pm, CNT), control | typ);
    outw(&mut pm, CNT, control | typ | SLP_EN);
    assert_eq!(board.events(), [MachineEvent::PowerOff]);
    assert_eq!(inw(&mut pm, CNT) & SLP_EN, 0, "SLP_EN reads as zero");
    outw(&mut pm, CNT, 3 << 10 | SLP_EN);
    assert!(board.events().is_empty(), "other sleep states do not exist");
}

#[test]
fn sci_en_cannot_be_cleared() {
    let board = Board::default();
    let mut pm = make(&board);
    outw(&mut pm, CNT, 0);
    assert_eq!(inw(&mut pm, CNT), 1);
}

#[test]
fn the_timer_counts_at_its_rate_and_never_backwards() {
    let board = Board::default();
    let mut pm = make(&board);
    assert_eq!(inl(&mut pm, TMR), 0);
    board.clock.set(1_000_000_000);
    assert_eq!(inl(&mut pm, TMR), 3_579_545);
    let mut last = 0;
    for now in (0..3_000_000_000).step_by(999_983) {
        board.clock.set(now);
        let count = inl(&mut pm, TMR);
        assert!(count >= last);
        last = count;
    }
    board.clock.set(HALF_TURN - 1);
    assert_eq!(inl(&mut pm, TMR), 0x7fff_ffff);
    assert_eq!(inb(&mut pm, TMR + 3), 0x7f);
    board.clock.set(HALF_TURN);
    assert_eq!(inl(&mut pm, TMR), 0x8000_0000, "all 32 bits count");
    board.clock.set(HALF_TURN * 2);
    assert_eq!(inl(&mut pm, TMR), 0);
}

#[test]
fn the_timer_interrupts_when_its_top_bit_changes() {
    let board = Board::default();
    let mut pm = make(&board);
    assert_eq!(board.alarm_at(), None, "who does not want the interrupt pays for no alarm");
    outw(&mut pm, EN, 1);
    assert_eq!(board.alarm_at(), Some(HALF_TURN));
    assert_eq!(board.run_to(&mut pm, HALF_TURN - 1), 0);
    assert!(!board.level(SCI));
    assert_eq!(board.run_to(&mut pm, HALF_TURN), 1);
    assert!(board.level(SCI));
    assert_eq!(inw(&mut pm, STS), 1);
    outw(&mut pm, STS, 1);
    assert!(!board.level(SCI));
    assert_eq!(board.run_to(&mut pm, 5 * HALF_TURN), 1, "one interrupt, until the guest answers it");
    outw(&mut pm, EN, 0);
    assert!(!board.level(SCI));
    assert_eq!(board.alarm_at(), None);
}

#[test]
fn the_state_moves() {
    let board = Board::default();
    let mut pm = make(&board);
    outw(&mut pm, EN, 1 | PWRBTN);
    outw(&mut pm, CNT, 2 << 10);
    board.clock.set(1000);
    pm.press_power_button();
    let mut other = make(&board);
    board.alarm().clear();
    move_state(&pm, &mut other);
    assert_eq!(board.alarm_at(), Some(HALF_TURN), "the alarm is set again");
    outw(&mut other, STS, PWRBTN);
    assert!(!board.level(SCI), "the line that the saved machine drove is let go");
    move_state(&pm, &mut other);
    assert_eq!(inw(&mut other, STS), PWRBTN);
    assert_eq!(inw(&mut other, CNT), 2 << 10 | 1);
}

#[test]
fn reset_forgets() {
    let board = Board::default();
    let mut pm = make(&board);
    outw(&mut pm, EN, 1 | PWRBTN);
    pm.press_power_button();
    pm.reset();
    assert!(!board.level(SCI));
    assert_eq!((inw(&mut pm, STS), inw(&mut pm, EN), inw(&mut pm, CNT)), (0, 0, 1));
    assert_eq!(board.alarm_at(), None);
}

#[test]
fn holes_and_ends() {
    let board = Board::default();
    let mut pm = make(&board);
    assert_eq!(inw(&mut pm, 6), 0);
    board.clock.set(1_000_000_000);
    assert_eq!(inl(&mut pm, 10), 0xffff_0036, "what lies behind the block floats");
    assert_eq!(inl(&mut pm, 100), u32::MAX);
}
