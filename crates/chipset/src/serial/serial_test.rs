use std::sync::{Arc, Mutex};

use umbra_device::{Device, PortIo};

use crate::test_support::{Board, inb, move_state, outb};
use crate::{BACKLOG_MAX, Serial};

const RBR: u16 = 0;
const THR: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;
const IRQ: usize = 4;

const DTR_RTS_OUT2: u8 = 0x0b;
const LOOP: u8 = 0x10;

type Sent = Arc<Mutex<Vec<u8>>>;

fn make(board: &Board) -> (Serial, Sent) {
    let sent = Sent::default();
    let to = sent.clone();
    let serial =
        Serial::new("com1", board.line(4), move |bytes: &[u8]| to.lock().unwrap().extend_from_slice(bytes));
    (serial, sent)
}

/// A port as Linux leaves it when it is open, with a receive trigger of 8.
fn open(board: &Board) -> (Serial, Sent) {
    let (mut serial, sent) = make(board);
    outb(&mut serial, FCR, 0x81);
    outb(&mut serial, MCR, DTR_RTS_OUT2);
    outb(&mut serial, IER, 0x05);
    (serial, sent)
}

/// The steps of Linux's 8250 probe, in its order.
#[test]
fn is_taken_for_a_16550a() {
    let board = Board::default();
    let (mut s, sent) = make(&board);
    outb(&mut s, IER, 0);
    assert_eq!(inb(&mut s, IER) & 0x0f, 0);
    outb(&mut s, IER, 0x0f);
    assert_eq!(inb(&mut s, IER) & 0x0f, 0x0f);
    outb(&mut s, IER, 0);
    let (mcr, lcr) = (inb(&mut s, MCR), inb(&mut s, LCR));
    outb(&mut s, MCR, LOOP | 0x0a);
    assert_eq!(inb(&mut s, MSR) & 0xf0, 0x90, "loopback of RTS and OUT2");
    outb(&mut s, MCR, mcr);
    outb(&mut s, LCR, 0xbf);
    outb(&mut s, FCR, 0);
    outb(&mut s, LCR, 0);
    outb(&mut s, FCR, 1);
    assert_eq!(inb(&mut s, IIR) >> 6, 3, "working FIFOs");
    outb(&mut s, LCR, 0x80);
    assert_ne!(inb(&mut s, IIR), 0, "no extended feature register, so no 16650");
    outb(&mut s, LCR, 0xbf);
    assert_ne!(inb(&mut s, IIR), 0, "nor in the other bank");
    // A National "super" UART shows the loopback bit in its second bank.
    outb(&mut s, LCR, 0);
    let status = inb(&mut s, MCR);
    outb(&mut s, MCR, status ^ LOOP);
    outb(&mut s, LCR, 0xe0);
    let bank = inb(&mut s, IIR);
    outb(&mut s, LCR, 0);
    outb(&mut s, MCR, status);
    assert_eq!((bank ^ status) & LOOP, 0);
    // A 16750 has a 64-byte FIFO that can be switched on with DLAB set only.
    outb(&mut s, FCR, 1);
    assert_eq!(inb(&mut s, IIR) >> 5, 6);
    outb(&mut s, FCR, 0x21);
    assert_eq!(inb(&mut s, IIR) >> 5, 6);
    outb(&mut s, LCR, 0x80);
    outb(&mut s, FCR, 0x21);
    assert_eq!(inb(&mut s, IIR) >> 5, 6);
    outb(&mut s, LCR, 0);
    // An XScale UART has a unit enable bit.
    outb(&mut s, IER, 0x40);
    assert_eq!(inb(&mut s, IER), 0);
    outb(&mut s, LCR, lcr);
    outb(&mut s, SCR, 0x5a);
    assert_eq!(inb(&mut s, SCR), 0x5a);
    assert!(sent.lock().unwrap().is_empty());
    assert_eq!(board.edges(IRQ), 0, "all without an interrupt, as OUT2 is low");
}

/// Linux's start-up tests for transmitters with bugs: enabling the interrupt raises it, each time.
#[test]
fn enabling_the_transmitter_interrupt_raises_it() {
    let board = Board::default();
    let (mut s, _) = make(&board);
    outb(&mut s, MCR, 0x08);
    for _ in 0..2 {
        outb(&mut s, IER, 0x02);
        assert!(board.level(IRQ));
        assert_eq!(inb(&mut s, LSR), 0x60);
        assert_eq!(inb(&mut s, IIR), 0x02);
        assert!(!board.level(IRQ), "identifying it answers it");
        assert_eq!(inb(&mut s, IIR), 0x01);
        outb(&mut s, IER, 0x02);
        assert_eq!(inb(&mut s, IIR), 0x01, "it was enabled already");
        outb(&mut s, IER, 0);
    }
}

#[test]
fn a_driver_sends_a_fifo_for_each_interrupt() {
    let board = Board::default();
    let (mut s, sent) = open(&board);
    let text: Vec<u8> = (0..=255).collect();
    outb(&mut s, IER, 0x07);
    let mut chunks = text.chunks(16);
    let mut interrupts = 0;
    while board.level(IRQ) {
        interrupts += 1;
        assert_eq!(inb(&mut s, IIR), 0xc2);
        assert!(!board.level(IRQ));
        let Some(chunk) = chunks.next() else { break };
        chunk.iter().for_each(|&byte| outb(&mut s, THR, byte));
    }
    assert_eq!(*sent.lock().unwrap(), text);
    assert_eq!((interrupts, board.edges(IRQ)), (17, 17), "sixteen chunks, and one to say that all is gone");
}

#[test]
fn receives_through_the_fifo_with_its_priorities() {
    let board = Board::default();
    let (mut s, _) = open(&board);
    assert_eq!(inb(&mut s, LSR), 0x60);
    assert_eq!(s.receive(b"ab"), 2);
    assert!(board.level(IRQ));
    assert_eq!(inb(&mut s, IIR), 0xcc, "below the trigger: character timeout");
    assert_eq!(s.receive(&[b'c'; 30]), 30);
    assert_eq!(inb(&mut s, IIR), 0xc4);
    outb(&mut s, IER, 0x07);
    assert_eq!(inb(&mut s, IIR), 0xc4, "the receiver comes before the transmitter");
    let mut all = Vec::new();
    while inb(&mut s, LSR) & 1 != 0 {
        all.push(inb(&mut s, RBR));
    }
    assert_eq!(all, [b"ab".as_slice(), &[b'c'; 30]].concat());
    assert_eq!(inb(&mut s, IIR), 0xc2);
    assert_eq!(inb(&mut s, IIR), 0xc1);
    assert!(!board.level(IRQ));
    assert_eq!(inb(&mut s, RBR), 0);
}

/// Input that was there before the guest opened the port survives that the guest clears its FIFOs.
#[test]
fn early_input_waits_for_rts() {
    let board = Board::default();
    let (mut s, _) = make(&board);
    s.receive(b"early bird, longer than a FIFO");
    assert_eq!(inb(&mut s, LSR) & 1, 0);
    for fcr in [0x01, 0x07, 0x00] {
        outb(&mut s, FCR, fcr);
    }
    inb(&mut s, RBR);
    outb(&mut s, MCR, 0x09);
    outb(&mut s, FCR, 0x01);
    assert_eq!(inb(&mut s, LSR) & 1, 0);
    outb(&mut s, MCR, DTR_RTS_OUT2);
    assert_eq!(inb(&mut s, RBR), b'e');
    outb(&mut s, FCR, 0x03);
    assert_eq!(inb(&mut s, RBR), b'r', "cleared: the sixteen that were in the FIFO, and no more");
}

#[test]
fn the_backlog_is_bounded() {
    let board = Board::default();
    let (mut s, _) = make(&board);
    assert_eq!(s.receive(&vec![1; BACKLOG_MAX + 100]), BACKLOG_MAX);
    assert_eq!(s.free_space(), 0);
    assert_eq!(s.receive(&[2]), 0);
    outb(&mut s, MCR, 0x02);
    assert_eq!(s.free_space(), 1, "one byte without FIFOs");
    outb(&mut s, FCR, 1);
    assert_eq!(s.free_space(), 17, "the receiver buffer was cleared with the change");
    s.reset();
    assert_eq!(s.free_space(), 17, "what is on its way stays, what was in the FIFO is lost");
}

#[test]
fn loopback_sends_to_itself_and_overruns() {
    let board = Board::default();
    let (mut s, sent) = open(&board);
    outb(&mut s, MCR, LOOP | 0x08);
    outb(&mut s, IER, 0x04);
    s.receive(b"from outside");
    for byte in 0..16 {
        outb(&mut s, THR, byte);
    }
    assert!(!board.level(IRQ));
    outb(&mut s, THR, 16);
    assert!(board.level(IRQ));
    assert_eq!(inb(&mut s, IIR), 0xc6, "line status comes first");
    assert_eq!(inb(&mut s, LSR), 0x63);
    assert!(!board.level(IRQ), "reading the line status answers it");
    for byte in 0..16 {
        assert_eq!(inb(&mut s, RBR), byte);
    }
    assert_eq!(inb(&mut s, LSR), 0x60);
    outb(&mut s, FCR, 0);
    outb(&mut s, THR, 1);
    outb(&mut s, THR, 2);
    assert_eq!((inb(&mut s, LSR), inb(&mut s, RBR)), (0x63, 2), "the newest byte stands without FIFOs");
    assert!(sent.lock().unwrap().is_empty());
    outb(&mut s, MCR, DTR_RTS_OUT2);
    assert_eq!(inb(&mut s, RBR), b'f');
}

#[test]
fn modem_status_tells_what_changed() {
    let board = Board::default();
    let (mut s, _) = make(&board);
    assert_eq!(inb(&mut s, MSR), 0xb0, "a terminal is there");
    outb(&mut s, MCR, LOOP | 0x0c);
    outb(&mut s, IER, 0x08);
    assert!(board.level(IRQ));
    assert_eq!(inb(&mut s, IIR), 0x00);
    assert_eq!(inb(&mut s, MSR), 0xc3);
    assert!(!board.level(IRQ));
    outb(&mut s, MCR, LOOP | 0x08);
    assert_eq!(inb(&mut s, MSR), 0x84, "the ring indicator's trailing edge");
    assert_eq!(inb(&mut s, MSR), 0x80);
}

#[test]
fn the_divisor_hides_two_registers() {
    let board = Board::default();
    let (mut s, sent) = make(&board);
    outb(&mut s, LCR, 0x83);
    outb(&mut s, 0, 1);
    outb(&mut s, 1, 0);
    assert_eq!((inb(&mut s, 0), inb(&mut s, 1), inb(&mut s, LCR)), (1, 0, 0x83));
    outb(&mut s, LCR, 0x03);
    assert_eq!((inb(&mut s, 0), inb(&mut s, IER)), (0, 0));
    assert!(sent.lock().unwrap().is_empty());
}

#[test]
fn the_state_moves() {
    let board = Board::default();
    let (mut s, _) = open(&board);
    outb(&mut s, IER, 0x07);
    outb(&mut s, SCR, 0x77);
    s.receive(b"0123456789abcdefghij");
    assert_eq!(inb(&mut s, RBR), b'0');
    let (mut other, sent) = make(&board);
    move_state(&s, &mut other);
    assert!(board.level(IRQ));
    outb(&mut other, IER, 0);
    assert!(!board.level(IRQ), "the line that the saved machine drove is let go");
    move_state(&s, &mut other);
    let mut all = Vec::new();
    while inb(&mut other, LSR) & 1 != 0 {
        all.push(inb(&mut other, RBR));
    }
    assert_eq!(all, b"123456789abcdefghij");
    assert_eq!(inb(&mut other, IIR), 0xc2);
    assert_eq!(inb(&mut other, SCR), 0x77);
    outb(&mut other, THR, b'x');
    assert_eq!(*sent.lock().unwrap(), b"x");
    other.reset();
    assert!(!board.level(IRQ));
    assert_eq!((inb(&mut other, IER), inb(&mut other, IIR), inb(&mut other, MCR)), (0, 1, 0));
}

#[test]
fn wide_accesses_are_split() {
    let board = Board::default();
    let (mut s, sent) = make(&board);
    s.port_write(6, &[0, 0x42, 1, 2]);
    let mut data = [0; 4];
    s.port_read(6, &mut data);
    assert_eq!(data, [0xb0, 0x42, 0xff, 0xff]);
    s.port_read(0x100, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert!(sent.lock().unwrap().is_empty());
}
