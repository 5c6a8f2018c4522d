//! One counter of an 8254, as a pure model.
//!
//! The authority is Intel's 8254 data sheet. Nothing ticks here: the count and the output follow from the tick at which the count was
//! loaded. A count is loaded one tick after it is written; in the periodic modes 2 and 3 a new count waits for the end of the
//! (half) period, in modes 1 and 5 for the gate.

/// The shortest period, in ticks, in which counter 0 of a periodic mode raises interrupts (100 µs), so that a guest cannot keep the
/// host's timers busy without doing anything itself. Edges in between are left out.
const PERIOD_TICKS_MIN: u64 = 120;

/// One counter. Its reading and its output at a tick follow from `count` and `start`.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    /// 0 to 5.
    pub(crate) mode: u8,
    /// Which bytes are accessed: 1 low, 2 high, 3 low then high.
    pub(crate) access: u8,
    pub(crate) bcd: bool,
    /// The count in use, 1 to 65536.
    pub(crate) count: u32,
    /// A count was loaded since the mode was set and, where the mode needs it, triggered.
    pub(crate) running: bool,
    /// When the count was loaded.
    pub(crate) start: u64,
    /// Ticks counted, while the gate stops the counter.
    pub(crate) frozen: Option<u64>,
    /// The count that comes next, and the tick at which it does (for modes 2 and 3).
    pub(crate) next: Option<(u32, u64)>,
    pub(crate) gate: bool,
    /// The low byte of a count of which the high byte is still to be written.
    pub(crate) written: Option<u8>,
    pub(crate) read_high: bool,
    pub(crate) latched: Option<u16>,
    pub(crate) status: Option<u8>,
}

impl Counter {
    pub(crate) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            access: 3,
            bcd: false,
            count: 0x1_0000,
            running: false,
            start: 0,
            frozen: None,
            next: None,
            gate,
            written: None,
            read_high: false,
            latched: None,
            status: None,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Modes 1 and 5 start by the gate's rising edge.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Ticks counted since the count was loaded.
    fn elapsed(&self, tick: u64) -> u64 {
        self.frozen.unwrap_or_else(|| tick.saturating_sub(self.start))
    }

    /// The length of mode 3's high phase.
    fn high_ticks(count: u32) -> u64 {
        u64::from(count).div_ceil(2)
    }

    /// The end of the period, or in mode 3 the half period, in which `tick` lies.
    fn period_end(&self, tick: u64) -> u64 {
        let (count, elapsed) = (u64::from(self.count), self.elapsed(tick));
        let (begin, position) = (elapsed - elapsed % count, elapsed % count);
        let high = Self::high_ticks(self.count);
        let end = if self.mode == 3 && position < high { begin + high } else { begin.saturating_add(count) };
        self.start.saturating_add(end)
    }

    /// Takes over a count whose time has come.
    pub(crate) fn advance(&mut self, tick: u64) {
        let Some((count, at)) = self.next else { return };
        if !self.is_periodic() || self.frozen.is_some() || tick < at {
            return;
        }
        self.next = None;
        self.start = self.start_after_switch(count, at);
        self.count = count;
    }

    /// The (perhaps fictive) load time from which `count` counts if it takes over at `at`; halfway through a period of mode 3 that is
    /// before its low phase.
    fn start_after_switch(&self, count: u32, at: u64) -> u64 {
        let halfway = !at.saturating_sub(self.start).is_multiple_of(u64::from(self.count));
        if halfway { at.saturating_sub(Self::high_ticks(count)) } else { at }
    }

    /// The level of the output.
    pub(crate) fn out(&self, tick: u64) -> bool {
        let (count, elapsed) = (u64::from(self.count), self.elapsed(tick));
        match self.mode {
            0 => self.running && elapsed >= count,
            1 => !self.running || elapsed >= count,
            2 => !self.running || self.frozen.is_some() || elapsed % count != count - 1,
            3 => !self.running || self.frozen.is_some() || elapsed % count < Self::high_ticks(self.count),
            _ => !self.running || elapsed != count,
        }
    }

    /// When the output next rises after `tick`, of its own accord.
    pub(crate) fn next_rise(&self, tick: u64) -> Option<u64> {
        if !self.running || self.frozen.is_some() {
            return None;
        }
        let (count, elapsed) = (u64::from(self.count), self.elapsed(tick));
        if !self.is_periodic() {
            let rise = if self.mode < 2 { count } else { count + 1 };
            return (elapsed < rise).then(|| self.start.saturating_add(rise));
        }
        if let Some((count, at)) = self.next {
            let low_first = self.start_after_switch(count, at) != at;
            return Some(at.saturating_add(if low_first { u64::from(count / 2) } else { 0 }));
        }
        // A count of 1 is illegal in these modes: the output never changes.
        let skipped = elapsed.saturating_add(PERIOD_TICKS_MIN.saturating_sub(count));
        (count > 1).then(|| self.start.saturating_add((skipped / count + 1).saturating_mul(count)))
    }

    /// The counting element, as the guest reads it.
    fn value(&self, tick: u64) -> u16 {
        let (count, elapsed) = (u64::from(self.count), if self.running { self.elapsed(tick) } else { 0 });
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                let (position, high) = (elapsed % count, Self::high_ticks(self.count));
                let within = if position < high { position } else { position - high };
                (count & !1).saturating_sub(2 * within)
            }
            _ => (count % modulus + modulus - elapsed % modulus) % modulus,
        };
        let value = (value % modulus) as u16;
        if self.bcd { to_bcd(value) } else { value }
    }

    /// A control word for this counter, other than a latch command.
    pub(crate) fn set_mode(&mut self, access: u8, mode: u8, bcd: bool) {
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            access,
            bcd,
            count: self.count,
            ..Self::new(self.gate)
        };
    }

    pub(crate) fn latch_count(&mut self, tick: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(tick));
        }
    }

    /// Latches output, whether a count waits, access, mode and bcd, as the data sheet's status byte.
    pub(crate) fn latch_status(&mut self, tick: u64) {
        let waits = !self.running || self.next.is_some() || (self.frozen.is_none() && tick < self.start);
        let status = u8::from(self.out(tick)) << 7
            | u8::from(waits) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd);
        self.status.get_or_insert(status);
    }

    pub(crate) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        if self.access == 3 {
            self.read_high = !self.read_high;
        }
        let first_of_two = self.access == 3 && self.read_high;
        if !first_of_two {
            self.latched = None;
        }
        if self.access == 1 || first_of_two { low } else { high }
    }

    pub(crate) fn write(&mut self, value: u8, tick: u64) {
        match (self.access, self.written.take()) {
            (1, _) => self.load(value.into(), tick),
            (2, _) => self.load(u16::from(value) << 8, tick),
            (_, Some(low)) => self.load(u16::from_le_bytes([low, value]), tick),
            (_, None) => {
                self.written = Some(value);
                // The first half of a new count stops mode 0.
                self.running &= self.mode != 0;
            }
        }
    }

    fn load(&mut self, raw: u16, tick: u64) {
        let count = match (raw, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (raw, false) => raw.into(),
            (raw, true) => from_bcd(raw),
        };
        if self.is_triggered() {
            self.next = Some((count, 0));
        } else if self.is_periodic() && self.running {
            let at = self.next.map_or_else(|| self.period_end(tick), |(_, at)| at);
            self.next = Some((count, at));
        } else {
            self.count = count;
            self.begin(tick);
            self.frozen = (!self.gate).then_some(0);
        }
    }

    fn begin(&mut self, tick: u64) {
        self.running = true;
        self.start = tick.saturating_add(1);
        self.frozen = None;
    }

    /// The gate input changes: it stops modes 0 and 4, stops and restarts 2 and 3, and triggers 1 and 5.
    pub(crate) fn set_gate(&mut self, gate: bool, tick: u64) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        if self.is_triggered() {
            if gate && (self.running || self.next.is_some()) {
                self.take_next();
                self.begin(tick);
            }
        } else if !gate {
            self.frozen = self.running.then(|| self.elapsed(tick));
        } else if let Some(elapsed) = self.frozen.take() {
            if self.is_periodic() {
                self.take_next();
                self.begin(tick);
            } else {
                self.start = tick.saturating_add(1).saturating_sub(elapsed);
            }
        }
    }

    fn take_next(&mut self) {
        if let Some((count, _)) = self.next.take() {
            self.count = count;
        }
    }
}

/// A hostile count may have digits above 9; they count as what they are.
fn from_bcd(raw: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(raw >> (4 * digit) & 0xf))
}

fn to_bcd(value: u16) -> u16 {
    (value % 10) | (value / 10 % 10) << 4 | (value / 100 % 10) << 8 | (value / 1000 % 10) << 12
}
