//! Exits: ports, memory-mapped registers, ROM, string instructions, shutdown, errors, doorbells.

use std::os::fd::AsFd;
use std::sync::Arc;

use umbra_engine::{DoorbellAt, Halt};
use vmm_sys_util::eventfd::EventFd;

use super::guest::{DONE, Did, Guest, Io, ROM, engine, out};

#[test]
fn ports_of_every_size() {
    let Some(engine) = engine("ports_of_every_size") else { return };
    #[rustfmt::skip]
    let code = [
        0xb0, 0x42, 0xe6, 0x10,             // mov al, 42h; out 10h, al
        0xe4, 0x11, 0xe6, 0x12,             // in al, 11h; out 12h, al
        0xba, 0x34, 0x12, 0xb8, 0xcd, 0xab, // mov dx, 1234h; mov ax, abcdh
        0xef, 0x66, 0xed, 0x66, 0xef,       // out dx, ax; in eax, dx; out dx, eax
        0xe6, DONE as u8,
    ];
    let mut guest = Guest::real_mode(&engine, &code);
    let io = Io::new(|_| 0x8765_4321);
    guest.run(&io, |_| ());
    let expected = [
        Did::Out(0x10, vec![0x42]),
        Did::In(0x11, 1),
        Did::Out(0x12, vec![0x21]),
        Did::Out(0x1234, vec![0xcd, 0xab]),
        Did::In(0x1234, 4),
        Did::Out(0x1234, vec![0x21, 0x43, 0x65, 0x87]),
        Did::Out(DONE, vec![0x21]),
    ];
    assert_eq!(io.take(), expected);
    // The last OUT was completed before `run` returned.
    assert_eq!(guest.vcpus[0].save().unwrap().rip, super::guest::CODE + code.len() as u64);
    let counted: Vec<_> = guest.vcpus[0].counters().read().collect();
    assert!(counted.contains(&("port_writes", 5)) && counted.contains(&("port_reads", 2)), "{counted:?}");
}

#[test]
fn string_io() {
    let Some(engine) = engine("string_io") else { return };
    #[rustfmt::skip]
    let code = [
        0xfc, 0xbe, 0x00, 0x50, 0xb9, 0x88, 0x13, 0xba, 0x20, 0x00, // cld; si=5000h; cx=5000; dx=20h
        0xf3, 0x6e,                                                 // rep outsb
        0xbf, 0x00, 0x70, 0xb9, 0x2c, 0x01, 0x42,                   // di=7000h; cx=300; inc dx
        0xf3, 0x6d,                                                 // rep insw
        0xe6, DONE as u8,
    ];
    let mut guest = Guest::real_mode(&engine, &code);
    let text: Vec<u8> = (0..5000u32).map(|i| (i * 7 % 251) as u8).collect();
    guest.memory.write(0x5000, &text).unwrap();
    let count = std::sync::atomic::AtomicU64::new(0);
    let io = Io::new(move |did| match did {
        Did::In(..) => count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1,
        _ => 0,
    });
    guest.run(&io, |_| ());
    let log = io.take();
    let sent: Vec<u8> =
        log.iter().filter_map(|d| if let Did::Out(0x20, data) = d { Some(data[0]) } else { None }).collect();
    assert_eq!(sent, text);
    assert_eq!(log.iter().filter(|d| **d == Did::In(0x21, 2)).count(), 300);
    for i in [0, 1, 299] {
        assert_eq!(guest.word(0x7000 + 2 * i) & 0xffff, i + 1);
    }
}

#[test]
fn memory_mapped_registers_and_rom() {
    let Some(engine) = engine("memory_mapped_registers_and_rom") else { return };
    #[rustfmt::skip]
    let code = [
        0xb8, 0x00, 0xa0, 0x8e, 0xd8,       // ds = a000h
        0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, // mov word [10h], 1234h
        0xa1, 0x20, 0x00, 0xe7, 0x30,       // mov ax, [20h]; out 30h, ax
        0xb8, 0x00, 0xc0, 0x8e, 0xd8,       // ds = c000h
        0xa1, 0x00, 0x00, 0xe7, 0x31,       // mov ax, [0]; out 31h, ax
        0xc6, 0x06, 0x00, 0x00, 0x77,       // mov byte [0], 77h
        0xe6, DONE as u8,
    ];
    let mut guest = Guest::real_mode(&engine, &code);
    guest.memory.write(ROM, &[0xfe, 0xca]).unwrap();
    let io = Io::new(|_| 0xbeef);
    guest.run(&io, |_| ());
    let expected = [
        Did::Write(0xa0010, vec![0x34, 0x12]),
        Did::Read(0xa0020, 2),
        Did::Out(0x30, vec![0xef, 0xbe]),
        Did::Out(0x31, vec![0xfe, 0xca]),
        Did::Write(ROM, vec![0x77]),
    ];
    assert_eq!(io.take()[..5], expected);
    assert_eq!(guest.word(ROM) & 0xffff, 0xcafe, "ROM is as it was");
}

#[test]
fn execution_outside_memory_is_an_error_with_registers() {
    let Some(engine) = engine("execution_outside_memory_is_an_error_with_registers") else { return };
    // jmp a000h:0123h, where nothing is.
    let mut guest = Guest::real_mode(&engine, &[0xea, 0x23, 0x01, 0x00, 0xa0]);
    let io = Io::new(|_| u64::MAX);
    let halts = guest.run_to_halts(&io, |_| ());
    let [Halt::Error(error)] = &halts[..] else { panic!("{halts:?}") };
    let text = error.to_string();
    assert!(text.contains("rip 123 cs a000") && text.contains("not in memory"), "{text}");
}

#[test]
fn doorbells_signal_and_come_to_no_device() {
    let Some(engine) = engine("doorbells_signal_and_come_to_no_device") else { return };
    #[rustfmt::skip]
    let code = [
        &out(0x70, 1)[..], &out(0x70, 2), &out(0x71, 5), &out(0x71, 6),
        &[0xb8, 0x00, 0xa0, 0x8e, 0xd8, 0xc7, 0x06, 0x40, 0x00, 0x01, 0x00], // mov word [a0040h], 1
        &out(DONE, 0),
    ].concat();
    let mut guest = Guest::real_mode(&engine, &code);
    let [any, some, mmio] = [(); 3].map(|()| EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let fd = |e: &EventFd| {
        // SAFETY: the descriptor lives as long as the event, which outlives each use below.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(e)) }
    };
    let vm = Arc::clone(&guest.vm);
    let bells = vm.doorbells().unwrap();
    bells.attach(DoorbellAt::Port(0x70), 1, None, fd(&any)).unwrap();
    bells.attach(DoorbellAt::Port(0x71), 1, Some(6), fd(&some)).unwrap();
    bells.attach(DoorbellAt::Mmio(0xa0040), 0, None, fd(&mmio)).unwrap();
    let io = Io::default();
    guest.run(&io, |_| ());
    assert_eq!(io.take(), [Did::Out(0x71, vec![5]), Did::Out(DONE, vec![0])]);
    assert_eq!((any.read().unwrap(), some.read().unwrap(), mmio.read().unwrap()), (2, 1, 1));

    bells.detach(DoorbellAt::Port(0x70), 1, None, fd(&any)).unwrap();
    assert!(bells.detach(DoorbellAt::Port(0x70), 1, None, fd(&any)).is_err());
    let mut state = guest.vcpus[0].save().unwrap();
    state.rip = super::guest::CODE;
    guest.vcpus[0].load(&state).unwrap();
    guest.run(&io, |_| ());
    assert_eq!(io.take()[..2], [Did::Out(0x70, vec![1]), Did::Out(0x70, vec![2])]);
}

#[test]
fn what_is_no_kvm_is_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = crate::KvmEngine::open(null.into()).unwrap_err();
    assert!(error.to_string().contains("not KVM"), "{error}");
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(crate::probe(null.as_fd()), Err(crate::ProbeFailure::Setup(_))));
}
