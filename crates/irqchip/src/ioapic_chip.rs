//! The I/O APIC as a pure model: registers, input lines, and which pins send a message now.
//!
//! The authority is Intel's 82093AA data sheet, with the EOI register of version 0x20 (Intel ICH data sheets, "I/O
//! APIC"). A line that is high is asserted, whatever an entry's polarity bit says: the polarity describes wires, and
//! our lines are not wires.

use umbra_device::Msi;

use crate::IoapicV1;

/// Inputs.
pub const PIN_COUNT: usize = 24;

/// How often a level-triggered pin is delivered again, its line never having gone low, before it is held back. Enough for
/// devices that share a busy line; without it a guest that cannot quieten a device does nothing but take its interrupt.
pub(crate) const STORM_COUNT: u16 = 10_000;

/// The register select register's offset.
const SELECT: u64 = 0x00;
/// The window onto the selected register.
const WINDOW: u64 = 0x10;
/// A write ends the interrupt of that vector.
const EOI: u64 = 0x40;

/// Version 0x20, 24 entries.
const VERSION_VALUE: u32 = ((PIN_COUNT as u32 - 1) << 16) | 0x20;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// The bits that exist.
const ENTRY_BITS: u64 = 0xff00_0000_0001_ffff;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

/// Pins, one bit each.
pub(crate) type Pins = u32;

pub(crate) struct IoapicChip {
    id: u8,
    select: u8,
    table: [u64; PIN_COUNT],
    lines: Pins,
    /// Deliveries since the line was last low.
    storms: [u16; PIN_COUNT],
    /// Pins held back because of a storm.
    held: Pins,
}

impl IoapicChip {
    pub(crate) fn new() -> Self {
        Self { id: 0, select: 0, table: [MASKED; PIN_COUNT], lines: 0, storms: [0; PIN_COUNT], held: 0 }
    }

    /// Drives an input. Whether its message is to be sent.
    pub(crate) fn set_line(&mut self, pin: usize, high: bool) -> bool {
        if pin >= PIN_COUNT || (self.lines >> pin & 1 != 0) == high {
            return false;
        }
        self.lines ^= 1 << pin;
        if !high {
            self.held &= !(1 << pin);
            self.storms[pin] = 0;
            return false;
        }
        if self.is_level(pin) { self.request(pin) } else { self.table[pin] & MASKED == 0 }
    }

    /// Level-triggered, and of a delivery mode that knows levels: fixed or lowest priority.
    fn is_level(&self, pin: usize) -> bool {
        self.table[pin] & LEVEL != 0 && self.table[pin] >> 9 & 3 == 0
    }

    /// Whether a level-triggered pin asks and may be served; then its interrupt is on its way until it is ended.
    fn request(&mut self, pin: usize) -> bool {
        let ready = self.lines & !self.held & 1 << pin != 0
            && self.is_level(pin)
            && self.table[pin] & (MASKED | REMOTE_IRR) == 0;
        if ready {
            self.table[pin] |= REMOTE_IRR;
        }
        ready
    }

    /// The guest has ended an interrupt with `vector`. Which pins are to send again.
    pub(crate) fn end(&mut self, vector: u8) -> Pins {
        let mut again = 0;
        for pin in 0..PIN_COUNT {
            if self.table[pin] as u8 != vector || !self.is_level(pin) || self.table[pin] & REMOTE_IRR == 0 {
                continue;
            }
            self.table[pin] &= !REMOTE_IRR;
            if self.lines >> pin & 1 == 0 || self.table[pin] & MASKED != 0 {
                continue;
            }
            self.storms[pin] = self.storms[pin].saturating_add(1);
            if self.storms[pin] > STORM_COUNT {
                self.held |= 1 << pin;
            }
            again |= Pins::from(self.request(pin)) << pin;
        }
        again
    }

    /// The pins that are held back.
    pub(crate) fn held(&self) -> Pins {
        self.held
    }

    /// Lets held pins go. Which are to send.
    pub(crate) fn release(&mut self) -> Pins {
        let held = std::mem::take(&mut self.held);
        let mut send = 0;
        for pin in (0..PIN_COUNT).filter(|pin| held >> pin & 1 != 0) {
            self.storms[pin] = 0;
            send |= Pins::from(self.request(pin)) << pin;
        }
        send
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => match self.select {
                0 | 2 => u32::from(self.id) << 24,
                1 => VERSION_VALUE,
                register => {
                    let Some((pin, high)) = entry_half(register) else { return 0 };
                    (self.table[pin] >> if high { 32 } else { 0 }) as u32
                }
            },
            _ => 0,
        }
    }

    /// Writes a register. Which pins are to send.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Pins {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => return self.write_window(value),
            EOI => return self.end(value as u8),
            _ => {}
        }
        0
    }

    fn write_window(&mut self, value: u32) -> Pins {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let Some((pin, high)) = entry_half(self.select) else { return 0 };
        let entry = &mut self.table[pin];
        if high {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32 & ENTRY_BITS;
            return 0;
        }
        *entry = *entry & (0xffff_ffff_0000_0000 | READ_ONLY) | u64::from(value) & ENTRY_BITS & !READ_ONLY;
        // An edge-triggered entry has no remote IRR. Guests switch to edge and back to clear it.
        if !self.is_level(pin) {
            self.table[pin] &= !REMOTE_IRR;
        }
        Pins::from(self.request(pin)) << pin
    }

    /// The message that `pin` sends.
    pub(crate) fn message(&self, pin: usize) -> Msi {
        let entry = self.table[pin];
        let level = if self.is_level(pin) { 1 << 15 | 1 << 14 } else { 0 };
        Msi {
            address: 0xfee0_0000 | entry >> 56 << 12 | (entry >> 11 & 1) << 2,
            data: (entry & 0x7ff) as u32 | level,
        }
    }

    /// The messages of the pins that can send one or whose interrupt's end is awaited.
    pub(crate) fn routes(&self) -> [Option<Msi>; PIN_COUNT] {
        std::array::from_fn(|pin| {
            let live = self.table[pin] & MASKED == 0 || self.table[pin] & REMOTE_IRR != 0;
            live.then(|| self.message(pin))
        })
    }

    pub(crate) fn save(&self) -> IoapicV1 {
        // What a storm holds back is delivered some time after loading, so the count starts anew.
        let Self { id, select, table, lines, storms: _, held: _ } = self;
        IoapicV1 { id: *id, select: *select, table: *table, lines: *lines }
    }

    /// The chip of a saved state; pins that ask and have not been served are held. `Err` names an impossible value.
    pub(crate) fn load(state: IoapicV1) -> Result<Self, &'static str> {
        let IoapicV1 { id, select, table, lines } = state;
        if id > 15 {
            return Err("IOAPIC ID");
        }
        if lines >> PIN_COUNT != 0 {
            return Err("IOAPIC line");
        }
        let mut chip = Self { id, select, table, lines, storms: [0; PIN_COUNT], held: 0 };
        for (pin, entry) in table.into_iter().enumerate() {
            if entry & !(ENTRY_BITS & !DELIVERY_STATUS) != 0
                || (entry & REMOTE_IRR != 0 && !chip.is_level(pin))
            {
                return Err("redirection entry");
            }
            if chip.is_level(pin) && lines >> pin & 1 != 0 && entry & (MASKED | REMOTE_IRR) == 0 {
                chip.held |= 1 << pin;
            }
        }
        Ok(chip)
    }
}

/// Which entry, and which half of it, a register is.
fn entry_half(register: u8) -> Option<(usize, bool)> {
    let index = usize::from(register.checked_sub(0x10)?);
    (index / 2 < PIN_COUNT).then_some((index / 2, index % 2 != 0))
}
