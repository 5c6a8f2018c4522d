//! Options as text: `key=value,key=value`, where a comma in a value is written twice.

use umbra_block::Options;

use super::json_read::Value;

/// Nesting of JSON that names an image: each level is a node of its chain.
const DEPTH_MAX: usize = 64;

/// Reads options in their order. A key without value is `on`, and `off` where it begins with `no`.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut list = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, value, after) = first(rest);
        if key.is_empty() {
            return Err(format!("Expected parameter before '={value}'"));
        }
        list.push((key, value));
        rest = after;
    }
    Ok(list)
}

fn first(text: &str) -> (String, String, &str) {
    let end = text.find([',', '=']).unwrap_or(text.len());
    let key = text[..end].to_owned();
    let Some(mut rest) = text[end..].strip_prefix('=') else {
        let rest = text.get(end + 1..).unwrap_or_default();
        return match key.strip_prefix("no").filter(|name| !name.is_empty()) {
            Some(name) => (name.to_owned(), "off".to_owned(), rest),
            None => (key, "on".to_owned(), rest),
        };
    };
    let mut value = String::new();
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (key, value, "");
        };
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (key, value, rest),
        }
    }
}

/// Reads options; the last value of a key counts.
pub fn options(text: &str) -> Result<Options, String> {
    Ok(pairs(text)?.into_iter().collect())
}

/// Reads the values of all `-o`, which add up.
pub fn of_all(texts: &[&str]) -> Result<Options, String> {
    match texts.iter().find(|text| text.is_empty() || text.starts_with(',') || text.ends_with(',')) {
        Some(text) => Err(format!("Invalid option list: {text}")),
        None => options(&texts.join(",")),
    }
}

/// Whether the user asks which options there are.
pub fn asks_for_help(text: &str) -> bool {
    pairs(text).is_ok_and(|list| list.iter().any(|(key, _)| key == "help" || key == "?"))
}

/// A JSON object as options: members of members get dotted names. What is to be a name counts only where it is a string.
pub fn flatten(value: &Value) -> Result<Options, String> {
    let Value::Map(members) = value else { return Err("Invalid JSON object given".to_owned()) };
    let mut flat = Flat::default();
    for (name, value) in members {
        flat.put(name.clone(), value, 0)?;
    }
    match flat.empty {
        None => Ok(flat.options),
        Some(name) => {
            let driver = flat.options.get("driver").unwrap_or("raw");
            Err(format!("Block format '{driver}' does not support the option '{name}'"))
        }
    }
}

#[derive(Default)]
struct Flat {
    options: Options,
    /// Has an empty array or object as its value, which no option has.
    empty: Option<String>,
}

impl Flat {
    fn put(&mut self, name: String, value: &Value, depth: usize) -> Result<(), String> {
        if depth == DEPTH_MAX {
            return Err(format!("the JSON is nested more than {DEPTH_MAX} deep"));
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        let text = match value {
            Value::Null if last == "backing" => "",
            Value::Null => return Ok(()),
            Value::Text(text) => text,
            Value::Bool(_) | Value::Number(_) if matches!(last, "filename" | "driver") => return Ok(()),
            Value::Bool(true) => "on",
            Value::Bool(false) => "off",
            Value::Number(text) => text,
            Value::List(list) if !list.is_empty() => {
                let mut elements = list.iter().enumerate();
                return elements
                    .try_for_each(|(at, value)| self.put(format!("{name}.{at}"), value, depth + 1));
            }
            Value::Map(members) if !members.is_empty() => {
                let mut members = members.iter();
                return members
                    .try_for_each(|(inner, value)| self.put(format!("{name}.{inner}"), value, depth + 1));
            }
            Value::List(_) | Value::Map(_) => {
                if !matches!(last, "filename" | "driver" | "file") {
                    self.empty.get_or_insert(name);
                }
                return Ok(());
            }
        };
        self.options.set(name, text);
        Ok(())
    }
}

#[cfg(test)]
#[path = "keyval_test.rs"]
mod keyval_test;
