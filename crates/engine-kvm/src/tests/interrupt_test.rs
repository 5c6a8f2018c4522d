//! Messages, event descriptors, ends of interrupts, and the PIC's line.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use umbra_device::Msi;
use umbra_engine::{PIN_COUNT, Vm};
use vmm_sys_util::eventfd::EventFd;

use super::guest::{CODE, DONE, Did, Guest, Io, WAIT, engine, out, real_mode_state, set_apic, write_handler};

const fn msi(vector: u8) -> Msi {
    Msi { address: 0xfee0_0000, data: vector as u32 }
}

/// Level-triggered, asserted.
const LEVEL: u32 = 0xc000;

fn rang(vector: u8) -> Did {
    Did::Out(vector.into(), vec![vector])
}

#[test]
fn messages_wake_a_halted_processor() {
    let Some(engine) = engine("messages_wake_a_halted_processor") else { return };
    let mut guest = Guest::real_mode(&engine, &WAIT);
    write_handler(&guest, 0x40, true);
    write_handler(&guest, 0x41, true);
    let io = Io::default();
    guest.run(&io, |vm| {
        for round in 1..=200 {
            vm.send(msi(0x40));
            io.wait_for(&rang(0x40), round);
            vm.send(msi(0x41));
            io.wait_for(&rang(0x41), round);
        }
        vm.send(Msi { address: 0xfee0_0000 | 9 << 12, data: 0x40 }); // there is no processor 9
        io.stop();
    });
    assert_eq!(io.take().len(), 400);
}

#[test]
fn event_descriptors_raise_messages() {
    let Some(engine) = engine("event_descriptors_raise_messages") else { return };
    let mut guest = Guest::real_mode(&engine, &WAIT);
    write_handler(&guest, 0x50, true);
    write_handler(&guest, 0x51, true);
    let io = Io::default();
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    // SAFETY: the event outlives its use.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    guest.run(&io, |vm| {
        let events = vm.irq_events().unwrap();
        let handle = events.attach(fd, msi(0x50)).unwrap();
        for round in 1..=50 {
            event.write(1).unwrap();
            io.wait_for(&rang(0x50), round);
        }
        events.retarget(handle, msi(0x51)).unwrap();
        event.write(1).unwrap();
        io.wait_for(&rang(0x51), 1);
        events.detach(handle, fd).unwrap();
        assert!(events.detach(handle, fd).is_err());
        assert!(events.retarget(handle, msi(0x50)).is_err());
        event.write(1).unwrap();
        vm.send(msi(0x51));
        io.wait_for(&rang(0x51), 2);
        io.stop();
    });
    assert_eq!(io.take().len(), 52, "nothing came after the end");
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    let Some(engine) = engine("the_end_of_a_level_triggered_interrupt_is_told") else { return };
    let mut guest = Guest::real_mode(&engine, &WAIT);
    write_handler(&guest, 0x60, true);
    write_handler(&guest, 0x61, true);
    let io = Io::default();
    guest.run(&io, |vm| {
        let level = Msi { data: 0x60 | LEVEL, ..msi(0) };
        let mut pins = [None; PIN_COUNT];
        pins[5] = Some(level);
        pins[6] = Some(msi(0x61));
        vm.set_routes(&pins).unwrap();
        vm.send(level);
        io.wait_for(&Did::EndOfInterrupt(0x60), 1);
        vm.send(msi(0x61));
        io.wait_for(&rang(0x61), 1);
        // Masked while it is in service (as for a threaded handler): its end is told all the same.
        pins[5] = None;
        vm.send(level);
        vm.set_routes(&pins).unwrap();
        io.wait_for(&Did::EndOfInterrupt(0x60), 2);
        io.stop();
    });
    let log = io.take();
    assert_eq!(log[..3], [rang(0x60), Did::EndOfInterrupt(0x60), rang(0x61)]);
    assert!(!log.contains(&Did::EndOfInterrupt(0x61)), "edges have no end: {log:?}");
}

/// The machine's side of a PIC: the line, and the vector that waits.
struct Pic {
    vm: Arc<dyn Vm>,
    vector: AtomicU32,
}

impl Pic {
    fn raise(&self, vector: u8) {
        self.vector.store(vector.into(), Ordering::SeqCst);
        self.vm.set_external_interrupt(true);
    }

    fn take(&self) -> u64 {
        self.vm.set_external_interrupt(false);
        self.vector.swap(0, Ordering::SeqCst).into()
    }
}

fn guest_with_pic(engine: &crate::KvmEngine, code: &[u8]) -> (Guest, Arc<Pic>, Io) {
    let mut guest = Guest::real_mode(engine, code);
    for vector in [0x70, 0x71] {
        write_handler(&guest, vector, false);
    }
    let mut state = real_mode_state(&guest.cpuid, 0, CODE);
    set_apic(&mut state, 0x350, 0x700); // LINT0 takes external interrupts
    guest.vcpus[0].load(&state).unwrap();
    let pic = Arc::new(Pic { vm: Arc::clone(&guest.vm), vector: AtomicU32::new(0) });
    let of_io = Arc::clone(&pic);
    let io = Io::new(move |did| match did {
        Did::TookVector => of_io.take(),
        Did::Out(0x10, v) => {
            of_io.raise(v[0]);
            0
        }
        _ => 0,
    });
    (guest, pic, io)
}

#[test]
fn the_pic_interrupts_a_halted_processor() {
    let Some(engine) = engine("the_pic_interrupts_a_halted_processor") else { return };
    let (mut guest, pic, io) = guest_with_pic(&engine, &WAIT);
    guest.run(&io, |_| {
        for round in 1..=200 {
            pic.raise(0x70);
            io.wait_for(&rang(0x70), round);
        }
        io.stop();
    });
    let log = io.take();
    assert_eq!(log.len(), 400, "{log:?}");
    assert_eq!(log[..2], [Did::TookVector, rang(0x70)]);
}

#[test]
fn the_pic_waits_for_the_window() {
    let Some(engine) = engine("the_pic_waits_for_the_window") else { return };
    // cli; the device at 10h raises the line; out 11h; sti; hlt; out 12h; the same again; done
    let once = [&[0xfa][..], &out(0x10, 0x71), &out(0x11, 1), &[0xfb, 0xf4], &out(0x12, 2)].concat();
    let code = [&once[..], &once, &out(DONE, 0)].concat();
    let (mut guest, _pic, io) = guest_with_pic(&engine, &code);
    guest.run(&io, |_| ());
    let once = [
        Did::Out(0x10, vec![0x71]),
        Did::Out(0x11, vec![1]),
        Did::TookVector,
        rang(0x71),
        Did::Out(0x12, vec![2]),
    ];
    assert_eq!(io.take()[..10], [&once[..], &once].concat());
    let windows = guest.vcpus[0].counters().read().find(|c| c.0 == "interrupt_windows").unwrap().1;
    assert!(windows >= 2, "{windows}");
}

#[test]
fn the_pic_interrupts_a_processor_loaded_halted() {
    let Some(engine) = engine("the_pic_interrupts_a_processor_loaded_halted") else { return };
    let (mut guest, pic, io) = guest_with_pic(&engine, &WAIT);
    let mut state = guest.vcpus[0].save().unwrap();
    (state.rip, state.rflags) = (CODE + 2, 0x202);
    state.run_state = umbra_engine::RunState::Halted;
    guest.vcpus[0].load(&state).unwrap();
    pic.raise(0x70);
    guest.run(&io, |_| {
        io.wait_for(&rang(0x70), 1);
        io.stop();
    });
}

/// A kick may fall between taking a vector and its delivery. Whatever the processor is then saved as holds the vector exactly once.
#[test]
fn a_taken_vector_survives_saving() {
    let Some(engine) = engine("a_taken_vector_survives_saving") else { return };
    let (mut guest, pic, _) = guest_with_pic(&engine, &[0xfb, 0xeb, 0xfe]); // sti; jmp $
    let mut waiting = 0;
    for _ in 0..300 {
        let kicker = guest.vcpus[0].kicker();
        let slot: Arc<OnceLock<()>> = Arc::default();
        let (of_io, seen) = (Arc::clone(&pic), Arc::clone(&slot));
        let io = Io::new(move |did| match did {
            Did::TookVector => {
                kicker.kick(); // within the vCPU's own thread: KVM_RUN is entered once more before it is seen
                of_io.take()
            }
            Did::Out(0x70, _) => {
                let _ = seen.set(());
                0
            }
            _ => 0,
        });
        pic.raise(0x70);
        guest.run(&io, |_| io.wait_for(&Did::TookVector, 1));
        let state = guest.vcpus[0].save().unwrap();
        waiting += u32::from(state.events.interrupt == Some(0x70));
        guest.vcpus[0].load(&state).unwrap();
        if slot.get().is_none() {
            guest.run(&io, |_| {
                io.wait_for(&rang(0x70), 1);
                io.stop();
            });
        }
        assert_eq!(io.take().iter().filter(|d| **d == rang(0x70)).count(), 1);
    }
    eprintln!("{waiting} of 300 were saved before their delivery");
}
