//! Interrupts from outside: messages, the PIC, NMI.

use std::sync::atomic::{AtomicBool, Ordering};

use umbra_device::Msi;

use super::asm::{Asm, apic};
use super::io::{EXIT, Io};
use super::*;

fn message(id: u32, data: u32) -> Msi {
    Msi { address: 0xfee0_0000 | u64::from(id) << 12, data }
}

/// A machine whose only processor runs `code` with `handlers`, and `with` beside it.
fn beside(code: Asm, handlers: &[(u8, Asm)], with: impl FnOnce(&Rig, &Io)) {
    let (rig, io, done) = (Rig::new(1), Io::default(), AtomicBool::new(false));
    tables(&rig, handlers);
    rig.memory.write(CODE, &code.0).unwrap();
    let mut vcpu = rig.vcpu(0);
    vcpu.load(&flat(0, CODE)).unwrap();
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let halt = vcpu.run(&io);
                assert!(matches!(halt, umbra_engine::Halt::Stopped), "{halt:?}");
            }
        });
        // Also if `with` fails, so that the test ends.
        struct Stop<'a>(&'a AtomicBool, umbra_engine::Kicker);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
                self.1.kick();
            }
        }
        let _stop = Stop(&done, kicker);
        with(&rig, &io);
    });
}

#[test]
fn messages_reach_a_processor_that_is_halted_or_busy() {
    for code in [Asm::new().apic_on().out(0x80).idle(), Asm::new().apic_on().out(0x80).spin()] {
        beside(code, &[(0x40, Asm::counting(COUNTS))], |rig, io| {
            wait_for("the start", || !io.times(0x80).is_empty());
            for n in 1..=2000 {
                rig.vm.send(message(0, 0x40));
                wait_for("the interrupt", || rig.word(COUNTS.into()) == n);
            }
            assert!(io.ended.lock().unwrap().is_empty(), "edge-triggered");
        });
    }
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    let code = Asm::new().apic_on().out(0x80).idle();
    beside(code, &[(0x40, Asm::counting(COUNTS)), (0x41, Asm::counting(COUNTS))], |rig, io| {
        wait_for("the start", || !io.times(0x80).is_empty());
        for n in 0..100 {
            rig.vm.send(message(0, 0x41));
            rig.vm.send(message(0, 0x40 | 1 << 15 | 1 << 14));
            wait_for("the end", || io.ended.lock().unwrap().len() == n + 1);
            wait_for("both", || rig.word(COUNTS.into()) as usize == 2 * n + 2);
        }
        assert!(io.ended.lock().unwrap().iter().all(|v| *v == 0x40));
    });
}

#[test]
fn the_pics_interrupt_passes_lint0() {
    let handler = Asm::new().inc(COUNTS).out(0x20).iret();
    let code = Asm::new().apic_on().apic(apic::LINT0, 0x700).out(0x80).idle();
    beside(code, &[(0x60, handler.clone()), (0x61, handler)], |rig, io| {
        wait_for("the start", || !io.times(0x80).is_empty());
        for n in 1..=200 {
            io.pic.lock().unwrap().push_back(0x60 + (n % 2) as u8);
            rig.vm.set_external_interrupt(true);
            wait_for("the interrupt", || rig.word(COUNTS.into()) == n);
            rig.vm.set_external_interrupt(false);
        }
        // A line that is high while the PIC has nothing is no interrupt, and no hang.
        rig.vm.set_external_interrupt(true);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(rig.word(COUNTS.into()), 200);
        rig.vm.set_external_interrupt(false);
        // A message that asks for the PIC's interrupt.
        io.pic.lock().unwrap().push_back(0x61);
        rig.vm.send(message(0, 7 << 8));
        wait_for("the interrupt", || rig.word(COUNTS.into()) == 201);
    });
}

#[test]
fn a_masked_lint0_holds_the_pic_off_until_it_is_opened() {
    let handler = Asm::new().inc(COUNTS).out(EXIT as u8).iret();
    let wait = Asm::new().mov(1, 200_000).bytes(&[0xe2, 0xfe]);
    let masked = Asm::new().apic_on().apic(apic::LINT0, 0x1_0700);
    let code = masked.out(0x81).sti().bytes(&wait.0).out(0x80).apic(apic::LINT0, 0x700).idle();
    beside(code, &[(0x60, handler)], |rig, io| {
        wait_for("the start", || !io.times(0x81).is_empty());
        io.pic.lock().unwrap().push_back(0x60);
        rig.vm.set_external_interrupt(true);
        wait_for("the handler's end", || !io.times(EXIT).is_empty());
        let order: Vec<_> = io.writes.lock().unwrap().iter().map(|w| w.0).collect();
        assert_eq!(order, [0x81, 0x80, EXIT]);
    });
}

#[test]
fn nmis_come_though_interrupts_are_off() {
    let handler = Asm::new().inc(COUNTS).iret();
    let code = Asm::new().out(0x80).bytes(&[0xfa, 0xf4, 0xeb, 0xfc]);
    beside(code, &[(2, handler)], |rig, io| {
        wait_for("the start", || !io.times(0x80).is_empty());
        for n in 1..=100 {
            rig.vm.send(message(0, 4 << 8));
            wait_for("the NMI", || rig.word(COUNTS.into()) == n);
        }
    });
}

#[test]
fn priorities_decide_and_the_task_priority_holds_back() {
    let note = |port| Asm::new().out(port).apic(apic::EOI, 0).iret();
    // Both are sent to itself while interrupts are off; the task priority lets only the class of 0x51 through at first.
    let code = Asm::new()
        .apic_on()
        .apic(0x80, 0x40)
        .apic(apic::ICR, 0x4_0041)
        .apic(apic::ICR, 0x4_0051)
        .sti()
        .bytes(&[0x90])
        .out(0x82)
        .apic(0x80, 0)
        .bytes(&[0x90])
        .out(EXIT as u8)
        .idle();
    beside(code, &[(0x41, note(0x41)), (0x51, note(0x51))], |_, io| {
        wait_for("the end", || !io.times(EXIT).is_empty());
        let order: Vec<_> = io.writes.lock().unwrap().iter().map(|w| w.0).collect();
        assert_eq!(order, [0x51, 0x82, 0x41, EXIT]);
    });
}

#[test]
fn the_shadow_of_sti_lasts_one_instruction() {
    // STI; HLT is one: the interrupt that waits comes after HLT has begun, and wakes.
    let handler = Asm::counting(COUNTS);
    let mut code = Asm::new().apic_on().mov(3, 0);
    let again = code.0.len();
    code = code.bytes(&[0xfa]).apic(apic::ICR, 0x4_0044).sti().hlt().bytes(&[0x43]);
    // cmp ebx, 1000; jne again
    let back = again as i32 - (code.0.len() as i32 + 12);
    code = code
        .bytes(&[0x81, 0xfb])
        .bytes(&1000u32.to_le_bytes())
        .bytes(&[0x0f, 0x85])
        .bytes(&back.to_le_bytes());
    beside(code.out(EXIT as u8).idle(), &[(0x44, handler)], |rig, io| {
        wait_for("the end", || !io.times(EXIT).is_empty());
        assert_eq!(rig.word(COUNTS.into()), 1000);
    });
}
