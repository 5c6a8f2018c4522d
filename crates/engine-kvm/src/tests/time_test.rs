//! Guest time stands while the machine does.

use std::time::{Duration, Instant};

use umbra_engine::Engine;
use umbra_x86::cpuid::feature;
use umbra_x86::msr;

use super::guest::{CODE, Did, Guest, Io, WAIT, engine, real_mode_state, skip, write_handler, wrmsr};

const LVT_TIMER: u32 = 0x832;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;

/// Whether this KVM gives guests a TSC of their own. One is known that lets them read the host's, whatever is written.
fn has_own_tsc(engine: &crate::KvmEngine, test: &str) -> bool {
    let mut guest = Guest::new(engine, 1);
    let mut state = real_mode_state(&guest.cpuid, 0, CODE);
    state.tsc = 1 << 50;
    guest.vcpus[0].load(&state).unwrap();
    guest.start();
    let tsc = guest.vcpus[0].save().unwrap().tsc;
    let own = tsc >> 40 == 1 << 10;
    if !own {
        skip(test, "this KVM's guests count with the host's TSC");
    }
    own
}

#[test]
fn the_tsc_stands_and_goes_on() {
    let Some(engine) = engine("the_tsc_stands_and_goes_on") else { return };
    if !has_own_tsc(&engine, "the_tsc_stands_and_goes_on") {
        return;
    }
    let mut guest = Guest::new(&engine, 2);
    let khz = u64::from(guest.vcpus[0].save().unwrap().tsc_khz);
    let wanted = 1 << 44;
    for id in 0..2 {
        let mut state = real_mode_state(&guest.cpuid, id, CODE);
        state.tsc = wanted;
        guest.vcpus[id as usize].load(&state).unwrap();
        assert_eq!(guest.vcpus[id as usize].save().unwrap().tsc, wanted);
    }
    guest.start();
    std::thread::sleep(Duration::from_millis(20));
    let both = |g: &mut Guest| [0, 1].map(|i| g.vcpus[i].save().unwrap().tsc);
    let running = both(&mut guest);
    assert!(running[0] > wanted + khz * 15 && running[0] < wanted + khz * 2000, "{running:?}");
    guest.stop();
    let stopped = both(&mut guest);
    assert_eq!(stopped[0], stopped[1], "in step");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(both(&mut guest), stopped);
    let begun = Instant::now();
    guest.start();
    let again = both(&mut guest);
    let most = khz * (begun.elapsed().as_millis() as u64 + 2);
    assert!(again[0] >= stopped[0] && again[0] < stopped[0] + most, "{again:?} after {stopped:?}");
    guest.stop();
}

/// A timer that the guest armed goes off after as much guest time as it asked for, wherever that passes.
#[test]
fn the_deadline_timer_moves_to_another_machine() {
    let Some(engine) = engine("the_deadline_timer_moves_to_another_machine") else { return };
    if !has_own_tsc(&engine, "the_deadline_timer_moves_to_another_machine") {
        return;
    }
    let mut first = Guest::new(&engine, 1);
    let khz = u64::from(first.vcpus[0].save().unwrap().tsc_khz);
    let (tsc, deadline) = (1u64 << 40, (1u64 << 40) + khz * 400);
    let code = [
        wrmsr(LVT_TIMER, 0x4_0042),
        wrmsr(msr::IA32_TSC_DEADLINE, deadline),
        vec![0xe6, 0xf4],
        WAIT.to_vec(),
    ]
    .concat();
    first.memory.write(CODE, &code).unwrap();
    let mut state = real_mode_state(&first.cpuid, 0, CODE);
    state.tsc = tsc;
    first.vcpus[0].load(&state).unwrap();
    first.start();
    let io = Io::default();
    first.run(&io, |_| ());
    first.stop();
    let state = first.vcpus[0].save().unwrap();
    assert_eq!(state.msr(msr::IA32_TSC_DEADLINE), Some(deadline));
    std::thread::sleep(Duration::from_millis(450));

    let mut second = Guest::new(&engine, 1);
    second.memory.write(CODE, &code).unwrap();
    write_handler(&second, 0x42, true);
    second.vcpus[0].load(&state).unwrap();
    second.start();
    let begun = Instant::now();
    let io = Io::default();
    second.run(&io, |_| {
        io.wait_for(&Did::Out(0x42, vec![0x42]), 1);
        io.stop();
    });
    let left_ms = (deadline - state.tsc) / khz;
    let took_ms = begun.elapsed().as_millis() as u64;
    assert!(took_ms + 5 >= left_ms, "{left_ms} ms were left, {took_ms} ms it took");
    assert_eq!(second.vcpus[0].save().unwrap().msr(msr::IA32_TSC_DEADLINE), None, "it has gone off");
}

#[test]
fn a_counting_apic_timer_moves_to_another_machine() {
    let Some(engine) = engine("a_counting_apic_timer_moves_to_another_machine") else { return };
    // One shot, undivided: the bus counts nanoseconds.
    let code = [
        wrmsr(LVT_TIMER, 0x43),
        wrmsr(DIVIDE, 0xb),
        wrmsr(INITIAL_COUNT, 300_000_000),
        vec![0xe6, 0xf4],
        WAIT.to_vec(),
    ]
    .concat();
    let mut first = Guest::real_mode(&engine, &code);
    let io = Io::default();
    first.run(&io, |_| ());
    first.stop();
    let state = first.vcpus[0].save().unwrap();
    let page = &state.apic.as_ref().unwrap().page;
    let left = u32::from_le_bytes([page[0x390], page[0x391], page[0x392], page[0x393]]);
    assert!(left > 0 && left < 300_000_000, "{left}");

    let mut second = Guest::new(&engine, 1);
    second.memory.write(CODE, &code).unwrap();
    write_handler(&second, 0x43, true);
    second.vcpus[0].load(&state).unwrap();
    second.start();
    let io = Io::default();
    second.run(&io, |_| {
        io.wait_for(&Did::Out(0x43, vec![0x43]), 1);
        io.stop();
    });
}

#[test]
fn a_timer_that_goes_off_while_the_machine_stands_is_not_lost() {
    let Some(engine) = engine("a_timer_that_goes_off_while_the_machine_stands_is_not_lost") else { return };
    let code = [
        wrmsr(LVT_TIMER, 0x43),
        wrmsr(DIVIDE, 0xb),
        wrmsr(INITIAL_COUNT, 20_000_000),
        vec![0xe6, 0xf4],
        WAIT.to_vec(),
    ]
    .concat();
    let mut guest = Guest::real_mode(&engine, &code);
    guest.run(&Io::default(), |_| ());
    guest.stop();
    let before = guest.vcpus[0].save().unwrap();
    std::thread::sleep(Duration::from_millis(60));
    let state = guest.vcpus[0].save().unwrap();
    let page = &state.apic.as_ref().unwrap().page;
    assert_eq!(page[0x220] >> 3 & 1, 1, "vector 0x43 is requested");
    assert_eq!((state.rip, state.gpr), (before.rip, before.gpr), "nothing was executed for it");
}

/// The structure through which KVM tells a guest the time (Linux, "KVM-specific MSRs"), read as the guest would.
fn kvm_clock(guest: &mut Guest, at: u64) -> u64 {
    let tsc = guest.vcpus[0].save().unwrap().tsc;
    let [_, stamp, time, scale] = [0, 8, 16, 24].map(|offset| guest.word(at + offset));
    let (multiplier, shift) = (scale & 0xffff_ffff, (scale >> 32) as i8);
    let ticks = tsc.wrapping_sub(stamp);
    let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
    time + ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64
}

#[test]
fn the_guests_clock_is_the_machines() {
    let Some(engine) = engine("the_guests_clock_is_the_machines") else { return };
    let mut guest = Guest::real_mode(&engine, &[0xe6, 0xf4, 0xeb, 0xfc]); // out f4h, al; jmp
    guest.stop();
    let mut state = guest.vcpus[0].save().unwrap();
    state.set_msr(msr::KVM_SYSTEM_TIME_NEW, 0x6001);
    state.set_msr(msr::KVM_WALL_CLOCK_NEW, 0x6100);
    guest.vcpus[0].load(&state).unwrap();
    const AN_HOUR: u64 = 3_600_000_000_000;
    guest.clock.set(AN_HOUR);
    guest.start();
    let io = Io::default();
    for pause in [0, 200] {
        guest.stop();
        std::thread::sleep(Duration::from_millis(pause));
        guest.start();
        guest.run(&io, |_| ());
        let (clock, machine) = (kvm_clock(&mut guest, 0x6000), guest.clock.now());
        assert!(machine >= AN_HOUR && machine.abs_diff(clock) < 60_000_000, "{clock} and {machine}");
    }
    let wall = guest.word(0x6104);
    let booted = (wall & 0xffff_ffff) * 1_000_000_000 + (wall >> 32);
    let real = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let now = booted + guest.clock.now();
    assert!(real.abs_diff(now) < 1_500_000_000, "the guest takes {now} for {real}");
    let state = guest.vcpus[0].save().unwrap();
    assert_eq!(
        (state.msr(msr::KVM_SYSTEM_TIME_NEW), state.msr(msr::KVM_WALL_CLOCK_NEW)),
        (Some(0x6001), Some(0x6100))
    );
}

#[test]
fn another_frequency_is_scaled_or_refused_or_harmless() {
    let Some(engine) = engine("another_frequency_is_scaled_or_refused_or_harmless") else { return };
    let mut cpuid = engine.supported_cpuid().unwrap();
    let can_scale = kvm_ioctls::Kvm::new().unwrap().check_extension(kvm_ioctls::Cap::TscControl);
    for invariant in [true, false] {
        if invariant && !cpuid.has(feature::INVARIANT_TSC) {
            continue; // nobody can be promised one here
        }
        cpuid.set_feature(feature::INVARIANT_TSC, invariant);
        let mut vcpu = Guest::with_cpuid(&engine, 1, &cpuid).vcpus.remove(0);
        let mut state = vcpu.save().unwrap();
        let khz = state.tsc_khz;
        state.tsc_khz = khz + khz / 10_000; // 100 ppm
        vcpu.load(&state).unwrap();
        state.tsc_khz = khz - khz / 100;
        match vcpu.load(&state) {
            Ok(()) => {
                assert!(can_scale || !invariant);
                assert_eq!(vcpu.save().unwrap().tsc_khz, state.tsc_khz, "what the guest was told stays");
            }
            Err(e) => assert!(invariant && !can_scale && e.to_string().contains("invariant"), "{e}"),
        }
    }
}
