//! The serial port's saved form.

umbra_state::saved! {
    /// A 16550A.
    pub struct SerialV1: "serial", 1 {
        /// Interrupt enable register.
        1 ier: u8,
        /// FIFO control register: enable and trigger level.
        2 fcr: u8,
        /// Line control register.
        3 lcr: u8,
        /// Modem control register.
        4 mcr: u8,
        /// The receiver lost a byte, and the line status has not been read since.
        5 overrun: bool,
        /// The low half of the modem status register.
        6 modem_deltas: u8,
        /// Scratch register.
        7 scratch: u8,
        /// Divisor latch.
        8 divisor: u16,
        /// The transmitter-empty interrupt waits to be identified.
        9 transmitter_empty: bool,
        /// The receive FIFO.
        10 fifo: Vec<u8>,
        /// What the far end has sent and the FIFO has not taken.
        11 backlog: Vec<u8>,
    }
}
