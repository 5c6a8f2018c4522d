//! Kicks: none is lost, none counts twice.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use umbra_engine::{Halt, RunState};

use super::asm::Asm;
use super::io::Io;
use super::*;

/// Kicks a processor that runs over and over, each time when it has returned once more.
fn kick_often(state: &CpuState, times: u32) {
    let rig = Rig::new(1);
    tables(&rig, &[]);
    rig.memory.write(CODE, &Asm::new().spin().0).unwrap();
    let mut vcpu = rig.vcpu(0);
    vcpu.load(state).unwrap();
    let (kicker, returned, done) = (vcpu.kicker(), AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let io = Io::default();
            while !done.load(Ordering::SeqCst) {
                assert!(matches!(vcpu.run(&io), Halt::Stopped));
                returned.fetch_add(1, Ordering::SeqCst);
            }
        });
        for n in 1..=times {
            kicker.kick();
            wait_for("a return", || returned.load(Ordering::SeqCst) >= n);
            // Now before the next `run`, now at its start, now in the middle.
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_nanos(u64::from(n * 37 % 20_000)) {}
        }
        std::thread::sleep(Duration::from_millis(5));
        let count = returned.load(Ordering::SeqCst);
        done.store(true, Ordering::SeqCst);
        kicker.kick();
        assert_eq!(count, times, "each kick is one return");
    });
}

#[test]
fn a_running_processor() {
    kick_often(&flat(0, CODE), 5000);
}

#[test]
fn a_halted_processor() {
    kick_often(&CpuState { run_state: RunState::Halted, ..flat(0, CODE) }, 2000);
}

#[test]
fn a_processor_that_waits_for_sipi() {
    kick_often(&CpuState { run_state: RunState::WaitForSipi, ..flat(0, CODE) }, 1000);
}

#[test]
fn kicks_before_run_are_one_return() {
    let rig = Rig::new(1);
    let mut vcpu = rig.vcpu(0);
    vcpu.load(&flat(0, CODE)).unwrap();
    (0..3).for_each(|_| vcpu.kicker().kick());
    assert!(matches!(vcpu.run(&Io::default()), Halt::Stopped));
    assert_eq!(vcpu.save().unwrap().rip, CODE, "nothing was executed");
    // A kicker may outlive processor and machine.
    let kicker = vcpu.kicker();
    drop((vcpu, rig));
    kicker.kick();
}

#[test]
fn a_triple_fault_ends_the_run() {
    let rig = Rig::new(1);
    let mut vcpu = rig.vcpu(0);
    let mut state = flat(0, CODE);
    state.idtr.0.limit = 0;
    rig.memory.write(CODE, &[0x0f, 0x0b]).unwrap();
    vcpu.load(&state).unwrap();
    assert!(matches!(vcpu.run(&Io::default()), Halt::TripleFault));
}
