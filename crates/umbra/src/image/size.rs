//! Sizes as `qemu-img` reads and writes them.

use std::ops::RangeInclusive;

use super::failure::{Failure, Outcome};

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    /// It is none.
    Malformed,
    /// It is too large, or negative.
    Range,
}

/// Exponent of 1024 that a suffix stands for.
fn suffix_power(letter: char) -> Option<u32> {
    "bkmgtpe".chars().position(|one| one == letter.to_ascii_lowercase()).map(|power| power as u32)
}

/// Reads a size below 2^64: digits, with a fraction if a suffix follows, and a suffix; or hexadecimal digits after `0x`
/// without either.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    parse_unit(text, 1)
}

/// The same, where a number without suffix counts `unit` bytes.
pub fn parse_unit(text: &str, unit: u64) -> Result<u64, SizeError> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('-') {
        let is_number = rest.starts_with(|c: char| c.is_ascii_digit());
        return Err(if is_number { SizeError::Range } else { SizeError::Malformed });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(SizeError::Malformed);
        }
        return u64::from_str_radix(digits, 16).map_err(|_| SizeError::Range);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let (fraction, rest) = split_fraction(rest);
    if digits.is_empty() && fraction.is_none_or(str::is_empty) {
        return Err(SizeError::Malformed);
    }
    let mut letters = rest.chars();
    let scale = match (letters.next(), letters.next()) {
        (None, _) => unit,
        (Some(letter), None) => 1 << (10 * suffix_power(letter).ok_or(SizeError::Malformed)?),
        (Some(_), Some(_)) => return Err(SizeError::Malformed),
    };
    let whole: u64 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| SizeError::Range)? };
    let part = match fraction.filter(|part| part.bytes().any(|digit| digit != b'0')) {
        None => 0,
        // A part of a byte is none.
        Some(_) if scale == 1 => return Err(SizeError::Malformed),
        Some(part) => {
            let value: f64 = format!("0.{part}").parse().map_err(|_| SizeError::Malformed)?;
            (value * scale as f64 + 0.5) as u64
        }
    };
    whole.checked_mul(scale).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::Range)
}

/// Reads a number that has to be within bounds; `what` it is stands in the message.
pub fn bounded(what: &str, text: &str, bounds: RangeInclusive<u64>) -> Outcome<u64> {
    match parse(text) {
        Ok(number) if bounds.contains(&number) => Ok(number),
        Err(SizeError::Malformed) => Err(Failure::new(format!("Invalid {what} specified: '{text}'."))),
        _ => {
            let (min, max) = bounds.into_inner();
            Err(Failure::new(format!("Invalid {what} specified. Must be between {min} and {max}.")))
        }
    }
}

fn split_fraction(text: &str) -> (Option<&str>, &str) {
    let Some(after) = text.strip_prefix('.') else { return (None, text) };
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let (fraction, rest) = after.split_at(end);
    (Some(fraction), rest)
}

/// A size for people, with three significant digits: `1.32 MiB`.
pub fn human(bytes: u64) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut power = 0;
    // The next unit begins at 1,000 of this one, so that no number has four digits.
    while power < 6 && bytes as f64 >= 1000.0 * 1024f64.powi(power) {
        power += 1;
    }
    format!("{} {}B", three_digits(bytes as f64 / 1024f64.powi(power)), SUFFIXES[power as usize])
}

/// C's `%.3g` for what [`human`] needs it for.
fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let exponent = scientific.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()).unwrap_or(0);
    if exponent >= 3 {
        let mantissa = scientific.split('e').next().unwrap_or_default();
        return format!("{}e+{exponent:02}", trim_zeros(mantissa));
    }
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    trim_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn trim_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

#[cfg(test)]
#[path = "size_test.rs"]
mod size_test;
