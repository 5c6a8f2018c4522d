//! The events file: one JSON line an event, written as it happens.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};

/// Where events are written, if anywhere.
pub struct Events {
    file: Option<Mutex<File>>,
}

impl Events {
    /// Opens `path`, replacing what is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |p: &Path| {
            File::create(p).with_context(|| format!("cannot write the events file {}", p.display()))
        };
        Ok(Self { file: path.map(open).transpose()?.map(Mutex::new) })
    }

    /// Writes one line: the event's name, the time in milliseconds since 1970, the machine, and `more`.
    pub fn write(&self, event: &str, name: &str, more: &Value) {
        let Some(file) = &self.file else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut line = json!({ "event": event, "time_ms": time, "name": name });
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
            line.extend(more.clone());
        }
        let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A full disk must not end the machine.
        let _ = writeln!(file, "{line}");
    }
}
