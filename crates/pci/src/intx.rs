//! The interrupt pin of a function: a level that its status register tells and its command register can keep off the
//! wire (PCI Local Bus Specification 3.0, sections 2.2.6 and 6.2.2).

use std::sync::{Arc, Mutex};

use umbra_device::IrqLine;

use crate::lock;

#[derive(Debug, Default)]
struct State {
    /// The function wants service: Interrupt Status.
    asserted: bool,
    /// Interrupt Disable.
    disabled: bool,
}

/// The pin. Clones are the same one; it may be driven from any thread.
#[derive(Clone)]
pub struct Intx {
    state: Arc<Mutex<State>>,
    line: IrqLine,
}

impl std::fmt::Debug for Intx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intx").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Intx {
    /// The pin at the end of `line`, which the machine has joined to where interrupt routing tells the guest.
    pub fn new(line: IrqLine) -> Self {
        Self { state: Arc::default(), line }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        let before = state.asserted && !state.disabled;
        change(&mut state);
        let now = state.asserted && !state.disabled;
        // Driven under the lock, so that the last level on the wire is the right one.
        if now != before {
            self.line.set(now);
        }
    }

    /// The function wants service, or has got it.
    pub fn set(&self, asserted: bool) {
        self.change(|state| state.asserted = asserted);
    }

    /// Whether the function wants service, on the wire or not.
    pub fn is_asserted(&self) -> bool {
        lock(&self.state).asserted
    }

    /// Interrupt Disable was written.
    pub(crate) fn set_disabled(&self, disabled: bool) {
        self.change(|state| state.disabled = disabled);
    }

    /// What a restored function wants; the wire is not driven, because the interrupt controller's own state has it.
    pub fn restore(&self, asserted: bool) {
        lock(&self.state).asserted = asserted;
    }

    /// Interrupt Disable of a restored function.
    pub(crate) fn restore_disabled(&self, disabled: bool) {
        lock(&self.state).disabled = disabled;
    }
}
