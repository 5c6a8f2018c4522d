//! A virtual processor as `umbra-engine` has it: the loop around the interpreter.

use std::mem::transmute;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use umbra_engine::{Counters, CpuIo, CpuState, EngineError, Halt, Kicker, RunState, Vcpu, VcpuSpec};

use crate::cpu::Cpu;
use crate::engine::Options;
use crate::exec::{self, Stop};
use crate::state;
use crate::vm::{Activity, Alarm, Profile, Sampler, Shared, attention, count};

/// A processor under the software engine.
pub struct SoftVcpu {
    cpu: Box<Cpu>,
}

impl SoftVcpu {
    /// Processor `spec.id` in its state at power-on.
    ///
    /// # Errors
    /// The machine has no such processor, or has it already; the host has no executable memory.
    pub(crate) fn new(shared: Arc<Shared>, spec: VcpuSpec, options: Options) -> Result<Self, EngineError> {
        let VcpuSpec { id, cpuid } = spec;
        let count = shared.ports.len();
        let port = shared.ports.get(id as usize);
        let port = port.ok_or_else(|| {
            EngineError::Internal(format!("processor {id} of a machine that has at most {count}"))
        })?;
        if !port.take() {
            return Err(EngineError::Internal(format!("processor {id} exists already")));
        }
        // From here on `Drop` gives the port back.
        match Cpu::new(shared.clone(), id, cpuid) {
            Ok(mut cpu) => {
                cpu.set_options(options);
                Ok(Self { cpu })
            }
            Err(e) => {
                port.give_back();
                Err(e)
            }
        }
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        self.cpu.port().give_back();
    }
}

/// A processor while `run` is on the stack.
struct Running<'a> {
    cpu: &'a mut Cpu,
}

impl<'a> Running<'a> {
    fn new(cpu: &'a mut Cpu, io: &'a dyn CpuIo) -> Self {
        // SAFETY: only the lifetime changes. The reference is forgotten when this value is dropped, before it ends.
        cpu.io = Some(unsafe { transmute::<NonNull<dyn CpuIo + 'a>, NonNull<dyn CpuIo>>(NonNull::from(io)) });
        Self { cpu }
    }

    fn run(&mut self) -> Halt {
        let cpu = &mut *self.cpu;
        cpu.refresh_time();
        loop {
            if cpu.attend() {
                return Halt::Stopped;
            }
            cpu.turn_to(Activity::Deliver);
            if cpu.run_state != RunState::WaitForSipi && cpu.in_world(Cpu::deliver_events).is_err() {
                return Halt::TripleFault;
            }
            if cpu.run_state != RunState::Running {
                cpu.turn_to(Activity::Wait);
                cpu.wait();
                continue;
            }
            cpu.turn_to(Activity::Dispatch);
            match exec::run(cpu) {
                Stop::Attention | Stop::Wait => {}
                Stop::TripleFault => return Halt::TripleFault,
                Stop::Different => return Halt::Error(EngineError::Internal(cpu.lockstep_report())),
            }
            cpu.publish_counts();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.cpu.io = None;
        self.cpu.publish_counts();
    }
}

impl Cpu {
    fn set_options(&mut self, options: Options) {
        let Options { translate_after, lockstep, profiled, counting } = options;
        if let Some(runs) = translate_after {
            self.translator.after = runs;
        }
        self.translator.counts = counting;
        self.profile = profiled.then(Profile::new);
        if let Some(runs) = lockstep {
            self.start_lockstep(runs);
        }
    }

    /// Adds what the interpreter counted by itself to the counters that everybody can read.
    fn publish_counts(&mut self) {
        self.name_samples();
        if let Some(lockstep) = &mut self.lockstep {
            self.counters.add_named("runs of blocks compared", std::mem::take(&mut lockstep.compared));
        }
        let translated = std::mem::take(&mut self.fast.translated);
        let n = std::mem::take(&mut self.fast.instructions) + translated;
        // Without those of translations the others tell nothing.
        if self.translator.counts {
            self.counters.add(count::INSTRUCTIONS, n);
            self.counters.add(count::TRANSLATED, translated);
        }
        self.counters.add(count::ENTERED, std::mem::take(&mut self.fast.entered));
        self.counters.add(count::INTERPRETED, std::mem::take(&mut self.fast.interpreted));
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Halt {
        let shared = self.cpu.shared.clone();
        let _alarm = Alarm::new(&shared.ports[self.cpu.id as usize].attention);
        let _sampler = Sampler::new(&self.cpu);
        self.cpu.alarm_at = u64::MAX;
        Running::new(&mut self.cpu, io).run()
    }

    fn kicker(&self) -> Kicker {
        // Weak, so that a kicker that somebody keeps does not keep the machine's memory.
        let (shared, id): (Weak<Shared>, _) = (Arc::downgrade(&self.cpu.shared), self.cpu.id as usize);
        Kicker::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.ports[id].signal(attention::KICK);
            }
        })
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(state::save(&self.cpu))
    }

    fn load(&mut self, state: &CpuState) -> Result<(), EngineError> {
        state::load(&mut self.cpu, state)
    }

    fn counters(&self) -> Arc<Counters> {
        self.cpu.counters.clone()
    }
}

#[cfg(test)]
#[path = "vcpu_test/mod.rs"]
mod vcpu_test;
