//! KVM's paravirtual clock: a structure in guest memory from which the guest computes the time out of its time-stamp counter, and
//! another with the wall-clock time at which that clock was zero.
//!
//! Authority: Linux's documentation of KVM's MSRs and of its timekeeping (MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK_NEW).

use std::sync::atomic::{Ordering, fence};
use std::time::SystemTime;

use umbra_memory::{Memory, MemoryError};
use umbra_x86::cpuid::feature;
use umbra_x86::msr;

use super::time::Anchor;
use crate::cpu::Cpu;

/// The guest may use the clock.
const ENABLED: u64 = 1;
/// Readings of different processors never contradict one another.
const FLAG_STABLE: u8 = 1;

/// What a processor's guest has told of its clock.
#[derive(Debug, Clone, Default)]
pub struct KvmClock {
    /// MSR_KVM_SYSTEM_TIME_NEW: where the structure is, and bit 0.
    pub system_time: u64,
    /// MSR_KVM_WALL_CLOCK_NEW: where the wall clock's structure is.
    pub wall_clock: u64,
    /// The wall clock must be written anew when time goes on: the machine has been moved.
    pub wall_clock_due: bool,
    anchor: Anchor,
}

/// What turns ticks at `khz` into nanoseconds: `(ticks << shift) * multiplier >> 32`, a negative shift to the right.
fn multiplier(khz: u32) -> (u32, i8) {
    let hz = u128::from(khz.max(1)) * 1000;
    let with = |shift: i8| (1_000_000_000u128 << (32 - i32::from(shift))) / hz;
    let fits = |shift: &i8| u32::try_from(with(*shift)).is_ok();
    let shift = (-31..=31).find(fits).unwrap_or(31);
    (u32::try_from(with(shift)).unwrap_or(u32::MAX), shift)
}

/// Writes a structure that begins with a version: odd while the rest changes.
fn write_versioned(memory: &Memory, gpa: u64, rest: &[u8]) -> Result<(), MemoryError> {
    let mut version = [0; 4];
    memory.read(gpa, &mut version)?;
    let odd = u32::from_le_bytes(version).wrapping_add(1) | 1;
    memory.write(gpa, &odd.to_le_bytes())?;
    fence(Ordering::SeqCst);
    memory.write(gpa.wrapping_add(4), rest)?;
    fence(Ordering::SeqCst);
    memory.write(gpa, &odd.wrapping_add(1).to_le_bytes())
}

impl Cpu {
    /// Takes note that time has been started since this processor last ran.
    pub(crate) fn refresh_time(&mut self) {
        if let Some(anchor) = self.tsc.refresh(&self.shared.time) {
            self.kvm.anchor = anchor;
            self.write_system_time();
            if std::mem::take(&mut self.kvm.wall_clock_due) {
                self.write_wall_clock();
            }
        }
        self.update_timer();
    }

    /// Writes the clock's structure, if the guest has one. Addresses without memory are the guest's mistake, and ignored.
    pub(super) fn write_system_time(&self) {
        let address = self.kvm.system_time;
        if address & ENABLED == 0 {
            return;
        }
        let (multiplier, shift) = multiplier(self.tsc.real_khz(&self.shared.time));
        let mut rest = [0; 28];
        rest[4..12].copy_from_slice(&self.tsc.of_ticks(self.kvm.anchor.ticks).to_le_bytes());
        rest[12..20].copy_from_slice(&self.kvm.anchor.ns.to_le_bytes());
        rest[20..24].copy_from_slice(&multiplier.to_le_bytes());
        rest[24] = shift.to_le_bytes()[0];
        rest[25] = FLAG_STABLE;
        let _ = write_versioned(&self.shared.memory, address & !ENABLED, &rest);
    }

    /// Writes the wall-clock time at which the machine's clock was zero.
    fn write_wall_clock(&self) {
        if self.kvm.wall_clock == 0 {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let zero = now.saturating_sub(std::time::Duration::from_nanos(self.shared.clock.now()));
        let mut rest = [0; 8];
        rest[..4].copy_from_slice(&(zero.as_secs() as u32).to_le_bytes());
        rest[4..].copy_from_slice(&zero.subsec_nanos().to_le_bytes());
        let _ = write_versioned(&self.shared.memory, self.kvm.wall_clock, &rest);
    }

    /// The place of one of the clock's MSRs, if the guest is shown it.
    fn clock_msr(&mut self, number: u32) -> Option<&mut u64> {
        let needs = match number {
            msr::KVM_WALL_CLOCK | msr::KVM_SYSTEM_TIME => feature::KVM_CLOCKSOURCE,
            _ => feature::KVM_CLOCKSOURCE2,
        };
        if !self.cpuid.has(needs) {
            return None;
        }
        match number {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => Some(&mut self.kvm.wall_clock),
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => Some(&mut self.kvm.system_time),
            _ => None,
        }
    }

    /// Reads one of KVM's MSRs.
    pub(super) fn read_kvm_msr(&mut self, number: u32) -> Option<u64> {
        self.clock_msr(number).map(|v| *v)
    }

    /// Writes one of KVM's MSRs.
    pub(super) fn write_kvm_msr(&mut self, number: u32, value: u64) -> Option<()> {
        *self.clock_msr(number)? = value;
        match number {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => self.write_wall_clock(),
            _ => self.write_system_time(),
        }
        Some(())
    }
}

#[cfg(test)]
#[path = "pvclock_test.rs"]
mod pvclock_test;
