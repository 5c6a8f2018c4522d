//! `--stats` and `--profile`: what the processors of a machine counted, and where their time went.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::terminal;

/// Counters of the software engine of which a share is told; see `umbra-engine-soft`.
const ALL: &str = "instructions";
const TRANSLATED: &str = "instructions of translated blocks";
const INTERPRETED: &str = "instructions that translated blocks left to the interpreter";
/// What the names of a profile's counters begin with.
const TIME: &str = "microseconds of ";

/// Writes the sums over all processors to standard error, one line a counter: those that were asked for.
pub fn print(each: &[Vec<(String, u64)>], stats: bool, profile: bool) {
    let sums = sums(each);
    let (times, counts) = sums.iter().partition(|(name, _)| name.starts_with(TIME));
    let lines = stats.then(|| count_lines(&counts)).into_iter().chain(profile.then(|| time_lines(&times)));
    lines.flatten().for_each(|line| terminal::say(&line));
}

type Sums<'a> = BTreeMap<&'a str, u64>;

fn sums(each: &[Vec<(String, u64)>]) -> Sums<'_> {
    let mut sums = BTreeMap::new();
    // A worker that a guest has taken over shall not write to a terminal what it likes.
    let is_plain = |name: &str| {
        name.len() < 100 && name.bytes().all(|b| b == b' ' || b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    for (name, value) in each.iter().flatten().filter(|count| is_plain(&count.0)) {
        let sum: &mut u64 = sums.entry(name.as_str()).or_default();
        *sum = sum.saturating_add(*value);
    }
    sums
}

fn count_lines(sums: &Sums<'_>) -> Vec<String> {
    let mut lines: Vec<String> = sums.iter().map(|(name, sum)| format!("{sum:>16} {name}")).collect();
    let of = |name| sums.get(name).copied().unwrap_or(0);
    if of(ALL) > 0 && sums.contains_key(TRANSLATED) {
        let share = of(TRANSLATED).saturating_sub(of(INTERPRETED)) as f64 / of(ALL) as f64;
        lines.push(format!("{:.2} % of instructions ran as translated code", 100.0 * share));
    }
    lines
}

/// What took most first.
fn time_lines(sums: &Sums<'_>) -> Vec<String> {
    let all = sums.values().fold(0u64, |all, time| all.saturating_add(*time));
    let mut times: Vec<_> =
        sums.iter().filter_map(|(name, time)| Some((name.strip_prefix(TIME)?, *time))).collect();
    times.sort_by_key(|(_, time)| Reverse(*time));
    let line = |(name, time): (&str, u64)| {
        format!("{:>10.3} s {:>6.2} % {name}", time as f64 / 1e6, 100.0 * time as f64 / all.max(1) as f64)
    };
    let total = format!("{:>10.3} s of the processors' time, of which", all as f64 / 1e6);
    std::iter::once(total).chain(times.into_iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_all_processors() {
        let count = |all, translated, interpreted| {
            vec![(ALL.into(), all), (TRANSLATED.into(), translated), (INTERPRETED.into(), interpreted)]
        };
        let each = [count(1000, 990, 10), count(1000, 1000, 30)];
        let told = count_lines(&sums(&each));
        assert_eq!(told.last().map(String::as_str), Some("97.50 % of instructions ran as translated code"));
        assert!(told.iter().any(|line| line.ends_with(" 2000 instructions")), "{told:?}");
        assert!(count_lines(&sums(&[])).is_empty());
    }

    #[test]
    fn a_profile_begins_with_what_took_most() {
        let time = |name: &str, time| (format!("{TIME}{name}"), time);
        let each = [vec![
            time("helper cmpxchg16b", 250_000),
            time("translated code", 750_000),
            time("evil\u{1b}", 9),
        ]];
        let told = time_lines(&sums(&each));
        assert_eq!(
            told,
            [
                "     1.000 s of the processors' time, of which",
                "     0.750 s  75.00 % translated code",
                "     0.250 s  25.00 % helper cmpxchg16b",
            ]
        );
    }
}
