//! Timers of the host that send a signal to the thread that made them.

use std::mem::MaybeUninit;
use std::ptr;

/// A handler that may look at what it interrupted.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Lets `signal` be handled by `handler` from now on, on the signal stack, with `held` held back meanwhile. It must be async-signal-safe.
pub fn install(signal: i32, handler: Handler, held: Option<i32>) {
    // SAFETY: all zero is a value of the structure; the handler has the form that `SA_SIGINFO` asks for.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_SIGINFO;
        if let Some(held) = held {
            libc::sigaddset(&raw mut action.sa_mask, held);
        }
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// A timer of the thread that made it.
pub struct Timer(libc::timer_t);

impl Timer {
    /// One that goes by `clock` and sends `signal`; `None` where the host has none left.
    pub fn new(clock: libc::clockid_t, signal: i32) -> Option<Self> {
        let mut timer = ptr::null_mut();
        // SAFETY: all zero is a value of the structure; the call fills in `timer`.
        let made = unsafe {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(clock, &raw mut event, &raw mut timer)
        };
        (made == 0).then_some(Self(timer))
    }

    /// Sets it off after `ns` nanoseconds, and again each `period` unless that is zero.
    pub fn set(&self, ns: u64, period: u64) {
        let times = libc::itimerspec { it_interval: time(period), it_value: time(ns.max(1)) };
        // SAFETY: the timer exists, the structure is valid.
        unsafe { libc::timer_settime(self.0, 0, &raw const times, ptr::null_mut()) };
    }
}

fn time(ns: u64) -> libc::timespec {
    const SECOND: u64 = 1_000_000_000;
    let seconds = (ns / SECOND).min(i32::MAX as u64);
    libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: (ns % SECOND) as libc::c_long }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's alone.
        unsafe { libc::timer_delete(self.0) };
    }
}
