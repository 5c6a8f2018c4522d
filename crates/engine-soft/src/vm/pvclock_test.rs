use umbra_x86::msr::{KVM_SYSTEM_TIME_NEW, KVM_WALL_CLOCK_NEW};

use super::*;
use crate::fixture;
use crate::vm::hooks;

/// What a guest computes from the structure (Linux's documentation of the KVM clock).
fn guest_time(memory: &Memory, gpa: u64, tsc: u64) -> u64 {
    let mut s = [0; 32];
    memory.read(gpa, &mut s).unwrap();
    let long = |at: usize| u64::from_le_bytes(s[at..at + 8].try_into().unwrap());
    let version = u32::from_le_bytes(s[..4].try_into().unwrap());
    let mul = u32::from_le_bytes(s[24..28].try_into().unwrap());
    let shift = s[28] as i8;
    assert_eq!(version % 2, 0, "it is being changed");
    assert_eq!(s[29], 1, "stable");
    let delta = tsc - long(8);
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    long(16) + ((u128::from(delta) * u128::from(mul)) >> 32) as u64
}

#[test]
fn multipliers_are_exact_to_a_millionth() {
    for khz in [1, 1000, 999_999, 1_000_000, 2_300_000, 4_999_999, u32::MAX] {
        let (mul, shift) = multiplier(khz);
        let second = u64::from(khz) * 1000;
        let shifted = if shift < 0 { second >> -shift } else { second << shift };
        let ns = (u128::from(shifted) * u128::from(mul)) >> 32;
        assert!(ns.abs_diff(1_000_000_000) < 1000, "{khz} kHz: a second has {ns} ns");
        assert!(mul >> 31 == 1 || shift == -31, "{khz} kHz: precision is wasted");
    }
}

#[test]
fn the_guest_computes_the_machines_time() {
    for khz in [0, 1_700_000] {
        let engine = crate::vm::host_khz().unwrap();
        let shared = Shared::new(fixture::memory(1 << 16), umbra_device::Clock::new(), 1, engine);
        let mut cpu = Cpu::new(shared.clone(), 0, fixture::cpuid()).unwrap();
        if khz != 0 {
            cpu.tsc = crate::vm::Tsc::load(123_456_789, khz, &shared.time);
        }
        shared.clock.set(5_000_000_000);
        shared.clock.start();
        shared.time.start(&shared.clock);
        cpu.refresh_time();
        assert_eq!(hooks::kvm_msr_write(&mut cpu, KVM_SYSTEM_TIME_NEW, 0x1000 | 1), Some(()));
        std::thread::sleep(std::time::Duration::from_millis(30));
        let (before, tsc, after) = (shared.clock.now(), hooks::rdtsc(&cpu), shared.clock.now());
        let guest = guest_time(&shared.memory, 0x1000, tsc);
        assert!(
            (before - 200_000..after + 200_000).contains(&guest),
            "{khz}: {guest} is not in {before}..{after}"
        );
        // Moving the counter does not move the clock.
        hooks::adjust_tsc(&mut cpu, 1 << 40);
        let guest = guest_time(&shared.memory, 0x1000, hooks::rdtsc(&cpu));
        let now = shared.clock.now();
        assert!(guest.abs_diff(now) < 1_000_000, "{khz}: {guest} and {now}");
        assert_eq!(hooks::kvm_msr_read(&mut cpu, umbra_x86::msr::KVM_SYSTEM_TIME), Some(0x1001));
    }
}

use crate::vm::Shared;

#[test]
fn the_wall_clock_is_the_hosts_when_the_machines_was_zero() {
    let mut cpu = fixture::processor(1 << 16);
    cpu.shared.clock.set(3_000_000_000);
    hooks::kvm_msr_write(&mut cpu, KVM_WALL_CLOCK_NEW, 0x2000).unwrap();
    let mut s = [0; 12];
    cpu.shared.memory.read(0x2000, &mut s).unwrap();
    let [version, seconds, ns] = [0, 4, 8].map(|at| u32::from_le_bytes(s[at..at + 4].try_into().unwrap()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(version > 0 && version % 2 == 0 && ns < 1_000_000_000);
    assert!((now - 5..=now - 2).contains(&u64::from(seconds)), "{seconds} at {now}");
}

#[test]
fn hostile_addresses_and_a_hidden_clock() {
    let mut cpu = fixture::processor(1 << 16);
    for address in [u64::MAX, 0xffff, 0xfff8, 0x1_0000, u64::MAX - 6] {
        hooks::kvm_msr_write(&mut cpu, KVM_SYSTEM_TIME_NEW, address | 1).unwrap();
        hooks::kvm_msr_write(&mut cpu, KVM_WALL_CLOCK_NEW, address).unwrap();
    }
    cpu.cpuid.set_feature(feature::KVM_CLOCKSOURCE2, false);
    assert_eq!(hooks::kvm_msr_read(&mut cpu, KVM_SYSTEM_TIME_NEW), None);
    assert_eq!(hooks::kvm_msr_write(&mut cpu, KVM_SYSTEM_TIME_NEW, 1), None);
    assert_eq!(hooks::kvm_msr_read(&mut cpu, umbra_x86::msr::KVM_STEAL_TIME), None);
}
