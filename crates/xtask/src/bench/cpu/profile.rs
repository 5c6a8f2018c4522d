//! Where Umbra's time goes during a row.
//!
//! A machine that runs with `--profile` counts the time of its processors by what they did; besides, every other number of `GET /v1/stats`
//! is shown that has changed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// A machine that takes longer to answer hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Longer answers are none.
const ANSWER_MAX: u64 = 1 << 20;

/// What the names of counters of time begin with.
const TIME: &str = "microseconds of ";

/// Where time went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Time {
    /// What the processors did, such as `translated code` or `helper iretq`.
    pub what: String,
    /// For how long.
    pub seconds: f64,
    /// Which part of all their time that is.
    pub share: f64,
}

/// What a counter rose by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counter {
    /// Its place in the answer, such as `vcpus.0.exits`.
    pub name: String,
    /// The difference.
    pub count: f64,
    /// The difference a second.
    pub a_second: f64,
}

/// Times and counters over one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// The row.
    pub row: String,
    /// How long it took.
    pub seconds: f64,
    /// Where the processors' time went; what took most first. What waits takes none.
    pub times: Vec<Time>,
    /// What else changed meanwhile, by name.
    pub counters: Vec<Counter>,
}

impl Profile {
    /// The differences between two answers.
    pub(crate) fn between(row: &str, seconds: f64, before: &Value, after: &Value) -> Profile {
        let (mut first, mut last) = (BTreeMap::new(), BTreeMap::new());
        numbers("", before, &mut first);
        numbers("", after, &mut last);
        let counter = |(name, value): (String, f64)| {
            let count = value - first.get(&name).copied().unwrap_or(0.0);
            (count != 0.0).then(|| Counter { name, count, a_second: count / seconds })
        };
        let changed: Vec<Counter> = last.into_iter().filter_map(counter).collect();
        let (times, counters): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|one| one.name.contains(TIME));
        Profile { row: row.into(), seconds, times: shares(&times), counters }
    }

    /// Prints one line a counter.
    pub(super) fn print(&self) {
        println!("profile of {} under umbra: {:.3} s", self.row, self.seconds);
        for Time { what, seconds, share } in &self.times {
            println!("  {what:40} {seconds:>14.3} s {:>8.2} %", 100.0 * share);
        }
        println!("counters");
        for counter in &self.counters {
            println!("  {:40} {:>16.0} {:>16.0} a second", counter.name, counter.count, counter.a_second);
        }
    }
}

/// Counters of time, by what they are of.
fn shares(counters: &[Counter]) -> Vec<Time> {
    let all: f64 = counters.iter().map(|one| one.count).sum();
    let time = |one: &Counter| {
        let what = one.name.split_once(TIME).map_or(one.name.as_str(), |(_, what)| what).into();
        Time { what, seconds: one.count / 1e6, share: one.count / all }
    };
    let mut times: Vec<Time> = counters.iter().map(time).collect();
    times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    times
}

/// All numbers of a JSON value, by their place in it.
fn numbers(place: &str, value: &Value, into: &mut BTreeMap<String, f64>) {
    let below = |key: &str| if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
    match value {
        Value::Number(number) => {
            into.insert(place.to_owned(), number.as_f64().unwrap_or_default());
        }
        Value::Array(all) => {
            for (index, one) in all.iter().enumerate() {
                numbers(&below(&index.to_string()), one, into);
            }
        }
        Value::Object(all) => {
            for (key, one) in all {
                numbers(&below(key), one, into);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The counters of the machine with this control socket.
pub(super) fn stats(socket: &Path) -> Result<Value> {
    let what = || format!("cannot read the counters through {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(what)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: umbra\r\n\r\n").with_context(what)?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).with_context(what)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split_whitespace().nth(1) == Some("200") => {
            serde_json::from_str(body).with_context(what)
        }
        _ => bail!("the control socket said: {answer}"),
    }
}
