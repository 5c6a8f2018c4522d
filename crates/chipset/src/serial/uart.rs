//! The 16550A as a pure model (National Semiconductor PC16550D data sheet, "Registers").
//!
//! Time is not modelled: a byte written to the transmitter has left when the write is over, so the transmitter is
//! always empty, and the receiver's character timeout has always passed. The modem lines say that a terminal is
//! there (DCD, DSR, CTS).
//!
//! What the far end sends waits in a backlog, and enters the receive FIFO while the guest raises RTS, as it would
//! from a terminal that honours the hardware handshake. Linux clears the FIFOs when it opens a port and only then
//! raises RTS; input that came earlier (a script on standard input) is thereby not lost.

use std::collections::VecDeque;

use bitflags::bitflags;

use super::state::SerialV1;

/// How many bytes of the far end wait at most.
pub const BACKLOG_MAX: usize = 64 << 10;
/// The depth of the receive FIFO.
const FIFO_DEPTH: usize = 16;
/// The divisor after reset: 9600 baud. It has no effect.
const DIVISOR_RESET: u16 = 12;

/// Offset 0: receiver buffer, transmitter holding, divisor's low byte with DLAB.
const DATA: u8 = 0;
/// Offset 1: interrupt enable, divisor's high byte with DLAB.
const IER: u8 = 1;
/// Offset 2: interrupt identification (read), FIFO control (write).
const IIR_FCR: u8 = 2;
/// Offset 3: line control.
const LCR: u8 = 3;
/// Offset 4: modem control.
const MCR: u8 = 4;
/// Offset 5: line status.
const LSR: u8 = 5;
/// Offset 6: modem status.
const MSR: u8 = 6;
/// Offset 7: scratch.
const SCR: u8 = 7;

bitflags! {
    /// Interrupt enable register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Enable: u8 {
        const RECEIVED = 1;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// FIFO control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct FifoControl: u8 {
        const ENABLE = 1;
        const CLEAR_RECEIVER = 1 << 1;
        const TRIGGER = 3 << 6;
        const _ = !0;
    }

    /// Modem control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Modem: u8 {
        const DTR = 1;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }

    /// Line status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct LineStatus: u8 {
        const DATA_READY = 1;
        const OVERRUN = 1 << 1;
        const TRANSMITTER_HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    /// Modem status register: the lines above, that they changed below.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct ModemStatus: u8 {
        const DELTA_CTS = 1;
        const DELTA_DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

/// Line control: the divisor latch access bit, the only one with an effect here.
const LCR_DLAB: u8 = 1 << 7;
/// Interrupt identification: the FIFOs are enabled.
const IIR_FIFOS: u8 = 3 << 6;
/// Interrupt identification: nothing is pending.
const IIR_NONE: u8 = 1;

/// Interrupts in order of priority; the value is the identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    LineStatus = 0x6,
    DataAvailable = 0x4,
    CharacterTimeout = 0xc,
    TransmitterEmpty = 0x2,
    ModemStatus = 0x0,
}

/// The 16550A's registers and FIFOs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Uart {
    enable: Enable,
    fifo_control: FifoControl,
    line_control: u8,
    modem: Modem,
    overrun: bool,
    /// The delta half of the modem status.
    deltas: ModemStatus,
    scratch: u8,
    divisor: u16,
    /// The transmitter-empty interrupt has been raised and not been identified yet.
    transmitter_empty: bool,
    fifo: VecDeque<u8>,
    backlog: VecDeque<u8>,
}

impl Uart {
    pub(super) fn new() -> Self {
        Self {
            enable: Enable::empty(),
            fifo_control: FifoControl::empty(),
            line_control: 0,
            modem: Modem::empty(),
            overrun: false,
            deltas: ModemStatus::empty(),
            scratch: 0,
            divisor: DIVISOR_RESET,
            transmitter_empty: false,
            fifo: VecDeque::new(),
            backlog: VecDeque::new(),
        }
    }

    /// Power-on values. What the far end has sent and the guest has not received stays on its way.
    pub(super) fn reset(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        *self = Self { backlog, ..Self::new() };
    }

    /// Reads register `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u8) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.dlab() => divisor_low,
            IER if self.dlab() => divisor_high,
            DATA => self.take_received(),
            IER => self.enable.bits(),
            IIR_FCR => self.identify(),
            LCR => self.line_control,
            MCR => self.modem.bits(),
            LSR => {
                let status = self.line_status();
                self.overrun = false;
                status.bits()
            }
            MSR => {
                let status = self.modem_lines() | self.deltas;
                self.deltas = ModemStatus::empty();
                status.bits()
            }
            SCR => self.scratch,
            _ => crate::bytes::FLOATING,
        }
    }

    /// Writes register `offset`, 0 to 7. A byte that leaves on the wire is returned.
    pub(super) fn write(&mut self, offset: u8, value: u8) -> Option<u8> {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.dlab() => self.divisor = u16::from_le_bytes([value, divisor_high]),
            IER if self.dlab() => self.divisor = u16::from_le_bytes([divisor_low, value]),
            DATA => return self.transmit(value),
            IER => {
                let enable = Enable::from_bits_truncate(value);
                // Enabling this interrupt while the transmitter is empty raises it; drivers probe for that.
                if (enable - self.enable).contains(Enable::TRANSMITTER_EMPTY) {
                    self.transmitter_empty = true;
                }
                self.enable = enable;
            }
            IIR_FCR => self.control_fifos(FifoControl::from_bits_retain(value)),
            LCR => self.line_control = value,
            MCR => {
                let before = self.modem_lines();
                self.modem = Modem::from_bits_truncate(value);
                self.note_deltas(before);
                self.fill();
            }
            SCR => self.scratch = value,
            _ => {}
        }
        None
    }

    /// The far end sends `bytes`; returns how many were taken.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.free_space());
        self.backlog.extend(&bytes[..count]);
        self.fill();
        count
    }

    /// How many bytes [`Uart::receive`] would take.
    pub(super) fn free_space(&self) -> usize {
        BACKLOG_MAX - self.backlog.len()
    }

    /// Whether the interrupt request is high at the bus: OUT2 switches it through on a PC's board.
    pub(super) fn interrupt(&self) -> bool {
        self.modem.contains(Modem::OUT2) && self.pending().is_some()
    }

    fn dlab(&self) -> bool {
        self.line_control & LCR_DLAB != 0
    }

    fn fifos_on(&self) -> bool {
        self.fifo_control.contains(FifoControl::ENABLE)
    }

    fn depth(&self) -> usize {
        if self.fifos_on() { FIFO_DEPTH } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos_on(), self.fifo_control.bits() >> 6) {
            (true, 1) => 4,
            (true, 2) => 8,
            (true, 3) => 14,
            _ => 1,
        }
    }

    /// The pending, enabled interrupt of the highest priority.
    fn pending(&self) -> Option<Interrupt> {
        let level = self.fifo.len();
        let enabled = |bit| self.enable.contains(bit);
        if enabled(Enable::LINE_STATUS) && self.overrun {
            Some(Interrupt::LineStatus)
        } else if enabled(Enable::RECEIVED) && level >= self.trigger() {
            Some(Interrupt::DataAvailable)
        } else if enabled(Enable::RECEIVED) && level > 0 {
            Some(Interrupt::CharacterTimeout)
        } else if enabled(Enable::TRANSMITTER_EMPTY) && self.transmitter_empty {
            Some(Interrupt::TransmitterEmpty)
        } else if enabled(Enable::MODEM_STATUS) && !self.deltas.is_empty() {
            Some(Interrupt::ModemStatus)
        } else {
            None
        }
    }

    /// A read of the interrupt identification; it answers a transmitter-empty interrupt.
    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == Some(Interrupt::TransmitterEmpty) {
            self.transmitter_empty = false;
        }
        let fifos = if self.fifos_on() { IIR_FIFOS } else { 0 };
        fifos | pending.map_or(IIR_NONE, |interrupt| interrupt as u8)
    }

    fn line_status(&self) -> LineStatus {
        let mut status = LineStatus::TRANSMITTER_HOLDING_EMPTY | LineStatus::TRANSMITTER_EMPTY;
        status.set(LineStatus::DATA_READY, !self.fifo.is_empty());
        status.set(LineStatus::OVERRUN, self.overrun);
        status
    }

    /// The four modem inputs: a terminal's, or our own outputs in loopback.
    fn modem_lines(&self) -> ModemStatus {
        if !self.modem.contains(Modem::LOOP) {
            return ModemStatus::DCD | ModemStatus::DSR | ModemStatus::CTS;
        }
        let mut lines = ModemStatus::empty();
        lines.set(ModemStatus::CTS, self.modem.contains(Modem::RTS));
        lines.set(ModemStatus::DSR, self.modem.contains(Modem::DTR));
        lines.set(ModemStatus::RI, self.modem.contains(Modem::OUT1));
        lines.set(ModemStatus::DCD, self.modem.contains(Modem::OUT2));
        lines
    }

    fn note_deltas(&mut self, before: ModemStatus) {
        let after = self.modem_lines();
        let changed = before ^ after;
        for (line, delta) in [
            (ModemStatus::CTS, ModemStatus::DELTA_CTS),
            (ModemStatus::DSR, ModemStatus::DELTA_DSR),
            (ModemStatus::DCD, ModemStatus::DELTA_DCD),
        ] {
            if changed.contains(line) {
                self.deltas |= delta;
            }
        }
        if (before - after).contains(ModemStatus::RI) {
            self.deltas |= ModemStatus::TRAILING_RI;
        }
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.transmitter_empty = true;
        if !self.modem.contains(Modem::LOOP) {
            return Some(byte);
        }
        if self.fifo.len() < self.depth() {
            self.fifo.push_back(byte);
        } else {
            self.overrun = true;
            // Without FIFOs the newest byte stands in the receiver buffer; a full FIFO keeps what it has.
            if !self.fifos_on() {
                self.fifo[0] = byte;
            }
        }
        None
    }

    fn take_received(&mut self) -> u8 {
        let byte = self.fifo.pop_front().unwrap_or(0);
        self.fill();
        byte
    }

    fn control_fifos(&mut self, control: FifoControl) {
        let enable = control.contains(FifoControl::ENABLE);
        if enable != self.fifos_on() || (enable && control.contains(FifoControl::CLEAR_RECEIVER)) {
            self.fifo.clear();
        }
        // The other bits count only together with the enable bit; those that clear are not kept.
        let kept = if enable { FifoControl::ENABLE | FifoControl::TRIGGER } else { FifoControl::empty() };
        self.fifo_control = control & kept;
        self.fill();
    }

    /// Moves bytes that have arrived into the FIFO.
    fn fill(&mut self) {
        if !self.modem.contains(Modem::RTS) || self.modem.contains(Modem::LOOP) {
            return;
        }
        while self.fifo.len() < self.depth() {
            let Some(byte) = self.backlog.pop_front() else { return };
            self.fifo.push_back(byte);
        }
    }

    pub(super) fn save(&self) -> SerialV1 {
        let Self {
            enable,
            fifo_control,
            line_control,
            modem,
            overrun,
            deltas,
            scratch,
            divisor,
            transmitter_empty,
            fifo,
            backlog,
        } = self;
        SerialV1 {
            ier: enable.bits(),
            fcr: fifo_control.bits(),
            lcr: *line_control,
            mcr: modem.bits(),
            overrun: *overrun,
            modem_deltas: deltas.bits(),
            scratch: *scratch,
            divisor: *divisor,
            transmitter_empty: *transmitter_empty,
            fifo: fifo.iter().copied().collect(),
            backlog: backlog.iter().copied().collect(),
        }
    }

    /// A model in the saved state; the error says which value is impossible.
    pub(super) fn load(state: SerialV1) -> Result<Self, &'static str> {
        let SerialV1 {
            ier,
            fcr,
            lcr,
            mcr,
            overrun,
            modem_deltas,
            scratch,
            divisor,
            transmitter_empty,
            fifo,
            backlog,
        } = state;
        let kept = FifoControl::ENABLE | FifoControl::TRIGGER;
        let deltas = ModemStatus::from_bits_retain(modem_deltas);
        let uart = Self {
            enable: Enable::from_bits(ier).ok_or("interrupt enable register")?,
            fifo_control: FifoControl::from_bits(fcr)
                .filter(|f| kept.contains(*f))
                .ok_or("FIFO control register")?,
            line_control: lcr,
            modem: Modem::from_bits(mcr).ok_or("modem control register")?,
            overrun,
            deltas: Some(deltas).filter(|d| d.bits() < 1 << 4).ok_or("modem status")?,
            scratch,
            divisor,
            transmitter_empty,
            fifo: fifo.into(),
            backlog: backlog.into(),
        };
        if uart.fifo.len() > uart.depth() {
            return Err("receive FIFO");
        }
        if uart.backlog.len() > BACKLOG_MAX {
            return Err("backlog");
        }
        Ok(uart)
    }
}
