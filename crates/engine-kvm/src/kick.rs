//! Making a vCPU leave the guest, from any thread, without a race.
//!
//! A kick sets a flag that stays set until `run` has seen it, then sends a signal to the thread that runs the vCPU, if one does. The
//! handler sets `immediate_exit` of that thread's vCPU. So it does not matter where the signal arrives: before KVM_RUN, the flag
//! makes KVM_RUN return; inside KVM_RUN, the pending signal does; elsewhere, the loop sees the flag
//! before it enters again. A wake is the same without the flag: the loop goes round once.
//!
//! `run` clears `immediate_exit`, then looks at the flag; a kicker sets the flag, then looks for the thread; `run` publishes its thread
//! before the first look. All of it is sequentially consistent, so each kick is seen by one of the two.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;

use crate::page::RunPage;
use crate::sys;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null. Constant and without a destructor: a plain thread-local word.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// This thread's id once the signal is known to be unblocked in it; 0 before.
    static PREPARED: Cell<libc::pid_t> = const { Cell::new(0) };
}

/// The signal that kicks: the second real-time signal that the C library leaves to programs.
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null only between `Kick::enter` and the end of what it returned, during which its caller keeps the page mapped.
        unsafe { &*flag }.store(1, Ordering::SeqCst);
    }
}

/// Installs the handler, once in the process.
pub(crate) fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
        // KVM_RUN is never restarted; other calls of the thread are, so that a kick disturbs no device.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: a valid action whose handler does one atomic store.
        match unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// This thread's id, after making sure that it takes the signal.
fn prepare_thread() -> libc::pid_t {
    let known = PREPARED.get();
    if known != 0 {
        return known;
    }
    // SAFETY: a signal set made here and passed by pointer; `gettid` cannot fail.
    let tid = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::gettid()
    };
    PREPARED.set(tid);
    tid
}

/// While this lives, a kick signal waits for this thread: KVM_RUN delivers to the processor what is due and returns before the guest
/// executes anything. (`immediate_exit` returns before the delivery.)
pub(crate) struct SignalWaits<'a> {
    vcpu: &'a VcpuFd,
    before: libc::sigset_t,
}

impl<'a> SignalWaits<'a> {
    pub(crate) fn new(vcpu: &'a VcpuFd) -> io::Result<Self> {
        let tid = prepare_thread();
        // SAFETY: signal sets made here and passed by pointer; the signal goes to this thread, which blocks it.
        let before = unsafe {
            let (mut set, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, kick_signal());
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, kick_signal());
            before
        };
        let waits = Self { vcpu, before };
        sys::set_signal_mask(vcpu, Some(!(1 << (kick_signal() - 1))))?;
        Ok(waits)
    }
}

impl Drop for SignalWaits<'_> {
    fn drop(&mut self) {
        let _ = sys::set_signal_mask(self.vcpu, None);
        // SAFETY: the set that the thread had before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// What kickers and the running vCPU share.
#[derive(Debug, Default)]
pub(crate) struct Kick {
    requested: AtomicBool,
    thread: AtomicI32,
}

impl Kick {
    /// Makes `run` return: the one that runs, or else the next.
    pub(crate) fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Makes `run`, if it runs, go round its loop.
    pub(crate) fn wake(&self) {
        let tid = self.thread.load(Ordering::SeqCst);
        if tid != 0 && tid == PREPARED.get() {
            on_kick(0); // from within a device that this processor is calling
        } else if tid != 0 {
            // SAFETY: takes no pointer. If the thread has ended meanwhile, and even if its id was given to another thread of this
            // process, the handler does nothing there.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, kick_signal()) };
        }
    }

    /// Takes the request to return, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// Marks this thread as the one that runs the vCPU with this page, until the result is dropped.
    ///
    /// # Safety
    /// `page` must outlive the result.
    pub(crate) unsafe fn enter(&self, page: &RunPage) -> Entered<'_> {
        let tid = prepare_thread();
        let before = IMMEDIATE_EXIT.replace(page.immediate_exit());
        self.thread.store(tid, Ordering::SeqCst);
        Entered { kick: self, before }
    }
}

/// While this lives, signals to the thread reach the vCPU.
pub(crate) struct Entered<'a> {
    kick: &'a Kick,
    before: *const AtomicU8,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.kick.thread.store(0, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(self.before);
    }
}
