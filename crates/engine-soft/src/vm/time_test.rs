use std::thread::sleep;
use std::time::Duration;

use umbra_device::Clock;

use super::*;

const KHZ: u32 = 2_000_000;

fn started() -> (Time, Clock) {
    let (time, clock) = (Time::new(KHZ), Clock::new());
    clock.start();
    time.start(&clock);
    (time, clock)
}

/// Reads the counter between two readings of the host's, with `f` of the host's counter as what it must be.
fn assert_is(tsc: &Tsc, f: impl Fn(u64) -> u64) {
    let before = host_tsc();
    let value = tsc.now();
    let after = host_tsc();
    assert!((f(before)..=f(after)).contains(&value), "{value} is not in {}..={}", f(before), f(after));
}

#[test]
fn a_machine_that_never_stood_has_the_hosts_counter() {
    let (time, _) = started();
    let mut tsc = Tsc::load(0, 0, &time);
    assert_eq!(tsc.save(&time), (0, 0), "it has not run");
    assert!(tsc.refresh(&time).is_some());
    assert!(tsc.refresh(&time).is_none(), "time was started once");
    assert_is(&tsc, |host| host);
    assert_eq!(tsc.save(&time).1, KHZ);
}

#[test]
fn the_counter_stands_with_time() {
    let (time, clock) = started();
    let mut tsc = Tsc::default();
    tsc.refresh(&time);
    time.stop();
    let (stood, _) = tsc.save(&time);
    sleep(Duration::from_millis(5));
    assert_eq!(tsc.save(&time).0, stood);
    time.stop();
    time.start(&clock);
    let host = host_tsc();
    let anchor = tsc.refresh(&time).unwrap();
    let gone = tsc.now() - stood;
    assert!(gone <= host_tsc() - host + 1_000_000, "{gone} ticks went by while time stood");
    assert_eq!(tsc.of_ticks(anchor.ticks), stood);
}

#[test]
fn a_saved_counter_goes_on_from_its_value() {
    let (time, clock) = (Time::new(KHZ), Clock::new());
    let mut tsc = Tsc::load(77_000, KHZ, &time);
    assert_eq!(tsc.save(&time), (77_000, KHZ));
    time.start(&clock);
    tsc.refresh(&time);
    let start = tsc.save(&time).0;
    assert!((77_000..77_000 + 1_000_000_000).contains(&start), "{start}");
    // Loaded while time runs, it starts at once.
    let running = Tsc::load(5, KHZ, &time);
    let (value, _) = running.save(&time);
    assert!((5..1_000_000_000).contains(&value), "{value}");
}

#[test]
fn another_frequency_is_scaled_and_a_little_difference_is_not() {
    let (time, clock) = (Time::new(KHZ), Clock::new());
    let mut tsc = Tsc::load(1000, KHZ / 2, &time);
    time.start(&clock);
    let anchor = tsc.refresh(&time).unwrap();
    assert_eq!(tsc.of_ticks(anchor.ticks), 1000);
    assert_eq!(tsc.of_ticks(anchor.ticks + 2_000_000) - 1000, 1_000_000);
    assert_eq!(tsc.save(&time).1, KHZ / 2);
    assert_eq!(tsc.real_khz(&time), KHZ / 2);

    let near = KHZ + KHZ / 20_000;
    let tsc = Tsc::load(1000, near, &time);
    assert_eq!((tsc.ratio, tsc.save(&time).1, tsc.real_khz(&time)), (None, near, KHZ));
}

#[test]
fn the_host_reaches_a_value_when_the_counter_does() {
    let (time, clock) = (Time::new(KHZ), Clock::new());
    for khz in [KHZ, KHZ / 3, KHZ * 2, 1, u32::MAX] {
        let mut tsc = Tsc::load(1, khz, &time);
        time.start(&clock);
        tsc.refresh(&time);
        let value = tsc.now() + 10_000_000;
        let host = tsc.host_at(value);
        assert!(tsc.at(host) >= value, "{khz} kHz: too early");
        let step = u64::from(khz / KHZ + 1);
        assert!(tsc.at(host) - value <= 3 * step, "{khz} kHz: too late");
        assert!(tsc.host_at(0) <= host_tsc(), "what has passed is now");
        assert!(tsc.host_at(u64::MAX) > host_tsc());
        time.stop();
    }
}

#[test]
fn moving_the_counter_moves_it_whether_time_runs_or_not() {
    let (time, clock) = (Time::new(KHZ), Clock::new());
    let mut tsc = Tsc::load(1000, KHZ, &time);
    tsc.adjust(500);
    assert_eq!(tsc.save(&time).0, 1500);
    time.start(&clock);
    let anchor = tsc.refresh(&time).unwrap();
    tsc.adjust(0u64.wrapping_sub(1400));
    assert_eq!(tsc.of_ticks(anchor.ticks), 100);
}

#[test]
fn a_reset_after_a_pause_has_the_hosts_counter_again() {
    let (time, clock) = started();
    time.stop();
    sleep(Duration::from_millis(2));
    let mut tsc = Tsc::load(0, 0, &time);
    time.start(&clock);
    tsc.refresh(&time);
    assert_is(&tsc, |host| host);
}
