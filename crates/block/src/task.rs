//! Long operations: how far they are, and how to stop them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Stops an operation from another thread or a signal handler. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token whose state is `flag`, which a signal handler may set.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks the operation to stop at its next safe point.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] where it was asked to stop.
    ///
    /// # Errors
    /// That one only.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What a long operation is given: a place to tell its progress, and a token that stops it.
pub struct Task<'a> {
    progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
    cancel: Cancel,
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Default for Task<'_> {
    fn default() -> Self {
        Self::quiet()
    }
}

impl<'a> Task<'a> {
    /// Tells nobody and is not stopped.
    pub fn quiet() -> Self {
        Self { progress: None, cancel: Cancel::new() }
    }

    /// Tells `progress` (done, total; both in units of the operation's choice) and is stopped by `cancel`.
    pub fn new(progress: &'a (dyn Fn(u64, u64) + Sync), cancel: Cancel) -> Self {
        Self { progress: Some(progress), cancel }
    }

    /// Says how far the operation is. A safe point: fails where the user wants it stopped.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn at(&self, done: u64, total: u64) -> Result<()> {
        if let Some(progress) = self.progress {
            progress(done.min(total), total);
        }
        self.cancel.check()
    }

    /// The token.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}
