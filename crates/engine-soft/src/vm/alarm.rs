//! What interrupts a processor that executes guest code when its local APIC's timer is due.
//!
//! Translated code looks at the attention word and at nothing else. So a timer of the host, one a thread, sends the thread a signal, whose
//! handler sets a bit there. An alarm that comes too early, for a deadline that has moved since, is set anew when it has come.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::attention;
use super::time::host_tsc;

/// The signal; the KVM engine's is the one before.
fn signal() -> i32 {
    libc::SIGRTMIN() + 2
}

thread_local! {
    /// The attention word of the processor that this thread runs.
    static WORD: Cell<*const AtomicU32> = const { Cell::new(ptr::null()) };
    static TIMER: Option<Timer> = Timer::new();
}

extern "C" fn ring(_: i32) {
    let word = WORD.get();
    if !word.is_null() {
        // SAFETY: `Alarm` keeps the word set only while the processor's port is borrowed.
        unsafe { (*word).fetch_or(attention::TIMER, Ordering::SeqCst) };
    }
}

/// A timer of the host for this thread.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> Option<Self> {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            // SAFETY: all zero is a value of the structure; the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = ring as *const () as usize;
                action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
                // Both may come at the same tick; a sample is not to be of this handler.
                libc::sigaddset(&raw mut action.sa_mask, super::profile::signal());
                libc::sigaction(signal(), &raw const action, ptr::null_mut());
            }
        });
        let mut timer = ptr::null_mut();
        // SAFETY: all zero is a value of the structure; the call fills in `timer`.
        let made = unsafe {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        (made == 0).then_some(Self(timer))
    }

    /// Sets it off after `ns` nanoseconds.
    fn set(&self, ns: u64) {
        const SECOND: u64 = 1_000_000_000;
        let mut time: libc::itimerspec =
            // SAFETY: integers.
            unsafe { MaybeUninit::zeroed().assume_init() };
        time.it_value.tv_sec = (ns / SECOND).min(i32::MAX as u64) as libc::time_t;
        time.it_value.tv_nsec = (ns % SECOND).max(1) as libc::c_long;
        // SAFETY: the timer exists, the structure is valid.
        unsafe { libc::timer_settime(self.0, 0, &raw const time, ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's alone.
        unsafe { libc::timer_delete(self.0) };
    }
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
            timer.set(ns);
        }
    });
}
