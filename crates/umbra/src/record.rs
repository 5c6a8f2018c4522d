//! What is known of a machine beyond its end: a small JSON file in its folder.
//!
//! It is written by who has the machine's name: the machine's broker, or, where that has died, the command that noticed. Fields are only
//! ever added.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::paths::{self, TakenName};

/// Name of the file.
const FILE: &str = "machine.json";
/// A longer one is none of ours.
const FILE_MAX: u64 = 4 << 20;

/// A machine, from its start on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// `kvm` or `soft`.
    pub engine: String,
    /// Its specification (`MachineSpec`); null until it is made.
    #[serde(default)]
    pub spec: Value,
    /// The words of the command line that started it, without the program's name.
    pub arguments: Vec<String>,
    /// The folder in which it was started.
    pub folder: PathBuf,
    /// It has no terminal.
    #[serde(default)]
    pub detached: bool,
    /// Nothing is to be left of it when it ends.
    #[serde(default)]
    pub remove: bool,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// The same, when it has ended.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// That of `umbra run`, when it has ended; none if its processes were killed.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// How it ended: `power-off`, `reset`, `stopped`, `panic`, `triple-fault`, `internal-error`, `not-started`, or `killed`.
    #[serde(default)]
    pub ending: Option<String>,
    /// One sentence more about that.
    #[serde(default)]
    pub message: Option<String>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Record {
    /// The record in this folder, if there is one that can be read.
    pub fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        if fs::metadata(&path).ok()?.len() > FILE_MAX {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes it into this folder, in place of what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let unfinished = folder.join(format!(".{FILE}.part"));
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.write_all(b"\n")?;
        fs::rename(&unfinished, folder.join(FILE))
    }

    /// Removes what is in this folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(folder: &Path) -> io::Result<()> {
        fs::remove_file(folder.join(FILE))
    }
}

/// The records of all machines that left one, by name; each as it is now, dead machines noticed.
///
/// # Errors
/// The folder cannot be read.
pub fn all() -> anyhow::Result<Vec<Record>> {
    let home = paths::state_home()?;
    let entries = match fs::read_dir(&home) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", home.display()))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut records = Vec::new();
    for name in names.filter(|name| crate::cli::parse_name(name).is_ok()) {
        records.extend(find(&name)?);
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// The record of machine `name`, if it left one. If the machine has died, that is noticed here: its record says so from now on, and with
/// `--rm` there is none any more.
///
/// # Errors
/// The machine's name cannot be taken.
pub fn find(name: &str) -> anyhow::Result<Option<Record>> {
    let folder = paths::state_path(name)?;
    match Record::read(&folder).filter(|record| record.name == name) {
        Some(record) if record.ended_ms.is_none() => match paths::take_name(name)? {
            Some(taken) => Ok(bury(&taken, &folder)),
            // It runs.
            None => Ok(Some(record)),
        },
        other => Ok(other),
    }
}

/// Notices the death of a machine that did not say how it ended. Nobody else has its name meanwhile.
fn bury(_taken: &TakenName, folder: &Path) -> Option<Record> {
    let mut record = Record::read(folder)?;
    if record.ended_ms.is_some() {
        return Some(record);
    }
    if record.remove {
        // What cannot be removed is met again by the next look.
        return fs::remove_dir_all(folder).err().map(|_| record);
    }
    record.ended_ms = Some(now_ms());
    record.ending = Some("killed".into());
    record.message = Some("the machine's processes were killed, or the host was".into());
    // On a disk that is full the next look says the same.
    let _ = record.write(folder);
    Some(record)
}

#[cfg(test)]
#[path = "record_test.rs"]
mod record_test;
