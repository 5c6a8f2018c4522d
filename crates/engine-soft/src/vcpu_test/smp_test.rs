//! Several processors: start-up and interrupts between them.

use std::sync::atomic::{AtomicBool, Ordering};

use umbra_engine::{Halt, Vcpu};

use super::asm::{Asm, apic};
use super::io::{EXIT, Io};
use super::*;

/// Runs processors, each on a thread of its own, until `done` holds.
fn run_all(mut vcpus: Vec<Box<dyn Vcpu>>, io: &Io, done: impl Fn() -> bool) {
    let kickers: Vec<_> = vcpus.iter().map(|v| v.kicker()).collect();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for vcpu in &mut vcpus {
            scope.spawn(|| {
                while !end.load(Ordering::SeqCst) {
                    let halt = vcpu.run(io);
                    assert!(matches!(halt, Halt::Stopped), "{halt:?}");
                }
            });
        }
        let began = Instant::now();
        while !done() && began.elapsed() < LONG {
            std::thread::sleep(Duration::from_micros(200));
        }
        end.store(true, Ordering::SeqCst);
        kickers.iter().for_each(umbra_engine::Kicker::kick);
    });
    assert!(done(), "it did not come to its end");
}

#[test]
fn init_and_start_up_start_another_processor() {
    let (rig, io) = (Rig::new(2), Io::default());
    tables(&rig, &[]);
    let to_1 = Asm::new().apic_on().apic(apic::ICR_HIGH, 1 << 24);
    let code = to_1.apic(apic::ICR, 0x4500).apic(apic::ICR, 0x4606).apic(apic::ICR, 0x4607).idle();
    rig.memory.write(CODE, &code.0).unwrap();
    // Real mode: CS 0x600. mov ax, cs; mov [0x5000], ax; mov al, 1; out 0xf4, al; cli; hlt
    let started = [0x8c, 0xc8, 0xa3, 0, 0x50, 0xb0, 1, 0xe6, 0xf4, 0xfa, 0xf4];
    rig.memory.write(REAL_CODE, &started).unwrap();
    rig.memory.write(REAL_CODE + 0x1000, &started).unwrap();
    let (mut first, second) = (rig.vcpu(0), rig.vcpu(1));
    first.load(&flat(0, CODE)).unwrap();
    run_all(vec![first, second], &io, || !io.times(EXIT).is_empty());
    assert!(matches!(rig.word(COUNTS.into()), 0x600 | 0x700));
    assert_eq!(io.times(EXIT).len(), 1, "a second SIPI does nothing to a processor that runs");
}

#[test]
fn init_stops_a_processor_that_runs() {
    let (rig, io) = (Rig::new(2), Io::default());
    tables(&rig, &[]);
    let wait = Asm::new().mov(1, 2_000_000).bytes(&[0xe2, 0xfe]);
    let to_1 = Asm::new().apic_on().bytes(&wait.0).apic(apic::ICR_HIGH, 1 << 24).apic(apic::ICR, 0x4500);
    rig.memory.write(CODE, &to_1.bytes(&wait.0).apic(apic::ICR, 0x4606).idle().0).unwrap();
    rig.memory.write(REAL_CODE, &[0xb0, 1, 0xe6, 0xf4, 0xfa, 0xf4]).unwrap();
    let mut counting = Asm::new();
    counting = counting.inc(COUNTS).jmp_to(0);
    rig.memory.write(CODE + 0x800, &counting.0).unwrap();
    let (mut first, mut second) = (rig.vcpu(0), rig.vcpu(1));
    first.load(&flat(0, CODE)).unwrap();
    let mut state = flat(1, CODE + 0x800);
    state.xcr0 = 7;
    state.set_msr(umbra_x86::msr::IA32_LSTAR, 0x1234);
    second.load(&state).unwrap();
    let vcpus = vec![first, second];
    run_all(vcpus, &io, || !io.times(EXIT).is_empty());
    assert!(rig.word(COUNTS.into()) > 0);
}

/// Two processors send each other interrupts, `rounds` each, in the forms `send` and `end` have.
fn ping_pong(
    rounds: u32,
    start: impl Fn(Asm) -> Asm,
    send: impl Fn(Asm, u32) -> Asm,
    end: impl Fn(Asm) -> Asm,
) -> Duration {
    let (rig, io) = (Rig::new(2), Io::default());
    // The handler counts for its processor and answers; which one it is says the stack.
    let handler = |me: u32| end(send(Asm::new().inc(COUNTS + 4 * me), 1 - me)).iret();
    tables(&rig, &[(0x40, handler(0)), (0x41, handler(1))]);
    let first = start(Asm::new());
    rig.memory.write(CODE, &send(first, 1).idle().0).unwrap();
    rig.memory.write(CODE + 0x800, &start(Asm::new()).store(COUNTS + 8, 1).idle().0).unwrap();
    let (mut a, mut b) = (rig.vcpu(0), rig.vcpu(1));
    a.load(&flat(0, CODE)).unwrap();
    b.load(&flat(1, CODE + 0x800)).unwrap();
    // The second must be able to accept before the first sends.
    let kicker = b.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("the second", || rig.word((COUNTS + 8).into()) == 1);
            kicker.kick();
        });
        assert!(matches!(b.run(&io), Halt::Stopped));
    });
    let began = Instant::now();
    run_all(vec![a, b], &io, || rig.word(COUNTS.into()) >= rounds);
    began.elapsed()
}

fn through_the_page(rounds: u32) -> Duration {
    let send = |code: Asm, to: u32| code.apic(apic::ICR_HIGH, to << 24).apic(apic::ICR, 0x40 + to);
    ping_pong(rounds, Asm::apic_on, send, |code| code.apic(apic::EOI, 0))
}

fn through_msrs(rounds: u32) -> Duration {
    let base = |code: Asm| {
        code.bytes(&[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0, 0xc, 0, 0, 0x0f, 0x30]).wrmsr(0x80f, 0x1ff)
    };
    let send = |code: Asm, to: u32| code.wrmsr(0x830, u64::from(to) << 32 | u64::from(0x40 + to));
    ping_pong(rounds, base, send, |code| code.wrmsr(0x80b, 0))
}

#[test]
fn interrupts_go_to_and_fro() {
    through_the_page(3000);
    through_msrs(3000);
}

/// What a round takes; run by hand.
#[test]
#[ignore = "a measurement"]
fn round_trip() {
    println!(
        "xAPIC {:?} a round, x2APIC {:?}",
        through_the_page(50_000) / 50_000,
        through_msrs(50_000) / 50_000
    );
}

/// Processors that hand a token round, each waiting for it in a loop with PAUSE: more of them than most hosts have cores.
fn token(processors: u32, rounds: u32) -> Duration {
    let (rig, io) = (Rig::new(processors), Io::default());
    tables(&rig, &[]);
    let vcpus = (0..processors).map(|id| {
        // wait: pause; cmp dword [token], id; jne wait; inc dword [count]; mov dword [token], next; jmp wait
        let code = Asm::new()
            .bytes(&[0xf3, 0x90, 0x83, 0x3d])
            .bytes(&COUNTS.to_le_bytes())
            .bytes(&[id as u8, 0x75, 0xf5]);
        let code = code.inc(COUNTS + 4).store(COUNTS, (id + 1) % processors).jmp_to(0);
        let entry = CODE + 0x100 * u64::from(id);
        rig.memory.write(entry, &code.0).unwrap();
        let mut vcpu = rig.vcpu(id);
        vcpu.load(&flat(id, entry)).unwrap();
        vcpu
    });
    let vcpus = vcpus.collect();
    let began = Instant::now();
    run_all(vcpus, &io, || rig.word(u64::from(COUNTS) + 4) >= rounds);
    began.elapsed()
}

#[test]
fn processors_that_wait_for_one_another_let_one_another_run() {
    token(8, 400);
}

/// What handing it on takes; run by hand.
#[test]
#[ignore = "a measurement"]
fn handing_on() {
    for processors in [2, 3, 4, 8] {
        println!("{processors} processors: {:?} a hand-over", token(processors, 4000) / 4000);
    }
}

#[test]
fn a_machine_of_254_processors() {
    let rig = Rig::new(254);
    let vcpus: Vec<_> = (0..254).map(|id| rig.vcpu(id)).collect();
    assert!(rig.vm.create_vcpu(umbra_engine::VcpuSpec { id: 254, cpuid: fixture::cpuid() }).is_err());
    assert!(
        rig.vm.create_vcpu(umbra_engine::VcpuSpec { id: 7, cpuid: fixture::cpuid() }).is_err(),
        "it exists"
    );
    drop(vcpus);
    rig.vcpu(7);
}
