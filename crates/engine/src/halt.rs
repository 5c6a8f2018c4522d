//! Why a processor stopped running, how to stop it, and what it counted.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// Why [`Vcpu::run`](crate::Vcpu::run) returned. Always at an instruction boundary. Reset and power-off are events of devices and do not
/// come this way.
#[derive(Debug)]
pub enum Halt {
    /// It was kicked.
    Stopped,
    /// A fault while delivering a double fault: the processor has shut down.
    TripleFault,
    /// A debug condition of the host's side was met.
    Debug,
    /// The engine cannot go on.
    Error(EngineError),
}

/// What an engine could not do.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The host lacks something; the text says what, and what to do.
    #[error("{0}")]
    Unavailable(String),
    /// A call into the host failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// A saved processor that this engine or host cannot run.
    #[error("cannot load the processor's state: {0}")]
    State(String),
    /// The engine met something that it cannot execute.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    /// A closure that wraps an [`io::Error`] of the call `what`.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Makes a vCPU's `run` return soon. May be used from any thread, at any time; a kick while the vCPU does not run makes its
/// next `run` return at once, so none is lost.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// A kicker that calls `kick`.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Kicks.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}

/// Named counters of one vCPU, readable from any thread: exits by cause, instructions, invalidations.
#[derive(Debug)]
pub struct Counters {
    names: &'static [&'static str],
    values: Vec<AtomicU64>,
    named: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Counters of these names, all zero.
    pub fn new(names: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            names,
            values: names.iter().map(|_| AtomicU64::new(0)).collect(),
            named: Mutex::default(),
        })
    }

    /// Adds to counter number `index` of the list of names.
    pub fn add(&self, index: usize, n: u64) {
        if let Some(v) = self.values.get(index) {
            v.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Adds to a counter that comes up while the vCPU runs: where its time went, if that is asked for. Whoever counts bounds their number.
    pub fn add_named(&self, name: &'static str, n: u64) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let value = named.entry(name).or_default();
        *value = value.saturating_add(n);
    }

    /// The counters that came up, and their values.
    pub fn named(&self) -> BTreeMap<&'static str, u64> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Names and values.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names.iter().copied().zip(self.values.iter().map(|v| v.load(Ordering::Relaxed)))
    }
}
