//! Signals that ask the program to end, while the guest is being made.
//!
//! They are only noted, so that unfinished files are removed on the way out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Notes signals until it is dropped.
pub struct Interrupt {
    came: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

impl Interrupt {
    /// Begins to note signals.
    pub fn watch() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        let mut watch = Self { came: came.clone(), handlers: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            watch.handlers.push(signal_hook::flag::register(signal, came.clone())?);
        }
        Ok(watch)
    }

    /// Whether one came.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }

    /// Fails if one came.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.came() {
            bail!("interrupted; nothing of what was being made is left, and the next run begins anew");
        }
        Ok(())
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.handlers.drain(..).for_each(|id| {
            signal_hook::low_level::unregister(id);
        });
    }
}
