//! What interrupts a processor that executes guest code when its local APIC's timer is due.
//!
//! Translated code looks at the attention word and at nothing else. So a timer of the host, one a thread, sends the thread a signal, whose
//! handler sets a bit there. An alarm that comes too early, for a deadline that has moved since, is set anew when it has come.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::time::host_tsc;
use super::timer::{self, Timer};
use super::{attention, profile};

/// The signal; the KVM engine's is the one before.
fn signal() -> i32 {
    libc::SIGRTMIN() + 2
}

thread_local! {
    /// The attention word of the processor that this thread runs.
    static WORD: Cell<*const AtomicU32> = const { Cell::new(ptr::null()) };
    static TIMER: Option<Timer> = timer();
}

extern "C" fn ring(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let word = WORD.get();
    if !word.is_null() {
        // SAFETY: `Alarm` keeps the word set only while the processor's port is borrowed.
        unsafe { (*word).fetch_or(attention::TIMER, Ordering::SeqCst) };
    }
}

/// The timer of this thread.
fn timer() -> Option<Timer> {
    static INSTALL: Once = Once::new();
    // Both may come at the same tick; a sample is not to be of this handler.
    INSTALL.call_once(|| timer::install(signal(), ring, Some(profile::signal())));
    Timer::new(libc::CLOCK_MONOTONIC, signal())
}

/// This thread runs a processor, while this value lives.
pub struct Alarm<'a> {
    _word: &'a AtomicU32,
}

impl<'a> Alarm<'a> {
    /// Alarms of this thread set a bit in `word`.
    pub fn new(word: &'a AtomicU32) -> Self {
        WORD.set(word);
        Self { _word: word }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        WORD.set(ptr::null());
    }
}

/// Sets the thread's alarm for when the host's time-stamp counter, of `khz`, is at `at`.
pub fn set(at: u64, khz: u32) {
    let ticks = u128::from(at.saturating_sub(host_tsc()));
    let ns = u64::try_from(ticks * 1_000_000 / u128::from(khz.max(1))).unwrap_or(u64::MAX);
    TIMER.with(|timer| {
        if let Some(timer) = timer {
            timer.set(ns, 0);
        }
    });
}
