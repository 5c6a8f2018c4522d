//! Several processors at once.

use std::thread;

use umbra_x86::reg::gpr::{RAX, RBX, RCX};

use super::guest::{CODE, DATA, Guest, machine};

/// Two processors of one machine, of which the second runs `code` a page further.
fn two() -> [Guest; 2] {
    let shared = machine(2);
    [Guest::of(shared.clone(), 0), Guest::of(shared, 1)]
}

#[test]
fn locked_additions_lose_nothing() {
    // l: lock inc qword [rbx]; lock xadd [rbx+8], rax; dec rcx; jnz l; hlt
    let code =
        [0xf0, 0x48, 0xff, 0x03, 0xf0, 0x48, 0x0f, 0xc1, 0x43, 0x08, 0x48, 0xff, 0xc9, 0x75, 0xf1, 0xf4];
    // The first time all is well aligned; then each of the two words lies across pages.
    for (at, n) in [(DATA, 200_000), (DATA + 0xffc, 5_000), (DATA + 0xff4, 5_000)] {
        let mut guests = two();
        thread::scope(|s| {
            for (id, guest) in (0..).zip(&mut guests) {
                s.spawn(move || {
                    (guest.cpu.gpr[RAX], guest.cpu.gpr[RBX], guest.cpu.gpr[RCX]) = (0, at, n);
                    guest.bytes(CODE + 0x1000 * id, &code);
                    guest.cpu.rip = CODE + 0x1000 * id;
                    guest.go();
                });
            }
        });
        assert_eq!(guests[0].peek(at, 8), 2 * n);
    }
}

#[test]
fn another_processor_changes_the_code() {
    let mut guests = two();
    // f: mov al, 0; ret
    guests[0].bytes(DATA, &[0xb0, 0x00, 0xc3]);
    let [reader, writer] = &mut guests;
    thread::scope(|s| {
        s.spawn(|| {
            reader.cpu.gpr[RBX] = DATA;
            // l: call rbx; cmp al, 100; jne l
            reader.run(&[0xff, 0xd3, 0x3c, 100, 0x75, 0xfa]);
        });
        s.spawn(|| {
            writer.cpu.gpr[RBX] = DATA;
            // l: inc byte [rbx+1]; mov ecx, 20000; m: dec ecx; jnz m; cmp byte [rbx+1], 100; jne l; hlt
            let code = [
                0xfe, 0x43, 0x01, 0xb9, 0x20, 0x4e, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x80, 0x7b, 0x01, 100,
                0x75, 0xee, 0xf4,
            ];
            writer.bytes(CODE + 0x1000, &code);
            writer.cpu.rip = CODE + 0x1000;
            writer.go();
        });
    });
}

#[test]
fn only_one_stops_the_world_at_a_time() {
    let mut guests = two();
    let alone = std::sync::atomic::AtomicU32::new(0);
    thread::scope(|s| {
        for guest in &mut guests {
            s.spawn(|| {
                for n in 0..2_000 {
                    guest.cpu.enter_world();
                    guest.cpu.stop_world();
                    assert_eq!(alone.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    if n % 16 == 0 {
                        // A device is called: nobody may come in meanwhile all the same.
                        guest.cpu.with_io(|io| io.port_write(0, &[0]));
                    }
                    alone.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    guest.cpu.resume_world();
                    assert!(guest.cpu.is_inside());
                    guest.cpu.leave_world();
                }
            });
        }
    });
}
