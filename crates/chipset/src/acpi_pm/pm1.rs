//! The fixed ACPI hardware as a pure model (ACPI specification 6.5, section 4.8: "PM1 Event Grouping", "Power
//! Management Timer", "Legacy/ACPI Select and the SCI Interrupt").
//!
//! There is no legacy mode: SCI_EN is always set and the FADT names no SMI command port, so a guest finds ACPI
//! enabled.

use bitflags::bitflags;

use super::AcpiPmV1;

/// The power management timer counts at this rate, in Hz.
const TIMER_HZ: u64 = 3_579_545;
const NANOS: u64 = 1_000_000_000;
/// The length of the register block.
pub(super) const BLOCK_LEN: usize = 12;

bitflags! {
    /// PM1 status and enable registers share their layout.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Events: u16 {
        /// The timer's most significant bit has changed.
        const TIMER = 1;
        /// Firmware has released the global lock.
        const GLOBAL_LOCK = 1 << 5;
        /// The power button was pressed.
        const POWER_BUTTON = 1 << 8;
        /// The real-time clock's alarm. It never comes this way, but a guest finds its enable bit where it left it.
        const CLOCK = 1 << 10;
    }

    /// PM1 control register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Control: u16 {
        /// Power events raise the SCI.
        const SCI_EN = 1;
        /// Which sleep state; the DSDT says what the values mean.
        const SLP_TYP = 7 << 10;
        /// Enters the sleep state; reads as zero.
        const SLP_EN = 1 << 13;
    }
}

/// Where SLP_TYP stands in PM1 control.
const SLP_TYP_SHIFT: u32 = 10;

/// The registers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pm1 {
    status: Events,
    enable: Events,
    /// SLP_TYP as it was written.
    sleep_type: Control,
    /// Machine time up to which the timer's changes have been noticed.
    seen: u64,
}

impl Pm1 {
    pub(super) fn new(now: u64) -> Self {
        Self { status: Events::empty(), enable: Events::empty(), sleep_type: Control::empty(), seen: now }
    }

    /// The register block at machine time `now`: status, enable, control, a hole, timer.
    pub(super) fn registers(&mut self, now: u64) -> [u8; BLOCK_LEN] {
        self.advance(now);
        let [s0, s1] = self.status.bits().to_le_bytes();
        let [e0, e1] = self.enable.bits().to_le_bytes();
        let [c0, c1] = (self.sleep_type | Control::SCI_EN).bits().to_le_bytes();
        let [t0, t1, t2, t3] = (ticks(now) as u32).to_le_bytes();
        [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3]
    }

    /// Writes one byte of the block. Returns the sleep type if it enters a sleep state.
    pub(super) fn write(&mut self, offset: u16, value: u8, now: u64) -> Option<u8> {
        self.advance(now);
        let wide = u16::from(value) << (8 * (offset % 2));
        let lane = 0xff << (8 * (offset % 2));
        match offset {
            0 | 1 => self.status -= Events::from_bits_truncate(wide),
            2 | 3 => self.enable = Events::from_bits_truncate(self.enable.bits() & !lane | wide),
            // SLP_TYP and SLP_EN are in the upper byte; nothing in the lower one can be changed.
            5 => {
                let control = Control::from_bits_truncate(wide);
                self.sleep_type = control & Control::SLP_TYP;
                if control.contains(Control::SLP_EN) {
                    return Some((self.sleep_type.bits() >> SLP_TYP_SHIFT) as u8);
                }
            }
            _ => {}
        }
        None
    }

    /// Somebody presses the power button.
    pub(super) fn press_power_button(&mut self) {
        self.status |= Events::POWER_BUTTON;
    }

    /// Notices changes of the timer's top bit up to machine time `now`.
    pub(super) fn advance(&mut self, now: u64) {
        if half_turns(now) != half_turns(self.seen) {
            self.status |= Events::TIMER;
        }
        self.seen = now;
    }

    /// Whether the system control interrupt is asserted.
    pub(super) fn sci(&self) -> bool {
        self.status.intersects(self.enable)
    }

    /// The machine time at which the timer will raise an interrupt.
    pub(super) fn next_event(&self) -> Option<u64> {
        let wanted = self.enable.contains(Events::TIMER) && !self.status.contains(Events::TIMER);
        let tick = u128::from(half_turns(self.seen) + 1) << 31;
        let at = (tick * u128::from(NANOS)).div_ceil(u128::from(TIMER_HZ));
        u64::try_from(at).ok().filter(|_| wanted)
    }

    pub(super) fn save(&self) -> AcpiPmV1 {
        let Self { status, enable, sleep_type, seen } = self;
        AcpiPmV1 {
            status: status.bits(),
            enable: enable.bits(),
            sleep_type: (sleep_type.bits() >> SLP_TYP_SHIFT) as u8,
            seen: *seen,
        }
    }

    /// A model in the saved state; the error says which value is impossible.
    pub(super) fn load(state: AcpiPmV1) -> Result<Self, &'static str> {
        let AcpiPmV1 { status, enable, sleep_type, seen } = state;
        if sleep_type > 7 {
            return Err("sleep type");
        }
        Ok(Self {
            status: Events::from_bits(status).ok_or("PM1 status register")?,
            enable: Events::from_bits(enable).ok_or("PM1 enable register")?,
            sleep_type: Control::from_bits_retain(u16::from(sleep_type) << SLP_TYP_SHIFT),
            seen,
        })
    }
}

/// The timer's count since machine time zero.
fn ticks(now: u64) -> u64 {
    // The product needs 86 bits; the quotient is smaller than `now`.
    (u128::from(now) * u128::from(TIMER_HZ) / u128::from(NANOS)) as u64
}

/// How often the top bit of the 32-bit timer has changed.
fn half_turns(now: u64) -> u64 {
    ticks(now) >> 31
}
