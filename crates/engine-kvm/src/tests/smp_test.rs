//! Two processors: INIT, SIPI and IPIs between them.

use std::time::Duration;

use umbra_engine::RunState;

use super::guest::{CODE, Did, Guest, Io, WAIT, engine, out, real_mode_state, write_handler, wrmsr};

const ICR: u32 = 0x830;

fn two(engine: &crate::KvmEngine, first: &[u8], second: &[u8]) -> Guest {
    let mut guest = Guest::new(engine, 2);
    guest.memory.write(CODE, first).unwrap();
    guest.memory.write(0x9000, second).unwrap();
    for vector in [0x41, 0x42] {
        write_handler(&guest, vector, true);
    }
    for id in 0..2 {
        let mut state = real_mode_state(&guest.cpuid, id, CODE);
        if id == 1 {
            state.run_state = RunState::WaitForSipi;
        }
        guest.vcpus[id as usize].load(&state).unwrap();
    }
    guest.start();
    guest
}

#[test]
fn a_processor_starts_another_and_they_talk() {
    let Some(engine) = engine("a_processor_starts_another_and_they_talk") else { return };
    let start = [wrmsr(ICR, 1 << 32 | 0x4500), wrmsr(ICR, 1 << 32 | 0x4609), WAIT.to_vec()].concat();
    // The second, at 0900h:0000h: tells that it is here, sends 41h to the first, waits.
    let second = [out(0x81, 1), wrmsr(ICR, 0x41), WAIT.to_vec()].concat();
    let mut guest = two(&engine, &start, &second);
    let io = Io::default();
    guest.run(&io, |_| {
        io.wait_for(&Did::Out(0x41, vec![0x41]), 1);
        io.stop();
    });
    assert_eq!(io.take(), [Did::Out(0x81, vec![1]), Did::Out(0x41, vec![0x41])]);
    let code = guest.vcpus[1].save().unwrap().segments[1].0;
    assert_eq!((code.selector, code.base), (0x900, 0x9000));
    // By and by the second comes to its HLT, and a kick leaves it there. (To enter from another thread can take KVM many milliseconds.)
    let halted = (0..60).any(|round| {
        guest.run(&io, |_| {
            std::thread::sleep(Duration::from_millis(2 * round));
            io.stop();
        });
        guest.vcpus[1].save().unwrap().run_state == RunState::Halted
    });
    let state = guest.vcpus[1].save().unwrap();
    assert!(halted, "{state:x?}");
}

#[test]
fn a_sipi_alone_starts_a_processor_that_was_loaded_waiting() {
    let Some(engine) = engine("a_sipi_alone_starts_a_processor_that_was_loaded_waiting") else { return };
    let start = [wrmsr(ICR, 1 << 32 | 0x4609), WAIT.to_vec()].concat();
    let mut guest = two(&engine, &start, &[out(0x81, 1), WAIT.to_vec()].concat());
    let io = Io::default();
    guest.run(&io, |_| {
        io.wait_for(&Did::Out(0x81, vec![1]), 1);
        io.stop();
    });
}

#[test]
fn a_sipi_that_waits_is_loaded() {
    let Some(engine) = engine("a_sipi_that_waits_is_loaded") else { return };
    let mut guest = two(&engine, &WAIT, &[out(0x81, 1), WAIT.to_vec()].concat());
    let mut state = guest.vcpus[1].save().unwrap();
    assert_eq!(state.run_state, RunState::WaitForSipi);
    state.events.sipi = Some(9);
    guest.vcpus[1].load(&state).unwrap();
    let io = Io::default();
    guest.run(&io, |_| {
        io.wait_for(&Did::Out(0x81, vec![1]), 1);
        io.stop();
    });
}
