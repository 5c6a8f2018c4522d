//! Kicks: from anywhere, at any time, and none is lost.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use umbra_engine::{Halt, Vcpu};

use super::guest::{Did, Guest, Io, WAIT, engine};

/// Runs the processor again and again on another thread while this one kicks; each kick must make one `run` return. The kick falls before, into
/// and after the entry, as the delay before it varies.
fn kick_many(mut vcpu: Box<dyn Vcpu>, rounds: u32, spread: Duration, io: &Io) -> Box<dyn Vcpu> {
    let kicker = vcpu.kicker();
    let (returned, wait) = mpsc::channel();
    std::thread::scope(|threads| {
        let runs = threads.spawn(move || {
            for _ in 0..rounds {
                let halt = vcpu.run(io);
                if returned.send(matches!(halt, Halt::Stopped)).is_err() {
                    break;
                }
            }
            vcpu
        });
        for round in 0..rounds {
            let until = Instant::now() + spread.mul_f64(f64::from(round * 7919 % 1000) / 1000.0);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            kicker.kick();
            assert_eq!(wait.recv_timeout(Duration::from_secs(10)), Ok(true), "kick {round} was lost");
        }
        runs.join().unwrap()
    })
}

const SHORT: Duration = Duration::from_micros(60);

#[test]
fn a_busy_processor_loses_no_kick() {
    let Some(engine) = engine("a_busy_processor_loses_no_kick") else { return };
    let guest = Guest::real_mode(&engine, &[0xeb, 0xfe]); // jmp $
    let vcpu = guest.vcpus.into_iter().next().unwrap();
    kick_many(vcpu, 4000, SHORT, &Io::default());
}

#[test]
fn a_halted_processor_loses_no_kick() {
    let Some(engine) = engine("a_halted_processor_loses_no_kick") else { return };
    let guest = Guest::real_mode(&engine, &WAIT);
    let vcpu = guest.vcpus.into_iter().next().unwrap();
    kick_many(vcpu, 4000, SHORT, &Io::default());
}

#[test]
fn a_processor_that_waits_for_sipi_loses_no_kick() {
    let Some(engine) = engine("a_processor_that_waits_for_sipi_loses_no_kick") else { return };
    let mut guest = Guest::new(&engine, 2);
    kick_many(guest.vcpus.remove(1), 2000, SHORT, &Io::default());
}

#[test]
fn a_kick_before_the_run_counts_once() {
    let Some(engine) = engine("a_kick_before_the_run_counts_once") else { return };
    let mut guest = Guest::real_mode(&engine, &[0xe6, 0x10, 0xeb, 0xfc]); // out 10h, al; jmp
    let vcpu = &mut guest.vcpus[0];
    let kicker = vcpu.kicker();
    kicker.kick();
    kicker.kick();
    let io = Io::default();
    assert!(matches!(vcpu.run(&io), Halt::Stopped));
    assert_eq!(io.take(), [], "it returned at once");
    let outs = AtomicU32::new(0);
    let io = Io::new(move |_| {
        if outs.fetch_add(1, Ordering::Relaxed) == 5 {
            kicker.kick();
        }
        0
    });
    assert!(matches!(vcpu.run(&io), Halt::Stopped));
    assert_eq!(io.take().len(), 6, "a kick from within a device counts at once");
}

/// An access is done once and its result arrives, however often the processor is kicked, and on whichever thread it runs.
#[test]
fn kicks_tear_no_access() {
    let Some(engine) = engine("kicks_tear_no_access") else { return };
    #[rustfmt::skip]
    let code = [
        0xb8, 0x00, 0xa0, 0x8e, 0xd8, 0x31, 0xdb, // ds = a000h; xor bx, bx
        0xe5, 0x20, 0x01, 0xc3,                   // in ax, 20h; add bx, ax
        0x03, 0x1e, 0x10, 0x00,                   // add bx, [10h]
        0x89, 0xd8, 0xe7, 0x21,                   // mov ax, bx; out 21h, ax
        0xeb, 0xf2,                               // jmp to the IN
    ];
    let mut guest = Guest::real_mode(&engine, &code);
    let io = Io::new(|_| 1);
    let mut vcpu = guest.vcpus.remove(0);
    for _ in 0..10 {
        vcpu = kick_many(vcpu, 200, Duration::from_millis(1), &io);
    }
    let log = io.take();
    let sums: Vec<u16> = log
        .iter()
        .filter_map(|d| if let Did::Out(0x21, v) = d { Some(u16::from_le_bytes([v[0], v[1]])) } else { None })
        .collect();
    assert!(sums.len() > 100, "{} of {}", sums.len(), log.len());
    for (i, sum) in sums.iter().enumerate() {
        assert_eq!(*sum, (2 * (i + 1)) as u16, "at {i}");
    }
}
