//! What went wrong, in the words that `qemu-img` has for it where scripts may know them, and with which exit code.

use std::fmt;
use std::io;

use umbra_block::Error;

/// An error with the exit code that it ends the program with.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// The message; several lines perhaps.
    pub message: String,
    /// Whether `Try ... --help` shall follow.
    pub usage: bool,
    /// Whether the user has stopped it.
    pub interrupted: bool,
}

/// The result of a command: its exit code, or why it failed.
pub type Outcome<T = u8> = Result<T, Failure>;

impl Failure {
    /// With exit code 1.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { code: 1, message: message.into(), usage: false, interrupted: false }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { usage: true, ..Failure::new(message) }
    }

    /// What the user has stopped; the exit code is a shell's for SIGINT.
    pub fn interrupted() -> Failure {
        Failure { code: 130, interrupted: true, ..Failure::new("interrupted; nothing is lost") }
    }

    /// With another exit code, if it is no interruption.
    #[must_use]
    pub fn with_code(self, code: u8) -> Failure {
        if self.interrupted { self } else { Failure { code, ..self } }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Cancelled => Failure::interrupted(),
            error => Failure::new(told(&error)),
        }
    }
}

/// Adds what was being done.
pub trait Doing<T> {
    /// Puts `what: ` before the message, which is made only where there is one.
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| {
            let failure: Failure = error.into();
            match failure.interrupted {
                true => failure,
                false => Failure { message: format!("{}: {}", what(), failure.message), ..failure },
            }
        })
    }
}

/// The system's words for an error, without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None if error.kind() == io::ErrorKind::IsADirectory => "Is a directory".to_owned(),
        None => text,
    }
}

/// An error of the image layer, as scripts know it.
pub fn told(error: &Error) -> String {
    match error {
        Error::Io { doing, name, source } => match doing.as_str() {
            "open" if source.kind() == io::ErrorKind::IsADirectory => {
                format!("'file' driver requires '{name}' to be a regular file")
            }
            "open" => format!("Could not open '{name}': {}", reason(source)),
            doing => format!("Could not {doing} '{name}': {}", reason(source)),
        },
        Error::LockedHere { name, permission } => {
            format!(
                "Failed to get \"{permission}\" lock\nIs another process using the image [{name}]? (it is open here already)"
            )
        }
        Error::Locked { name, permission, holder } => {
            format!(
                "Failed to get \"{permission}\" lock\nIs another process using the image [{name}]?{holder}"
            )
        }
        Error::NotThisFormat { format, reason, .. } if reason.is_empty() => {
            format!("Image is not in {format} format")
        }
        Error::NotThisFormat { format, reason, .. } => format!("Image is not in {format} format: {reason}"),
        Error::Reference { role, source, .. } => format!("Could not open {role}: {}", told(source)),
        Error::Copy { doing, at, source } => format!("error while {doing} at byte {at}: {}", told(source)),
        Error::NotFound { kind: "format", name } => format!("Unknown driver '{name}'"),
        Error::WrongSecret => "Invalid password, cannot unlock any keyslot".to_owned(),
        Error::Unsupported(what) => what.clone(),
        other => other.to_string(),
    }
}
