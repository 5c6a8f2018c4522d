//! Where Umbra's time goes: what the machine's counters rose by during a row.
//!
//! It knows no counter by name: every number of `GET /v1/stats` is shown that has changed.

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

/// The counters over one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// The row.
    pub row: String,
    /// How long it took.
    pub seconds: f64,
    /// What changed meanwhile, by name.
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
        let counters = last.into_iter().filter_map(counter).collect();
        Profile { row: row.into(), seconds, counters }
    }

    /// Prints one line a counter.
    pub(super) fn print(&self) {
        println!("profile of {} under umbra: {:.3} s", self.row, self.seconds);
        for counter in &self.counters {
            println!("  {:40} {:>16.0} {:>16.0} a second", counter.name, counter.count, counter.a_second);
        }
    }
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
