//! What a running machine keeps in its folder: its record, and the log of one without a terminal.
//!
//! A machine on a terminal has no folder unless something was put there before it started, such as a disk of its own; then it leaves a record too.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::Context;
use umbra_machine::MachineSpec;
use umbra_server::Ended;

use crate::hub::Reader;
use crate::log::{self, Log};
use crate::paths::{state_folder, state_path};
use crate::record::{Record, now_ms};

/// The folder of a running machine, if it has one.
pub struct Kept {
    folder: Option<PathBuf>,
    record: Mutex<Record>,
    /// That of its life before, which is still the last one if this one does not begin.
    before: Option<Record>,
}

impl Kept {
    /// Begins the record; the name of the machine is taken. The log and the record of one before are gone.
    ///
    /// # Errors
    /// A machine without a terminal needs a folder, and it cannot be made or written.
    pub fn begin(record: Record) -> anyhow::Result<Self> {
        let folder = if record.detached {
            Some(state_folder(&record.name)?)
        } else {
            state_path(&record.name).ok().filter(|folder| folder.is_dir())
        };
        let before = folder.as_deref().and_then(Record::read);
        if let Some(folder) = &folder {
            let begin = || log::remove(folder).and_then(|()| record.write(folder));
            begin().with_context(|| format!("cannot write in the machine's folder {}", folder.display()))?;
        }
        Ok(Self { folder, record: Mutex::new(record), before })
    }

    /// Who reads the serial line.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn reader(&self) -> anyhow::Result<Reader> {
        match (&self.folder, self.change(|record| record.detached)) {
            (Some(folder), true) => {
                let log = Log::start(folder);
                Ok(Reader::Log(log.with_context(|| format!("cannot write the log in {}", folder.display()))?))
            }
            _ => Ok(Reader::Standard),
        }
    }

    fn change<T>(&self, how: impl FnOnce(&mut Record) -> T) -> T {
        how(&mut self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write(&self) {
        if let Some(folder) = &self.folder {
            // A machine does not end because a disk is full.
            let _ = self.change(|record| record.write(folder));
        }
    }

    /// The machine is made.
    pub fn made(&self, spec: &MachineSpec) {
        self.change(|record| record.spec = serde_json::to_value(spec).unwrap_or_default());
        self.write();
    }

    /// The machine has ended. One that did not start leaves what was there before, and one with `--rm` nothing.
    pub fn end(&self, ended: &Ended) {
        let Some(folder) = &self.folder else { return };
        let remove = self.change(|record| {
            record.ended_ms = Some(now_ms());
            record.exit_code = Some(ended.exit_code);
            record.ending = Some(ended.ending.clone());
            record.message.clone_from(&ended.message);
            record.remove
        });
        // What cannot be removed is found by `umbra ls --all`, and `umbra rm` says why.
        if ended.ending == "not-started" {
            let record = match &self.before {
                Some(before) => before.write(folder),
                None => Record::remove(folder),
            };
            let _ = record.and_then(|()| log::remove(folder));
            // It stays where there is more in it.
            let _ = fs::remove_dir(folder);
        } else if remove {
            let _ = fs::remove_dir_all(folder);
        } else {
            self.write();
        }
    }
}
