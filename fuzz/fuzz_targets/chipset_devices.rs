//! Each device of the board: a saved state that may be wrong, then any accesses, times and resets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_chipset::{AcpiPm, BACKLOG_MAX, Cmos, CmosSpec, I8042, PvPanic, ResetRegister, Serial};
use umbra_device::{Device, PortIo, Timed};
use umbra_fuzz::{Board, Input, load_altered};

/// No access may make more interrupts and events than this.
const CALLS_MAX: usize = 64;

/// One step that every device knows.
fn step(device: &mut (impl Device + PortIo), input: &mut Input<'_>, board: &Board) {
    let (how, offset) = (input.u8(), input.u8());
    // Most devices have no more than 16 ports; wrong offsets must be harmless too.
    let offset =
        if how & 0x80 != 0 { u16::from_le_bytes([offset, input.u8()]) } else { u16::from(offset % 16) };
    let len = [1, 2, 4][usize::from(how >> 4 & 7) % 3];
    match how % 8 {
        0 => {
            load_altered(device, input);
        }
        1 => device.reset(),
        2..=4 => {
            let mut data = [0; 4];
            device.port_read(offset, &mut data[..len]);
        }
        _ => device.port_write(offset, &input.u32().to_le_bytes()[..len]),
    }
    assert!(board.take_calls() <= CALLS_MAX, "one access, many interrupts");
}

fn plain(mut device: impl Device + PortIo, mut input: Input<'_>, board: &Board) {
    while !input.is_empty() {
        step(&mut device, &mut input, board);
    }
}

fn timed(mut device: impl Device + PortIo + Timed, mut input: Input<'_>, board: &Board) {
    while !input.is_empty() {
        step(&mut device, &mut input, board);
        let passed = input.value();
        board.pass(passed, &mut device);
        board.take_calls();
    }
}

fn serial(mut input: Input<'_>, board: &Board) {
    let mut serial = Serial::new("com1", board.line(4), |_: &[u8]| {});
    while !input.is_empty() {
        step(&mut serial, &mut input, board);
        let free = serial.free_space();
        assert!(free <= BACKLOG_MAX);
        let bytes = [0x55; 256];
        let sent = &bytes[..input.u8().into()];
        assert_eq!(serial.receive(sent), sent.len().min(free));
        board.take_calls();
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let board = Board::default();
    let which = input.below(6);
    if which >= 4 {
        board.clock.set(input.value());
    }
    let clock = board.clock.clone();
    match which {
        0 => serial(input, &board),
        1 => plain(I8042::new("i8042", board.line(1), board.line(12), board.events()), input, &board),
        2 => plain(ResetRegister::new("reset", board.events()), input, &board),
        3 => plain(PvPanic::new("pvpanic", board.events()), input, &board),
        4 => timed(AcpiPm::new("pm", clock, board.alarm(), board.line(9), board.events()), input, &board),
        _ => {
            let spec = CmosSpec {
                unix_ns: input.value(),
                ram_below_4g: input.u64() % (1 << 32),
                ram_above_4g: input.u64() % (1 << 46),
            };
            timed(Cmos::new("cmos", spec, clock, board.alarm(), board.line(8)), input, &board);
        }
    }
});
