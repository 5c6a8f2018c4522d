//! The PIC's interrupt output, wired to processor 0.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::kick::Kick;

/// The level of the line, and whom to wake when it rises.
#[derive(Debug, Default)]
pub(crate) struct ExternalLine {
    high: AtomicBool,
    processor: OnceLock<Arc<Kick>>,
}

impl ExternalLine {
    /// Wires the line to the processor that this kick belongs to. The first one counts.
    pub(crate) fn connect(&self, kick: &Arc<Kick>) {
        let _ = self.processor.set(Arc::clone(kick));
    }

    /// Drives the line.
    pub(crate) fn set(&self, high: bool) {
        // Ordered before the look at the thread in `wake`, as a kick is.
        let before = self.high.swap(high, Ordering::SeqCst);
        if high && !before {
            self.processor.get().inspect(|kick| kick.wake());
        }
    }

    /// The level.
    pub(crate) fn is_high(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }
}
