use std::sync::{Arc, Mutex};

use umbra_device::{Device, DeviceError, Mmio, PortIo};
use umbra_state::Record;

use crate::test_support::{CAPABILITIES, Machine, Scratch, port_read};
use crate::{BarSpace, PciError};

const MEMORY: BarSpace = BarSpace::Memory;
const IO: BarSpace = BarSpace::Io;

/// Gives a scratch function its three bases and enables it.
fn place(machine: &mut Machine, slot: u64, memory: u32, io: u32, wide: u64) {
    machine.write32(slot, 0x10, memory);
    machine.write32(slot, 0x14, io);
    machine.write(slot, 0x18, &wide.to_le_bytes());
    machine.write(slot, 4, &[7, 0]);
}

/// Linux's test for configuration mechanism #1.
#[test]
fn mechanism_1_is_recognised() {
    let mut machine = Machine::new();
    let bus = &mut machine.bus;
    bus.port_write(3, &[1]);
    let saved = port_read(bus, 0, 4);
    bus.port_write(0, &0x8000_0000u32.to_le_bytes());
    assert_eq!(port_read(bus, 0, 4), 0x8000_0000);
    assert_eq!(port_read(bus, 4, 4), 0x0008_1b36, "a host bridge answers");
    bus.port_write(0, &0x8000_0008u32.to_le_bytes());
    assert_eq!(port_read(bus, 4 + 2, 2), 0x0600, "of the host bridge class");
    bus.port_write(0, &saved.to_le_bytes());
    assert_eq!(port_read(bus, 4, 4), u32::MAX, "disabled");
    bus.port_write(0, &u32::MAX.to_le_bytes());
    assert_eq!(port_read(bus, 0, 4), 0x80ff_fffc, "reserved bits read as zero");
    assert_eq!(port_read(bus, 0, 2), 0xffff, "only double words are CONFIG_ADDRESS");
    assert_eq!(port_read(bus, 1, 1), 0xff);
}

#[test]
fn both_mechanisms_see_the_same() {
    let mut machine = Machine::new();
    for slot in 0..32 {
        for register in (0..256).step_by(4) {
            let address: u32 = 0x8000_0000 | (slot << 11) | register;
            machine.bus.port_write(0, &address.to_le_bytes());
            let expected = machine.read(slot.into(), register.into());
            assert_eq!(port_read(&mut machine.bus, 4, 4), expected, "{slot}:{register:#x}");
            for byte in 0..4u16 {
                let part = expected >> (8 * byte) & 0xff;
                assert_eq!(port_read(&mut machine.bus, 4 + byte, 1), part);
            }
        }
    }
    machine.bus.port_write(0, &0x8000_1830u32.to_le_bytes());
    machine.bus.port_write(4, &[0xff; 4]);
    machine.bus.port_write(0, &0x8000_183cu32.to_le_bytes());
    machine.bus.port_write(4, &[0x2a]);
    assert_eq!(machine.read(3, 0x3c), 0x2a);
}

#[test]
fn a_scan_finds_what_is_there() {
    let mut machine = Machine::new();
    let mut found = Vec::new();
    for bus in 0..256u64 {
        for slot in 0..32u64 {
            for function in 0..8u64 {
                let mut data = [0; 4];
                machine.bus.mmio_read(bus << 20 | slot << 15 | function << 12, &mut data);
                if data != [0xff; 4] {
                    found.push((bus, slot, function, u32::from_le_bytes(data)));
                }
            }
        }
    }
    assert_eq!(found, [(0, 0, 0, 0x0008_1b36), (0, 3, 0, 0x1042_1af4), (0, 31, 0, 0x1042_1af4)]);
    assert_eq!(machine.read(0, 0x08), 0x0600_0000);
    assert_eq!(machine.read(0, 0x0c) >> 16 & 0xff, 0, "header type 0, one function");
    assert_eq!(machine.read(3, 0x100), u32::MAX, "no extended space");
    assert_eq!(machine.read(4, 0x100), u32::MAX);

    let mut at = machine.read(3, 0x34) as u8;
    let mut list = Vec::new();
    while at != 0 {
        list.push(at);
        at = (machine.read(3, at.into()) >> 8) as u8;
    }
    assert_eq!(list, CAPABILITIES);
}

/// As Linux does it: decoding off, all ones, read back, restore; then assign and enable.
#[test]
fn base_addresses_are_sized_assigned_and_reached() {
    let mut machine = Machine::new();
    machine.write(3, 4, &[0, 0]);
    let mut masks = Vec::new();
    for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        let before = machine.read(3, register);
        machine.write32(3, register, u32::MAX);
        masks.push(machine.read(3, register));
        machine.write32(3, register, before);
        assert_eq!(machine.read(3, register), before);
    }
    assert_eq!(masks, [0xffff_f000, 0xffe1, 0xffff_000c, 0xffff_ffff, 0, 0, 0]);
    assert!(machine.space.regions().is_empty());

    place(&mut machine, 3, 0xc000_0000, 0x6000, 0x80_0000_0000);
    let all = [(IO, 0x6000, 32), (MEMORY, 0xc000_0000, 0x1000), (MEMORY, 0x80_0000_0000, 0x1_0000)];
    assert_eq!(machine.space.regions(), all);

    let (mut target, offset) = machine.space.at(MEMORY, 0x80_0000_0010).unwrap();
    target.mmio_write(offset, &[0x40]);
    let mut data = [0; 8];
    target.mmio_read(offset, &mut data);
    assert_eq!(data, [0x50; 8]);
    let (mut target, offset) = machine.space.at(IO, 0x601f).unwrap();
    target.port_write(0, &[1]);
    target.port_read(offset as u16, &mut data[..1]);
    assert_eq!(data[0], 0x20);
    assert!(machine.space.at(IO, 0x6020).is_none());

    machine.write(3, 4, &[5, 0]);
    assert_eq!(machine.space.regions(), all[..1], "memory decoding is off");
    machine.write(3, 4, &[6]);
    assert_eq!(machine.space.regions(), all[1..], "only memory decoding is on");
    machine.write32(3, 0x10, 0xd000_0000);
    assert_eq!(machine.space.regions()[0], (MEMORY, 0xd000_0000, 0x1000), "moved while it decodes");
    machine.reset();
    assert!(machine.space.regions().is_empty());
}

#[test]
fn of_overlapping_regions_the_first_stays_until_it_goes() {
    let mut machine = Machine::new();
    place(&mut machine, 31, 0xc000_0000, 0x6000, 0xc000_0000);
    assert_eq!(machine.space.regions().len(), 2, "it overlaps itself");
    place(&mut machine, 3, 0xc000_0000, 0x6000, 0xd000_0000);
    let (mut target, _) = machine.space.at(MEMORY, 0xc000_0000).unwrap();
    target.mmio_write(0, &[0x31]);
    let mut data = [0];
    machine.functions[2].lock().unwrap().bar_read(0, 0, &mut data);
    assert_eq!(data, [0x31], "slot 31 was there first");
    assert_eq!(machine.space.regions().len(), 3);

    machine.write(31, 4, &[0, 0]);
    assert_eq!(
        machine.space.regions(),
        [(IO, 0x6000, 32), (MEMORY, 0xc000_0000, 0x1000), (MEMORY, 0xd000_0000, 0x1_0000)],
        "slot 3 comes when slot 31 goes"
    );
    let (mut target, _) = machine.space.at(MEMORY, 0xc000_0000).unwrap();
    target.mmio_write(0, &[0x03]);
    machine.functions[1].lock().unwrap().bar_read(0, 0, &mut data);
    assert_eq!(data, [0x03]);
}

#[test]
fn where_the_machine_refuses_nothing_is_mapped() {
    let mut machine = Machine::new();
    place(&mut machine, 3, 0x10_0000, 0, u64::MAX);
    assert_eq!(
        machine.space.regions(),
        [(IO, 0, 32), (MEMORY, 0xffff_ffff_ffff_0000, 0x1_0000)],
        "not over guest memory; the last addresses are addresses"
    );
    machine.write32(3, 0x10, 0xe000_0000);
    assert_eq!(machine.space.regions().len(), 3);
}

#[test]
fn odd_accesses_are_split_at_double_words() {
    let mut machine = Machine::new();
    let mut data = [0; 8];
    machine.bus.mmio_read(3 << 15, &mut data);
    assert_eq!(data, [0xf4, 0x1a, 0x42, 0x10, 0, 0, 0x10, 0]);
    machine.bus.mmio_read(3 << 15 | 1, &mut data[..5]);
    assert_eq!(data[..5], [0x1a, 0x42, 0x10, 0, 0]);
    // From the last bytes of slot 3 into extended space, which it has not.
    machine.bus.mmio_read((3 << 15 | 0x100) - 3, &mut data);
    assert_eq!(data, [0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]);
    machine.bus.mmio_read((256 << 20) - 2, &mut data[..2]);
    assert_eq!(data[..2], [0xff; 2]);
    let mut wide = [0; 64];
    machine.bus.mmio_read(3 << 15 | 2, &mut wide);
    assert_eq!(wide[..2], [0x42, 0x10]);
    // A write of 8 bytes that begins in the middle of one base address and ends in the middle of another.
    machine.bus.mmio_write(3 << 15 | 0x12, &[0xff; 8]);
    assert_eq!(machine.read(3, 0x10), 0xffff_0000);
    assert_eq!(machine.read(3, 0x14), 0xffe1);
    assert_eq!(machine.read(3, 0x18), 0x0000_000c);
    // Behind CONFIG_DATA there is nothing.
    machine.bus.port_write(0, &0x8000_1800u32.to_le_bytes());
    assert_eq!(port_read(&mut machine.bus, 6, 4), 0xffff_1042);
    assert_eq!(port_read(&mut machine.bus, 8, 4), u32::MAX);
    assert_eq!(port_read(&mut machine.bus, u16::MAX, 4), u32::MAX);
    machine.bus.port_write(u16::MAX, &[0; 4]);
}

#[test]
fn the_state_moves_with_what_decodes() {
    let mut machine = Machine::new();
    place(&mut machine, 3, 0xc000_0000, 0x6000, 0x80_0000_0000);
    place(&mut machine, 31, 0xc000_1000, 0x6020, 0x80_0001_0000);
    machine.bus.port_write(0, &0x8000_1800u32.to_le_bytes());
    let (mut target, _) = machine.space.at(MEMORY, 0xc000_1000).unwrap();
    target.mmio_write(0, &[0x77]);
    let records = machine.save();

    let mut other = Machine::new();
    place(&mut other, 3, 0xc000_1000, 0x6020, 0x80_0000_0000);
    other.load(&records);
    assert_eq!(other.save(), records);
    assert_eq!(other.space.regions(), machine.space.regions());
    let (mut target, _) = other.space.at(MEMORY, 0xc000_1000).unwrap();
    let mut data = [0];
    target.mmio_read(0, &mut data);
    assert_eq!(data, [0x77]);
    assert_eq!(port_read(&mut other.bus, 4, 4), 0x1042_1af4, "CONFIG_ADDRESS is state");
}

#[test]
fn foreign_states_are_refused() {
    let mut machine = Machine::new();
    let records = machine.save();
    let before = machine.functions[0].lock().unwrap().save().unwrap();
    assert!(machine.functions[0].lock().unwrap().load(&records[1]).is_err(), "of another device");
    for i in 0..records[0].bytes.len() {
        let mut bytes = records[0].bytes.clone();
        bytes[i] ^= 0x80;
        let bad = Record { bytes, ..records[0].clone() };
        let mut bridge = machine.functions[0].lock().unwrap();
        if bridge.load(&bad).is_err() {
            assert_eq!(bridge.save().unwrap(), before, "a refusal changes nothing");
        }
        bridge.load(&before).unwrap();
    }
    machine.bus.port_write(0, &0x8000_0000u32.to_le_bytes());
    let mut bad = machine.bus.save().unwrap();
    *bad.bytes.last_mut().unwrap() |= 0x40;
    assert_eq!(
        machine.bus.load(&bad),
        Err(DeviceError::Impossible { id: "pci".into(), what: "configuration address" })
    );
}

#[test]
fn a_slot_holds_one_function() {
    let mut machine = Machine::new();
    let function = Arc::new(Mutex::new(Scratch::new("another")));
    assert_eq!(machine.bus.insert(3, function.clone()), Err(PciError::Occupied(3)));
    assert_eq!(machine.bus.insert(32, function.clone()), Err(PciError::NoSlot(32)));
    assert_eq!(machine.bus.insert(4, function), Ok(()));
    assert_eq!(machine.read(4, 0), 0x1042_1af4);
}
