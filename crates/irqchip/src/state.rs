//! Saved states.

umbra_state::saved! {
    /// The IOAPIC.
    pub struct IoapicV1: "ioapic", 1 {
        /// The ID register's value, 0 to 15.
        1 id: u8,
        /// The register select register.
        2 select: u8,
        /// The redirection table.
        3 table: [u64; 24],
        /// The levels of the input lines.
        4 lines: u32,
    }
}

umbra_state::saved! {
    /// Both 8259A; of each pair the master comes first.
    pub struct PicV1: "pic", 1 {
        /// The levels of the input lines.
        1 lines: [u8; 2],
        /// Interrupt request registers.
        2 irr: [u8; 2],
        /// Interrupt mask registers.
        3 imr: [u8; 2],
        /// In-service registers.
        4 isr: [u8; 2],
        /// Edge/level control registers.
        5 elcr: [u8; 2],
        /// The vectors of input 0.
        6 base: [u8; 2],
        /// The inputs of highest priority.
        7 first: [u8; 2],
        /// Where initialization is: 0 never, 1 done, 2 to 4 at that control word.
        8 step: [u8; 2],
        /// ICW1: there will be a fourth control word.
        9 has_icw4: [bool; 2],
        /// ICW1: there will be no third control word.
        10 single: [bool; 2],
        /// ICW4: automatic end of interrupt.
        11 auto_eoi: [bool; 2],
        /// ICW4: special fully nested mode.
        12 nested: [bool; 2],
        /// OCW2: rotate at an automatic end of interrupt.
        13 rotate: [bool; 2],
        /// OCW3: special mask mode.
        14 special_mask: [bool; 2],
        /// OCW3: a read shows the in-service register.
        15 read_isr: [bool; 2],
        /// OCW3: the next read is a poll.
        16 poll: [bool; 2],
    }
}

umbra_state::saved! {
    /// The 8254, by counter, and port 0x61. Times are in ticks of the 8254's clock since machine time zero.
    pub struct PitV1: "pit", 1 {
        /// Modes 0 to 5.
        1 mode: [u8; 3],
        /// Which bytes are accessed: 1 low, 2 high, 3 both.
        2 access: [u8; 3],
        /// Counting decimals.
        3 bcd: [bool; 3],
        /// The count in use, 1 to 65536.
        4 count: [u32; 3],
        /// Counting.
        5 running: [bool; 3],
        /// When the count was loaded.
        6 start: [u64; 3],
        /// Ticks counted, while the gate keeps the counter from going on.
        7 frozen: [Option<u64>; 3],
        /// The count that follows, and when.
        8 next: [Option<(u32, u64)>; 3],
        /// The gates.
        9 gate: [bool; 3],
        /// The low byte of a count half written.
        10 written: [Option<u8>; 3],
        /// The next read of two is the high byte.
        11 read_high: [bool; 3],
        /// Latched counts.
        12 latched: [Option<u16>; 3],
        /// Latched status.
        13 status: [Option<u8>; 3],
        /// Bits 0 to 3 of port 0x61.
        14 port_b: u8,
        /// When counter 0 next raises its interrupt.
        15 edge_at: Option<u64>,
    }
}

umbra_state::saved! {
    /// The router.
    pub struct RouterV1: "irq-router", 1 {
        /// By GSI, which sources are high.
        1 levels: [u32; 24],
    }
}
