//! The time-stamp counter: the host's, less what passed while the machine stood.
//!
//! *Machine ticks* are the host's time-stamp counter less all pauses; every processor's counter follows from them by a ratio and an
//! offset of its own. So a machine that never stood has the host's own counter, which code that runs untranslated reads as well; and in
//! a machine that was moved each processor goes on where it stood, at the frequency that its guest knows.

use std::sync::{Mutex, MutexGuard, PoisonError};

use umbra_apic::Time as ApicTime;
use umbra_device::Clock;

/// Up to this many parts in a million, a frequency is the host's own: scaling would cost more than it gives.
const SAME_PPM: u64 = 100;
/// Binary places of a ratio of frequencies.
const RATIO_SHIFT: u32 = 32;

/// The host's time-stamp counter.
#[inline(always)]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC has no effect but on its result; every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Nanoseconds that this thread has run.
pub fn thread_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid; the call is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A moment of a machine that runs, as ticks and as nanoseconds of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anchor {
    /// Machine ticks.
    pub ticks: u64,
    /// Nanoseconds of the machine's clock.
    pub ns: u64,
}

/// When machine ticks count.
#[derive(Debug)]
pub struct Time {
    /// The frequency of the host's counter.
    pub khz: u32,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    runs: bool,
    /// How often time was started.
    starts: u64,
    /// Machine ticks less host ticks while time runs.
    base: u64,
    /// Machine ticks while time stands; `None` before the first start.
    stood: Option<u64>,
    /// When time was last started.
    anchor: Anchor,
}

impl Time {
    /// Time that stands, on a host whose counter runs at `khz`.
    pub(super) fn new(khz: u32) -> Self {
        let state = State { runs: false, starts: 0, base: 0, stood: None, anchor: Anchor::default() };
        Self { khz: khz.max(1), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ticks stand. Idempotent.
    pub(super) fn stop(&self) {
        let mut s = self.state();
        if s.runs {
            s.stood = Some(host_tsc().wrapping_add(s.base));
            s.runs = false;
        }
    }

    /// Ticks go on where they stood. Idempotent.
    pub(super) fn start(&self, clock: &Clock) {
        let mut s = self.state();
        if s.runs {
            return;
        }
        let (ns, host) = (clock.now(), host_tsc());
        s.base = s.stood.map_or(0, |stood| stood.wrapping_sub(host));
        s.anchor = Anchor { ticks: host.wrapping_add(s.base), ns };
        s.runs = true;
        s.starts += 1;
    }

    /// Machine ticks now, and whether they count.
    fn ticks(&self) -> (u64, bool) {
        let s = self.state();
        let running = host_tsc().wrapping_add(s.base);
        (if s.runs { running } else { s.stood.unwrap_or(running) }, s.runs)
    }
}

/// Where a processor's counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was never loaded: it is the host's counter once time runs.
    Host,
    /// It was loaded while time stood, and goes on from this value.
    Stood(u64),
    /// It follows machine ticks by `Tsc::offset`.
    Offset,
}

/// One processor's time-stamp counter.
#[derive(Debug, Clone)]
pub struct Tsc {
    origin: Origin,
    /// What is added after scaling.
    offset: u64,
    /// Machine ticks less host ticks.
    base: u64,
    /// Ticks of this counter a machine tick; `None` if they are the same.
    ratio: Option<u64>,
    /// The frequency that the guest knows; 0 until time has run.
    khz: u32,
    /// Which start of time `base` is of.
    seen: u64,
}

impl Default for Tsc {
    fn default() -> Self {
        Self { origin: Origin::Host, offset: 0, base: 0, ratio: None, khz: 0, seen: 0 }
    }
}

fn scale(ticks: u64, ratio: Option<u64>) -> u64 {
    ratio.map_or(ticks, |r| ((u128::from(ticks) * u128::from(r)) >> RATIO_SHIFT) as u64)
}

impl Tsc {
    /// The counter when the host's is at `host`.
    #[inline]
    pub fn at(&self, host: u64) -> u64 {
        scale(host.wrapping_add(self.base), self.ratio).wrapping_add(self.offset)
    }

    /// The counter now.
    #[inline]
    pub fn now(&self) -> u64 {
        self.at(host_tsc())
    }

    /// The host's counter when this one is at `value`, or the host's counter now if that has passed.
    pub(super) fn host_at(&self, value: u64) -> u64 {
        let host = host_tsc();
        let left = value.saturating_sub(self.at(host));
        let ticks = match self.ratio {
            None => left,
            Some(r) => {
                ((u128::from(left) << RATIO_SHIFT) / u128::from(r.max(1)) + 1).try_into().unwrap_or(u64::MAX)
            }
        };
        host.saturating_add(ticks)
    }

    /// Moves the counter.
    pub fn adjust(&mut self, delta: u64) {
        match &mut self.origin {
            Origin::Stood(value) => *value = value.wrapping_add(delta),
            Origin::Host | Origin::Offset => {
                self.origin = Origin::Offset;
                self.offset = self.offset.wrapping_add(delta);
            }
        }
    }

    /// The value at the moment in machine ticks.
    pub(super) fn of_ticks(&self, ticks: u64) -> u64 {
        scale(ticks, self.ratio).wrapping_add(self.offset)
    }

    /// The frequency at which it really runs.
    pub(super) fn real_khz(&self, time: &Time) -> u32 {
        if self.ratio.is_some() { self.khz } else { time.khz }
    }

    /// Value and frequency to be saved.
    pub fn save(&self, time: &Time) -> (u64, u32) {
        let value = match self.origin {
            Origin::Host => return (0, 0),
            Origin::Stood(value) => value,
            Origin::Offset => self.of_ticks(time.ticks().0),
        };
        (value, self.khz)
    }

    /// Goes on from a saved value at a saved frequency, 0 being the host's; both 0 is a processor at power-on, which takes the host's
    /// counter.
    pub fn load(value: u64, khz: u32, time: &Time) -> Self {
        let mut tsc = Self { khz, ..Self::default() };
        if value == 0 && khz == 0 {
            return tsc;
        }
        let (own, host) = (u64::from(khz), u64::from(time.khz));
        if khz != 0 && own.abs_diff(host) > host * SAME_PPM / 1_000_000 {
            tsc.ratio = Some((own << RATIO_SHIFT) / host);
        }
        tsc.origin = Origin::Stood(value);
        if let (ticks, true) = time.ticks() {
            tsc.resume(ticks);
        }
        tsc
    }

    fn resume(&mut self, ticks: u64) {
        if let Origin::Stood(value) = self.origin {
            self.offset = value.wrapping_sub(scale(ticks, self.ratio));
            self.origin = Origin::Offset;
        }
    }

    /// Takes note of time's latest start, if it has not been. The moment of that start, if so.
    pub(super) fn refresh(&mut self, time: &Time) -> Option<Anchor> {
        let s = *time.state();
        if s.starts == self.seen {
            return None;
        }
        self.seen = s.starts;
        self.base = s.base;
        match self.origin {
            // Also after a reset of a machine that has stood: the offset takes the pauses back.
            Origin::Host => (self.origin, self.offset) = (Origin::Offset, 0u64.wrapping_sub(s.base)),
            Origin::Stood(_) => self.resume(s.anchor.ticks),
            Origin::Offset => {}
        }
        if self.khz == 0 {
            self.khz = time.khz;
        }
        Some(s.anchor)
    }
}

/// The time as a processor's local APIC sees it.
pub(crate) struct CpuTime<'a> {
    pub clock: &'a Clock,
    pub tsc: &'a Tsc,
}

impl ApicTime for CpuTime<'_> {
    fn ns(&self) -> u64 {
        self.clock.now()
    }
    fn tsc(&self) -> u64 {
        self.tsc.now()
    }
}

#[cfg(test)]
#[path = "time_test.rs"]
mod time_test;
