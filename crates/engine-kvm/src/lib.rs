//! The engine that runs guests on the processor's own virtualization, through Linux' KVM.
//!
//! [`KvmEngine`] stands on a descriptor of /dev/kvm that somebody else opened. That it opens says little: [`probe`] runs a few
//! instructions to find out whether it can run a kernel, and [`diagnose`] explains why it does not open.
//!
//! The kernel has the local APICs and the timers; the I/O APIC, the PIC and the PIT are the machine's own (KVM's "split irqchip"). So KVM takes
//! messages down, and reports ends of interrupts up.

mod cpuid;
mod diagnose;
mod doorbells;
mod engine;
mod extint;
mod kick;
mod page;
mod probe;
mod report;
mod routes;
mod run;
mod slots;
mod state;
mod sys;
mod time;
mod vcpu;
mod vm;

pub use diagnose::diagnose;
pub use engine::{KvmEngine, RESERVED};
pub use kick::kick_signal;
pub use probe::{ProbeFailure, ProbeReport, probe};

#[cfg(test)]
mod tests {
    mod convert_test;
    mod guest;
    mod interrupt_test;
    mod kick_test;
    mod probe_test;
    mod run_test;
    mod smp_test;
    mod state_test;
    mod time_test;
}
