//! Hostile use: random accesses, messages, times and saved pages. Nothing may panic, and what must always hold does.
#![allow(unused_must_use, reason = "most writes here have no effect on others")]

use crate::reg::*;
use crate::{LocalApic, Message, Now, PAGE_SIZE};

/// A small generator (xorshift64*), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Small numbers, numbers near the limits, and any.
    fn value(&mut self) -> u64 {
        match self.next() % 4 {
            0 => self.next() % 256,
            1 => u64::MAX - self.next() % 256,
            2 => 1 << (self.next() % 64),
            _ => self.next(),
        }
    }
}

fn check(apic: &LocalApic) {
    if let Some(vector) = apic.pending() {
        assert!(vector >= 16 && apic.is_on());
        assert!(vector >> 4 > apic.cr8());
    }
}

fn step(apic: &mut LocalApic, random: &mut Random, now: Now) {
    let value = random.value();
    match random.next() % 14 {
        0 => {
            apic.mmio_write(value, &value.to_le_bytes()[..(random.next() % 9) as usize], &now);
        }
        1 => apic.mmio_read(value, &mut [0; 16][..(random.next() % 17) as usize], &now),
        2..=4 => {
            apic.write((random.next() % 64 * 16) as u32, value as u32, &now);
        }
        5 => {
            apic.msr_write((0x800 + random.next() % 256) as u32, value, &now);
        }
        6 => {
            apic.msr_write([MSR_APIC_BASE, MSR_TSC_DEADLINE][(value % 2) as usize], random.value(), &now);
        }
        7 => {
            apic.msr_write(MSR_APIC_BASE, DEFAULT_ADDRESS | (value & 3) << 10, &now);
        }
        8 => {
            apic.write(SVR, 0x1ff, &now);
        }
        9 => {
            apic.accept(value as u8, random.next().is_multiple_of(2));
        }
        10 => {
            let vector = apic.acknowledge();
            assert!(vector >= 16 || vector == apic.svr as u8);
        }
        11 => {
            apic.eoi();
        }
        12 => {
            apic.expire(now.ns, now.tsc);
        }
        _ => {
            let mut page = apic.to_page(now.ns);
            for _ in 0..random.next() % 8 {
                page[(random.next() % PAGE_SIZE as u64) as usize] = random.next() as u8;
            }
            let base = if value.is_multiple_of(3) { random.value() } else { apic.base() };
            apic.load_page(&page, base, now.ns);
        }
    }
}

#[test]
fn random_use_breaks_nothing() {
    for seed in 1..40 {
        let mut random = Random(seed);
        let mut apic = LocalApic::new((random.next() % 300) as u32, seed % 2 == 0, 46);
        let mut now = Now { ns: 0, tsc: 0 };
        for _ in 0..20_000 {
            now.ns = if random.next().is_multiple_of(1000) {
                random.value()
            } else {
                now.ns.saturating_add(random.next() % 5000)
            };
            now.tsc = now.ns.wrapping_mul(3);
            step(&mut apic, &mut random, now);
            check(&apic);
        }
    }
}

#[test]
fn any_message_decodes_or_is_none() {
    let mut random = Random(77);
    for _ in 0..100_000 {
        let (a, d) = (random.value(), random.value());
        for message in [
            Message::from_msi(0xfee0_0000 | a & 0xf_ffff, d as u32),
            Message::from_msi(a, d as u32),
            Message::from_icr(d, a & 1 != 0),
        ]
        .into_iter()
        .flatten()
        {
            LocalApic::new(5, false, 46).matches_destination(message.destination, false);
        }
    }
}
