//! The machine's one clock, and alarms on it.
//!
//! The clock counts nanoseconds of the machine's life: it starts at zero, stands still while the machine is
//! paused, and goes on from its saved value in a restored machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

umbra_state::saved! {
    /// The clock's saved form.
    pub struct ClockV1: "clock", 1 {
        /// Nanoseconds of machine time.
        1 now: u64,
    }
}

/// A monotonic clock that can be stopped. Clones are the same clock.
#[derive(Clone, Default)]
pub struct Clock(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Machine time when the clock was last started or stopped.
    base: u64,
    /// The host's time when it was last started; `None` while it stands.
    since: Option<Instant>,
}

impl Clock {
    /// A clock at zero that stands still.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nanoseconds of machine time.
    pub fn now(&self) -> u64 {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.base.saturating_add(state.since.map_or(0, |s| s.elapsed().as_nanos() as u64))
    }

    /// Lets the clock run. Idempotent.
    pub fn start(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since.get_or_insert_with(Instant::now);
    }

    /// Stops the clock. Idempotent.
    pub fn stop(&self) {
        let now = self.now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State { base: now, since: None };
    }

    /// Whether the clock runs.
    pub fn is_running(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since.is_some()
    }

    /// Sets the time, in nanoseconds; for a restored machine and for tests. Whether it runs is unchanged.
    pub fn set(&self, now: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.base = now;
        state.since = state.since.map(|_| Instant::now());
    }
}

/// What a device with an [`Alarm`] does when it goes off.
pub trait Timed: Send {
    /// The alarm's time has come; `now` is the machine time in nanoseconds, at or after the time that was asked for.
    fn alarm(&mut self, now: u64);
}

/// What keeps alarms: the machine's timer thread.
pub trait AlarmSink: Send + Sync {
    /// Sets alarm `id` to machine time `at` in nanoseconds, or clears it. The latest call counts.
    fn set_alarm(&self, id: usize, at: Option<u64>);
}

/// One alarm of a device. When it goes off the machine calls the device's [`Timed::alarm`] once.
#[derive(Clone)]
pub struct Alarm {
    sink: Arc<dyn AlarmSink>,
    id: usize,
}

impl Alarm {
    /// Alarm `id` of `sink`.
    pub fn new(sink: Arc<dyn AlarmSink>, id: usize) -> Self {
        Self { sink, id }
    }

    /// Sets the alarm to machine time `at` in nanoseconds; a time that has passed goes off at once.
    pub fn set(&self, at: u64) {
        self.sink.set_alarm(self.id, Some(at));
    }

    /// Clears the alarm.
    pub fn clear(&self) {
        self.sink.set_alarm(self.id, None);
    }
}
