//! The timer: counts down bus cycles, or waits for a value of the time-stamp counter.
//!
//! Intel SDM volume 3, "APIC Timer". A bus cycle is one nanosecond, as under KVM, so that counts mean the same
//! under every engine. The count is never stored while it runs: it follows from the time at which it ends.

/// The shortest time between two interrupts of the periodic mode, so that a guest cannot keep the host's timers
/// busy without doing anything itself.
pub const PERIOD_NS_MIN: u64 = 100_000;

/// What the LVT entry says the timer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The fourth code. The timer stands.
    Reserved,
}

impl Mode {
    pub(crate) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// When the timer goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// At this machine time, in nanoseconds.
    Ns(u64),
    /// When the guest's time-stamp counter reaches this value.
    Tsc(u64),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Timer {
    pub(crate) initial: u32,
    /// The divide configuration register.
    divide: u32,
    /// When the count reaches zero; `None` while it stands at zero.
    ends: Option<u64>,
    /// IA32_TSC_DEADLINE; zero when disarmed.
    pub(crate) tsc_deadline: u64,
}

impl Timer {
    /// Bus cycles a count: 2, 4, … 128, 1 for the codes 0 to 7 in bits 0, 1 and 3.
    fn divisor(&self) -> u64 {
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        1 << ((code + 1) & 7)
    }

    pub(crate) fn divide(&self) -> u32 {
        self.divide
    }

    fn period(&self) -> u64 {
        (u64::from(self.initial) * self.divisor()).max(PERIOD_NS_MIN)
    }

    fn start(&mut self, count: u32, now: u64) {
        self.ends = (count != 0).then(|| now.saturating_add(u64::from(count) * self.divisor()));
    }

    /// The current count. While an end that has come is not yet expired it is 1, so that a saved timer still goes off.
    pub(crate) fn count(&self, now: u64) -> u32 {
        let Some(ends) = self.ends else { return 0 };
        let left = ends.saturating_sub(now).div_ceil(self.divisor()).max(1);
        left.min(u64::from(self.initial)) as u32
    }

    pub(crate) fn set_initial(&mut self, count: u32, mode: Mode, now: u64) {
        if mode.counts() {
            self.initial = count;
            self.start(count, now);
        }
    }

    /// Restores the registers; the current count is at most the initial one.
    pub(crate) fn load(&mut self, initial: u32, current: u32, divide: u32, mode: Mode, now: u64) {
        *self = Self { initial, divide, ends: None, tsc_deadline: 0 };
        if mode.counts() {
            self.start(current.min(initial), now);
        }
    }

    /// Changes the divider; what is left of the count goes on at the new speed.
    pub(crate) fn set_divide(&mut self, divide: u32, now: u64) {
        let left = self.count(now);
        self.divide = divide;
        self.start(left, now);
    }

    /// The mode changes. Between counting and waiting for the TSC, the timer is disarmed.
    pub(crate) fn set_mode(&mut self, old: Mode, new: Mode) {
        if old.counts() != new.counts() || (!new.counts() && old != new) {
            (self.initial, self.ends, self.tsc_deadline) = (0, None, 0);
        }
    }

    pub(crate) fn next(&self, mode: Mode) -> Option<Deadline> {
        match mode {
            Mode::OneShot | Mode::Periodic => self.ends.map(Deadline::Ns),
            Mode::TscDeadline => (self.tsc_deadline != 0).then_some(Deadline::Tsc(self.tsc_deadline)),
            Mode::Reserved => None,
        }
    }

    /// Whether the timer goes off. Periods that were missed are one interrupt; the next end lies in the future.
    pub(crate) fn expire(&mut self, mode: Mode, now: u64, tsc: u64) -> bool {
        match self.next(mode) {
            Some(Deadline::Ns(ends)) if ends <= now => {
                self.ends = (mode == Mode::Periodic && self.initial != 0).then(|| {
                    let period = self.period();
                    let missed = (now - ends) / period;
                    ends.saturating_add(missed.saturating_add(1).saturating_mul(period))
                });
                true
            }
            Some(Deadline::Tsc(deadline)) if deadline <= tsc => {
                self.tsc_deadline = 0;
                true
            }
            _ => false,
        }
    }
}
