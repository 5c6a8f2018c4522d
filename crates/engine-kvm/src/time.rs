//! Guest time: it stands while the machine is stopped, and goes on where it stood.
//!
//! The kernel's counters never stand. So when time stops, each processor's TSC is noted and its deadline timer disarmed; when
//! it starts again the TSCs are set back, the deadlines armed again, and KVM's clock set to the machine's. The TSCs are read
//! and written as offsets to the host's where KVM allows that (Linux 5.16), which keeps them exactly in step. Where it does not, they are
//! written as MSRs, and KVM's guess that writes of about the same value mean "in step" is used on purpose.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data};
use kvm_ioctls::{VcpuFd, VmFd};
use umbra_device::Clock;
use umbra_engine::EngineError;
use umbra_x86::msr;

use crate::sys;

/// KVM takes a write that is less than a second's ticks off what the others count as a wish to be in step with them. No TSC is
/// slower than this or as much faster, so the difference is safely within, or safely beyond.
const STEP_TICKS: u64 = 100_000_000;
const FAR_TICKS: u64 = 1 << 60;

/// The time of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ProcessorTime {
    /// IA32_TSC.
    pub(crate) tsc: u64,
    /// IA32_TSC_DEADLINE; 0 if it is not armed.
    pub(crate) deadline: u64,
}

struct Processor {
    fd: Arc<VcpuFd>,
    /// While time stands.
    time: ProcessorTime,
    /// The guest's wall clock structure, to be written again once the clock is right: after a load.
    wall_clock: Option<u64>,
}

#[derive(Default)]
struct State {
    runs: bool,
    processors: BTreeMap<u32, Processor>,
}

/// A machine's time. It stands at first.
pub(crate) struct Time {
    vm: Arc<VmFd>,
    clock: Clock,
    /// KVM_KVMCLOCK_CTRL exists.
    clock_control: bool,
    state: Mutex<State>,
}

impl Time {
    pub(crate) fn new(vm: Arc<VmFd>, clock: Clock, clock_control: bool) -> Self {
        Self { vm, clock, clock_control, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A processor has been made.
    pub(crate) fn add(&self, id: u32, fd: Arc<VcpuFd>) {
        let processor = Processor { fd, time: ProcessorTime::default(), wall_clock: None };
        self.state().processors.insert(id, processor);
    }

    /// What processor `id` counts, or counted when time was stopped.
    pub(crate) fn of(&self, id: u32) -> io::Result<ProcessorTime> {
        let state = self.state();
        let p = state.processors.get(&id).ok_or(io::ErrorKind::NotFound)?;
        if !state.runs {
            return Ok(p.time);
        }
        let read = |n| sys::get_msr(&p.fd, n).map(Option::unwrap_or_default);
        Ok(ProcessorTime { tsc: read(msr::IA32_TSC)?, deadline: read(msr::IA32_TSC_DEADLINE)? })
    }

    /// Sets what processor `id` counts: now, or when time starts. `wall_clock` is KVM_WALL_CLOCK_NEW, if the guest has one.
    pub(crate) fn set(&self, id: u32, time: ProcessorTime, wall_clock: Option<u64>) -> io::Result<()> {
        let mut state = self.state();
        let runs = state.runs;
        let p = state.processors.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        p.time = time;
        p.wall_clock = wall_clock;
        if runs {
            sys::set_msr(&p.fd, msr::IA32_TSC, time.tsc)?;
            p.arm()?;
        }
        Ok(())
    }

    /// Lets guest time stand. Idempotent.
    pub(crate) fn stop(&self) -> Result<(), EngineError> {
        let mut state = self.state();
        if state.runs {
            state.note().map_err(EngineError::host("read the processors' time"))?;
            if self.clock_control {
                // Refused where the guest does not use the clock: then there is nobody to tell.
                for p in state.processors.values() {
                    let _ = p.fd.kvmclock_ctrl();
                }
            }
            state.runs = false;
        }
        Ok(())
    }

    /// Lets guest time go on. Idempotent.
    pub(crate) fn start(&self) -> Result<(), EngineError> {
        let mut state = self.state();
        if state.runs {
            return Ok(());
        }
        let set = || {
            if !state.start_by_offset()? {
                state.start_by_value()?;
            }
            state.processors.values().try_for_each(Processor::arm)
        };
        set().map_err(EngineError::host("set the processors' time"))?;
        let now = kvm_clock_data { clock: self.clock.now(), ..kvm_clock_data::default() };
        self.vm.set_clock(&now).map_err(io::Error::from).map_err(EngineError::host("KVM_SET_CLOCK"))?;
        for p in state.processors.values_mut() {
            if let Some(value) = p.wall_clock.take() {
                let done = sys::set_msr(&p.fd, msr::KVM_WALL_CLOCK_NEW, value);
                done.map_err(EngineError::host("write the guest's wall clock"))?;
            }
        }
        state.runs = true;
        Ok(())
    }
}

impl Processor {
    /// Arms the deadline timer, if the guest had.
    fn arm(&self) -> io::Result<()> {
        match self.time.deadline {
            0 => Ok(()),
            deadline => sys::set_msr(&self.fd, msr::IA32_TSC_DEADLINE, deadline).map(drop),
        }
    }

    fn offset(&self) -> io::Result<u64> {
        sys::get_attribute(&self.fd, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET)
    }

    fn tsc(&self) -> io::Result<u64> {
        sys::get_msr(&self.fd, msr::IA32_TSC).map(Option::unwrap_or_default)
    }
}

impl State {
    /// Notes every processor's time, all TSCs as of one moment, and disarms the deadlines.
    fn note(&mut self) -> io::Result<()> {
        let Some(first) = self.processors.values().next() else { return Ok(()) };
        let (now, base) = (first.tsc()?, first.offset());
        for p in self.processors.values_mut() {
            p.time.tsc = match (&base, p.offset()) {
                (Ok(base), Ok(offset)) => now.wrapping_add(offset.wrapping_sub(*base)),
                _ => in_step(p.tsc()?, now),
            };
            p.time.deadline = sys::get_msr(&p.fd, msr::IA32_TSC_DEADLINE)?.unwrap_or(0);
            if p.time.deadline != 0 {
                sys::set_msr(&p.fd, msr::IA32_TSC_DEADLINE, 0)?;
            }
        }
        Ok(())
    }

    /// Sets the TSCs by their offsets. Whether KVM did.
    fn start_by_offset(&self) -> io::Result<bool> {
        let Some(first) = self.processors.values().next() else { return Ok(true) };
        let Ok(offset) = first.offset() else { return Ok(false) };
        let base = offset.wrapping_add(first.time.tsc.wrapping_sub(first.tsc()?));
        for p in self.processors.values() {
            let offset = base.wrapping_add(p.time.tsc.wrapping_sub(first.time.tsc));
            if sys::set_attribute(&p.fd, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, offset).is_err() {
                return Ok(false);
            }
        }
        // Some KVMs take the offset and do nothing with it.
        Ok(first.tsc()?.wrapping_sub(first.time.tsc) < STEP_TICKS * 100)
    }

    /// Sets the TSCs by their values: first one far away, so that KVM does not take a short pause for a wish to be in step with what
    /// went on meanwhile, then the same value on each.
    fn start_by_value(&self) -> io::Result<()> {
        let Some(first) = self.processors.values().next() else { return Ok(()) };
        sys::set_msr(&first.fd, msr::IA32_TSC, first.time.tsc.wrapping_add(FAR_TICKS))?;
        for p in self.processors.values() {
            sys::set_msr(&p.fd, msr::IA32_TSC, in_step(p.time.tsc, first.time.tsc))?;
        }
        Ok(())
    }
}

/// `tsc`, or `reference` if it is so near that the difference is the time between two readings.
fn in_step(tsc: u64, reference: u64) -> u64 {
    let near = tsc.wrapping_sub(reference) < STEP_TICKS || reference.wrapping_sub(tsc) < STEP_TICKS;
    if near { reference } else { tsc }
}
