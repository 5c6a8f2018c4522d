//! A guest that writes to configuration space at random: no panic, and what is mapped is what the registers say. The
//! address space of the tests checks with each call that regions never overlap and are unmapped once.

use umbra_device::{Mmio, PortIo};

use crate::BarRegion;
use crate::test_support::{Machine, Random};

/// Every region that is mapped is decoded by a function, and every decoded one is mapped or has a reason not to be.
fn check(machine: &Machine) {
    let decoded: Vec<BarRegion> = machine
        .functions
        .iter()
        .flat_map(|f| f.lock().unwrap().config().decoded().map(|(_, region)| region).collect::<Vec<_>>())
        .collect();
    let mapped: Vec<BarRegion> = machine.space.0.lock().unwrap().iter().map(|(region, _)| *region).collect();
    for region in &mapped {
        assert!(decoded.contains(region), "{region:x?} is mapped, and nobody decodes it");
    }
    for region in &decoded {
        let refused = region.space == crate::BarSpace::Memory && region.base < 0x8000_0000;
        let shadowed = mapped.iter().any(|m| m.overlaps(region));
        assert!(refused || shadowed, "{region:x?} is decoded, and not mapped without a reason");
    }
}

fn storm(seed: u64, near: bool) {
    let mut random = Random(seed);
    let mut machine = Machine::new();
    for round in 0..60_000 {
        let mut data = [0; 64];
        for chunk in data.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        // Few distinct values make regions meet.
        if near {
            data.iter_mut().for_each(|byte| *byte &= 0x81);
        }
        let slot = [0, 3, 31, 7][random.below(4) as usize];
        let register = if random.below(4) == 0 { random.below(0x1000) } else { random.below(0x60) };
        let offset = if random.below(20) == 0 { random.below(256 << 20) } else { slot << 15 | register };
        let len = if random.below(20) == 0 { 1 + random.below(64) } else { 1 + random.below(8) } as usize;
        match random.below(6) {
            0 => machine.bus.mmio_read(offset, &mut data[..len]),
            1..=3 => machine.bus.mmio_write(offset, &data[..len]),
            4 => {
                let address = 0x8000_0000 | slot << 11 | (register & 0xfc);
                machine.bus.port_write(0, &(address as u32).to_le_bytes());
                machine.bus.port_write(4 + random.below(4) as u16, &data[..[1, 2, 4][len % 3]]);
            }
            _ if random.below(2) == 0 => machine.bus.port_write(random.below(9) as u16, &data[..len.min(4)]),
            _ => machine.bus.port_read(random.below(9) as u16, &mut data[..len.min(4)]),
        }
        check(&machine);
        if round % 1000 == 999 {
            let records = machine.save();
            let mut other = Machine::new();
            other.load(&records);
            assert_eq!(other.save(), records);
            check(&other);
            machine = other;
        }
        if round % 7000 == 6999 {
            machine.reset();
            check(&machine);
            assert!(machine.space.regions().is_empty());
        }
    }
}

#[test]
fn random_configuration() {
    storm(1, false);
}

#[test]
fn random_configuration_that_collides() {
    storm(2, true);
}
