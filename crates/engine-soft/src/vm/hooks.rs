//! What system instructions ask of the machine: time, the local APIC, KVM's paravirtual registers and calls.
//!
//! `None` from a function means that the register or call does not exist or the value is refused.

use umbra_apic::reg::{MSR_APIC_BASE, MSR_TSC_DEADLINE};

use crate::cpu::Cpu;
use crate::mmu::event;

/// The guest's time-stamp counter.
pub fn rdtsc(cpu: &Cpu) -> u64 {
    cpu.tsc.now()
}

/// Moves the guest's time-stamp counter by `delta`. A deadline of the timer is met by the new counter.
pub fn adjust_tsc(cpu: &mut Cpu, delta: u64) {
    cpu.tsc.adjust(delta);
    cpu.write_system_time();
    cpu.update_timer();
}

/// Reads from the page of APIC registers.
pub fn apic_mmio_read(cpu: &mut Cpu, offset: u32, data: &mut [u8]) {
    cpu.with_apic(|apic, time| apic.mmio_read(offset.into(), data, time));
}

/// Writes to the page of APIC registers.
pub fn apic_mmio_write(cpu: &mut Cpu, offset: u32, data: &[u8]) {
    let effects = cpu.with_apic(|apic, time| apic.mmio_write(offset.into(), data, time));
    cpu.apic_changed(effects);
    if cpu.interrupt_hint {
        cpu.fast.event |= event::INTERRUPT;
    }
}

/// Reads an MSR of the x2APIC range.
pub fn apic_msr_read(cpu: &mut Cpu, number: u32) -> Option<u64> {
    cpu.with_apic(|apic, time| apic.msr_read(number, time)).ok()
}

/// Writes an MSR of the x2APIC range.
pub fn apic_msr_write(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    cpu.write_apic_msr(number, value).ok()
}

/// IA32_APIC_BASE.
pub fn apic_base(cpu: &Cpu) -> u64 {
    cpu.port().apic().base()
}

/// Writes IA32_APIC_BASE. The page of registers may have moved, so all translations are forgotten.
pub fn apic_base_write(cpu: &mut Cpu, value: u64) -> Option<()> {
    cpu.write_apic_msr(MSR_APIC_BASE, value).ok()?;
    cpu.paging_changed();
    Some(())
}

/// IA32_TSC_DEADLINE.
pub fn tsc_deadline(cpu: &Cpu) -> u64 {
    cpu.tsc_deadline()
}

/// Writes IA32_TSC_DEADLINE.
pub fn set_tsc_deadline(cpu: &mut Cpu, value: u64) {
    // The timer's MSR takes every value.
    let _ = cpu.write_apic_msr(MSR_TSC_DEADLINE, value);
}

/// The task priority as CR8 shows it.
pub fn apic_tpr(cpu: &Cpu) -> u8 {
    cpu.port().apic().cr8()
}

/// Sets the task priority as CR8 does.
pub fn set_tpr(cpu: &mut Cpu, value: u8) {
    cpu.with_apic(|apic, _| apic.set_cr8(value));
}

/// PAUSE: the guest waits for another of its processors, which may be waiting for the host's.
pub fn pause(cpu: &mut Cpu) {
    cpu.spin.pause(super::host_tsc());
    if cpu.spin.lasts() {
        cpu.leave_world();
        std::thread::yield_now();
        cpu.enter_world();
    }
}

/// Reads one of KVM's MSRs.
pub fn kvm_msr_read(cpu: &mut Cpu, number: u32) -> Option<u64> {
    cpu.read_kvm_msr(number)
}

/// Writes one of KVM's MSRs.
pub fn kvm_msr_write(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    cpu.write_kvm_msr(number, value)
}

/// KVM's hypercall `number` from CPL 0; what RAX becomes.
pub fn hypercall(cpu: &mut Cpu, number: u64, arguments: [u64; 4]) -> Option<i64> {
    cpu.kvm_call(number, arguments)
}
