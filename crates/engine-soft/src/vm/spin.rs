//! Loops in which a guest's processor waits for another one.
//!
//! Where a machine has more processors than the host has free ones, such a loop would last until the host's scheduler ends its turn,
//! some milliseconds, while the processor it waits for does not run. So after a while it gives its turn away.

/// Ticks of the host's time-stamp counter from one PAUSE to the next in a loop that does nothing but wait: 256 instructions take no longer, even
/// in the interpreter. (The longest such loop is Linux's while it stops all its processors: it tells watchdog and RCU that it lives.)
const LOOP_TICKS: u64 = 6000;
/// PAUSEs after which the wait counts as a long one: some ten microseconds.
const PATIENCE: u32 = 128;
/// PAUSEs between two turns given away.
const BETWEEN: u32 = 32;

/// Whether a processor waits in a loop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spin {
    /// PAUSEs in a row.
    pauses: u32,
    /// When the latest one was.
    at: u64,
}

impl Spin {
    /// A PAUSE, by the host's time-stamp counter.
    pub fn pause(&mut self, now: u64) {
        let is_next = now.wrapping_sub(self.at) <= LOOP_TICKS;
        self.pauses = if is_next { self.pauses + 1 } else { 0 };
        self.at = now;
    }

    /// Whether it has waited for so long that it shall give its turn away; after that it begins to wait anew, for less long.
    pub fn lasts(&mut self) -> bool {
        let lasts = self.pauses >= PATIENCE;
        if lasts {
            self.pauses = PATIENCE - BETWEEN;
        }
        lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loop_that_does_nothing_else_lasts() {
        let mut spin = Spin::default();
        let mut run = |step: u64, times: u64| {
            (0..times)
                .filter(|n| {
                    spin.pause(1_000_000 * step + n * step);
                    spin.lasts()
                })
                .count() as u64
        };
        assert_eq!(run(30_000, 10_000), 0, "it works between its PAUSEs");
        let given = run(400, 1128);
        assert!((30..=40).contains(&given), "{given}");
        assert_eq!(run(400, 50), 0, "a short one, after others");
    }
}
