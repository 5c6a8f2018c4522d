use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Alarm, AlarmSink, Clock, IrqLine, IrqSink};

#[derive(Default)]
struct Log(Mutex<Vec<(u32, bool)>>, Mutex<Vec<(usize, Option<u64>)>>);

impl IrqSink for Log {
    fn set_level(&self, pin: u32, high: bool) {
        self.0.lock().unwrap().push((pin, high));
    }
}

impl AlarmSink for Log {
    fn set_alarm(&self, id: usize, at: Option<u64>) {
        self.1.lock().unwrap().push((id, at));
    }
}

#[test]
fn a_pulse_is_one_edge() {
    let log = Arc::new(Log::default());
    IrqLine::new(log.clone(), 4).pulse();
    assert_eq!(*log.0.lock().unwrap(), [(4, true), (4, false)]);
}

#[test]
fn alarms_name_themselves() {
    let log = Arc::new(Log::default());
    let alarm = Alarm::new(log.clone(), 3);
    alarm.set(50);
    alarm.clear();
    assert_eq!(*log.1.lock().unwrap(), [(3, Some(50)), (3, None)]);
}

#[test]
fn the_clock_stands_runs_and_is_set() {
    let clock = Clock::new();
    assert_eq!(clock.now(), 0);
    clock.set(1_000_000_000);
    assert_eq!(clock.now(), 1_000_000_000, "a stopped clock stands");
    clock.start();
    std::thread::sleep(Duration::from_millis(2));
    let a = clock.now();
    assert!(a >= 1_002_000_000);
    clock.clone().stop();
    let b = clock.now();
    assert!(b >= a);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(clock.now(), b);
    assert!(!clock.is_running());
}
