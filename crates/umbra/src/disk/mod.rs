//! Disks of a machine: the option `--disk`, and how their files come to the worker.
//!
//! The worker opens images, because what is in them is hostile, and has no file by name. While it makes the machine it
//! asks the broker for each file that it needs, an image or what an image names, and the broker opens those that it
//! may have ([`grant`]). Before the guest's first instruction that is over.

pub mod grant;
pub mod open;

use std::collections::BTreeMap;

use crate::protocol::DiskFile;

/// A longer name would not fit into the messages that tell of it.
const NAME_MAX: usize = 1024;

/// What `--disk` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOption {
    /// The image.
    pub file: DiskFile,
    /// Its serial number.
    pub serial: String,
}

/// Reads `on` or `off`.
///
/// # Errors
/// It is neither.
pub fn parse_switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{name} is on or off, not `{value}`")),
    }
}

/// Splits at commas; two commas are one of the text.
pub fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts
}

/// Reads `FILE[,format=NAME][,readonly=on|off][,serial=TEXT][,if=virtio]`.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn parse(text: &str) -> Result<DiskOption, String> {
    let mut parts = split(text).into_iter();
    let file =
        parts.next().filter(|file| !file.is_empty()).ok_or("a disk begins with the name of its image")?;
    if file.len() > NAME_MAX {
        return Err(format!("the name of an image has at most {NAME_MAX} bytes here; go to its folder"));
    }
    let mut options = BTreeMap::new();
    for part in parts {
        let (name, value) = part.split_once('=').ok_or_else(|| {
            format!("`{part}` is no option of a disk; they are format=, readonly=, serial= and if=")
        })?;
        if options.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{name}= is given twice"));
        }
    }
    let mut take = |name: &str| options.remove(name);
    let read_only = take("readonly").map(|v| parse_switch("readonly", &v)).transpose()?.unwrap_or(false);
    let (format, serial) = (take("format"), take("serial").unwrap_or_default());
    if let Some(other) = take("if").filter(|interface| interface != "virtio") {
        return Err(format!("disks are there by if=virtio, not by if={other}"));
    }
    match options.into_keys().next() {
        Some(name) => {
            Err(format!("`{name}=` is no option of a disk; they are format=, readonly=, serial= and if="))
        }
        None => Ok(DiskOption { file: DiskFile { name: file, format, read_only }, serial }),
    }
}

#[cfg(test)]
#[path = "../disk_test.rs"]
mod disk_test;
