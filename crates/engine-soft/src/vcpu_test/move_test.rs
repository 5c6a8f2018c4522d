//! A processor's state moved to another machine, and states that nobody saved.

use umbra_engine::{CpuState, Halt, Kicker};
use umbra_memory::Memory;
use umbra_state::{Record, Saved};

use super::asm::{Asm, apic};
use super::io::{EXIT, Io};
use super::*;

/// Mixes EAX 3,000,000 times, notes it, and leaves. Timer interrupts mix EBX meanwhile, so that every place is one to be saved at.
fn program() -> Asm {
    let mut code = Asm::new()
        .apic_on()
        .apic(apic::TDCR, 0xb)
        .apic(apic::LVT_TIMER, 0x50 | 1 << 17)
        .apic(apic::TMICT, 100_000);
    code = code.mov(0, 1).mov(1, 3_000_000).sti();
    let again = code.0.len();
    // imul eax, eax, 1664525; add eax, 1013904223; push eax; pop edx; movd xmm1, edx; paddd xmm0, xmm1
    code = code
        .bytes(&[0x69, 0xc0])
        .bytes(&1_664_525u32.to_le_bytes())
        .bytes(&[0x05])
        .bytes(&1_013_904_223u32.to_le_bytes());
    code = code.bytes(&[0x50, 0x5a, 0x66, 0x0f, 0x6e, 0xca, 0x66, 0x0f, 0xfe, 0xc1, 0x49]);
    // jnz again; movd eax, xmm0; xor eax, edx; mov [0x5010], eax
    let back = again as i32 - (code.0.len() as i32 + 6);
    code = code.bytes(&[0x0f, 0x85]).bytes(&back.to_le_bytes()).bytes(&[0x66, 0x0f, 0x7e, 0xc0, 0x31, 0xd0]);
    code.store_eax(COUNTS + 0x10).out(EXIT as u8).idle()
}

fn machine() -> Rig {
    let rig = Rig::new(1);
    tables(&rig, &[(0x50, Asm::counting(COUNTS))]);
    rig.memory.write(CODE, &program().0).unwrap();
    rig
}

fn start() -> CpuState {
    CpuState { cr4: 0x600, ..flat(0, CODE) }
}

fn copy(from: &Memory, to: &Memory) {
    let mut bytes = vec![0; 1 << 20];
    from.read(0, &mut bytes).unwrap();
    to.write(0, &bytes).unwrap();
}

#[test]
fn a_program_does_not_notice_that_it_is_moved() {
    let (rig, io) = (machine(), Io::default());
    let mut vcpu = rig.vcpu(0);
    vcpu.load(&start()).unwrap();
    io.run_to_exit(&mut *vcpu);
    let wanted = rig.word(u64::from(COUNTS) + 0x10);

    let (mut rig, io) = (machine(), Io::default());
    let mut state = start();
    let mut moves = 0;
    while io.times(EXIT).is_empty() {
        let mut vcpu = rig.vcpu(0);
        vcpu.load(&state).unwrap();
        let kicker = vcpu.kicker();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(500 + 137 * moves % 900));
                kicker.kick();
            });
            assert!(matches!(vcpu.run(&io), Halt::Stopped));
        });
        rig.vm.stop_time().unwrap();
        rig.clock.stop();
        state = vcpu.save().unwrap();
        let next = Rig::new(1);
        next.vm.stop_time().unwrap();
        next.clock.stop();
        next.clock.set(rig.clock.now());
        copy(&rig.memory, &next.memory);
        // Loaded and saved at once it is the same.
        let mut vcpu = next.vcpu(0);
        vcpu.load(&state).unwrap();
        assert_eq!(vcpu.save().unwrap().differences(&state), Vec::<String>::new());
        drop(vcpu);
        next.clock.start();
        next.vm.start_time().unwrap();
        rig = next;
        moves += 1;
    }
    // How often depends on how busy the host is: a late kick lets the program go further.
    assert!(moves > 0, "it was never moved");
    assert_eq!(rig.word(u64::from(COUNTS) + 0x10), wanted);
    assert!(rig.word(COUNTS.into()) > 0, "the timer went on ticking");
}

/// A generator of numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A state in long mode, with tables that map the first 2 MiB.
fn long(rig: &Rig) -> CpuState {
    for (at, entry) in [(0x8000u64, 0x9007u64), (0x9000, 0xa007), (0xa000, 0x87)] {
        rig.memory.write(at, &entry.to_le_bytes()).unwrap();
    }
    let mut s = flat(0, CODE);
    (s.cr0, s.cr3, s.cr4, s.efer) = (0x8000_0033, 0x8000, 0x6_0620, 0xd01);
    s.segments[1].0.access |= umbra_x86::segment::access::L;
    s.segments[1].0.access &= !umbra_x86::segment::access::DB;
    s.xcr0 = 7;
    s
}

fn mutate(random: &mut Random, state: &CpuState) -> Option<CpuState> {
    let record = state.to_record("vcpu0");
    let mut bytes = record.bytes.clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        bytes[at] = match random.below(3) {
            0 => bytes[at] ^ 1 << random.below(8),
            1 => 0xff,
            _ => random.next() as u8,
        };
    }
    CpuState::from_record(&Record { bytes, ..record }).ok()
}

/// Changes values that are likely to be accepted.
fn twist(random: &mut Random, s: &mut CpuState) {
    let value = random.next() >> random.below(64);
    match random.below(12) {
        0 => s.rip = value,
        1 => s.gpr[random.below(16)] = value,
        2 => s.rflags ^= 1 << random.below(22),
        3 => s.segments[random.below(6)].0.access = value as u16,
        4 => s.segments[random.below(6)].0.base = value,
        5 => s.segments[random.below(6)].0.limit = value as u32,
        6 => s.cr3 = value & 0xffff,
        7 => s.cr0 ^= 1 << random.below(32),
        8 => s.cr4 ^= 1 << random.below(24),
        9 => s.idtr.0.base = value,
        10 => s.dr7 = value & 0xffff_ffff,
        _ => s.segments[random.below(6)].0.unusable ^= true,
    }
}

#[test]
fn states_that_nobody_saved_do_no_harm() {
    run_states(0x9e37_79b9_7f4a_7c15, 3000);
}

/// The same for minutes, from other seeds; run by hand.
#[test]
#[ignore = "takes minutes"]
fn many_states_that_nobody_saved_do_no_harm() {
    (1..100u64).for_each(|seed| run_states(seed.wrapping_mul(0x1234_5678_9abc_def1), 10_000));
}

/// Loads `rounds` states and runs each for a moment.
fn run_states(seed: u64, rounds: usize) {
    let rig = Rig::new(1);
    tables(&rig, &[(0x50, Asm::counting(COUNTS))]);
    rig.memory.write(CODE, &program().0).unwrap();
    let bases = [start(), long(&rig), CpuState::power_on(0, &fixture::cpuid())];
    let mut vcpu = rig.vcpu(0);
    let (io, mut random) = (Io::default(), Random(seed));
    let kicker = vcpu.kicker();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| kick_until(&kicker, &done));
        let (mut accepted, mut refused) = (0, 0);
        for n in 0..rounds {
            let base = &bases[n % bases.len()];
            let state = if n % 2 == 0 { mutate(&mut random, base) } else { Some(base.clone()) };
            let Some(mut state) = state else { continue };
            if n % 2 == 1 {
                (0..=random.below(3)).for_each(|_| twist(&mut random, &mut state));
            }
            match vcpu.load(&state) {
                Ok(()) => {
                    accepted += 1;
                    drop(vcpu.run(&io));
                    let saved = vcpu.save().unwrap();
                    let _ = vcpu.load(&saved);
                }
                Err(_) => refused += 1,
            }
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(accepted > rounds / 6 && refused > rounds / 30, "{accepted} accepted, {refused} refused");
    });
}

fn kick_until(kicker: &Kicker, done: &std::sync::atomic::AtomicBool) {
    while !done.load(std::sync::atomic::Ordering::SeqCst) {
        kicker.kick();
        std::thread::sleep(Duration::from_micros(60));
    }
}
