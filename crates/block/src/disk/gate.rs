//! The way to the node at the top: requests go in and out, and whoever drains waits until nobody is inside.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::Node;

#[derive(Debug)]
struct State {
    top: Arc<Node>,
    /// Requests that are under way.
    inside: usize,
    /// Somebody drains, or waits for it.
    closed: bool,
    /// How many wait to come in or to drain.
    waiting: usize,
}

/// The way to the node at the top of a disk.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// A request that is under way, until it is dropped. The node stays the top as long.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    node: Arc<Node>,
}

impl Gate {
    pub(super) fn new(top: Arc<Node>) -> Self {
        let state = State { top, inside: 0, closed: false, waiting: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Waits until `ready`.
    fn wait_until(&self, ready: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while !ready(&state) {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(|poison| poison.into_inner());
            state.waiting -= 1;
        }
        state
    }

    /// The node at the top.
    pub(super) fn top(&self) -> Arc<Node> {
        self.state().top.clone()
    }

    /// Goes in, as soon as nobody drains.
    pub(super) fn enter(&self) -> Pass<'_> {
        let mut state = self.wait_until(|state| !state.closed);
        state.inside += 1;
        Pass { gate: self, node: state.top.clone() }
    }

    /// Goes in, unless somebody drains.
    pub(super) fn try_enter(&self) -> Option<Pass<'_>> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(Pass { gate: self, node: state.top.clone() })
    }

    /// Keeps everybody out, and waits until nobody is inside; the node at the top.
    pub(super) fn close(&self) -> Arc<Node> {
        self.wait_until(|state| !state.closed).closed = true;
        self.wait_until(|state| state.inside == 0).top.clone()
    }

    /// Lets requests in again, to `top`.
    pub(super) fn open(&self, top: Arc<Node>) {
        let mut state = self.state();
        (state.top, state.closed) = (top, false);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl Pass<'_> {
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.gate.changed.notify_all();
        }
    }
}
