//! The machine's timer thread: alarms of all devices, in machine time.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use umbra_device::{Alarm, AlarmSink, Clock, Timed};

/// While the clock stands, or nothing is due, the thread sleeps until it is told of a change.
pub(crate) struct Timers {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

#[derive(Default)]
struct State {
    alarms: Vec<Entry>,
    ending: bool,
}

struct Entry {
    at: Option<u64>,
    device: Weak<Mutex<dyn Timed>>,
}

impl Timers {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), clock })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new alarm, for a device that is not made yet: see [`Timers::wire`].
    pub(crate) fn alarm(self: &Arc<Self>) -> (usize, Alarm) {
        let mut state = self.lock();
        state.alarms.push(Entry { at: None, device: Weak::<Mutex<Nobody>>::new() });
        let id = state.alarms.len() - 1;
        (id, Alarm::new(self.clone(), id))
    }

    /// Says whose alarm `id` is.
    pub(crate) fn wire(&self, id: usize, device: &Arc<Mutex<impl Timed + 'static>>) {
        let device: Arc<Mutex<dyn Timed>> = device.clone();
        self.lock().alarms[id].device = Arc::downgrade(&device);
    }

    /// Looks at the clock anew: it was started, stopped or set.
    pub(crate) fn clock_changed(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Starts the thread.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let timers = self.clone();
        std::thread::Builder::new().name("timer".into()).spawn(move || timers.work())
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.ending {
            let now = self.clock.now();
            let running = self.clock.is_running();
            let next = state.alarms.iter().enumerate().filter_map(|(i, e)| Some((e.at?, i))).min();
            match next {
                Some((at, id)) if running && at <= now => {
                    state.alarms[id].at = None;
                    let device = state.alarms[id].device.upgrade();
                    drop(state);
                    if let Some(device) = device {
                        device.lock().unwrap_or_else(PoisonError::into_inner).alarm(now);
                    }
                    state = self.lock();
                }
                Some((at, _)) if running => {
                    let wait = Duration::from_nanos(at - now);
                    state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
                _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl AlarmSink for Timers {
    fn set_alarm(&self, id: usize, at: Option<u64>) {
        let mut state = self.lock();
        let earliest = state.alarms.iter().filter_map(|e| e.at).min();
        if let Some(entry) = state.alarms.get_mut(id) {
            entry.at = at;
            // A later time needs no wake-up: the thread finds out when it wakes for the old one.
            if at.is_some_and(|at| earliest.is_none_or(|e| at < e)) {
                self.changed.notify_all();
            }
        }
    }
}

/// Stands in for a device that is not made yet.
struct Nobody;

impl Timed for Nobody {
    fn alarm(&mut self, _now: u64) {}
}
