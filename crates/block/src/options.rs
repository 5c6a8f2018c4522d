//! Options of creating, opening and amending images: names and values as `-o` and `--image-opts` have them.

use std::collections::BTreeMap;

use crate::{BackingRef, Error, Result};

/// Names and values in the user's words. A driver takes what it knows; what is left over is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one; the last value counts.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Looks at one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Takes one out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes one out that is `on` or `off` (also yes/no, true/false).
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_str() {
            "on" | "yes" | "true" | "y" => Ok(Some(true)),
            "off" | "no" | "false" | "n" => Ok(Some(false)),
            _ => Err(Error::option(format!("Parameter '{name}' expects 'on' or 'off'"))),
        }
    }

    /// Takes one out that is a number of bytes, with a suffix perhaps.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn take_size(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let negative = value.strip_prefix('-').is_some_and(|rest| parse_size(rest).is_some());
        parse_size(&value).map(Some).ok_or_else(|| {
            Error::option(match negative {
                true => format!("Value '{value}' is out of range for parameter '{name}'"),
                false => format!(
                    "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, \
                     mega-, giga-, tera-, peta-\nand exabytes, respectively."
                ),
            })
        })
    }

    /// Takes one out that is a whole number.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn take_number(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (negative, digits) = match value.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, value.as_str()),
        };
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        match number {
            // As C has it: what is below zero counts from the other end.
            Ok(number) => Ok(Some(if negative { number.wrapping_neg() } else { number })),
            Err(_) => Err(Error::option(format!("Parameter '{name}' expects a number"))),
        }
    }

    /// Takes out `preallocation`; off where it is not there.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn take_preallocation(&mut self) -> Result<Preallocation> {
        self.take("preallocation").map_or(Ok(Preallocation::Off), |text| Preallocation::parse(&text))
    }

    /// Fails where something is left.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that names it.
    pub fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::option(format!("Invalid parameter '{name}'"))),
        }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out those that begin with `prefix`, without it.
    pub fn take_prefixed(&mut self, prefix: &str) -> Options {
        let names: Vec<String> = self.0.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let mut taken = Options::new();
        for name in names {
            if let Some(value) = self.0.remove(&name) {
                taken.set(&name[prefix.len()..], value);
            }
        }
        taken
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// A number of bytes as `qemu-img` takes it: `10G`, `1.5M`, `0x200`, `512`, `4096B`. `None` where it is none.
pub fn parse_size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let whole = whole.checked_mul(1 << shift)?;
    if fraction.is_empty() {
        return (!number.contains('.') || shift > 0).then_some(whole);
    }
    if shift == 0 || fraction.len() > 18 {
        return None;
    }
    let part: u128 = fraction.parse().ok()?;
    let part = (part << shift) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_add(u64::try_from(part).ok()?)
}

/// How much of a new image is allocated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The mappings, and no space on the host.
    Metadata,
    /// The mappings, and space on the host by `fallocate`.
    Falloc,
    /// The mappings, and space on the host by writing zeroes.
    Full,
}

impl Preallocation {
    /// From its name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "metadata" => Ok(Self::Metadata),
            "falloc" => Ok(Self::Falloc),
            "full" => Ok(Self::Full),
            _ => Err(Error::option(format!(
                "Invalid parameter '{text}' for preallocation; it is off, metadata, falloc or full"
            ))),
        }
    }
}

/// What becomes of a guest's discard requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Discard {
    /// Nothing.
    #[default]
    Ignore,
    /// Space is given back.
    Unmap,
}

/// What becomes of writes of nothing but zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// They are written.
    #[default]
    Off,
    /// They become zero clusters.
    On,
    /// They become zero clusters, and their space is given back.
    Unmap,
}

/// The kind of an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// `on` or `off`.
    Bool,
    /// Bytes, with a suffix perhaps.
    Size,
    /// A number.
    Number,
    /// Text.
    Text,
}

/// An option of a driver, for help and parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub kind: OptionKind,
    /// One line of help.
    pub help: &'static str,
    /// What is taken where it is not given, as text; `None` where nothing is.
    pub default: Option<&'static str>,
    /// Whether `amend` can change it.
    pub amendable: bool,
}

impl OptionSpec {
    /// One that `amend` cannot change.
    pub const fn new(
        name: &'static str,
        kind: OptionKind,
        help: &'static str,
        default: Option<&'static str>,
    ) -> Self {
        Self { name, kind, help, default, amendable: false }
    }

    /// The same, and `amend` can change it.
    #[must_use]
    pub const fn amendable(self) -> Self {
        Self { amendable: true, ..self }
    }
}

/// What to create.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The disk's size in bytes.
    pub size: u64,
    /// The backing file to name.
    pub backing: Option<BackingRef>,
    /// The driver's options: those of `-o` without size, backing_file and backing_fmt. Secrets that they name are the
    /// environment's.
    pub options: Options,
}

impl CreateOptions {
    /// Fails where a backing file is wanted: `format` has none.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn refuse_backing(&self, format: &str) -> Result<()> {
        match self.backing {
            None => Ok(()),
            Some(_) => Err(Error::option(format!("Backing file not supported for file format '{format}'"))),
        }
    }
}

#[cfg(test)]
#[path = "options_test.rs"]
mod options_test;
