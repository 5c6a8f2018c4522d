//! The grammar of a command line as `getopt_long` of the GNU C library reads it, so that scripts written for `qemu-img`
//! keep their meaning: operands and options in any order, `--` ends the options, short options in one word, long ones
//! abbreviated as long as they are unambiguous, values after `=`, in the same word, or in the next.
//!
//! Authority: POSIX.1-2017 XBD 12.2 and the GNU C library's manual, section "Parsing Long Options with getopt_long".

use std::fmt;

/// One option of a command: this is what parser and help are made of.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// What the command asks for it by.
    pub key: &'static str,
    /// Its letter.
    pub short: Option<char>,
    /// Its name without dashes; empty where it has a letter only.
    pub long: &'static str,
    /// Name of its value, if it takes one.
    pub value: Option<&'static str>,
    /// Its line of help; empty for a second spelling.
    pub help: &'static str,
    /// It has to be spelled out, and makes no abbreviation of others ambiguous.
    pub exact: bool,
}

impl Opt {
    /// An option without value.
    pub const fn flag(short: char, long: &'static str, help: &'static str) -> Opt {
        let short = if short == ' ' { None } else { Some(short) };
        Opt { key: long, short, long, value: None, help, exact: false }
    }

    /// An option with a value.
    pub const fn value(short: char, long: &'static str, value: &'static str, help: &'static str) -> Opt {
        Opt { value: Some(value), ..Opt::flag(short, long, help) }
    }

    /// The same option, asked for by another key.
    pub const fn keyed(self, key: &'static str) -> Opt {
        Opt { key, ..self }
    }

    /// The same option, to be spelled out.
    pub const fn exact(self) -> Opt {
        Opt { exact: true, ..self }
    }
}

/// What was wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageError {
    /// A long option that there is not, with its dashes.
    Unrecognized(String),
    /// A letter that there is not.
    Invalid(char),
    /// An abbreviation of several options.
    Ambiguous(String, Vec<&'static str>),
    /// A long option whose value is missing.
    NoValueLong(&'static str),
    /// A letter whose value is missing.
    NoValueShort(char),
    /// A value for an option that takes none.
    ExtraValue(&'static str),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Unrecognized(name) => write!(f, "unrecognized option '{name}'"),
            UsageError::Invalid(letter) => write!(f, "invalid option -- '{letter}'"),
            UsageError::Ambiguous(name, all) => {
                write!(f, "option '{name}' is ambiguous; possibilities:")?;
                all.iter().try_for_each(|one| write!(f, " '--{one}'"))
            }
            UsageError::NoValueLong(name) => write!(f, "option '--{name}' requires an argument"),
            UsageError::NoValueShort(letter) => write!(f, "option requires an argument -- '{letter}'"),
            UsageError::ExtraValue(name) => write!(f, "option '--{name}' doesn't allow an argument"),
        }
    }
}

/// A command line that was read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Options in their order: key and value.
    pub options: Vec<(&'static str, String)>,
    /// Everything else.
    pub operands: Vec<String>,
    /// Where reading stopped, if it did; what stood before it is in the lists.
    pub error: Option<UsageError>,
}

impl Parsed {
    /// Whether the option was given.
    pub fn has(&self, key: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == key)
    }

    /// The last value given for it.
    pub fn last(&self, key: &str) -> Option<&str> {
        self.options.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// Every value given for it.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(name, _)| *name == key).map(|(_, value)| value.as_str())
    }
}

/// Reads `words`, which do not include the name of the program.
pub fn parse(table: &[Opt], words: &[String]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.operands.extend(words.cloned());
            break;
        }
        let read = if let Some(name) = word.strip_prefix("--") {
            long(table, name, &mut words).map(|found| parsed.options.push(found))
        } else if word.len() > 1 && word.starts_with('-') {
            letters(table, &word[1..], &mut words, &mut parsed.options)
        } else {
            parsed.operands.push(word.clone());
            Ok(())
        };
        if let Err(error) = read {
            parsed.error = Some(error);
            break;
        }
    }
    parsed
}

fn long<'a>(
    table: &[Opt],
    word: &str,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<(&'static str, String), UsageError> {
    let (name, given) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    let option = find_long(table, name)?;
    let value = match (option.value, given) {
        (None, None) => String::new(),
        (None, Some(_)) => return Err(UsageError::ExtraValue(option.long)),
        (Some(_), Some(value)) => value,
        (Some(_), None) => rest.next().cloned().ok_or(UsageError::NoValueLong(option.long))?,
    };
    Ok((option.key, value))
}

fn find_long<'t>(table: &'t [Opt], name: &str) -> Result<&'t Opt, UsageError> {
    if let Some(option) = table.iter().find(|option| !option.long.is_empty() && option.long == name) {
        return Ok(option);
    }
    let begins = |option: &&Opt| !option.exact && !option.long.is_empty() && option.long.starts_with(name);
    let found: Vec<&Opt> = table.iter().filter(begins).collect();
    match found.as_slice() {
        [] => Err(UsageError::Unrecognized(format!("--{name}"))),
        // Several spellings of one option are no ambiguity.
        [first, rest @ ..] if rest.iter().all(|option| option.key == first.key) => Ok(first),
        all => {
            let names = all.iter().map(|option| option.long).collect();
            Err(UsageError::Ambiguous(format!("--{name}"), names))
        }
    }
}

fn letters<'a>(
    table: &[Opt],
    word: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    options: &mut Vec<(&'static str, String)>,
) -> Result<(), UsageError> {
    for (index, letter) in word.char_indices() {
        let option = table.iter().find(|option| option.short == Some(letter));
        let option = option.ok_or(UsageError::Invalid(letter))?;
        if option.value.is_none() {
            options.push((option.key, String::new()));
            continue;
        }
        let after = &word[index + letter.len_utf8()..];
        let value = match after.is_empty() {
            false => after.to_owned(),
            true => rest.next().cloned().ok_or(UsageError::NoValueShort(letter))?,
        };
        options.push((option.key, value));
        break;
    }
    Ok(())
}

#[cfg(test)]
#[path = "getopt_test.rs"]
mod getopt_test;
