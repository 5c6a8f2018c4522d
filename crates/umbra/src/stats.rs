//! `--stats`: what the processors of a machine counted.

use std::collections::BTreeMap;

/// Counters of the software engine of which a share is told; see `umbra-engine-soft`.
const ALL: &str = "instructions";
const TRANSLATED: &str = "instructions of translated blocks";
const INTERPRETED: &str = "instructions that translated blocks left to the interpreter";

/// Writes the sums over all processors to standard error, one line a counter; nothing if nothing was counted.
pub fn print(each: &[Vec<(String, u64)>]) {
    lines(each).iter().for_each(|line| eprintln!("{line}"));
}

fn lines(each: &[Vec<(String, u64)>]) -> Vec<String> {
    let mut sums = BTreeMap::new();
    // A worker that a guest has taken over shall not write to a terminal what it likes.
    let is_plain = |name: &str| name.len() < 100 && name.bytes().all(|b| b == b' ' || b.is_ascii_lowercase());
    for (name, value) in each.iter().flatten().filter(|count| is_plain(&count.0)) {
        let sum: &mut u64 = sums.entry(name.as_str()).or_default();
        *sum = sum.saturating_add(*value);
    }
    let mut lines: Vec<String> = sums.iter().map(|(name, sum)| format!("umbra: {sum:>16} {name}")).collect();
    let of = |name| sums.get(name).copied().unwrap_or(0);
    if of(ALL) > 0 && sums.contains_key(TRANSLATED) {
        let share = of(TRANSLATED).saturating_sub(of(INTERPRETED)) as f64 / of(ALL) as f64;
        lines.push(format!("umbra: {:.2} % of instructions ran as translated code", 100.0 * share));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_all_processors() {
        let count = |all, translated, interpreted| {
            vec![(ALL.into(), all), (TRANSLATED.into(), translated), (INTERPRETED.into(), interpreted)]
        };
        let told = lines(&[count(1000, 990, 10), count(1000, 1000, 30)]);
        assert_eq!(
            told.last().map(String::as_str),
            Some("umbra: 97.50 % of instructions ran as translated code")
        );
        assert!(told.iter().any(|line| line.ends_with(" 2000 instructions")), "{told:?}");
        assert!(lines(&[]).is_empty());
    }
}
