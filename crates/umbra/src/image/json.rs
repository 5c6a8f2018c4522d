//! JSON in the form that `qemu-img` prints: members in the order they were put in, four spaces, nothing but ASCII.

use std::fmt::Write as _;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(i128),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Map(Vec<(String, Json)>),
}

macro_rules! from_number {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Json {
            fn from(number: $kind) -> Json {
                Json::Number(number.into())
            }
        }
    )*};
}

from_number!(u8, u16, u32, u64, i64);

impl From<bool> for Json {
    fn from(truth: bool) -> Json {
        Json::Bool(truth)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::Text(text)
    }
}

impl From<Vec<Json>> for Json {
    fn from(list: Vec<Json>) -> Json {
        Json::List(list)
    }
}

/// An object in the making.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Object(Vec<(String, Json)>);

impl Object {
    /// With one more member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Object {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// With one more member, if there is a value.
    #[must_use]
    pub fn with_some<T: Into<Json>>(self, name: &str, value: Option<T>) -> Object {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

impl From<Object> for Json {
    fn from(object: Object) -> Json {
        Json::Map(object.0)
    }
}

impl Json {
    /// Over several lines, without a line feed at the end.
    pub fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    /// On one line.
    pub fn line(&self) -> String {
        let list = |parts: Vec<String>, open: char, close: char| format!("{open}{}{close}", parts.join(", "));
        match self {
            Json::List(values) => list(values.iter().map(Json::line).collect(), '[', ']'),
            Json::Map(members) => {
                let member = |(name, value): &(String, Json)| {
                    let mut text = String::new();
                    quote(name, &mut text);
                    format!("{text}: {}", value.line())
                };
                list(members.iter().map(member).collect(), '{', '}')
            }
            plain => plain.pretty(),
        }
    }

    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Json::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
            Json::Number(number) => out.push_str(&number.to_string()),
            Json::Text(text) => quote(text, out),
            Json::List(list) => {
                out.push('[');
                for (index, value) in list.iter().enumerate() {
                    line(out, depth + 1, index > 0);
                    value.write(out, depth + 1);
                }
                line(out, depth, false);
                out.push(']');
            }
            Json::Map(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    line(out, depth + 1, index > 0);
                    quote(name, out);
                    out.push_str(": ");
                    value.write(out, depth + 1);
                }
                line(out, depth, false);
                out.push('}');
            }
        }
    }
}

fn line(out: &mut String, depth: usize, comma: bool) {
    if comma {
        out.push(',');
    }
    out.push('\n');
    out.extend(std::iter::repeat_n("    ", depth));
}

/// Appends `text` in quotes.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for unit in text.chars() {
        match unit {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(unit),
            _ => {
                for half in unit.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{half:04X}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
#[path = "json_test.rs"]
mod json_test;
