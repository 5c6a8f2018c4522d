//! What a processor does before it executes: INIT, start-up, NMI, interrupts; and how it waits while it is halted.
//!
//! Intel SDM volume 3, "Processor State After Reset" (and INIT), "Priority Among Simultaneous Exceptions and Interrupts", "MP
//! Initialization Protocol".

use std::cell::Cell;
use std::time::Duration;

use umbra_engine::{CpuState, Event, RunState};
use umbra_x86::reg::{Cr0, Rflags};
use umbra_x86::segment::{Segment, sreg};

use super::time::host_tsc;
use super::{attention, count};
use crate::cpu::{Cpu, Shadow};
use crate::fault::Fault;
use crate::state;
use crate::sys::{self, TripleFault};

/// Sleeping ends at least this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// A halted processor waits awake for this long at most, in nanoseconds. Waking a thread that sleeps takes about as long.
const POLL_NS_MAX: u64 = 50_000;
/// The shortest such wait.
const POLL_NS_MIN: u64 = 5_000;

/// An event whose delivery had begun when the processor was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// An exception.
    Exception(Event),
    /// A maskable interrupt that was acknowledged.
    Interrupt(u8),
}

impl Cpu {
    /// Sees to the attention word and to the timer. Whether the processor was kicked; then nothing else has been seen to.
    pub(crate) fn attend(&mut self) -> bool {
        let port = self.port();
        if port.clear(attention::KICK) != 0 {
            return true;
        }
        let bits = port.clear(attention::WAKES & !attention::KICK | attention::FLUSH);
        if bits & attention::INIT != 0 {
            self.init();
        }
        if bits & attention::SIPI != 0 && self.run_state == RunState::WaitForSipi {
            self.start_up(self.port().sipi());
        }
        self.nmi_pending |= bits & attention::NMI != 0;
        self.ext_int |= bits & attention::EXT_INT != 0;
        self.interrupt_hint |= bits & (attention::APIC | attention::EXTERNAL | attention::EXT_INT) != 0;
        if bits & attention::FLUSH != 0 {
            self.flush_all();
        }
        self.check_timer();
        false
    }

    /// INIT: as at power-on, but for the vector units, XCR0, the time-stamp counter, other MSRs and the cache bits of CR0.
    fn init(&mut self) {
        let mut state = CpuState::power_on(self.id, &self.cpuid);
        state.cr0 = state.cr0 & !(Cr0::NW | Cr0::CD).bits() | (self.cr0 & (Cr0::NW | Cr0::CD)).bits();
        state::load_registers(self, &state);
        self.shadow = Shadow::None;
        self.injected = None;
        (self.nmi_pending, self.nmi_masked, self.ext_int) = (false, false, false);
        self.debug_pending = 0;
        let is_bsp = self.with_apic(|apic, _| {
            apic.init();
            apic.is_bsp()
        });
        self.run_state = if is_bsp { RunState::Running } else { RunState::WaitForSipi };
        self.update_timer();
        self.paging_changed();
    }

    /// SIPI: real mode, at the page that the vector names.
    fn start_up(&mut self, vector: u8) {
        self.seg[sreg::CS] = Segment::real(u16::from(vector) << 8, true);
        self.rip = 0;
        self.run_state = RunState::Running;
        self.update_mode();
    }

    /// Delivers at most one event, if there is one that can be delivered now.
    pub(crate) fn deliver_events(&mut self) -> Result<(), TripleFault> {
        if let Some(injected) = self.injected.take() {
            self.run_state = RunState::Running;
            return self.deliver_injected(injected);
        }
        if self.run_state == RunState::Halted {
            self.shadow = Shadow::None;
        }
        if self.nmi_pending && !self.nmi_masked && self.shadow != Shadow::MovSs {
            self.nmi_pending = false;
            self.run_state = RunState::Running;
            self.counters.add(count::INTERRUPTS, 1);
            return sys::deliver_nmi(self);
        }
        if !self.interrupt_hint || !self.flag(Rflags::IF) || self.shadow != Shadow::None {
            return Ok(());
        }
        let Some(vector) = self.take_interrupt() else { return Ok(()) };
        self.run_state = RunState::Running;
        self.counters.add(count::INTERRUPTS, 1);
        sys::deliver_interrupt(self, vector)
    }

    fn deliver_injected(&mut self, injected: Injected) -> Result<(), TripleFault> {
        match injected {
            Injected::Interrupt(vector) => sys::deliver_interrupt(self, vector),
            Injected::Exception(Event { vector, error }) => {
                self.fault_address = self.cr2;
                let fault = Fault { vector, has_error: error.is_some(), error: error.unwrap_or(0) };
                sys::deliver_fault(self, fault)
            }
        }
    }

    /// Acknowledges the interrupt to be delivered: the PIC's before the local APIC's, as under KVM.
    fn take_interrupt(&mut self) -> Option<u8> {
        let from_pic = self.id == 0 && self.external() && self.port().apic().accepts_ext_int();
        if std::mem::take(&mut self.ext_int) || from_pic {
            let vector = self.with_io(|io| io.external_interrupt());
            if vector.is_some() {
                // What else is pending is found by the next look.
                return vector;
            }
        }
        let vector = self.with_apic(|apic, _| apic.pending().is_some().then(|| apic.acknowledge()));
        // A PIC that asserts its output but has no vector would be asked for ever.
        self.interrupt_hint &= vector.is_some();
        vector
    }

    /// Waits while the processor is halted or waits for SIPI. May end earlier.
    pub(crate) fn wait(&mut self) {
        let is_halted = self.run_state == RunState::Halted;
        let (bits, until) =
            if is_halted { (attention::WAKES, self.timer_at) } else { (attention::STARTS, u64::MAX) };
        if is_halted {
            self.counters.add(count::HALTS, 1);
        }
        let khz = u64::from(self.shared.time.khz);
        let began = host_tsc();
        let window = self.halt_poll * khz / 1_000_000;
        if is_halted
            && window > 0
            && (self.port().poll(bits, until.min(began + window)) || host_tsc() >= until)
        {
            self.counters.add(count::HALT_POLLS, 1);
            return;
        }
        let left = until.saturating_sub(host_tsc());
        let left = Duration::from_nanos(
            u64::try_from(u128::from(left) * 1_000_000 / u128::from(khz)).unwrap_or(u64::MAX),
        );
        exact_timers();
        self.port().sleep(bits, left.min(SLEEP_MAX));
        let slept = (host_tsc().wrapping_sub(began)) * 1_000_000 / khz;
        self.adapt_poll(slept);
    }

    /// Waits awake for longer next time if that would have spared this sleep, and not at all if it was a long one.
    fn adapt_poll(&mut self, slept_ns: u64) {
        self.halt_poll =
            if slept_ns < POLL_NS_MAX { (self.halt_poll * 2).clamp(POLL_NS_MIN, POLL_NS_MAX) } else { 0 };
    }
}

/// Lets the kernel end this thread's sleeps on time, instead of up to 50 µs later. Costs a system call once a thread.
fn exact_timers() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        // SAFETY: sets a number of the calling thread; no memory is passed. Refused, sleeps are merely less exact.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
    }
}
