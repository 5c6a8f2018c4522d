//! What other threads see of a processor, and how they wake it.
//!
//! Whoever wants a processor sets bits of its attention word, then wakes it if it sleeps. It sleeps on that very word (a futex), so a
//! bit that is set after it last looked ends the sleep, or keeps it from falling asleep. No lock is needed and no wake-up lost.

use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use umbra_apic::LocalApic;

use super::attention;
use super::time::host_tsc;

/// Physical address bits of a processor that does not exist yet.
const ADDRESS_BITS: u32 = 46;

/// What other threads see of a processor.
#[repr(align(128))]
pub struct Port {
    /// What wants its attention; polled at least once a block.
    pub attention: AtomicU32,
    /// The processor executes guest code; see [`super::World`].
    pub inside: AtomicBool,
    asleep: AtomicBool,
    /// A processor has been made for this port.
    taken: AtomicBool,
    sipi: AtomicU8,
    apic: Mutex<LocalApic>,
}

impl Port {
    /// The port of processor `id`, which does not exist yet: its APIC accepts nothing.
    pub(super) fn new(id: u32) -> Self {
        Self {
            attention: AtomicU32::new(0),
            inside: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            sipi: AtomicU8::new(0),
            apic: Mutex::new(LocalApic::new(id, id == 0, ADDRESS_BITS)),
        }
    }

    /// Takes the port for a processor, if nobody has.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::SeqCst)
    }

    /// Gives the port back: the processor is gone.
    pub(crate) fn give_back(&self) {
        self.taken.store(false, Ordering::SeqCst);
    }

    /// Whether anything wants attention.
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed) != 0
    }

    /// The local APIC. Never hold two, nor one while calling a device.
    pub(crate) fn apic(&self) -> MutexGuard<'_, LocalApic> {
        self.apic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets attention bits and wakes the processor.
    pub(crate) fn signal(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        self.wake();
    }

    /// INIT: a SIPI that came before it counts no more.
    pub(crate) fn signal_init(&self) {
        let replace = |bits| Some(bits & !attention::SIPI | attention::INIT);
        // The closure always gives a value, so this cannot fail.
        let _ = self.attention.fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace);
        self.wake();
    }

    /// SIPI with `vector`.
    pub(crate) fn signal_sipi(&self, vector: u8) {
        self.sipi.store(vector, Ordering::SeqCst);
        self.signal(attention::SIPI);
    }

    /// The vector of the latest SIPI.
    pub(crate) fn sipi(&self) -> u8 {
        self.sipi.load(Ordering::SeqCst)
    }

    /// What wants attention.
    pub(crate) fn waiting(&self) -> u32 {
        self.attention.load(Ordering::SeqCst)
    }

    /// Clears attention bits; which of them were set.
    pub(crate) fn clear(&self, bits: u32) -> u32 {
        if self.attention.load(Ordering::Relaxed) & bits == 0 {
            return 0;
        }
        self.attention.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            // SAFETY: the word is alive; nobody but this process waits on it.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.attention.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    1,
                );
            }
        }
    }

    /// Sleeps until one of `bits` wants attention or the time is over; may end earlier for no reason.
    pub(crate) fn sleep(&self, bits: u32, at_most: Duration) {
        let seen = self.attention.load(Ordering::SeqCst);
        if seen & bits != 0 {
            return;
        }
        self.asleep.store(true, Ordering::SeqCst);
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        // SAFETY: the word and the time are alive during the call; the kernel compares the word with what was seen before it sleeps.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.attention.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                seen,
                ptr::from_ref(&time),
            );
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Waits for one of `bits` without sleeping, until the host's time-stamp counter is at `until`. Whether one has come.
    pub(crate) fn poll(&self, bits: u32, until: u64) -> bool {
        loop {
            if self.attention.load(Ordering::SeqCst) & bits != 0 {
                return true;
            }
            if host_tsc() >= until {
                return false;
            }
            (0..16).for_each(|_| spin_loop());
        }
    }
}
