//! Ends runs that go on for too long: a thread that kicks the processor again and again once its time is over.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use umbra_engine::Kicker;

/// How long a guest may run: some ten thousand instructions, a few of them slow.
const LIMIT: Duration = Duration::from_millis(2);

static RUNNING: Mutex<Option<(Instant, Kicker)>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

fn running() -> MutexGuard<'static, Option<(Instant, Kicker)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run that is watched until this is dropped.
pub(super) struct Watched;

impl Drop for Watched {
    fn drop(&mut self) {
        *running() = None;
    }
}

/// The run that begins now is kicked when its time is over.
pub(super) fn begin(kicker: Kicker) -> Watched {
    static START: std::sync::Once = std::sync::Once::new();
    START.call_once(|| drop(std::thread::spawn(watch)));
    *running() = Some((Instant::now() + LIMIT, kicker));
    CHANGED.notify_one();
    Watched
}

fn watch() {
    let mut run = running();
    loop {
        let wait = match &*run {
            None => Duration::from_secs(1),
            Some((end, kicker)) => match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => left,
                _ => {
                    kicker.kick();
                    LIMIT
                }
            },
        };
        run = CHANGED.wait_timeout(run, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}
