//! Two 8259A interrupt controllers, the second at input 2 of the first, as a pure model.
//!
//! The authority is Intel's 8259A data sheet; for the edge/level control registers, Intel's PIIX and ICH data sheets.
//! Two freedoms are taken. A request by an edge stays until it is taken or the chip is initialized: the data sheet
//! wants its line to stay high until then, which our devices' pulses do not. The second chip's output is not latched by the
//! first: an interrupt that goes away in between is no interrupt, rather than a spurious one.

use crate::PicV1;

/// Where the initialization sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    /// As at power-on: no interrupts.
    Never,
    Done,
    Icw2,
    Icw3,
    Icw4,
}

impl Step {
    fn from_saved(n: u8) -> Option<Self> {
        [Self::Never, Self::Done, Self::Icw2, Self::Icw3, Self::Icw4].into_iter().find(|s| *s as u8 == n)
    }
}

/// The inputs that the edge/level control registers can make level-triggered: not the timer, the keyboard, the
/// cascade, the clock and the coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// The first chip's input for the second.
const CASCADE: u8 = 2;

/// One 8259A.
struct Chip {
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    base: u8,
    /// The input of highest priority.
    first: u8,
    step: Step,
    has_icw4: bool,
    single: bool,
    auto_eoi: bool,
    nested: bool,
    rotate: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    const fn new() -> Self {
        Self {
            lines: 0,
            irr: 0,
            imr: 0,
            isr: 0,
            elcr: 0,
            base: 0,
            first: 0,
            step: Step::Never,
            has_icw4: false,
            single: false,
            auto_eoi: false,
            nested: false,
            rotate: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        let rises = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rises {
            self.irr |= bit;
        }
    }

    /// How far the most urgent of `inputs` is from the highest priority; 8 if there is none.
    fn rank(&self, inputs: u8) -> u32 {
        inputs.rotate_right(self.first.into()).trailing_zeros()
    }

    fn at_rank(&self, rank: u32) -> u8 {
        (self.first + rank as u8) & 7
    }

    /// The input that asks and is more urgent than what is in service. `cascade`: input bits that another chip drives.
    fn request(&self, cascade: u8, is_master: bool) -> Option<u8> {
        if self.step != Step::Done {
            return None;
        }
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        if self.nested && is_master {
            serving &= !(1 << CASCADE);
        }
        let rank = self.rank((self.irr | cascade) & !self.imr);
        (rank < self.rank(serving)).then(|| self.at_rank(rank))
    }

    /// The request of `input` is taken.
    fn take(&mut self, input: u8) {
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate {
            self.first = (input + 1) & 7;
        }
    }

    /// A write with address line A0 low: ICW1, OCW2 or OCW3.
    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.ocw2(value >> 5, value & 7);
        }
    }

    /// Starts initialization. Lines that are high must fall and rise before they are an edge again.
    fn icw1(&mut self, value: u8) {
        let Self { lines, elcr, base, nested, auto_eoi, .. } = *self;
        *self = Self { lines, elcr, base, nested, auto_eoi, ..Self::new() };
        self.irr = lines & elcr;
        self.step = Step::Icw2;
        self.has_icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
        if !self.has_icw4 {
            (self.nested, self.auto_eoi) = (false, false);
        }
    }

    fn ocw2(&mut self, command: u8, input: u8) {
        let (rotates, specific, ends) = (command & 4 != 0, command & 2 != 0, command & 1 != 0);
        match (ends, specific) {
            (true, true) => self.end(input, rotates),
            (true, false) => {
                let masked = if self.special_mask { self.imr } else { 0 };
                let rank = self.rank(self.isr & !masked);
                if rank < 8 {
                    self.end(self.at_rank(rank), rotates);
                }
            }
            (false, true) if rotates => self.first = (input + 1) & 7,
            (false, true) => {}
            (false, false) => self.rotate = rotates,
        }
    }

    fn end(&mut self, input: u8, rotates: bool) {
        self.isr &= !(1 << input);
        if rotates {
            self.first = (input + 1) & 7;
        }
    }

    /// A write with A0 high: the mask, or the next initialization control word.
    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.has_icw4 { Step::Icw4 } else { Step::Done };
        match self.step {
            Step::Never | Step::Done => self.imr = value,
            Step::Icw2 => {
                self.base = value & 0xf8;
                self.step = if self.single { after_icw3 } else { Step::Icw3 };
            }
            // Who is cascaded where is wired.
            Step::Icw3 => self.step = after_icw3,
            Step::Icw4 => {
                self.nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.step = Step::Done;
            }
        }
    }

    fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.irr = self.irr & !value | self.lines & value;
    }
}

/// Both chips.
pub(crate) struct PicChip {
    chips: [Chip; 2],
}

impl PicChip {
    pub(crate) fn new() -> Self {
        Self { chips: [Chip::new(), Chip::new()] }
    }

    /// Drives input 0 to 15; input 2 is taken by the second chip.
    pub(crate) fn set_line(&mut self, input: u8, high: bool) {
        let [master, slave] = &mut self.chips;
        match input {
            CASCADE | 16.. => {}
            0..8 => master.set_line(input, high),
            8..16 => slave.set_line(input - 8, high),
        }
    }

    fn cascade(&self) -> u8 {
        u8::from(self.chips[1].request(0, false).is_some()) << CASCADE
    }

    /// What the first chip (0) or the second (1) asks for.
    fn request(&self, chip: usize) -> Option<u8> {
        if chip == 0 { self.chips[0].request(self.cascade(), true) } else { self.chips[1].request(0, false) }
    }

    /// The level of the interrupt output.
    pub(crate) fn output(&self) -> bool {
        self.request(0).is_some()
    }

    /// The processor takes the interrupt (two INTA cycles): its vector. Without a request it is the spurious one, input 7's.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let request = self.request(0);
        let behind = self.request(1);
        let [master, slave] = &mut self.chips;
        match (request, behind) {
            (None, _) => master.base | 7,
            (Some(CASCADE), Some(input)) => {
                master.take(CASCADE);
                slave.take(input);
                slave.base | input
            }
            (Some(input), _) => {
                master.take(input);
                master.base | input
            }
        }
    }

    /// Reads chip 0's or 1's port with A0 as given.
    pub(crate) fn read(&mut self, chip: usize, a0: bool) -> u8 {
        let request = self.request(chip);
        let cascade = if chip == 0 { self.cascade() } else { 0 };
        let Some(chip) = self.chips.get_mut(chip) else { return 0xff };
        if std::mem::take(&mut chip.poll) {
            return request.map_or(0, |input| {
                chip.take(input);
                0x80 | input
            });
        }
        match (a0, chip.read_isr) {
            (true, _) => chip.imr,
            (false, true) => chip.isr,
            (false, false) => chip.irr | cascade,
        }
    }

    /// Writes chip 0's or 1's port with A0 as given.
    pub(crate) fn write(&mut self, chip: usize, a0: bool, value: u8) {
        if let Some(chip) = self.chips.get_mut(chip) {
            if a0 { chip.write_data(value) } else { chip.write_command(value) }
        }
    }

    pub(crate) fn elcr(&self, chip: usize) -> u8 {
        self.chips.get(chip).map_or(0xff, |chip| chip.elcr)
    }

    pub(crate) fn set_elcr(&mut self, chip: usize, value: u8) {
        if let (Some(writable), Some(chip)) = (ELCR_WRITABLE.get(chip), self.chips.get_mut(chip)) {
            chip.set_elcr(value & writable);
        }
    }

    pub(crate) fn save(&self) -> PicV1 {
        let [m, s] = &self.chips;
        PicV1 {
            lines: [m.lines, s.lines],
            irr: [m.irr, s.irr],
            imr: [m.imr, s.imr],
            isr: [m.isr, s.isr],
            elcr: [m.elcr, s.elcr],
            base: [m.base, s.base],
            first: [m.first, s.first],
            step: [m.step as u8, s.step as u8],
            has_icw4: [m.has_icw4, s.has_icw4],
            single: [m.single, s.single],
            auto_eoi: [m.auto_eoi, s.auto_eoi],
            nested: [m.nested, s.nested],
            rotate: [m.rotate, s.rotate],
            special_mask: [m.special_mask, s.special_mask],
            read_isr: [m.read_isr, s.read_isr],
            poll: [m.poll, s.poll],
        }
    }

    /// The chips of a saved state. `Err` names an impossible value.
    pub(crate) fn load(state: &PicV1) -> Result<Self, &'static str> {
        Ok(Self { chips: [load_chip(state, 0)?, load_chip(state, 1)?] })
    }
}

fn load_chip(state: &PicV1, i: usize) -> Result<Chip, &'static str> {
    let PicV1 {
        lines,
        irr,
        imr,
        isr,
        elcr,
        base,
        first,
        step,
        has_icw4,
        single,
        auto_eoi,
        nested,
        rotate,
        special_mask,
        read_isr,
        poll,
    } = state;
    let taken = if i == 0 { 1 << CASCADE } else { 0 };
    if elcr[i] & !ELCR_WRITABLE[i] != 0 {
        return Err("edge/level control register");
    }
    if lines[i] & taken != 0 || irr[i] & taken != 0 || (irr[i] ^ lines[i]) & elcr[i] != 0 {
        return Err("interrupt request register");
    }
    if base[i] & 7 != 0 || first[i] > 7 {
        return Err("interrupt vector or priority");
    }
    Ok(Chip {
        lines: lines[i],
        irr: irr[i],
        imr: imr[i],
        isr: isr[i],
        elcr: elcr[i],
        base: base[i],
        first: first[i],
        step: Step::from_saved(step[i]).ok_or("initialization step")?,
        has_icw4: has_icw4[i],
        single: single[i],
        auto_eoi: auto_eoi[i],
        nested: nested[i],
        rotate: rotate[i],
        special_mask: special_mask[i],
        read_isr: read_isr[i],
        poll: poll[i],
    })
}
