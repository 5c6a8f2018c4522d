//! A processor and its own local APIC: accesses to it, what they have for effects, and its timer.

use std::sync::atomic::Ordering;

use umbra_apic::reg::MSR_TSC_DEADLINE;
use umbra_apic::{Deadline, Effects, Gp, LocalApic, Time as _};

use super::time::{CpuTime, host_tsc};
use super::{Port, attention, count};
use crate::cpu::Cpu;

/// Nanoseconds as ticks of a counter that runs at `khz`, rounded up.
fn ticks(ns: u64, khz: u32) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(khz) / 1_000_000 + 1).unwrap_or(u64::MAX)
}

impl Cpu {
    /// What other threads see of this processor.
    pub(crate) fn port(&self) -> &Port {
        &self.shared.ports[self.id as usize]
    }

    /// Looks at or changes the local APIC, and whether it now has an interrupt to deliver.
    pub(crate) fn with_apic<R>(&mut self, f: impl FnOnce(&mut LocalApic, &CpuTime<'_>) -> R) -> R {
        let time = CpuTime { clock: &self.shared.clock, tsc: &self.tsc };
        let mut apic = self.port().apic();
        let result = f(&mut apic, &time);
        let hint = self.ext_int
            || apic.pending().is_some()
            || self.id == 0 && self.external() && apic.accepts_ext_int();
        drop(apic);
        self.interrupt_hint = hint;
        result
    }

    /// The PIC's output.
    pub(super) fn external(&self) -> bool {
        self.shared.external.load(Ordering::SeqCst)
    }

    /// Does what a change of the local APIC asks for.
    pub(super) fn apic_changed(&mut self, effects: Effects) {
        let Effects { ipi, eoi, timer } = effects;
        if timer {
            self.update_timer();
        }
        if let Some(message) = ipi {
            self.counters.add(count::IPIS, 1);
            self.shared.deliver(&message, Some(self.id));
        }
        if let Some(vector) = eoi {
            self.with_io(|io| io.end_of_interrupt(vector));
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub(crate) fn write_apic_msr(&mut self, number: u32, value: u64) -> Result<(), Gp> {
        let effects = self.with_apic(|apic, time| apic.msr_write(number, value, time))?;
        self.apic_changed(effects);
        Ok(())
    }

    /// IA32_TSC_DEADLINE.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        let time = CpuTime { clock: &self.shared.clock, tsc: &self.tsc };
        self.port().apic().msr_read(MSR_TSC_DEADLINE, &time).unwrap_or(0)
    }

    /// Derives when the timer goes off, in ticks of the host.
    pub(crate) fn update_timer(&mut self) {
        let deadline = self.port().apic().next_deadline();
        self.timer_at = match deadline {
            None => u64::MAX,
            Some(Deadline::Tsc(value)) => self.tsc.host_at(value),
            Some(Deadline::Ns(at)) => {
                let left = at.saturating_sub(self.shared.clock.now());
                host_tsc().saturating_add(ticks(left, self.shared.time.khz))
            }
        };
        if self.timer_at < self.alarm_at {
            // The run loop shall set the alarm anew.
            self.port().attention.fetch_or(attention::TIMER, Ordering::SeqCst);
        }
    }

    /// Lets the timer go off if its time has come.
    pub(super) fn check_timer(&mut self) {
        if host_tsc() < self.timer_at {
            return;
        }
        self.with_apic(|apic, time| apic.expire(time.ns(), time.tsc()));
        self.update_timer();
    }
}
