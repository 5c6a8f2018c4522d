//! IOAPIC, PIC, PIT and their router, wired as in the machine: saved states that may be wrong, then any use.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use umbra_device::{Device, IrqSink, Mmio, PortIo};
use umbra_fuzz::{Board, Input, load_altered};
use umbra_irqchip::{Ioapic, IrqRouter, Pic, PicRange, Pit};

/// One access may send a message for each pin of the IOAPIC, and with the PIC's output hardly more.
const CALLS_MAX: usize = 64;

struct Chips {
    board: Board,
    pit_board: Board,
    ioapic: Ioapic,
    pic: Pic,
    pit: Pit,
    router: IrqRouter,
}

impl Chips {
    fn new() -> Self {
        let (board, pit_board) = (Board::default(), Board::default());
        let ioapic = Ioapic::new(board.msi(), board.clock.clone(), board.alarm(), Arc::new(|_| {}));
        let pic = Pic::new(Arc::new(|_| {}));
        let router = IrqRouter::new(Arc::new(pic.clone()), Arc::new(ioapic.clone()));
        let line = router.line(0).expect("it has a line for the timer");
        let pit = Pit::new(line, pit_board.clock.clone(), pit_board.alarm());
        Self { board, pit_board, ioapic, pic, pit, router }
    }

    fn load(&mut self, input: &mut Input<'_>) {
        let chips: [&mut dyn Device; 4] = [&mut self.ioapic, &mut self.pic, &mut self.pit, &mut self.router];
        let which = usize::from(input.below(4));
        for (n, chip) in chips.into_iter().enumerate() {
            if n == which {
                load_altered(chip, input);
            }
        }
    }

    fn reset(&mut self, which: u8) {
        match which % 4 {
            0 => self.ioapic.reset(),
            1 => self.pic.reset(),
            2 => self.pit.reset(),
            _ => self.router.reset(),
        }
    }

    fn ports(&mut self, input: &mut Input<'_>) {
        let (mut counters, mut port_b) = (self.pit.counters(), self.pit.port_b());
        let [mut master, mut slave, mut elcr] =
            [PicRange::Master, PicRange::Slave, PicRange::Elcr].map(|range| self.pic.ports(range));
        let ports: [&mut dyn PortIo; 5] = [&mut counters, &mut port_b, &mut master, &mut slave, &mut elcr];
        let how = input.u8();
        let (which, len) = (usize::from(how % 5), [1, 2, 4][usize::from(how >> 5) % 3]);
        let offset = input.u8();
        let offset =
            if how & 0x10 != 0 { u16::from_le_bytes([offset, input.u8()]) } else { (offset % 4).into() };
        for (n, port) in ports.into_iter().enumerate() {
            if n == which {
                port.port_write(offset, &input.u32().to_le_bytes()[..len]);
                port.port_read(offset, &mut [0; 4][..len]);
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(10) {
            0 => self.load(input),
            1 => self.reset(input.u8()),
            2 => {
                let (offset, len) = (u64::from(input.u16()) % 0x1000, usize::from(1 + input.below(64)));
                self.ioapic.mmio_write(offset, input.bytes(len));
                self.ioapic.mmio_read(offset, &mut [0; 64][..len]);
            }
            3 => {
                self.ioapic.mmio_write(0, &[input.u8() % 0x42]);
                self.ioapic.mmio_write(0x10, &input.u32().to_le_bytes());
            }
            4 => self.ioapic.eoi(input.u8()),
            5 => {
                let gsi = input.u8();
                let Ok(line) = self.router.line((gsi >> 1).into()) else { return };
                line.set(gsi & 1 != 0);
            }
            6 => {
                self.pic.set_level((input.u8() % 20).into(), input.u8() & 1 != 0);
                self.pic.acknowledge();
            }
            7 => self.board.pass(input.value(), &mut self.ioapic),
            8 => self.pit_board.pass(input.value(), &mut self.pit),
            _ => self.ports(input),
        }
        let _ = (self.ioapic.routes(), self.pic.intr());
        assert!(self.board.take_calls() <= CALLS_MAX, "one access, many messages");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut chips = Chips::new();
    while !input.is_empty() {
        chips.step(&mut input);
    }
});
