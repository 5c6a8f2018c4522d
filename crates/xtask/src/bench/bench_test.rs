//! Medians, and the rate of a guest's clock from its lines.

use std::time::Duration;

use super::boot::rate_of;
use super::median;
use super::overhead::total_calls;
use crate::process::Line;

#[test]
fn the_median_is_the_middle_and_the_lower_of_two() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.0));
    assert_eq!(median(&[]), None);
}

#[test]
fn a_slow_guest_clock_shows() {
    let line = |at: u64, text: &str| Line { at: Duration::from_millis(at), text: text.into() };
    let lines = [
        line(900, "guest: user space"),
        line(1000, "guest: clock 1 uptime 0.50 date 1"),
        line(2000, "noise uptime 77"),
        line(11_000, "guest: clock 10 uptime 9.50 date 10"),
    ];
    assert_eq!(rate_of(&lines), Some(0.9));
    assert_eq!(rate_of(&lines[..2]), None);
}

#[test]
fn the_total_of_straces_table_is_read_with_and_without_errors() {
    let table = "% time     seconds  usecs/call     calls    errors syscall\n\
        ------ ----------- ----------- --------- --------- ----------------\n\
        \x20 0.00    0.000000           0         5           read\n\
        ------ ----------- ----------- --------- --------- ----------------\n\
        100.00    0.000123           1      1234        21 total\n";
    assert_eq!(total_calls(table), Some(1234.0));
    assert_eq!(total_calls("100.00    0.000123           1       77           total\n"), Some(77.0));
    assert_eq!(total_calls("killed\n"), None);
}

#[test]
fn delayed_lines_not_change_the_rate() {
    let line = |tick: u64| {
        let late = if tick.is_multiple_of(4) { 0 } else { 70 * tick };
        let text = format!("guest: clock {tick} uptime {tick}.00 date 1");
        Line { at: Duration::from_millis(tick * 1000 + late), text }
    };
    let lines: Vec<Line> = (1..=24).map(line).collect();
    let rate = rate_of(&lines).expect("enough ticks");
    assert!((rate - 1.0).abs() < 0.001, "{rate}");
}
