//! Any page of a local APIC, then any use of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_apic::reg::{MSR_APIC_BASE, MSR_TSC_DEADLINE};
use umbra_apic::{Deadline, LocalApic, Lvt, Message, Now};
use umbra_fuzz::Input;

fn check(apic: &LocalApic) {
    if let Some(vector) = apic.pending() {
        assert!(vector >= 16 && apic.is_on() && vector >> 4 > apic.cr8());
    }
}

fn load(apic: &mut LocalApic, input: &mut Input<'_>, now: Now) {
    let mut page = apic.to_page(now.ns);
    for _ in 0..input.below(32) {
        // Registers are 16 bytes apart.
        let register = usize::from(input.u8() % 64) * 16;
        page[register..register + 4].copy_from_slice(&input.u32().to_le_bytes());
    }
    let base = if input.u8() & 1 != 0 { input.value() } else { apic.base() };
    let before = (apic.to_page(now.ns), apic.base());
    if apic.load_page(&page, base, now.ns).is_err() {
        assert!((apic.to_page(now.ns), apic.base()) == before, "a refusal changed something");
    } else if apic.is_on() {
        let (saved, base) = (apic.to_page(now.ns), apic.base());
        assert_eq!(apic.load_page(&saved, base, now.ns), Ok(()), "it refuses what it saved");
        assert!(apic.to_page(now.ns) == saved, "what was loaded is not what is saved");
    }
}

fn expire(apic: &mut LocalApic, now: Now) {
    apic.expire(now.ns, now.tsc);
    match apic.next_deadline() {
        Some(Deadline::Ns(at)) => assert!(at > now.ns || now.ns == u64::MAX, "it would go off without end"),
        Some(Deadline::Tsc(at)) => assert!(at > now.tsc),
        None => {}
    }
}

fn step(apic: &mut LocalApic, input: &mut Input<'_>, now: &mut Now) {
    match input.below(12) {
        0 => load(apic, input, *now),
        1 => {
            let (offset, len) = (input.value(), input.below(65));
            let _ = apic.mmio_write(offset, input.bytes(len.into()), now);
        }
        2 => {
            let (offset, len) = (input.value(), input.below(65));
            apic.mmio_read(offset, &mut [0; 64][..len.into()], now);
        }
        3 => {
            let register = u32::from(input.u8() % 64) * 16;
            let _ = apic.write(register, input.u32(), now);
        }
        4 => {
            apic.read(u32::from(input.u8()) * 16, now);
        }
        5 => {
            let msr = 0x800 + u32::from(input.u8());
            let _ = apic.msr_write(msr, input.value(), now);
            let _ = apic.msr_read(msr, now);
        }
        6 => {
            let msr = if input.u8() & 1 != 0 { MSR_APIC_BASE } else { MSR_TSC_DEADLINE };
            let _ = apic.msr_write(msr, input.value(), now);
        }
        7 => {
            apic.accept(input.u8(), input.u8() & 1 != 0);
        }
        8 => {
            apic.acknowledge();
            apic.eoi();
        }
        9 => {
            let sources = [Lvt::Timer, Lvt::Thermal, Lvt::Perf, Lvt::Lint0, Lvt::Lint1, Lvt::Error];
            apic.raise(sources[usize::from(input.below(6))]);
        }
        10 => {
            if let Some(message) = Message::from_msi(0xfee0_0000 | u64::from(input.u32()), input.u32()) {
                apic.matches_destination(message.destination, input.u8() & 1 != 0);
            }
        }
        _ => {
            now.ns = now.ns.saturating_add(input.value());
            now.tsc = now.tsc.saturating_add(input.value());
            expire(apic, *now);
        }
    }
    check(apic);
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut apic = LocalApic::new(input.u16().into(), input.u8() & 1 != 0, 36 + u32::from(input.below(17)));
    let mut now = Now { ns: 0, tsc: 0 };
    while !input.is_empty() {
        step(&mut apic, &mut input, &mut now);
    }
});
