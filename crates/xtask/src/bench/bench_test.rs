//! Medians, the rate of a guest's clock from its lines, and what the io bench takes from what it reads.

use std::time::Duration;

use super::boot::rate_of;
use super::overhead::total_calls;
use super::{io, median};
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

#[test]
fn memory_of_the_guest_is_not_the_monitor_s() {
    let smaps = "\
7f0000000000-7f0020000000 rw-s 00000000 00:01 7   /memfd:guest (deleted)
Size:             524288 kB
Pss:              300000 kB
7f1000000000-7f1020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Pss:              200000 kB
55d000000000-55d000100000 r-xp 00000000 fd:00 12  /usr/bin/monitor
Size:               1024 kB
Rss:                 900 kB
Pss:                 700 kB
7f2000000000-7f2000010000 rw-p 00000000 00:00 0   [heap]
Size:                 64 kB
Pss:                  50 kB
";
    assert_eq!(io::outside_kib(smaps, 524_288), 750);
}

#[test]
fn what_is_not_reached_is_told() {
    let figure = |name: &str, sides: &[(&str, f64)]| {
        let sides = sides.iter().map(|&(side, value)| (side.to_owned(), value, vec![value]));
        io::IoFigure { name: name.to_owned(), sides: sides.collect() }.broken()
    };
    assert!(figure("randread-raw", &[("umbra", 15.0), ("qemu-10", 10.0)]).is_empty());
    assert_eq!(figure("randread-raw", &[("umbra", 14.0), ("qemu-10", 10.0), ("qemu-7", 9.0)]).len(), 1);
    assert!(figure("to-host", &[("umbra", 20.0), ("qemu-10", 10.0), ("qemu-10-passt", 20.0)]).is_empty());
    assert_eq!(figure("to-host", &[("umbra", 19.0), ("qemu-10", 10.0), ("qemu-10-passt", 20.0)]).len(), 2);
    assert_eq!(figure("idle-mib", &[("umbra", 49.0), ("qemu-10", 90.0)]).len(), 1);
    assert!(figure("idle-mib", &[("umbra", 48.0), ("qemu-10", 9.0)]).is_empty());
}
