//! The machine around a device under test: a clock set by hand, and an end of every line that keeps a bounded record.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use umbra_device::{Alarm, AlarmSink, Clock, EventSink, IrqLine, IrqSink, Msi, MsiLine, MsiSink, Timed};

/// Clock, lines, alarm, messages and events.
#[derive(Clone, Default)]
pub struct Board {
    /// The machine's clock. It stands, and is set by hand.
    pub clock: Clock,
    ends: Arc<Ends>,
}

#[derive(Default)]
struct Ends {
    alarm: Mutex<Option<u64>>,
    calls: AtomicUsize,
}

impl Ends {
    fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl IrqSink for Ends {
    fn set_level(&self, _pin: u32, _high: bool) {
        self.count();
    }
}

impl MsiSink for Ends {
    fn send(&self, _msi: Msi) {
        self.count();
    }
}

impl AlarmSink for Ends {
    fn set_alarm(&self, _id: usize, at: Option<u64>) {
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl Board {
    /// A line to nowhere.
    pub fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.ends.clone(), pin)
    }

    /// An interrupt controller that only counts.
    pub fn irq_sink(&self) -> Arc<dyn IrqSink> {
        self.ends.clone()
    }

    /// Where messages go.
    pub fn msi(&self) -> MsiLine {
        self.ends.clone()
    }

    /// The one alarm.
    pub fn alarm(&self) -> Alarm {
        Alarm::new(self.ends.clone(), 0)
    }

    /// Where events go.
    pub fn events(&self) -> EventSink {
        let ends = self.ends.clone();
        Arc::new(move |_| ends.count())
    }

    /// Interrupts, messages and events since the last call.
    pub fn take_calls(&self) -> usize {
        self.ends.calls.swap(0, Ordering::Relaxed)
    }

    /// Lets `step` nanoseconds pass, and the alarm go off if its time has come.
    ///
    /// # Panics
    /// The device sets its alarm to a time that has passed already: it would go off without end.
    pub fn pass(&self, step: u64, device: &mut dyn Timed) {
        let now = self.clock.now().saturating_add(step);
        self.clock.set(now);
        let mut alarm = self.ends.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if alarm.is_some_and(|at| at <= now) {
            *alarm = None;
            drop(alarm);
            device.alarm(now);
            let next = *self.ends.alarm.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(
                next.is_none_or(|at| at > now || now == u64::MAX),
                "an alarm for the past would never end"
            );
        }
    }
}
